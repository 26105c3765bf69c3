//! VHD against qemu-img and qemu-io: what we write they accept, what they write we read, and the sizes are the same.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use common::images::{change, content};
use common::{Random, have, ok};
use imgcore::formats::{CreateOptions, Repair};
use imgcore::storage::{FileStorage, MemStorage};
use imgcore::{ExtentKind, Formats, Image, ImageMut, LocalGate, NoGate, OpenOptions, Preallocation, Storage};

fn create(path: &Path, size: u64, options: &CreateOptions) -> Arc<dyn ImageMut> {
    Formats::new().driver("vhd").unwrap().create(Arc::new(FileStorage::create(path).unwrap()), size, options).unwrap()
}

fn open(path: &Path) -> Arc<dyn Image> {
    Formats::new().open(path, &OpenOptions::new(&LocalGate).format("vpc")).unwrap()
}

fn open_mut(path: &Path) -> Arc<dyn ImageMut> {
    Formats::new().open_mut(path, &OpenOptions::new(&LocalGate)).unwrap()
}

fn scribble(image: &dyn ImageMut, model: &mut [u8], random: &mut Random, rounds: u64) {
    for _ in 0..rounds {
        let longest = *random.pick(&[700, 5000, 70_000, 3 << 20]);
        change(image, model, random, longest);
        if random.below(10) == 0 {
            image.flush().unwrap();
        }
    }
    image.flush().unwrap();
}

/// qemu-img reads the same bytes, and our own check is content.
fn check_with_qemu(folder: &Path, name: &str, model: &[u8]) {
    std::fs::write(folder.join("model.raw"), model).unwrap();
    assert_eq!(ok("qemu-img", &["compare", "-f", "raw", "-F", "vpc", "model.raw", name], folder), "Images are identical.\n");
    let storage = Arc::new(FileStorage::open(folder.join(name)).unwrap());
    let report = Formats::new().check(storage, &OpenOptions::new(&NoGate).format("vpc"), Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
}

#[test]
fn what_we_write_qemu_accepts() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    let mut random = Random(1);
    for case in 0..12 {
        let options = CreateOptions::new()
            .set("subformat", *random.pick(&["dynamic", "dynamic", "fixed"]))
            .set("force_size", *random.pick(&["on", "on", "off"]))
            .set("block_size", *random.pick(&["2M", "2M", "512k", "64k", "4k"]));
        let image = create(&path, random.below(12 << 20) + 1, &options);
        let mut model = vec![0; image.size() as usize];
        assert_eq!(content(&*image), model);
        scribble(&*image, &mut model, &mut random, 20);
        assert!(content(&*image) == model, "case {case}: {options:?}");
        drop(image);
        check_with_qemu(dir.path(), "a.vhd", &model);
        // And once more on the image as it was found, then by qemu.
        let image = open_mut(&path);
        assert!(content(&*image) == model, "case {case}: {options:?}");
        scribble(&*image, &mut model, &mut random, 8);
        drop(image);
        check_with_qemu(dir.path(), "a.vhd", &model);
        let at = model.len() - 512;
        ok("qemu-io", &["-f", "vpc", "-c", &format!("write -P 9 {at} 512"), "a.vhd"], dir.path());
        model[at..].fill(9);
        check_with_qemu(dir.path(), "a.vhd", &model);
        assert!(content(&*open(&path)) == model);
    }
}

#[test]
fn what_qemu_writes_we_read_and_write_on() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.vhd");
    let mut random = Random(2);
    for case in 0..8 {
        let options = format!("subformat={},force_size={}", random.pick(&["dynamic", "dynamic", "fixed"]), random.pick(&["on", "off"]));
        let size = random.below(16 << 20) + 4096;
        ok("qemu-img", &["create", "-q", "-f", "vpc", "-o", &options, "b.vhd", &size.to_string()], dir.path());
        let mut args = vec!["-f".to_owned(), "vpc".to_owned()];
        for _ in 0..8 {
            let at = random.below(size) & !511;
            let len = ((random.below(3 << 20) | 512) & !511).min(size / 512 * 512 - at).max(512);
            args.extend(["-c".to_owned(), format!("write -P {} {at} {len}", random.below(255) + 1)]);
        }
        args.push("b.vhd".into());
        ok("qemu-io", &args.iter().map(String::as_str).collect::<Vec<_>>(), dir.path());
        ok("qemu-img", &["convert", "-f", "vpc", "-O", "raw", "b.vhd", "b.raw"], dir.path());
        let mut model = std::fs::read(dir.path().join("b.raw")).unwrap();
        // Fixed disks, too, are known for what they are.
        let image = open_mut(&path);
        assert_eq!(image.info().format, "vpc");
        assert!(content(&*image) == model, "case {case}: {options}");
        scribble(&*image, &mut model, &mut random, 10);
        drop(image);
        check_with_qemu(dir.path(), "b.vhd", &model);
        let new_size = if random.below(2) == 0 { random.below(size) } else { size + random.below(9 << 20) }.next_multiple_of(512);
        let mut edit =
            Formats::new().open_edit(Arc::new(FileStorage::open_writable(&path).unwrap()), &OpenOptions::new(&LocalGate)).unwrap();
        edit.resize(new_size, Preallocation::Off).unwrap();
        model.resize(new_size as usize, 0);
        scribble(&*edit, &mut model, &mut random, 4);
        drop(edit);
        check_with_qemu(dir.path(), "b.vhd", &model);
        let mut edit =
            Formats::new().open_edit(Arc::new(FileStorage::open_writable(&path).unwrap()), &OpenOptions::new(&LocalGate)).unwrap();
        edit.resize(40 << 20, Preallocation::Off).unwrap();
        model.resize(40 << 20, 0);
        drop(edit);
        check_with_qemu(dir.path(), "b.vhd", &model);
    }
}

#[test]
fn sizes_are_exact_and_qemu_sees_the_same() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let gib = 1u64 << 30;
    let by_qemu = |name: &str| {
        let info = ok("qemu-img", &["info", "-f", "vpc", "--output=json", name], dir.path());
        let (_, last) = info.rsplit_once("\"virtual-size\": ").unwrap();
        last.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    let limits = [65535 * 16 * 63u64, 65535 * 16 * 255, 1024 * 4 * 17, 1024 * 16 * 17, 1024 * 16 * 31];
    let around = limits.into_iter().flat_map(|sectors| [sectors - 1, sectors, sectors + 1]).map(|sectors| sectors * 512);
    for size in [512, 1 << 20, 1000 << 20, 10 * gib, 100 * gib, 2040 * gib].into_iter().chain(around) {
        for force in ["on", "off"] {
            let image = create(&dir.path().join("ours.vhd"), size, &CreateOptions::new().set("force_size", force));
            image.flush().unwrap();
            assert_eq!(image.size(), by_qemu("ours.vhd"), "{size} {force}");
            ok(
                "qemu-img",
                &["create", "-q", "-f", "vpc", "-o", &format!("force_size={force}"), "theirs.vhd", &size.to_string()],
                dir.path(),
            );
            assert_eq!(image.size(), by_qemu("theirs.vhd"), "{size} {force}");
            assert_eq!(open(&dir.path().join("theirs.vhd")).size(), image.size());
            if force == "on" {
                assert_eq!(image.size(), size);
            } else {
                let geometry = |name: &str| std::fs::read(dir.path().join(name)).unwrap()[56..60].to_vec();
                assert_eq!(geometry("ours.vhd"), geometry("theirs.vhd"), "{size}");
            }
        }
    }
    let refused = Formats::new().driver("vpc").unwrap().create(Arc::new(MemStorage::new("m", 0)), 2040 * gib + 1, &CreateOptions::new());
    assert!(refused.err().unwrap().to_string().contains("too large for file format 'vpc'"));
}

/// QEMU's rule for whose current size counts.
#[test]
fn the_creator_decides_about_the_size() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for app in [b"vpc ", b"qemu", b"qem2", b"win ", b"d2v ", b"tap\0", b"CTXS", b"caml", b"vbox"] {
        drop(create(&dir.path().join("a.vhd"), 1000 << 20, &CreateOptions::new()));
        let storage = FileStorage::open_writable(dir.path().join("a.vhd")).unwrap();
        common::vhd::set_in_footers(&storage, 28, app);
        let size = open(&dir.path().join("a.vhd")).size();
        let by_geometry = [b"vpc ", b"qemu"].contains(&app);
        assert_eq!(size, if by_geometry { 2031 * 16 * 63 * 512 } else { 1000 << 20 });
        let info = ok("qemu-img", &["info", "a.vhd"], dir.path());
        assert!(info.contains(&format!("({size} bytes)")), "{app:?}: {info}");
    }
}

#[test]
fn an_empty_disk_is_walked_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = create(&dir.path().join("a.vhd"), 2040 << 30, &CreateOptions::new());
    image.write_at(&[1; 512], (2040 << 30) - 512).unwrap();
    image.flush().unwrap();
    let start = Instant::now();
    let mut extents = Vec::new();
    let mut visit = |e: imgcore::Extent| {
        extents.push((e.start, e.len, e.kind));
        std::ops::ControlFlow::Continue(())
    };
    open(&dir.path().join("a.vhd")).extents(0..2040 << 30, &mut visit).unwrap();
    let last = (2040 << 30) - (2 << 20);
    assert_eq!(extents, [(0, last, ExtentKind::Zero), (last, 2 << 20, ExtentKind::Data)]);
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
}

#[test]
fn the_same_options_give_the_same_bytes() {
    let bytes = |options: &CreateOptions, size| {
        let storage = Arc::new(MemStorage::new("m", 0));
        drop(Formats::new().driver("vpc").unwrap().create(storage.clone(), size, options).unwrap());
        storage.to_vec()
    };
    let options = CreateOptions::new();
    assert_eq!(bytes(&options, 5 << 20), bytes(&options, 5 << 20));
    let uuid = |bytes: Vec<u8>| bytes[68..84].to_vec();
    assert_ne!(uuid(bytes(&options, 5 << 20)), uuid(bytes(&options, 6 << 20)));
    assert_ne!(uuid(bytes(&options, 5 << 20)), uuid(bytes(&options.clone().set("block_size", "1M"), 5 << 20)));
}

#[test]
fn wrong_options_are_refused() {
    let driver = Formats::new();
    let driver = driver.driver("vpc").unwrap();
    for (name, value) in [("subformat", "foo"), ("force_size", "yes"), ("block_size", "3M"), ("block_size", "2k"), ("preallocation", "x")] {
        let storage: Arc<dyn Storage> = Arc::new(MemStorage::new("m", 0));
        assert!(driver.create(storage, 1 << 20, &CreateOptions::new().set(name, value)).is_err(), "{name}={value}");
    }
}
