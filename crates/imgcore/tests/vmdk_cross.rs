//! VMDK against qemu-img and qemu-io: what we write they accept, what they write we read; parents, other producers' ways, damage.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Random, have, ok, run};
use imgcore::formats::{CreateOptions, Repair};
use imgcore::storage::{FileStorage, MemStorage};
use imgcore::{Error, ExtentKind, Formats, Image, ImageMut, LocalGate, NoGate, NoProgress, OpenOptions, Storage, copy};

fn open(path: &Path) -> Arc<dyn Image> {
    Formats::new().open(path, &OpenOptions::new(&LocalGate)).unwrap()
}

fn create(storage: Arc<dyn Storage>, size: u64, options: &[(&str, &str)]) -> Result<Arc<dyn ImageMut>, Error> {
    let options = options.iter().fold(CreateOptions::new(), |all, (name, value)| all.set(*name, *value));
    Formats::new().driver("vmdk").unwrap().create(storage, size, &options)
}

/// Reads all, and checks the extents against it.
fn content(image: &dyn Image) -> Vec<u8> {
    let mut all = vec![0x55; image.size() as usize];
    image.read_at(&mut all, 0).unwrap();
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

/// Parts of it, at any place.
fn check_parts(image: &dyn Image, model: &[u8], random: &mut Random) {
    for _ in 0..20 {
        let offset = random.below(model.len() as u64);
        let len = random.below(200_000).min(model.len() as u64 - offset);
        let mut part = vec![0; len as usize];
        image.read_at(&mut part, offset).unwrap();
        assert!(part == model[offset as usize..(offset + len) as usize]);
    }
}

/// A disk with holes, runs of one byte and noise.
fn disk(size: u64, random: &mut Random) -> Vec<u8> {
    let mut disk = vec![0; size as usize];
    for _ in 0..12 {
        let offset = random.below(size);
        let len = random.below(600_000).min(size - offset);
        let bytes = if random.below(2) == 0 { vec![random.below(256) as u8; len as usize] } else { random.bytes(len) };
        disk[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
    }
    disk
}

fn check_with_qemu(folder: &Path, name: &str, model: &[u8]) {
    assert!(ok("qemu-img", &["check", "-f", "vmdk", name], folder).contains("No errors were found"));
    std::fs::write(folder.join("model.raw"), model).unwrap();
    ok("qemu-img", &["compare", "-q", "-f", "raw", "-F", "vmdk", "model.raw", name], folder);
    let file = Arc::new(FileStorage::open(folder.join(name)).unwrap());
    let report = Formats::new().check(file, &OpenOptions::new(&LocalGate), Repair::None).unwrap();
    assert_eq!(report.corruptions, 0, "{:?}", report.messages);
}

const SUBFORMATS: [&str; 5] = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"];

#[test]
fn what_qemu_writes_we_read() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(1);
    for subformat in SUBFORMATS {
        for case in 0..4 {
            let model = disk((random.below(6 << 20) + 1024) & !511, &mut random);
            std::fs::write(folder.join("a.raw"), &model).unwrap();
            let zeroed = if subformat.ends_with("Flat") || case % 2 == 0 { "off" } else { "on" };
            let options = format!("subformat={subformat},zeroed_grain={zeroed}");
            ok("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", &options, "a.raw", "a.vmdk"], folder);
            let image = open(&folder.join("a.vmdk"));
            assert!(content(&*image) == model, "{options}, case {case}");
            check_parts(&*image, &model, &mut random);
            let storage = Arc::new(FileStorage::open(folder.join("a.vmdk")).unwrap());
            let report = Formats::new().check(storage, &OpenOptions::new(&LocalGate), Repair::None).unwrap();
            assert_eq!(report.corruptions, 0, "{:?}", report.messages);
        }
    }
    // Two extents, and writes over their border; grains that are zeroes by their entry.
    for (subformat, commands) in [
        ("twoGbMaxExtentSparse", ["write -P 3 2047M 2M", "write -P 4 100k 9k"]),
        ("twoGbMaxExtentFlat", ["write -P 3 2047M 2M", "write -P 4 2500M 9k"]),
        ("monolithicSparse", ["write -P 3 10M 1M", "write -z 10M 256k"]),
    ] {
        ok(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "vmdk",
                "-o",
                &format!("subformat={subformat},zeroed_grain={}", if subformat.ends_with("Flat") { "off" } else { "on" }),
                "b.vmdk",
                "3G",
            ],
            folder,
        );
        ok("qemu-io", &["-c", commands[0], "-c", commands[1], "b.vmdk"], folder);
        let image = open(&folder.join("b.vmdk"));
        let mut data = 0;
        image
            .extents(0..image.size(), &mut |e| {
                let mut bytes = vec![0; e.len.min(8 << 20) as usize];
                image.read_at(&mut bytes, e.start).unwrap();
                if e.kind == ExtentKind::Data {
                    data += bytes.iter().filter(|b| **b != 0).count();
                }
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(data, if subformat == "monolithicSparse" { 768 << 10 } else { (2 << 20) + (9 << 10) }, "{subformat}");
    }
}

#[test]
fn a_stream_we_write_is_qemu_s() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(2);
    let formats = Formats::new();
    for case in 0..8 {
        // More than one grain table, sometimes.
        let size = if case % 2 == 0 { random.below(3 << 20) + 512 } else { (70 << 20) + random.below(1 << 20) } & !511;
        let mut model = disk(size.min(5 << 20), &mut random);
        model.resize(size as usize, 0);
        let end = model.len() - 1000.min(size as usize);
        model[end..].fill(0x5a);
        let source =
            formats.open_storage(Arc::new(MemStorage::from_bytes("raw", &model)), &OpenOptions::new(&NoGate).format("raw")).unwrap();
        let options = [("subformat", "streamOptimized"), ("adapter_type", "lsilogic")];
        let target = create(Arc::new(FileStorage::create(folder.join("s.vmdk")).unwrap()), size, &options).unwrap();
        let settings = copy::Options { target_is_zero: true, threads: 1 + case % 3, ..copy::Options::default() };
        copy::copy(&*source, &*target, &settings, &NoProgress).unwrap();
        target.flush().unwrap();
        assert!(content(&*target) == model, "read back while it is open");
        drop(target);
        check_with_qemu(folder, "s.vmdk", &model);
        assert!(ok("qemu-img", &["info", "s.vmdk"], folder).contains("create type: streamOptimized"));
        let image = open(&folder.join("s.vmdk"));
        assert!(content(&*image) == model);
        check_parts(&*image, &model, &mut random);
        // The stream has the same bytes.
        let mut stream = Vec::new();
        let options = options.iter().fold(CreateOptions::new(), |all, (name, value)| all.set(*name, *value));
        formats.driver("vmdk").unwrap().write_stream(&*source, &options, &mut stream, &NoProgress).unwrap();
        assert!(stream == std::fs::read(folder.join("s.vmdk")).unwrap(), "case {case}");
    }
}

#[test]
fn a_stream_is_written_once_in_order() {
    let storage = Arc::new(MemStorage::new("s.vmdk", 0));
    let image = create(storage.clone(), 3 << 20, &[("subformat", "streamOptimized")]).unwrap();
    let mut random = Random(3);
    let mut model = vec![0; 3 << 20];
    // Odd parts of grains, with flushes between them.
    let mut at = 100;
    while at < model.len() - 90_000 {
        let data = random.bytes(random.0 % 90_000);
        image.write_at(&data, at as u64).unwrap();
        model[at..at + data.len()].copy_from_slice(&data);
        at += data.len() + random.below(3) as usize * 30_000;
        if random.below(3) == 0 {
            image.flush().unwrap();
            assert!(content(&*image) == model);
        }
    }
    image.flush().unwrap();
    let again = Formats::new().open_storage(storage.clone(), &OpenOptions::new(&NoGate)).unwrap();
    assert!(content(&*again) == model);
    for error in [image.write_at(&[1], 0).unwrap_err(), image.zero_at(0, 1).unwrap_err()] {
        assert!(error.to_string().contains("written once, in order"), "{error}");
    }
    image.zero_at((3 << 20) - 10, 10).unwrap();
    let error = Formats::new().open_storage_mut(storage, &OpenOptions::new(&NoGate)).err().unwrap().to_string();
    assert!(error.contains("streamOptimized"), "{error}");
}

#[test]
fn a_broken_pipe_is_reported() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let formats = Formats::new();
    let data = Random(9).bytes(20 << 20);
    let source = formats.open_storage(Arc::new(MemStorage::from_bytes("raw", &data)), &OpenOptions::new(&NoGate).format("raw")).unwrap();
    let driver = formats.driver("vmdk").unwrap();
    let options = CreateOptions::new().set("subformat", "streamOptimized");
    let error = driver.write_stream(&*source, &options, &mut Closed, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("broken pipe"), "{error}");
    let error = driver.write_stream(&*source, &CreateOptions::new(), &mut Closed, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("subformat=streamOptimized"), "{error}");
}

#[test]
fn a_sparse_image_is_written_at_any_place() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(4);
    for case in 0..12 {
        let size = (random.below(20 << 20) + 1024) & !511;
        let mut model = vec![0; size as usize];
        let path = folder.join("m.vmdk");
        let zeroed = *random.pick(&["on", "off"]);
        if case % 3 == 0 {
            ok("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &format!("zeroed_grain={zeroed}"), "m.vmdk", &size.to_string()], folder);
            ok("qemu-io", &["-c", "write -P 9 512 512", "m.vmdk"], folder);
            model[512..1024].fill(9);
        } else {
            let file = Arc::new(FileStorage::create(&path).unwrap());
            create(file, size, &[("zeroed_grain", zeroed)]).unwrap().flush().unwrap();
        }
        let before = ok("qemu-img", &["info", "m.vmdk"], folder);
        let image = Formats::new().open_mut(&path, &OpenOptions::new(&LocalGate)).unwrap();
        for _ in 0..20 {
            let offset = random.below(size);
            let len = random.below(300_000).min(size - offset);
            let range = offset as usize..(offset + len) as usize;
            if random.below(6) == 0 {
                image.zero_at(offset, len).unwrap();
                model[range].fill(0);
            } else {
                let data = random.bytes(len);
                image.write_at(&data, offset).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
        assert!(content(&*image) == model, "case {case}");
        image.flush().unwrap();
        drop(image);
        check_with_qemu(folder, "m.vmdk", &model);
        let cid = |info: &str| info.lines().find(|line| line.contains(" cid:")).unwrap().to_owned();
        assert_ne!(cid(&before), cid(&ok("qemu-img", &["info", "m.vmdk"], folder)), "the content has a new id");
        ok("qemu-io", &["-c", "write -P 7 0 1000", "m.vmdk"], folder);
        model[..1000].fill(7);
        let image = open(&path);
        assert!(content(&*image) == model, "case {case}");
        // Both copies of the tables say the same: with the first directory gone, the second serves.
        drop(image);
        let mut file = std::fs::read(&path).unwrap();
        file[56..64].fill(0);
        let image = Formats::new().open_storage(Arc::new(MemStorage::from_bytes("m", &file)), &OpenOptions::new(&NoGate)).unwrap();
        assert!(content(&*image) == model, "case {case}");
    }
}

#[test]
fn descriptor_and_layout_are_those_of_qemu() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options: [&[(&str, &str)]; 4] =
        [&[], &[("adapter_type", "lsilogic"), ("zeroed_grain", "on")], &[("compat6", "on"), ("toolsversion", "5")], &[("hwversion", "7")]];
    for options in options {
        for size in ["1M", "100M", "5G", "1T"] {
            let text: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let text = if text.is_empty() { "compat6=off".into() } else { text.join(",") };
            ok("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &text, "q.vmdk", size], dir.path());
            std::fs::rename(dir.path().join("q.vmdk"), dir.path().join("theirs")).unwrap();
            let ours = Arc::new(FileStorage::create(dir.path().join("q.vmdk")).unwrap());
            create(ours.clone(), imgcore::size::parse(size).unwrap(), options).unwrap().flush().unwrap();
            let theirs = FileStorage::open(dir.path().join("theirs")).unwrap();
            assert_eq!(ours.size().unwrap(), theirs.size().unwrap(), "{size}");
            let all = |storage: &FileStorage| {
                let mut bytes = vec![0; storage.size().unwrap().min(4 << 20) as usize];
                storage.read_at(&mut bytes, 0).unwrap();
                // Without the content's id, which QEMU writes with as few digits as it has.
                let at = bytes.windows(4).position(|w| w == b"CID=").unwrap();
                let end = at + bytes[at..].iter().position(|b| *b == b'\n').unwrap();
                bytes.drain(at..end);
                bytes.splice(20 * 512..20 * 512, vec![0; end - at]);
                bytes.truncate(bytes.iter().rposition(|b| *b != 0).unwrap());
                bytes
            };
            let (ours, theirs) = (all(&ours), all(&theirs));
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{options:?} {size}: {}", String::from_utf8_lossy(&ours[512..1200]));
        }
    }
    for option in ["subformat=x", "adapter_type=x", "compat6=on,hwversion=7"] {
        let (code, text) = run("qemu-img", &["create", "-q", "-f", "vmdk", "-o", option, "q.vmdk", "5M"], dir.path());
        let options: Vec<(&str, &str)> = option.split(',').filter_map(|o| o.split_once('=')).collect();
        let error = create(Arc::new(MemStorage::new("q", 0)), 5 << 20, &options).err().unwrap();
        assert_eq!((code, text.trim_end()), (1, format!("qemu-img: q.vmdk: {error}").as_str()));
    }
}

#[test]
fn parents_are_known_by_their_id() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    ok("qemu-img", &["create", "-q", "-f", "vmdk", "base.vmdk", "5M"], folder);
    ok("qemu-io", &["-c", "write -P 5 0 3M", "base.vmdk"], folder);
    ok("qemu-img", &["create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk", "6M"], folder);
    ok("qemu-io", &["-c", "write -P 6 1M 100k", "top.vmdk"], folder);
    ok("qemu-img", &["convert", "-O", "raw", "top.vmdk", "top.raw"], folder);
    let image = open(&folder.join("top.vmdk"));
    assert!(content(&*image) == std::fs::read(folder.join("top.raw")).unwrap());
    assert_eq!(image.info().backing_file.as_deref(), Some("base.vmdk"));
    drop(image);
    let error = Formats::new().open(folder.join("top.vmdk"), &OpenOptions::new(&NoGate)).err().unwrap();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    ok("qemu-io", &["-c", "write -P 5 0 1k", "base.vmdk"], folder);
    let error = Formats::new().open(folder.join("top.vmdk"), &OpenOptions::new(&LocalGate)).err().unwrap().to_string();
    assert!(error.contains("its CID is"), "{error}");
}

/// Descriptors and extents as other producers write them.
#[test]
fn extents_of_all_kinds_make_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(5);
    let flat = random.bytes(70 << 10);
    std::fs::write(dir.path().join("a b-flat.vmdk"), &flat).unwrap();
    // An ESX sparse extent: grains of one sector, tables of 4096 entries.
    let mut cowd = vec![0; 40 * 512];
    cowd[..4].copy_from_slice(b"COWD");
    for (at, number) in [(4, 1u32), (8, 3), (12, 5000), (16, 1), (20, 4), (24, 2), (28, 40)] {
        cowd[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    // The directory's first entry; sectors 3 and 4 of the disk lie at sectors 38 and 39.
    cowd[4 * 512..4 * 512 + 4].copy_from_slice(&5u32.to_le_bytes());
    cowd[5 * 512 + 12..5 * 512 + 20].copy_from_slice(&[38u32.to_le_bytes(), 39u32.to_le_bytes()].concat());
    cowd[38 * 512..].fill(0xc0);
    std::fs::write(dir.path().join("delta.vmdk"), &cowd).unwrap();
    let text = "# Disk DescriptorFile\r\nversion=3\r\nCID=0000000a\r\nparentCID=ffffffff\r\ncreateType=\"custom\"\r\n\r\n# Extent description\r\n\
                RW 100 FLAT \"a b-flat.vmdk\" 40\r\nRDONLY 28 ZERO\r\nRW 5000 VMFSSPARSE \"delta.vmdk\"\r\nRW 8 VMFS \"a b-flat.vmdk\" 0\r\n";
    let path = dir.path().join("disk.vmdk");
    std::fs::write(&path, text).unwrap();
    let image = open(&path);
    let mut model = flat[40 * 512..140 * 512].to_vec();
    model.extend(vec![0; 28 * 512 + 3 * 512]);
    model.extend(vec![0xc0; 1024]);
    model.extend(vec![0; 4995 * 512]);
    model.extend(&flat[..8 * 512]);
    assert!(content(&*image) == model);
    let parts = image.info().parts;
    assert_eq!(parts.iter().map(|p| p.format.as_str()).collect::<Vec<_>>(), ["FLAT", "ZERO", "VMFSSPARSE", "VMFS"]);
    drop(image);
    for (line, message) in [
        ("NOACCESS 8 FLAT \"a b-flat.vmdk\" 0", "must not be accessed"),
        ("RW 8 SESPARSE \"a b-flat.vmdk\"", "space-efficient"),
        ("RW 8 SPARSE \"delta.vmdk\"", "another kind"),
        ("RW 8 SPARSE \"a b-flat.vmdk\"", "no header"),
        ("RW 8 FLAT \"nowhere.vmdk\" 0", "cannot open"),
        ("RW 8 FLAT \"http://x/y\" 0", "is not a local file"),
        ("RW 9223372036854775807 ZERO", "larger than any disk"),
    ] {
        std::fs::write(&path, format!("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n{line}\n")).unwrap();
        let error = Formats::new().open(&path, &OpenOptions::new(&LocalGate)).err().unwrap().to_string();
        assert!(error.contains(message), "{line}: {error}");
    }
}

#[test]
fn an_empty_disk_is_one() {
    for subformat in ["monolithicSparse", "streamOptimized"] {
        let storage = Arc::new(MemStorage::new("empty.vmdk", 0));
        create(storage.clone(), 0, &[("subformat", subformat)]).unwrap().flush().unwrap();
        let image = Formats::new().open_storage(storage, &OpenOptions::new(&NoGate)).unwrap();
        assert_eq!(image.size(), 0);
    }
}

/// Whatever a few damaged bytes say, opening, reading and checking ends, with a message at worst.
#[test]
fn damage_is_survived() {
    let mut random = Random(6);
    let mut seeds = Vec::new();
    for subformat in ["monolithicSparse", "streamOptimized"] {
        let storage = Arc::new(MemStorage::new("seed.vmdk", 0));
        let image = create(storage.clone(), 40 << 20, &[("subformat", subformat)]).unwrap();
        for at in 0..8 {
            image.write_at(&random.bytes(100_000), at * (5 << 20)).unwrap();
        }
        image.flush().unwrap();
        seeds.push(storage.to_vec());
    }
    for seed in seeds {
        let len = seed.len() as u64;
        for round in 0..300 {
            let storage = Arc::new(MemStorage::from_bytes("damaged.vmdk", &seed));
            for _ in 0..=random.below(3) {
                let at = match random.below(5) {
                    0 => random.below(80),
                    1 => 512 + random.below(300),
                    2 => len - 1024 + random.below(80),
                    3 => 21 * 512 + random.below(64 << 10),
                    _ => random.below(len),
                };
                let bytes: &[u8] = random.pick::<&[u8]>(&[&[0xff; 8], &[0; 4], &[1], &[0x80], &[7, 0, 0, 0]]);
                storage.write_at(bytes, at).unwrap();
            }
            if round % 50 == 0 {
                storage.set_size(random.below(len)).unwrap();
            }
            let options = OpenOptions::new(&NoGate).format("vmdk");
            if let Ok(image) = Formats::new().open_storage(storage.clone(), &options) {
                let end = image.size().min(8 << 20);
                let _ = image.read_at(&mut vec![0; end as usize], 0);
                let mut extents = 0;
                let _ = image.extents(0..image.size(), &mut |_| {
                    extents += 1;
                    if extents > 10_000 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
                });
            }
            let _ = Formats::new().check(storage.clone(), &options, Repair::None);
            if let Ok(image) = Formats::new().open_storage_mut(storage, &options) {
                let _ = image.write_at(&[1; 5000], image.size().saturating_sub(1 << 20) / 2);
                let _ = image.flush();
            }
        }
    }
}

/// A damaged entry that points at the image's own tables has neither data nor zeroes written over them.
#[test]
fn metadata_is_never_written_over() {
    let storage = Arc::new(MemStorage::new("over.vmdk", 0));
    let image = create(storage.clone(), 1 << 20, &[]).unwrap();
    image.write_at(&[7; 512], 0).unwrap();
    image.flush().unwrap();
    // The first entry of the first table of the directory whose sector stands at byte 56.
    let sector = |at: u64| {
        let mut bytes = [0; 4];
        storage.read_at(&mut bytes, at).unwrap();
        u64::from(u32::from_le_bytes(bytes))
    };
    let table = sector(sector(56) * 512) * 512;
    assert!(sector(table) > 0);
    storage.write_at(&((table / 512) as u32).to_le_bytes(), table).unwrap();
    let damaged = storage.to_vec();
    let image = Formats::new().open_storage_mut(storage.clone(), &OpenOptions::new(&NoGate).format("vmdk")).unwrap();
    for outcome in [image.write_at(&[9; 512], 0), image.zero_at(0, 512), image.discard(0, 4096)] {
        assert!(outcome.unwrap_err().to_string().contains("over metadata"));
    }
    image.flush().unwrap();
    assert!(storage.to_vec()[table as usize..] == damaged[table as usize..]);
}
