//! VHDs of other producers, built here byte by byte: footers that are short, missing or damaged, blktap's habits, parents
//! under all their names; and damage.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::images::{MemoryGate, change, content};
use common::vhd::{seal, set_in_footer, set_in_footers};
use common::{Random, have, ok};
use imgcore::formats::{CreateOptions, Repair};
use imgcore::storage::{FileStorage, MemStorage};
use imgcore::{Error, Formats, Image, LocalGate, NoGate, OpenOptions, Preallocation, Storage, TreeGate};

/// Footers and headers of a disk with one block of 4 KiB, which follows them with gaps, and the footer at the end.
fn image(name: &str) -> Arc<MemStorage> {
    let storage = Arc::new(MemStorage::new(name, 0));
    let options = CreateOptions::new().set("block_size", "4k");
    let image = Formats::new().driver("vpc").unwrap().create(storage.clone(), 8192, &options).unwrap();
    image.write_at(&[7; 4096], 4096).unwrap();
    image.flush().unwrap();
    storage
}

fn expected() -> Vec<u8> {
    [[0; 4096], [7; 4096]].concat()
}

fn open(storage: &Arc<MemStorage>) -> imgcore::Result<Arc<dyn Image>> {
    Formats::new().open_storage(storage.clone(), &OpenOptions::new(&NoGate))
}

fn error(storage: &Arc<MemStorage>) -> String {
    open(storage).err().expect("an error").to_string()
}

fn check(storage: &Arc<MemStorage>, repair: Repair) -> (u64, u64, String) {
    let report = Formats::new().check(storage.clone(), &OpenOptions::new(&NoGate), repair).unwrap();
    (report.corruptions, report.leaks, report.messages.join("\n"))
}

#[test]
fn one_footer_is_enough_and_check_tells() {
    let whole = image("a.vhd");
    let end = whole.size().unwrap() - 512;
    assert_eq!(check(&whole, Repair::None), (0, 0, String::new()));
    type Damage = fn(&MemStorage, u64);
    let cases: [(&str, Damage); 6] = [
        ("footer at the end of the file is missing", |s, end| s.set_size(end).unwrap()),
        ("footer at the end of the file is missing", |s, end| s.set_size(end + (4 << 20)).unwrap()),
        ("footer at the end of the file is damaged: checksum", |s, end| s.write_at(&[1], end + 100).unwrap()),
        ("copy of the footer at the start of the file is damaged: checksum", |s, _| s.write_at(&[1], 100).unwrap()),
        ("copy of the footer at the start of the file is missing", |s, _| s.zero_at(0, 512).unwrap()),
        ("footer at the end of the file differs", |s, end| set_in_footer(s, end, 85, &[1])),
    ];
    for (message, damage) in cases {
        let storage = Arc::new(whole.snapshot());
        damage(&storage, end);
        assert_eq!(content(&*open(&storage).unwrap()), expected(), "{message}");
        let (corruptions, leaks, found) = check(&storage, Repair::None);
        assert_eq!((corruptions, leaks), (0, 1), "{found}");
        assert!(found.contains(message), "{found}");
        check(&storage, Repair::Leaks);
        assert_eq!(check(&storage, Repair::None), (0, 0, String::new()), "{message}");
        assert_eq!(content(&*open(&storage).unwrap()), expected());
    }
    // Both are gone, but for the cookie.
    whole.write_at(&[1], 100).unwrap();
    whole.write_at(&[1], end + 100).unwrap();
    assert!(error(&whole).contains("a.vhd: corrupt vpc at offset 0x0: the copy of the footer has checksum"), "{}", error(&whole));
}

#[test]
fn footers_of_511_bytes() {
    let storage = image("old.vhd");
    storage.set_size(storage.size().unwrap() - 1).unwrap();
    assert_eq!(check(&storage, Repair::None), (0, 0, String::new()));
    storage.zero_at(0, 512).unwrap();
    assert_eq!(content(&*open(&storage).unwrap()), expected());

    let fixed = Arc::new(MemStorage::new("fixed.vhd", 0));
    let options = CreateOptions::new().set("subformat", "fixed");
    Formats::new().driver("vpc").unwrap().create(fixed.clone(), 8192, &options).unwrap().write_at(&expected(), 0).unwrap();
    fixed.set_size(8192 + 511).unwrap();
    assert_eq!(content(&*open(&fixed).unwrap()), expected());
    assert_eq!(open(&fixed).unwrap().info().format, "vpc");
}

/// A guest may write what it likes to its disk: a footer there does not make another disk of it.
#[test]
fn what_guests_write_is_no_footer() {
    let fixed = Arc::new(MemStorage::new("fixed.vhd", 0));
    let options = CreateOptions::new().set("subformat", "fixed");
    let disk = Formats::new().driver("vpc").unwrap().create(fixed.clone(), 64 << 10, &options).unwrap();
    let nested = image("nested.vhd").to_vec();
    disk.write_at(&nested, 0).unwrap();
    assert_eq!(open(&fixed).unwrap().size(), 64 << 10);
    // A raw disk with a differencing disk's footer at its end stays raw.
    let mut bytes = vec![0; 64 << 10];
    bytes.extend(&nested[..512]);
    bytes[(64 << 10) + 60..][..4].copy_from_slice(&4u32.to_be_bytes());
    seal(&mut bytes[64 << 10..], 64);
    assert_eq!(open(&Arc::new(MemStorage::from_bytes("raw", &bytes))).unwrap().info().format, "raw");
}

#[test]
fn blktap_volumes() {
    // In a volume that is larger than the file, full of what lay there before; sectors without their bit are zeroes.
    let storage = image("VHD-1");
    let file = storage.to_vec();
    set_in_footers(&*storage, 28, b"tap\0");
    set_in_footers(&*storage, 85, &[1]);
    let block = file.len() as u64 - 512 - 4096 - 512;
    storage.write_at(&[0b1100_0000], block).unwrap();
    storage.set_size(4 << 20).unwrap();
    storage.write_at(&vec![0xee; (4 << 20) - file.len()], file.len() as u64).unwrap();
    let mut model = expected();
    model[4096 + 1024..].fill(0);
    let disk = open(&storage).unwrap();
    assert_eq!(content(&*disk), model);
    assert_eq!(disk.info().details, [("hidden".to_owned(), "true".to_owned())]);
    // Writing keeps to the same rules.
    let disk = Formats::new().open_storage_mut(storage.clone(), &OpenOptions::new(&NoGate)).unwrap();
    let mut random = Random(1);
    for _ in 0..20 {
        change(&*disk, &mut model, &mut random, 3000);
    }
    disk.flush().unwrap();
    drop(disk);
    assert_eq!(content(&*open(&storage).unwrap()), model);
}

#[test]
fn blktap_metadata() {
    let tap = |marker: u8| {
        let storage = image("VHD-2");
        set_in_footers(&*storage, 28, b"tap\0");
        // The BAT has one sector; the batmap's header would be the second.
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"tdbatmap");
        header[8..16].copy_from_slice(&2560u64.to_be_bytes());
        header[16..20].copy_from_slice(&1u32.to_be_bytes());
        header[29] = marker;
        storage.write_at(&header, 2048).unwrap();
        storage
    };
    // Blocks may not lie over it, and this one does not.
    let bat_entry = |storage: &MemStorage| {
        let mut entry = [0; 4];
        storage.read_at(&mut entry, 1536 + 4).unwrap();
        u64::from(u32::from_be_bytes(entry)) * 512
    };
    let plain = tap(0);
    assert!(bat_entry(&plain) >= 3072, "{:#x}", bat_entry(&plain));
    assert_eq!(content(&*open(&plain).unwrap()), expected());
    assert!(matches!(open(&tap(1)), Err(Error::Unsupported { what, .. }) if what.contains("encryption")));
    for offset in [0, plain.size().unwrap() - 512] {
        let poisoned = image("VHD-3");
        poisoned.write_at(b"v_poison", offset).unwrap();
        assert!(error(&poisoned).contains("v_poison"), "{}", error(&poisoned));
    }
}

/// A parent locator: its platform, its bytes, whether the space kept for it is given in sectors.
type Locator = (&'static [u8; 4], Vec<u8>, bool);

/// A differencing disk of 8 KiB on the one of `image`, with `locators` and a name in its header. Its first sector is its own.
fn child(parent: &MemStorage, locators: &[Locator], name: &str) -> Vec<u8> {
    let parent = parent.to_vec();
    let mut file = vec![0; 16 << 10];
    file[..512].copy_from_slice(&parent[..512]);
    file[60..64].copy_from_slice(&4u32.to_be_bytes());
    file[68..84].fill(9);
    seal(&mut file[..512], 64);
    file[512..1536].copy_from_slice(&parent[512..1536]);
    file[552..568].copy_from_slice(&parent[68..84]);
    for (at, unit) in name.encode_utf16().enumerate() {
        file[576 + 2 * at..][..2].copy_from_slice(&unit.to_be_bytes());
    }
    for (at, (platform, bytes, in_sectors)) in locators.iter().enumerate() {
        let entry = &mut file[512 + 576 + 24 * at..][..24];
        let offset = 4096 + 512 * at;
        entry[..4].copy_from_slice(&platform[..]);
        entry[4..8].copy_from_slice(&(if *in_sectors { 1u32 } else { 512 }).to_be_bytes());
        entry[8..12].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
        entry[16..].copy_from_slice(&(offset as u64).to_be_bytes());
        file[offset..][..bytes.len()].copy_from_slice(bytes);
    }
    seal(&mut file[512..1536], 36);
    file[1536..2048].fill(0xff);
    file[1536..1540].copy_from_slice(&16u32.to_be_bytes());
    file[16 * 512] = 0x80;
    file[17 * 512..][..512].fill(5);
    let footer = file[..512].to_vec();
    file.extend(footer);
    file
}

fn utf16(path: &str) -> Vec<u8> {
    path.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn parents_are_found_by_all_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("own");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let parent = image("parent");
    for place in ["own/näxt.vhd", "own/sub/in sub.vhd", "outside.vhd"] {
        std::fs::write(dir.path().join(place), parent.to_vec()).unwrap();
    }
    // The same name, another disk: looked at and left.
    let other = image("other");
    set_in_footers(&*other, 68, &[1; 16]);
    std::fs::write(folder.join("other.vhd"), other.to_vec()).unwrap();
    let path = folder.join("child.vhd");
    let mut model = expected();
    model[..512].fill(5);
    let outside = utf16(&format!("C:{}", dir.path().join("outside.vhd").display()).replace('/', "\\"));
    let gone: Locator = (b"W2ru", utf16(".\\gone.vhd"), false);
    let found: [(&str, Vec<Locator>, &str); 8] = [
        ("sub/in sub.vhd", vec![(b"W2ru", utf16(".\\sub\\in sub.vhd"), false)], ""),
        ("sub/in sub.vhd", vec![(b"W2ru", utf16("sub\\in sub.vhd"), true)], "x.vhd"),
        ("sub/in sub.vhd", vec![(b"MacX", b"file://./sub/in%20sub.vhd".to_vec(), false)], ""),
        ("näxt.vhd", vec![(b"W2ku", utf16("D:\\elsewhere\\näxt.vhd"), false)], ""),
        ("näxt.vhd", vec![], "näxt.vhd"),
        ("näxt.vhd", vec![gone.clone(), (b"W2ku", utf16("E:\\other.vhd"), false)], "C:\\dir\\näxt.vhd"),
        ("../outside.vhd", vec![(b"W2ru", utf16("..\\outside.vhd"), false)], ""),
        ("outside.vhd", vec![gone, (b"W2ku", outside, false)], ""),
    ];
    for (name, locators, header_name) in found {
        std::fs::write(&path, child(&parent, &locators, header_name)).unwrap();
        let disk = Formats::new().open(&path, &OpenOptions::new(&LocalGate)).unwrap();
        assert_eq!(content(&*disk), model, "{name}");
        assert!(disk.info().backing_file.unwrap().ends_with(name), "{name}");
        assert_eq!(disk.info().backing_format.as_deref(), Some("vpc"));
        // What lies outside the folder needs the user's word.
        let tree = TreeGate::new(&path, []);
        let result = Formats::new().open(&path, &OpenOptions::new(&tree));
        assert_eq!(matches!(result, Err(Error::Refused { .. })), name.contains("outside"), "{name}");
        assert!(matches!(Formats::new().open(&path, &OpenOptions::new(&NoGate)), Err(Error::Refused { .. })));
        assert!(Formats::new().open(&path, &OpenOptions::new(&NoGate).without_backing()).is_ok());
    }
    let open = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        Formats::new().open(&path, &OpenOptions::new(&LocalGate))
    };
    let wrong = open(child(&parent, &[(b"W2ru", utf16(".\\other.vhd"), false)], "")).err().unwrap().to_string();
    assert!(wrong.contains("its parent 'other.vhd' is another disk: it has the unique id 01010101-0101-"), "{wrong}");
    let missing = open(child(&parent, &[(b"W2ru", utf16(".\\none.vhd"), false)], "")).err().unwrap().to_string();
    assert!(missing.contains("none.vhd: cannot open"), "{missing}");
    assert!(open(child(&parent, &[], "")).err().unwrap().to_string().contains("does not name its parent"));
    // A child that names itself.
    let mut itself = child(&parent, &[], "child.vhd");
    itself.copy_within(68..84, 552);
    seal(&mut itself[512..1536], 36);
    assert!(open(itself).err().unwrap().to_string().contains("comes back to this file"));
}

#[test]
fn a_raw_parent_has_no_id() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base.img"), [3; 6000]).unwrap();
    let mut file = child(&image("parent"), &[], "base.img");
    file[552..568].fill(0);
    seal(&mut file[512..1536], 36);
    std::fs::write(dir.path().join("child.vhd"), file).unwrap();
    let disk = Formats::new().open(dir.path().join("child.vhd"), &OpenOptions::new(&LocalGate)).unwrap();
    let mut model = vec![0; 8192];
    model[..6000].fill(3);
    model[..512].fill(5);
    assert_eq!(content(&*disk), model);
    assert_eq!(disk.info().backing_format.as_deref(), Some("raw"));
}

/// A chain as XenServer's, written at every level, read by qemu-img once it is one disk.
#[test]
fn chains_are_deep() {
    let dir = tempfile::tempdir().unwrap();
    let formats = Formats::new();
    let driver = formats.driver("vpc").unwrap();
    let storage = |name: &str| Arc::new(FileStorage::create(dir.path().join(name)).unwrap());
    let size = 300 << 10;
    let mut random = Random(4);
    let mut model = random.bytes(200 << 10);
    std::fs::write(dir.path().join("0.vhd"), &model).unwrap();
    model.resize(size as usize, 0);
    for depth in 1..=30 {
        let options = CreateOptions::new()
            .set("backing_file", format!("{}.vhd", depth - 1))
            .set("backing_fmt", if depth == 1 { "raw" } else { "vpc" })
            .set("block_size", *random.pick(&["4k", "64k", "2M"]));
        let disk = driver.create(storage(&format!("{depth}.vhd")), size, &options).unwrap();
        for _ in 0..4 {
            change(&*disk, &mut model, &mut random, 9000);
        }
        disk.flush().unwrap();
    }
    let top = dir.path().join("30.vhd");
    let disk = formats.open(&top, &OpenOptions::new(&LocalGate)).unwrap();
    assert!(content(&*disk) == model);
    let mut depths = 0;
    let mut below = disk.backing();
    while let Some(image) = below {
        depths += 1;
        below = image.backing();
    }
    assert_eq!(depths, 30);
    drop(disk);
    // Larger: what the ones below have behind the old end does not show.
    let mut edit = formats.open_edit(Arc::new(FileStorage::open_writable(&top).unwrap()), &OpenOptions::new(&LocalGate)).unwrap();
    edit.resize(100 << 10, Preallocation::Off).unwrap();
    edit.resize(size, Preallocation::Off).unwrap();
    model[100 << 10..].fill(0);
    assert!(content(&*edit) == model);
    // On another parent, then on none: then it is a dynamic disk, which qemu-img reads.
    std::fs::write(dir.path().join("flat.raw"), &model).unwrap();
    edit.write_at(&[8; 700], 5000).unwrap();
    model[5000..5700].fill(8);
    edit.set_backing(Some("flat.raw"), Some("raw")).unwrap();
    drop(edit);
    assert!(content(&*formats.open(&top, &OpenOptions::new(&LocalGate)).unwrap()) == model);
    let mut edit = formats.open_edit(Arc::new(FileStorage::open_writable(&top).unwrap()), &OpenOptions::new(&LocalGate)).unwrap();
    edit.set_backing(None, None).unwrap();
    drop(edit);
    let alone = content(&*formats.open(&top, &OpenOptions::new(&NoGate)).unwrap());
    assert!(alone.chunks(512).zip(model.chunks(512)).all(|(a, b)| a == b || a.iter().all(|byte| *byte == 0)));
    assert!(alone[5120..5632] == [8; 512]);
    if have("qemu-img") {
        std::fs::write(dir.path().join("alone.raw"), &alone).unwrap();
        let compared = ok("qemu-img", &["compare", "-f", "raw", "-F", "vpc", "alone.raw", "30.vhd"], dir.path());
        assert_eq!(compared, "Images are identical.\n");
    }
}

#[test]
fn a_parent_that_was_replaced_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let formats = Formats::new();
    let driver = formats.driver("vpc").unwrap();
    let create = |name: &str, size: u64, options: &CreateOptions| {
        let path: &Path = &dir.path().join(name);
        driver.create(Arc::new(FileStorage::create(path).unwrap()), size, options).map(drop)
    };
    create("base.vhd", 1 << 20, &CreateOptions::new()).unwrap();
    let on_top = CreateOptions::new().set("backing_file", "base.vhd");
    create("top.vhd", 1 << 20, &on_top).unwrap();
    create("base.vhd", 2 << 20, &CreateOptions::new()).unwrap();
    let error = formats.open(dir.path().join("top.vhd"), &OpenOptions::new(&LocalGate)).err().unwrap().to_string();
    assert!(error.contains("is another disk"), "{error}");
    for (name, value) in [("backing_file", "none.vhd"), ("backing_file", "a\\b"), ("backing_fmt", "qcow2"), ("subformat", "fixed")] {
        assert!(create("top.vhd", 1 << 20, &on_top.clone().set(name, value)).is_err(), "{name}={value}");
    }
}

/// Whatever a few damaged bytes say, opening, reading, checking and writing ends, with a message at worst.
#[test]
fn damage_is_survived() {
    let parent = image("parent");
    let gate = MemoryGate(vec![parent.clone()]);
    let tap = image("tap");
    set_in_footers(&*tap, 28, b"tap\0");
    let fixed = Arc::new(MemStorage::new("fixed", 0));
    let options = CreateOptions::new().set("subformat", "fixed");
    drop(Formats::new().driver("vpc").unwrap().create(fixed.clone(), 8192, &options).unwrap());
    let seeds = [parent.to_vec(), tap.to_vec(), child(&parent, &[(b"W2ru", utf16(".\\parent"), false)], ""), fixed.to_vec()];
    let mut random = Random(4);
    for case in 0..4000 {
        let mut bytes = random.pick(&seeds).clone();
        let end = bytes.len() - 512;
        for _ in 0..=random.below(3) {
            let at = match random.below(5) {
                0 => random.below(90) as usize,
                1 => end + random.below(90) as usize,
                2 => 512 + random.below(60) as usize,
                3 => 512 + 576 + random.below(48) as usize,
                _ => 1536 + random.below(8) as usize,
            };
            let value: &[u8] = random.pick::<&[u8]>(&[&[0xff; 4], &[0; 4], &[1], &[0x80], &[0, 0, 2, 0], &[0x7f, 0xff, 0xff, 0xff]]);
            let len = value.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&value[..len]);
        }
        // Most of them with checksums that fit.
        if random.below(4) != 0 {
            seal(&mut bytes[..512], 64);
            seal(&mut bytes[512..1536], 36);
            seal(&mut bytes[end..], 64);
        }
        if random.below(8) == 0 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        let storage = Arc::new(MemStorage::from_bytes("damaged", &bytes));
        let options = OpenOptions::new(&gate).format("vpc");
        if let Ok(disk) = Formats::new().open_storage(storage.clone(), &options) {
            let _ = disk.read_at(&mut vec![0; disk.size().min(1 << 20) as usize], 0);
            let mut extents = 0;
            let _ = disk.extents(0..disk.size(), &mut |_| {
                extents += 1;
                if extents > 10_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        let _ = Formats::new().check(storage.clone(), &options, Repair::All);
        if let Ok(disk) = Formats::new().open_storage_mut(storage.clone(), &options) {
            let _ = disk.write_at(&[1; 5000], disk.size().saturating_sub(6000) / 2);
            let _ = disk.zero_at(0, disk.size().min(1 << 30));
            let _ = disk.flush();
        }
        if case % 4 == 0
            && let Ok(mut disk) = Formats::new().open_edit(storage, &options)
        {
            let _ = disk.resize(random.below(1 << 20), Preallocation::Off);
            let _ = disk.make_empty();
        }
    }
}
