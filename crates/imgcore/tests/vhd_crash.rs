//! Power cuts while a VHD is written: whatever part of the writes after the last sync reached the disk, the image is valid and
//! what was flushed is there.

mod common;

use std::sync::Arc;

use common::Random;
use common::images::{MemoryGate, after_cut, change, content};
use imgcore::formats::{CreateOptions, Repair};
use imgcore::storage::{FaultStorage, FileStorage, MemStorage};
use imgcore::{Formats, OpenOptions, Preallocation};

const SIZE: u64 = 150 << 10;

/// An empty image, and the gate to its parent: dynamic, as blktap has it (the creator in the footer), or differencing.
fn created(kind: &str) -> (Arc<MemStorage>, MemoryGate, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let options = CreateOptions::new().set("block_size", "4k");
    let create = |name: &str, options: &CreateOptions| {
        let storage = Arc::new(FileStorage::create(dir.path().join(name)).unwrap());
        let formats = Formats::new();
        let image = formats.driver("vhd").unwrap().create(storage, SIZE, options).unwrap();
        image.flush().unwrap();
        image
    };
    let in_memory = |name: &str| Arc::new(MemStorage::from_bytes(name, &std::fs::read(dir.path().join(name)).unwrap()));
    let mut model = vec![0; SIZE as usize];
    let mut parents = Vec::new();
    if kind == "differencing" {
        let parent = create("parent.vhd", &options);
        model[5000..90_000].copy_from_slice(&Random(8).bytes(85_000));
        parent.write_at(&model, 0).unwrap();
        parent.flush().unwrap();
        drop(create("crash.vhd", &options.clone().set("backing_file", "parent.vhd")));
        parents.push(in_memory("parent.vhd"));
    } else {
        drop(create("crash.vhd", &options));
    }
    let image = in_memory("crash.vhd");
    if kind == "blktap" {
        common::vhd::set_in_footers(&*image, 28, b"tap\0");
    }
    (image, MemoryGate(parents), model)
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    for (seed, kind) in ["dynamic", "blktap", "differencing"].into_iter().enumerate() {
        let mut random = Random(seed as u64);
        let (memory, gate, mut model) = created(kind);
        let options = OpenOptions::new(&gate);
        let formats = Formats::new();
        let start = memory.snapshot();
        let storage = Arc::new(FaultStorage::new(memory).recording());
        // What was flushed when, and for every byte the values that it may have had since.
        let mut flushed = vec![(0, model.clone())];
        let mut changed = Vec::new();
        for _session in 0..3 {
            let image = formats.open_storage_mut(storage.clone(), &options).unwrap();
            for round in 0..10 {
                let before = storage.log().len();
                changed.push((before, change(&*image, &mut model, &mut random, 9000)));
                if random.below(3) == 0 || round == 9 {
                    image.flush().unwrap();
                    flushed.push((storage.log().len(), model.clone()));
                }
            }
        }
        let log = storage.log();
        for cut in 0..=log.len() {
            for _ in 0..2 {
                let disk = after_cut(&start, &log, cut, &mut random);
                let report = formats.check(disk.clone(), &options, Repair::None).unwrap();
                assert_eq!(report.corruptions, 0, "{kind}, cut {cut}: {:?}", report.messages);
                let (at, mut expected) = flushed.iter().rev().find(|(at, _)| *at <= cut).cloned().unwrap();
                let mut all = content(&*formats.open_storage(disk.clone(), &options).unwrap());
                // What was written later may be there or not.
                for (_, range) in changed.iter().filter(|(written, _)| *written >= at && *written <= cut) {
                    expected[range.clone()].copy_from_slice(&all[range.clone()]);
                }
                assert!(all == expected, "{kind}, cut {cut}");
                // And the image can be written again.
                let image = formats.open_storage_mut(disk.clone(), &options).unwrap();
                let again = change(&*image, &mut all, &mut random, 20_000);
                image.flush().unwrap();
                drop(image);
                assert!(content(&*formats.open_storage(disk.clone(), &options).unwrap()) == all, "{kind}, cut {cut}, {again:?}");
                formats.check(disk.clone(), &options, Repair::Leaks).unwrap();
                let report = formats.check(disk, &options, Repair::None).unwrap();
                assert_eq!((report.corruptions, report.leaks), (0, 0), "{kind}, cut {cut}: {:?}", report.messages);
            }
        }
    }
}

/// A disk that fails once: the error is reported, and the image stays sound and usable.
#[test]
fn a_failing_write_is_reported_and_harmless() {
    for kind in ["dynamic", "differencing"] {
        for fail in 0.. {
            let (memory, gate, mut model) = created(kind);
            let (formats, options) = (Formats::new(), OpenOptions::new(&gate));
            let storage = Arc::new(FaultStorage::new(memory.clone()).fail_at(fail));
            let image = formats.open_storage_mut(storage.clone(), &options).unwrap();
            let mut random = Random(fail);
            let mut failures = 0;
            for _ in 0..4 {
                let (offset, data) = (random.below(SIZE - 5000), random.bytes(5000));
                let range = offset as usize..offset as usize + 5000;
                // What could not be written is written again.
                let mut results = vec![image.write_at(&data, offset), image.flush()];
                while results.iter().any(Result::is_err) {
                    failures += 1;
                    results = vec![image.write_at(&data, offset), image.flush()];
                }
                model[range].copy_from_slice(&data);
            }
            let failed = storage.changes() > fail;
            assert_eq!(failures, u64::from(failed), "{kind}, operation {fail}");
            drop(image);
            let report = formats.check(memory.clone(), &options, Repair::None).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{kind}, operation {fail}: {:?}", report.messages);
            assert!(content(&*formats.open_storage(memory, &options).unwrap()) == model, "{kind}, operation {fail}");
            if !failed {
                break;
            }
        }
    }
}

/// Each change of structure leaves the old disk or the new one.
#[test]
fn a_cut_during_a_change_of_structure() {
    let mut random = Random(3);
    for (kind, size) in [("dynamic", 700 << 10), ("dynamic", 40 << 10), ("differencing", 1 << 20), ("differencing", 9 << 10), ("empty", 0)]
    {
        let (memory, gate, mut model) = created(if kind == "empty" { "differencing" } else { kind });
        let (formats, options) = (Formats::new(), OpenOptions::new(&gate));
        let below = model.clone();
        let image = formats.open_storage_mut(memory.clone(), &options).unwrap();
        for _ in 0..12 {
            change(&*image, &mut model, &mut random, 20_000);
        }
        image.flush().unwrap();
        drop(image);
        let start = memory.snapshot();
        let storage = Arc::new(FaultStorage::new(memory).recording());
        let mut edit = formats.open_edit(storage.clone(), &options).unwrap();
        let mut new = model.clone();
        if kind == "empty" {
            edit.make_empty().unwrap();
            new = below.clone();
        } else {
            edit.resize(size, Preallocation::Off).unwrap();
            new.resize(size as usize, 0);
        }
        assert!(content(&*edit) == new);
        drop(edit);
        let log = storage.log();
        let (mut olds, mut news) = (0, 0);
        for cut in 0..=log.len() {
            let disk = after_cut(&start, &log, cut, &mut random);
            let report = formats.check(disk.clone(), &options, Repair::None).unwrap();
            assert_eq!(report.corruptions, 0, "{kind}, cut {cut}: {:?}", report.messages);
            let all = content(&*formats.open_storage(disk.clone(), &options).unwrap());
            if all == new {
                news += 1;
            } else if kind == "empty" {
                let mixed = all.chunks(512).zip(model.chunks(512).zip(below.chunks(512))).all(|(a, (m, b))| a == m || a == b);
                assert!(mixed, "cut {cut}");
                olds += 1;
            } else {
                assert!(all == model, "{kind}, cut {cut}, {} bytes", all.len());
                olds += 1;
            }
            // Made larger afterwards, nothing of what was cut off comes back.
            if kind != "empty" && all.len() < model.len() {
                let mut edit = formats.open_edit(disk, &options).unwrap();
                edit.resize(SIZE, Preallocation::Off).unwrap();
                let mut expected = all;
                expected.resize(SIZE as usize, 0);
                assert!(content(&*edit) == expected, "{kind}, cut {cut}");
            }
        }
        assert!(olds > 0 && news > 0, "{kind}: {olds} {news}");
    }
}

/// Threads that write into the same new blocks and sectors all get their bytes in.
#[test]
fn writers_share_blocks() {
    for kind in ["dynamic", "differencing"] {
        let (memory, gate, _) = created(kind);
        let (formats, options) = (Formats::new(), OpenOptions::new(&gate));
        let image = formats.open_storage_mut(memory.clone(), &options).unwrap();
        let model = Random(6).bytes(SIZE);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (image, model) = (&image, &model);
                scope.spawn(move || {
                    for at in (thread * 700..SIZE as usize).step_by(4 * 700) {
                        let end = (at + 700).min(SIZE as usize);
                        image.write_at(&model[at..end], at as u64).unwrap();
                    }
                    image.flush().unwrap();
                });
            }
        });
        drop(image);
        assert!(content(&*formats.open_storage(memory, &options).unwrap()) == model, "{kind}");
    }
}
