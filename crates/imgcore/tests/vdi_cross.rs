//! VDI against qemu-img and qemu-io, power cuts, and damage.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::images::{after_cut, change, content};
use common::{Random, have, ok};
use imgcore::formats::{CreateOptions, Repair};
use imgcore::storage::{FaultStorage, FileStorage, MemStorage};
use imgcore::vdi::Vdi;
use imgcore::{Error, Formats, ImageMut, LocalGate, NoGate, OpenOptions, Storage};

fn check_with_qemu(folder: &Path, name: &str, model: &[u8]) {
    assert_eq!(ok("qemu-img", &["check", name], folder), "No errors were found on the image.\n");
    std::fs::write(folder.join("model.raw"), model).unwrap();
    let compared = ok("qemu-img", &["compare", "-f", "raw", "-F", "vdi", "model.raw", name], folder);
    assert_eq!(compared, "Images are identical.\n");
    let storage = Arc::new(FileStorage::open(folder.join(name)).unwrap());
    let report = Formats::new().check(storage, &OpenOptions::new(&NoGate), Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
}

#[test]
fn what_we_write_qemu_accepts_and_the_other_way() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vdi");
    let mut random = Random(1);
    for case in 0..10 {
        let size = random.below(9 << 20) + 1;
        let is_static = *random.pick(&["off", "off", "on"]);
        let mut model = vec![0; size.next_multiple_of(512) as usize];
        if case % 2 == 0 {
            let storage = Arc::new(FileStorage::create(&path).unwrap());
            drop(Vdi::create(storage, size, &CreateOptions::new().set("static", is_static)).unwrap());
        } else {
            let (option, size) = (format!("static={is_static}"), size.to_string());
            ok("qemu-img", &["create", "-q", "-f", "vdi", "-o", &option, "a.vdi", &size], dir.path());
        }
        let image = Formats::new().open_mut(&path, &OpenOptions::new(&LocalGate)).unwrap();
        for _ in 0..10 {
            let longest = *random.pick(&[700, 5000, 2 << 20]);
            change(&*image, &mut model, &mut random, longest);
        }
        image.flush().unwrap();
        assert!(content(&*image) == model, "case {case}");
        drop(image);
        check_with_qemu(dir.path(), "a.vdi", &model);
        let at = random.below(model.len() as u64) & !511;
        ok("qemu-io", &["-c", &format!("write -P 9 {at} 512"), "a.vdi"], dir.path());
        model[at as usize..at as usize + 512].fill(9);
        assert!(content(&*Formats::new().open(&path, &OpenOptions::new(&LocalGate)).unwrap()) == model, "case {case}");
        check_with_qemu(dir.path(), "a.vdi", &model);
    }
    let too_large = Vdi::create(Arc::new(MemStorage::new("m", 0)), (0x1fff_ff80 << 20) + 1, &CreateOptions::new());
    assert!(too_large.err().unwrap().to_string().contains("max supported is 0x1fffff8000000"));
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    const SIZE: u64 = 4 << 20;
    let mut random = Random(5);
    let memory = Arc::new(MemStorage::new("crash.vdi", 0));
    drop(Vdi::create(memory.clone(), SIZE, &CreateOptions::new()).unwrap());
    let start = memory.snapshot();
    let storage = Arc::new(FaultStorage::new(memory).recording());
    let mut model = vec![0; SIZE as usize];
    let mut flushed = vec![(0, model.clone())];
    let mut changed = Vec::new();
    let image = Vdi::open_mut(storage.clone()).unwrap();
    for _ in 0..20 {
        let before = storage.log().len();
        changed.push((before, change(&image, &mut model, &mut random, 40_000)));
        if random.below(3) == 0 {
            image.flush().unwrap();
            flushed.push((storage.log().len(), model.clone()));
        }
    }
    let log = storage.log();
    for cut in 0..=log.len() {
        let disk = after_cut(&start, &log, cut, &mut random);
        let report = Formats::new().check(disk.clone(), &OpenOptions::new(&NoGate), Repair::None).unwrap();
        assert_eq!(report.corruptions, 0, "cut {cut}: {:?}", report.messages);
        let (at, mut expected) = flushed.iter().rev().find(|(at, _)| *at <= cut).cloned().unwrap();
        let mut all = content(&Vdi::open(disk.clone()).unwrap());
        for (_, range) in changed.iter().filter(|(written, _)| *written >= at && *written <= cut) {
            expected[range.clone()].copy_from_slice(&all[range.clone()]);
        }
        assert!(all == expected, "cut {cut}");
        let image = Vdi::open_mut(disk.clone()).unwrap();
        change(&image, &mut all, &mut random, 2 << 20);
        image.flush().unwrap();
        drop(image);
        assert!(content(&Vdi::open(disk).unwrap()) == all, "cut {cut}");
    }
}

#[test]
fn parents_and_other_versions_are_refused() {
    for (at, value, what) in [(76, 4, "image type 4"), (440, 1, "parent"), (68, 1, "version 0.1"), (376, 1 << 16, "blocks of 65536")] {
        let storage = Arc::new(MemStorage::new("a.vdi", 0));
        drop(Vdi::create(storage.clone(), 1 << 20, &CreateOptions::new()).unwrap());
        storage.write_at(&u32::to_le_bytes(value), at).unwrap();
        match Formats::new().open_storage(storage, &OpenOptions::new(&NoGate)) {
            Err(Error::Unsupported { what: found, .. }) => assert!(found.contains(what), "{found}"),
            other => panic!("{what}: {:?}", other.err()),
        }
    }
}

/// Whatever a few damaged bytes say, opening, reading, checking and writing ends, with a message at worst.
#[test]
fn damage_is_survived() {
    let seed = MemStorage::new("damaged.vdi", 0);
    let seed = Arc::new(seed);
    let image = Vdi::create(seed.clone(), 3 << 20, &CreateOptions::new()).unwrap();
    image.write_at(&[1; 5000], 1 << 20).unwrap();
    image.flush().unwrap();
    drop(image);
    let mut random = Random(4);
    for _ in 0..2000 {
        let storage = Arc::new(seed.snapshot());
        for _ in 0..=random.below(3) {
            let (start, len) = *random.pick(&[(64, 24), (340, 130), (512, 12)]);
            let at = start + random.below(len);
            let value: &[u8] = random.pick::<&[u8]>(&[&[0xff; 4], &[0; 4], &[1], &[0x80], &[0, 0, 2, 0], &[0xff, 0xff, 0xff, 0x1f]]);
            storage.write_at(value, at).unwrap();
        }
        if random.below(8) == 0 {
            storage.set_size(random.below(4096)).unwrap();
        }
        let options = OpenOptions::new(&NoGate).format("vdi");
        if let Ok(disk) = Formats::new().open_storage(storage.clone(), &options) {
            let _ = disk.read_at(&mut vec![0; disk.size().min(4 << 20) as usize], 0);
            let _ = disk.extents(0..disk.size(), &mut |_| ControlFlow::Continue(()));
        }
        let _ = Formats::new().check(storage.clone(), &options, Repair::None);
        if let Ok(disk) = Formats::new().open_storage_mut(storage, &options) {
            let _ = disk.write_at(&[1; 5000], disk.size().saturating_sub(6000) / 2);
            let _ = disk.flush();
        }
    }
}
