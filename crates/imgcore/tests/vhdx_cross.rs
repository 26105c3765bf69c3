//! VHDX against qemu-img and qemu-io: what we write they accept, what they write we read; logs, parents and damage.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Random, have, ok, run};
use imgcore::formats::{CreateOptions, Repair};
use imgcore::storage::{FileStorage, MemStorage};
use imgcore::vhdx::Vhdx;
use imgcore::{Error, Formats, Image, ImageMut, LocalGate, NoGate, OpenOptions};

const MIB: usize = 1 << 20;

fn open(path: &Path) -> Arc<dyn Image> {
    Formats::new().open(path, &OpenOptions::new(&LocalGate)).unwrap()
}

fn read_all(image: &dyn Image) -> Vec<u8> {
    let mut all = vec![0x55; image.size() as usize];
    image.read_at(&mut all, 0).unwrap();
    all
}

/// Reads all, and checks the extents against it.
fn content(image: &dyn Image) -> Vec<u8> {
    let all = read_all(image);
    let mut at = 0;
    image
        .extents(0..image.size(), &mut |e| {
            assert_eq!(e.start, at);
            at += e.len;
            assert!(!e.kind.reads_zero() || all[e.start as usize..at as usize].iter().all(|b| *b == 0), "{e:?}");
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(at, image.size());
    all
}

fn scribble(image: &dyn ImageMut, model: &mut [u8], random: &mut Random, rounds: u64) {
    let size = model.len() as u64;
    for _ in 0..rounds {
        let offset = random.below(size);
        let longest = *random.pick(&[700, 5000, 70_000, 3 << 20]);
        let len = random.below(longest).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match random.below(6) {
            0 => {
                image.zero_at(offset, len).unwrap();
                model[range].fill(0);
            }
            _ => {
                let data = random.bytes(len);
                image.write_at(&data, offset).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
        if random.below(10) == 0 {
            image.flush().unwrap();
        }
    }
    image.flush().unwrap();
}

fn check_with_qemu(folder: &Path, name: &str, model: &[u8]) {
    assert!(ok("qemu-img", &["check", name], folder).contains("No errors were found"));
    std::fs::write(folder.join("model.raw"), model).unwrap();
    ok("qemu-img", &["compare", "-q", "-f", "raw", "-F", "vhdx", "model.raw", name], folder);
    let report =
        Formats::new().check(Arc::new(FileStorage::open(folder.join(name)).unwrap()), &OpenOptions::new(&NoGate), Repair::None).unwrap();
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.messages);
}

#[test]
fn what_we_write_qemu_accepts() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(1);
    for case in 0..16 {
        let options = CreateOptions::new()
            .set("block_size", *random.pick(&["0", "1M", "1M", "2M", "16M"]))
            .set("log_size", *random.pick(&["1M", "3M"]))
            .set("block_state_zero", *random.pick(&["on", "off"]))
            .set("subformat", *random.pick(&["dynamic", "dynamic", "fixed"]));
        let size = (random.below(20 << 20) + 1024) & !511;
        let storage = Arc::new(FileStorage::create(dir.path().join("a.vhdx")).unwrap());
        let image = Vhdx::create(storage, size, &options).unwrap();
        let mut model = vec![0; size as usize];
        scribble(&image, &mut model, &mut random, 20);
        assert!(content(&image) == model, "case {case}: {options:?}");
        drop(image);
        check_with_qemu(dir.path(), "a.vhdx", &model);
        // And once more on the image as it was found, then by qemu.
        let image = Formats::new().open_mut(dir.path().join("a.vhdx"), &OpenOptions::new(&LocalGate)).unwrap();
        assert!(content(&*image) == model, "case {case}: {options:?}");
        scribble(&*image, &mut model, &mut random, 8);
        drop(image);
        check_with_qemu(dir.path(), "a.vhdx", &model);
        ok("qemu-io", &["-c", "write -P 9 0 1024", "a.vhdx"], dir.path());
        model[..1024].fill(9);
        check_with_qemu(dir.path(), "a.vhdx", &model);
        assert!(content(&*open(&dir.path().join("a.vhdx"))) == model);
    }
}

#[test]
fn what_qemu_writes_we_read() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(2);
    for case in 0..16 {
        let options = format!(
            "block_size={},block_state_zero={},subformat={},log_size={}",
            random.pick(&["1M", "2M", "8M", "0"]),
            random.pick(&["on", "off"]),
            random.pick(&["dynamic", "dynamic", "fixed"]),
            random.pick(&["1M", "4M"])
        );
        let size = (random.below(24 << 20) + (4 << 20)) & !511;
        ok("qemu-img", &["create", "-q", "-f", "vhdx", "-o", &options, "b.vhdx", &size.to_string()], folder);
        let mut commands = Vec::new();
        for _ in 0..12 {
            let (offset, len) = (random.below(size - (1 << 20)) & !511, (random.below(1 << 20) + 512) & !511);
            commands.push(match random.below(6) {
                0 => format!("write -z {offset} {len}"),
                _ => format!("write -P {} {offset} {len}", random.below(255) + 1),
            });
        }
        let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).chain(["b.vhdx"]).collect();
        ok("qemu-io", &args, folder);
        ok("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", "b.vhdx", "b.raw"], folder);
        let mut model = std::fs::read(folder.join("b.raw")).unwrap();
        assert!(content(&*open(&folder.join("b.vhdx"))) == model, "case {case}: {options} {commands:?}");
        let image = Formats::new().open_mut(folder.join("b.vhdx"), &OpenOptions::new(&LocalGate)).unwrap();
        scribble(&*image, &mut model, &mut random, 8);
        drop(image);
        check_with_qemu(folder, "b.vhdx", &model);
    }
}

#[test]
fn block_sizes_and_messages_are_those_of_qemu() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for size in ["1M", "1G", "1025M", "100G", "101G", "32T", "33T", "64T"] {
        ok("qemu-img", &["create", "-q", "-f", "vhdx", "q.vhdx", size], dir.path());
        let bytes = imgcore::size::parse(size).unwrap();
        let ours = Vhdx::create(Arc::new(MemStorage::new("o", 0)), bytes, &CreateOptions::new()).unwrap();
        assert_eq!(open(&dir.path().join("q.vhdx")).info().cluster_size, Some(ours.block_size()), "{size}");
    }
    for (name, value) in [("block_size", "3M"), ("block_size", "512M"), ("block_size", "1500k"), ("log_size", "1k"), ("subformat", "x")] {
        let (code, text) = run("qemu-img", &["create", "-q", "-f", "vhdx", "-o", &format!("{name}={value}"), "q.vhdx", "5M"], dir.path());
        let ours = Vhdx::create(Arc::new(MemStorage::new("o", 0)), 5 << 20, &CreateOptions::new().set(name, value));
        match ours {
            Err(error) => assert_eq!((code, text.trim_end()), (1, format!("qemu-img: q.vhdx: {error}").as_str())),
            Ok(image) => assert_eq!(open(&dir.path().join("q.vhdx")).info().cluster_size, Some(image.block_size()), "{name}={value}"),
        }
    }
}

/// Sets a field of both headers and their checksums.
fn set_in_headers(file: &mut [u8], at: usize, bytes: &[u8]) {
    for header in [64 << 10, 128 << 10] {
        let header = &mut file[header..header + 4096];
        header[at..at + bytes.len()].copy_from_slice(bytes);
        seal(header);
    }
}

fn seal(structure: &mut [u8]) {
    structure[4..8].fill(0);
    let sum = crc32c::crc32c(structure);
    structure[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// An image whose log, as qemu wrote it, was not applied: the BAT in the file is empty.
fn with_dirty_log(folder: &Path) -> Vec<u8> {
    ok("qemu-img", &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", "d.vhdx", "20M"], folder);
    ok("qemu-io", &["-c", "write -P 7 0 64k", "d.vhdx"], folder);
    let mut file = std::fs::read(folder.join("d.vhdx")).unwrap();
    let log_guid: Vec<u8> = file[MIB + 32..MIB + 48].to_vec();
    assert_eq!(&file[MIB..MIB + 4], b"loge");
    set_in_headers(&mut file, 48, &log_guid);
    file[2 * MIB..2 * MIB + 200].fill(0);
    file
}

#[test]
fn a_log_is_replayed_in_memory_or_in_the_file() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let file = with_dirty_log(folder);
    let path = folder.join("d.vhdx");
    std::fs::write(&path, &file).unwrap();
    let image = open(&path);
    assert!(image.info().dirty);
    let ours = content(&*image);
    assert!(ours[..64 << 10].iter().all(|b| *b == 7) && ours[64 << 10..].iter().all(|b| *b == 0));
    drop(image);
    assert_eq!(std::fs::read(&path).unwrap(), file, "a reader changes nothing");
    let storage = || Arc::new(FileStorage::open_writable(&path).unwrap());
    let error = Formats::new().check(storage(), &OpenOptions::new(&NoGate), Repair::None).unwrap_err().to_string();
    assert!(error.contains("img check -r all"), "{error}");

    // qemu replays its copy, we ours: the same disk.
    std::fs::write(folder.join("q.vhdx"), &file).unwrap();
    ok("qemu-img", &["check", "-q", "-r", "all", "q.vhdx"], folder);
    ok("qemu-img", &["convert", "-O", "raw", "q.vhdx", "q.raw"], folder);
    assert!(ours == std::fs::read(folder.join("q.raw")).unwrap());
    let report = Formats::new().check(storage(), &OpenOptions::new(&NoGate), Repair::All).unwrap();
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    check_with_qemu(folder, "d.vhdx", &ours);

    // A writer replays before it writes.
    std::fs::write(&path, &file).unwrap();
    let image = Formats::new().open_mut(&path, &OpenOptions::new(&LocalGate)).unwrap();
    image.write_at(&[1; 512], 9 << 20).unwrap();
    image.flush().unwrap();
    drop(image);
    let mut model = ours;
    model[9 * MIB..9 * MIB + 512].fill(1);
    check_with_qemu(folder, "d.vhdx", &model);
}

#[test]
fn the_rules_of_the_log_hold() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let good = with_dirty_log(dir.path());
    let first_byte = |file: &[u8]| -> Result<u8, Error> {
        let image = Formats::new().open_storage(Arc::new(MemStorage::from_bytes("log.vhdx", file)), &OpenOptions::new(&NoGate))?;
        let mut byte = [0];
        image.read_at(&mut byte, 0)?;
        Ok(byte[0])
    };
    assert_eq!(first_byte(&good).unwrap(), 7);
    let entry = |file: &mut [u8], change: &dyn Fn(&mut [u8])| {
        let len = u32::from_le_bytes(file[MIB + 8..MIB + 12].try_into().unwrap()) as usize;
        change(&mut file[MIB..MIB + len]);
        seal(&mut file[MIB..MIB + len]);
    };
    // The whole log, as one entry that begins near its end and goes on at its start, is found there, too.
    let mut wrapped = good.clone();
    let len = u32::from_le_bytes(good[MIB + 8..MIB + 12].try_into().unwrap()) as usize;
    assert_eq!(len, 8192);
    entry(&mut wrapped, &|e| e[12..16].copy_from_slice(&(1044480u32).to_le_bytes()));
    wrapped.copy_within(MIB..MIB + 4096, 2 * MIB - 4096);
    wrapped.copy_within(MIB + 4096..MIB + 8192, MIB);
    wrapped[MIB + 4096..2 * MIB - 4096].fill(0);
    assert_eq!(first_byte(&wrapped).unwrap(), 7);
    // Bytes of the sector that are in the descriptor, and those that are in the data.
    for (at, what) in [(64 + 8, "leading"), (4096 + 100, "data"), (64 + 4, "trailing")] {
        let mut torn = good.clone();
        torn[MIB + at] ^= 1;
        assert_eq!(first_byte(&torn).unwrap(), 0, "{what}: an entry with a wrong checksum is none");
    }
    for (change, what) in [
        (&(|e: &mut [u8]| e[32] ^= 1) as &dyn Fn(&mut [u8]), "another log's entry"),
        (&|e| e[16..24].fill(0), "sequence number 0"),
        (&|e| e[64 + 24] ^= 1, "a descriptor of another entry"),
        (&|e| e[4096 + 4] ^= 1, "a data sector of another entry"),
        (&|e| e[64] ^= 1, "an unknown descriptor"),
        (&|e| e[12..16].copy_from_slice(&8192u32.to_le_bytes()), "a tail where no entry is"),
        (&|e| e[24] = 0xff, "more descriptors than sectors"),
    ] {
        let mut file = good.clone();
        entry(&mut file, change);
        assert_eq!(first_byte(&file).unwrap(), 0, "{what}");
    }
    let mut cut = good.clone();
    entry(&mut cut, &|e| e[48..56].copy_from_slice(&(1u64 << 40).to_le_bytes()));
    let error = first_byte(&cut).unwrap_err().to_string();
    assert!(error.contains("it was cut off"), "{error}");
    let mut grown = good.clone();
    entry(&mut grown, &|e| e[56..64].copy_from_slice(&(1u64 << 40).to_le_bytes()));
    let image = Formats::new().open_storage(Arc::new(MemStorage::from_bytes("log.vhdx", &grown)), &OpenOptions::new(&NoGate)).unwrap();
    assert_eq!(image.info().file_size, Some(1 << 40));
    for offset in [64u64 << 10, 1 << 20, 4097, 1 << 50] {
        let mut file = good.clone();
        entry(&mut file, &|e| e[64 + 16..64 + 24].copy_from_slice(&offset.to_le_bytes()));
        let error = first_byte(&file).unwrap_err().to_string();
        assert!(error.contains("where it may not"), "{error}");
    }
    // A second entry, valid and newer, counts; a gap in the numbers ends the sequence before it.
    for (number, expected) in [(2u64, 0), (3, 7)] {
        let mut file = good.clone();
        file.copy_within(MIB..MIB + 4096, MIB + 8192);
        let second = &mut file[MIB + 8192..MIB + 8192 + 4096];
        let first = u64::from_le_bytes(second[16..24].try_into().unwrap());
        second[8..12].copy_from_slice(&4096u32.to_le_bytes());
        second[16..24].copy_from_slice(&(first + number - 1).to_le_bytes());
        second[24..28].copy_from_slice(&1u32.to_le_bytes());
        // Zeroes over the BAT.
        second[64..68].copy_from_slice(b"zero");
        second[72..80].copy_from_slice(&4096u64.to_le_bytes());
        second[88..96].copy_from_slice(&(first + number - 1).to_le_bytes());
        seal(second);
        if number == 3 {
            // With a tail of its own it would be a newer sequence; its tail is the other's.
            assert_eq!(u32::from_le_bytes(second[12..16].try_into().unwrap()), 0);
        }
        assert_eq!(first_byte(&file).unwrap(), expected, "second entry's number {number}");
    }
}

/// A differencing disk of 4 MiB over `parent`, built after the specification: block 0 partly here, block 1 the parent's, block 2
/// zeroes, block 3 here. The regions lie as Hyper-V places them.
fn differencing(parent: &str, linkage: &str) -> Vec<u8> {
    let mut file = vec![0; 8 * MIB];
    file[..8].copy_from_slice(b"vhdxfile");
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let printed = |text: &str| text.parse::<imgcore::partition::Guid>().unwrap().0;
    for (place, sequence) in [(64 << 10, 4u64), (128 << 10, 5)] {
        put(&mut file, place, b"head");
        put(&mut file, place + 8, &sequence.to_le_bytes());
        put(&mut file, place + 66, &1u16.to_le_bytes());
        put(&mut file, place + 68, &(1u32 << 20).to_le_bytes());
        put(&mut file, place + 72, &(1u64 << 20).to_le_bytes());
        seal(&mut file[place..place + 4096]);
    }
    // The first region table is damaged: the second counts.
    for place in [192 << 10, 256 << 10] {
        put(&mut file, place, b"regi");
        put(&mut file, place + 8, &2u32.to_le_bytes());
        for (at, guid, offset) in [(16, "8b7ca206-4790-4b9a-b8fe-575f050f886e", 2u64), (48, "2dc27766-f623-4200-9d64-115e9bfd4a08", 3)] {
            put(&mut file, place + at, &printed(guid));
            put(&mut file, place + at + 16, &(offset << 20).to_le_bytes());
            put(&mut file, place + at + 24, &(1u32 << 20).to_le_bytes());
            put(&mut file, place + at + 28, &1u32.to_le_bytes());
        }
        seal(&mut file[place..place + (64 << 10)]);
    }
    file[(192 << 10) + 20] ^= 1;
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut locator = [&printed("b04aefb7-d19e-4a81-b789-25b8e9445913")[..], &[0, 0], &2u16.to_le_bytes()].concat();
    let texts = [utf16("parent_linkage"), utf16(linkage), utf16("relative_path"), utf16(parent)];
    let mut at = 20 + 24;
    let places: Vec<u32> = texts
        .iter()
        .map(|t| {
            at += t.len();
            (at - t.len()) as u32
        })
        .collect();
    for entry in [0, 2] {
        for number in [places[entry], places[entry + 1]] {
            locator.extend(number.to_le_bytes());
        }
        for text in [&texts[entry], &texts[entry + 1]] {
            locator.extend((text.len() as u16).to_le_bytes());
        }
    }
    locator.extend(texts.concat());
    let items: [(&str, Vec<u8>); 4] = [
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", [(1u32 << 20).to_le_bytes(), 2u32.to_le_bytes()].concat()),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", (4u64 << 20).to_le_bytes().into()),
        ("8141bf1d-a96f-4709-ba47-f233a8faab5f", 512u32.to_le_bytes().into()),
        ("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", locator),
    ];
    put(&mut file, 2 * MIB, b"metadata");
    put(&mut file, 2 * MIB + 10, &4u16.to_le_bytes());
    let mut value = 64 << 10;
    for (index, (guid, bytes)) in items.iter().enumerate() {
        let entry = 2 * MIB + 32 + index * 32;
        put(&mut file, entry, &printed(guid));
        put(&mut file, entry + 16, &(value as u32).to_le_bytes());
        put(&mut file, entry + 20, &(bytes.len() as u32).to_le_bytes());
        put(&mut file, entry + 24, &4u32.to_le_bytes());
        put(&mut file, 2 * MIB + value, bytes);
        value += 4096;
    }
    // The sector bitmap's entry stands behind 4096 payload entries.
    for (index, entry) in [(0u64, (4u64 << 20) | 7), (2, 2), (3, (5 << 20) | 6), (4096, (6 << 20) | 6)] {
        put(&mut file, 3 * MIB + index as usize * 8, &entry.to_le_bytes());
    }
    file[4 * MIB..6 * MIB].fill(0xdd);
    // Sectors 1, 2 and 9 of the disk are here.
    file[6 * MIB] = 0b110;
    file[6 * MIB + 1] = 0b10;
    file
}

#[test]
fn a_differencing_disk_shows_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let parent =
        Vhdx::create(Arc::new(FileStorage::create(dir.path().join("base.vhdx")).unwrap()), 4 << 20, &CreateOptions::new()).unwrap();
    let mut random = Random(3);
    let mut model = random.bytes(4 << 20);
    parent.write_at(&model, 0).unwrap();
    parent.flush().unwrap();
    drop(parent);
    let base = std::fs::read(dir.path().join("base.vhdx")).unwrap();
    let linkage = imgcore::partition::Guid(base[(64 << 10) + 32..(64 << 10) + 48].try_into().unwrap());
    let path = dir.path().join("child.vhdx");
    std::fs::write(&path, differencing(".\\base.vhdx", &format!("{{{linkage}}}"))).unwrap();
    for sector in [1, 2, 9] {
        model[sector * 512..sector * 512 + 512].fill(0xdd);
    }
    model[2 * MIB..3 * MIB].fill(0);
    model[3 * MIB..].fill(0xdd);
    let image = open(&path);
    assert!(content(&*image) == model);
    assert_eq!(image.info().backing_file.as_deref(), Some("./base.vhdx"));
    let mut part = [0; 700];
    image.read_at(&mut part, 4096 + 300).unwrap();
    assert!(part == model[4096 + 300..4096 + 1000]);
    drop(image);
    let options = OpenOptions::new(&LocalGate);
    let error = Formats::new().open_mut(&path, &options).err().unwrap().to_string();
    assert!(error.contains("differencing"), "{error}");
    // Another parent of that name is noticed, and the gate is asked.
    std::fs::write(&path, differencing(".\\base.vhdx", "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}")).unwrap();
    let error = Formats::new().open(&path, &options).err().unwrap().to_string();
    assert!(error.contains("data write GUID"), "{error}");
    assert!(matches!(Formats::new().open(&path, &OpenOptions::new(&NoGate)), Err(Error::Refused { .. })));
}

/// Whatever a few damaged bytes say, opening, reading and checking ends, with a message at worst.
#[test]
fn damage_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let image = Vhdx::create(Arc::new(MemStorage::new("m", 0)), 40 << 20, &CreateOptions::new().set("block_size", "1M")).unwrap();
    drop(image);
    let mut seeds = vec![differencing("x", "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}")];
    if have("qemu-img") && have("qemu-io") {
        seeds.push(with_dirty_log(dir.path()));
    }
    let mut random = Random(4);
    for seed in seeds {
        for _ in 0..120 {
            let storage = MemStorage::from_bytes("damaged.vhdx", &seed);
            for _ in 0..=random.below(3) {
                let at = match random.below(6) {
                    0 => (64 << 10) + random.below(80),
                    1 => (192 << 10) + random.below(100),
                    2 => (256 << 10) + random.below(100),
                    3 => (1 << 20) + random.below(9000),
                    4 => (2 << 20) + (random.below(2) << 16) + random.below(300),
                    _ => (3 << 20) + (random.below(2) << 16) + random.below(300),
                };
                let bytes: &[u8] = random.pick::<&[u8]>(&[&[0xff; 8], &[0; 4], &[1], &[0x80], &[7]]);
                imgcore::Storage::write_at(&storage, bytes, at).unwrap();
            }
            // Half of them with checksums that fit.
            if random.below(2) == 0 {
                for (at, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10), (1 << 20, 8192)] {
                    let mut bytes = vec![0; len];
                    imgcore::Storage::read_at(&storage, &mut bytes, at).unwrap();
                    seal(&mut bytes);
                    imgcore::Storage::write_at(&storage, &bytes, at).unwrap();
                }
            }
            let storage = Arc::new(storage);
            let options = OpenOptions::new(&NoGate).format("vhdx").without_backing();
            if let Ok(image) = Formats::new().open_storage(storage.clone(), &options) {
                let end = image.size().min(8 << 20);
                let _ = image.read_at(&mut vec![0; end as usize], 0);
                let mut extents = 0;
                let _ = image.extents(0..image.size(), &mut |_| {
                    extents += 1;
                    if extents > 10_000 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
                });
            }
            let _ = Formats::new().check(storage.clone(), &options, Repair::All);
            if let Ok(image) = Formats::new().open_storage_mut(storage, &options) {
                let _ = image.write_at(&[1; 5000], image.size().saturating_sub(1 << 20) / 2);
                let _ = image.flush();
            }
        }
    }
}
