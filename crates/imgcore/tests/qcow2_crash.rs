//! Power cuts: whatever part of the writes after the last sync reached the disk, the image has leaks at worst, and what was
//! flushed is there.

mod common;

use std::sync::Arc;

use common::Random;
use imgcore::formats::{CreateOptions, Repair};
use imgcore::qcow2::{ClusterCompressor, Move, Qcow2};
use imgcore::storage::{FaultStorage, MemStorage, Operation};
use imgcore::{Formats, Image, ImageEdit, ImageMut, NoGate, NoProgress, OpenOptions, Preallocation, Snapshots, Storage};

const SIZE: u64 = 256 << 10;

/// The state of the guest's disk at each flush: how many operations were logged then, and the bytes.
type Flushed = Vec<(usize, Vec<u8>)>;

/// Runs a workload on a small image; gives the operations and what was flushed when.
fn workload(options: &CreateOptions, seed: u64) -> (Arc<MemStorage>, Vec<Operation>, Flushed) {
    let mut random = Random(seed);
    let memory = Arc::new(MemStorage::new("crash.qcow2", 0));
    Qcow2::create(memory.clone(), SIZE, options).unwrap().flush().unwrap();
    let start = Arc::new(memory.snapshot());
    let storage = Arc::new(FaultStorage::new(memory).recording());
    let image = reopen(storage.clone());
    let mut compressor = ClusterCompressor::new(imgcore::qcow2::CompressionType::Zlib);
    let cluster = image.info().cluster_size.unwrap();
    let mut model = vec![0; SIZE as usize];
    let mut flushed = vec![(0, model.clone())];
    for _ in 0..24 {
        let offset = random.below(SIZE);
        let len = random.below(4 * cluster).min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        match random.below(5) {
            0 => {
                image.discard(offset, len).unwrap();
                model[range].fill(0);
            }
            1 => {
                let at = offset / cluster * cluster;
                let data = vec![random.next() as u8; cluster as usize];
                image.write_compressed_cluster(at, compressor.compress(&data).unwrap()).unwrap();
                model[at as usize..(at + cluster) as usize].copy_from_slice(&data);
            }
            _ => {
                let data = random.bytes(len);
                image.write_at(&data, offset).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
        if random.below(4) == 0 {
            image.flush().unwrap();
            flushed.push((storage.log().len(), model.clone()));
        }
    }
    (start, storage.log(), flushed)
}

fn reopen(storage: Arc<dyn Storage>) -> Qcow2 {
    // The driver gives a trait object; the compressed writes need the type itself.
    Qcow2::open_standalone(storage).unwrap()
}

/// The image after a cut behind operation `cut`: all up to the last sync, and a random choice of what came later, the
/// last write of which may be torn.
fn after_cut(start: &MemStorage, log: &[Operation], cut: usize, random: &mut Random) -> Arc<MemStorage> {
    let disk = Arc::new(start.snapshot());
    let synced = log[..cut].iter().rposition(|op| *op == Operation::Sync).map_or(0, |at| at + 1);
    for (index, operation) in log[..cut].iter().enumerate() {
        if index < synced || random.below(2) == 0 {
            operation.apply(&*disk).unwrap();
        } else if let Operation::Write(offset, data) = operation
            && random.below(4) == 0
        {
            // Sectors are whole or not there.
            let keep = random.below(data.len() as u64 + 1) as usize / 512 * 512;
            disk.write_at(&data[..keep], *offset).unwrap();
        }
    }
    disk
}

#[test]
fn a_power_cut_leaves_leaks_at_worst() {
    let mut random = Random(77);
    let cases = [("512", "16", "off", 1), ("1k", "2", "off", 2), ("4k", "64", "off", 3), ("512", "8", "off", 4), ("16k", "16", "on", 5)];
    for (cluster_size, refcount_bits, extended_l2, seed) in cases {
        let options = CreateOptions::new().set("cluster_size", cluster_size).set("refcount_bits", refcount_bits);
        let options = options.set("extended_l2", extended_l2);
        let (start, log, flushed) = workload(&options, seed);
        for cut in 0..=log.len() {
            for _ in 0..3 {
                let disk = after_cut(&start, &log, cut, &mut random);
                let report = Formats::new().check(disk.clone(), &OpenOptions::new(&NoGate), Repair::None).unwrap();
                assert_eq!(report.corruptions, 0, "{options:?}, cut {cut}: {:?}", report.messages);
                assert_eq!(report.check_errors, 0);
            }
            // Exactly at a flush, before anything else happens, all of it is there.
            if let Some((_, model)) = flushed.iter().find(|(at, _)| *at == cut) {
                let disk = after_cut(&start, &log, cut, &mut random);
                let mut all = vec![1; SIZE as usize];
                reopen(disk.clone()).read_at(&mut all, 0).unwrap();
                assert!(all == *model, "{options:?}, cut {cut}");
                Formats::new().check(disk.clone(), &OpenOptions::new(&NoGate), Repair::Leaks).unwrap();
                let report = Formats::new().check(disk, &OpenOptions::new(&NoGate), Repair::None).unwrap();
                assert_eq!(report.leaks, 0);
            }
        }
    }
}

/// With lazy refcounts the counts may be wrong after a cut, but then the image says so; once repaired, all is as above.
#[test]
fn a_power_cut_leaves_lazy_images_dirty_at_worst() {
    let mut random = Random(78);
    let mut repaired = 0;
    for (cluster_size, seed) in [("512", 6), ("4k", 7)] {
        let options = CreateOptions::new().set("cluster_size", cluster_size).set("lazy_refcounts", "on");
        let (start, log, flushed) = workload(&options, seed);
        for cut in 0..=log.len() {
            let disk = after_cut(&start, &log, cut, &mut random);
            let report = Formats::new().check(disk.clone(), &OpenOptions::new(&NoGate), Repair::None).unwrap();
            let mut features = [0; 8];
            disk.read_at(&mut features, 72).unwrap();
            assert!(report.corruptions == 0 || features[7] & 1 == 1, "cut {cut}: {:?}", report.messages);
            repaired += u64::from(report.corruptions > 0);
            let image = reopen(disk.clone());
            if let Some((_, model)) = flushed.iter().find(|(at, _)| *at == cut) {
                let mut all = vec![1; SIZE as usize];
                image.read_at(&mut all, 0).unwrap();
                assert!(all == *model, "{options:?}, cut {cut}");
            }
            drop(image);
            let report = Formats::new().check(disk, &OpenOptions::new(&NoGate), Repair::None).unwrap();
            assert_eq!(report.corruptions, 0, "cut {cut}: {:?}", report.messages);
        }
    }
    assert!(repaired > 0);
}

/// A disk that fails once: the error is reported, and the image stays sound and usable.
#[test]
fn a_failing_write_is_reported_and_harmless() {
    let options = CreateOptions::new().set("cluster_size", "1k");
    for fail in 0..60 {
        let memory = Arc::new(MemStorage::new("fault.qcow2", 0));
        Qcow2::create(memory.clone(), SIZE, &options).unwrap().flush().unwrap();
        let storage = Arc::new(FaultStorage::new(memory.clone()).fail_at(fail));
        let image = reopen(storage.clone());
        let mut random = Random(fail);
        let mut failures = 0;
        for _ in 0..10 {
            let offset = random.below(SIZE - 5000);
            failures += u64::from(image.write_at(&random.bytes(5000), offset).is_err());
            failures += u64::from(image.flush().is_err());
        }
        assert_eq!(failures, u64::from(storage.changes() > fail), "operation {fail}");
        image.flush().unwrap();
        drop(image);
        let report = Formats::new().check(memory, &OpenOptions::new(&NoGate), Repair::None).unwrap();
        assert_eq!(report.corruptions, 0, "operation {fail}: {:?}", report.messages);
    }
}

#[test]
fn a_cut_while_ranges_move_leaves_the_old_or_the_new_disk() {
    let memory = Arc::new(MemStorage::new("move.qcow2", 0));
    let mut random = Random(9);
    let image = Qcow2::create(memory.clone(), SIZE, &CreateOptions::new().set("cluster_size", "1k")).unwrap();
    let model = random.bytes(SIZE);
    image.write_at(&model, 0).unwrap();
    image.flush().unwrap();
    drop(image);
    let start = Arc::new(memory.snapshot());
    let storage = Arc::new(FaultStorage::new(memory).recording());
    let moves = [Move { source: 0, target: 128 << 10, len: 64 << 10 }, Move { source: 200 << 10, target: 1024, len: 32 << 10 }];
    reopen(storage.clone()).remap(SIZE * 2, &moves).unwrap();
    let log = storage.log();
    let mut moved = vec![0; SIZE as usize * 2];
    for m in &moves {
        moved[m.target as usize..(m.target + m.len) as usize].copy_from_slice(&model[m.source as usize..(m.source + m.len) as usize]);
    }
    let (mut old, mut new) = (0, 0);
    for cut in 0..=log.len() {
        let disk = after_cut(&start, &log, cut, &mut random);
        let report = Formats::new().check(disk.clone(), &OpenOptions::new(&NoGate), Repair::None).unwrap();
        assert_eq!(report.corruptions, 0, "cut {cut}: {:?}", report.messages);
        let image = reopen(disk);
        let mut all = vec![1; image.size() as usize];
        image.read_at(&mut all, 0).unwrap();
        if all == model {
            old += 1;
        } else {
            assert!(all == moved, "cut {cut}");
            new += 1;
        }
    }
    assert!(old > 0 && new > 0);
}

type Edit = fn(&mut Qcow2) -> imgcore::Result<()>;

/// Changes of structure, all on an image with data, a snapshot `s`, and more data.
const EDITS: &[(&str, Edit)] = &[
    ("snapshot", |image| image.create("new", (1, 1)).map(|_| ())),
    ("apply", |image| image.apply("s")),
    ("delete", |image| image.delete("s")),
    ("grow", |image| image.resize(SIZE * 40, Preallocation::Off)),
    ("grow and preallocate", |image| image.resize(SIZE + 5000, Preallocation::Metadata)),
    ("shrink", |image| image.resize(SIZE / 2 + 512, Preallocation::Off)),
    ("empty", |image| image.make_empty()),
    ("widen counts", |image| image.amend(&CreateOptions::new().set("refcount_bits", "64"), &NoProgress)),
    ("downgrade", |image| image.amend(&CreateOptions::new().set("compat", "0.10").set("refcount_bits", "16"), &NoProgress)),
];

fn content(image: &dyn Image) -> Vec<u8> {
    let mut all = vec![1; image.size() as usize];
    image.read_at(&mut all, 0).unwrap();
    all
}

#[test]
fn a_cut_while_the_structure_changes_leaves_the_old_or_the_new_image() {
    for (name, edit) in EDITS {
        for (cluster_size, seed) in [("512", 21), ("1k", 22)] {
            let mut random = Random(seed);
            let memory = Arc::new(MemStorage::new("edit.qcow2", 0));
            let mut image = Qcow2::create(memory.clone(), SIZE, &CreateOptions::new().set("cluster_size", cluster_size)).unwrap();
            image.write_at(&random.bytes(SIZE / 2), 3000).unwrap();
            image.create("s", (0, 0)).unwrap();
            image.write_at(&random.bytes(SIZE / 3), SIZE / 2).unwrap();
            image.zero_at(SIZE / 4, 5000).unwrap();
            image.flush().unwrap();
            let old = content(&image);
            drop(image);
            let start = Arc::new(memory.snapshot());
            let storage = Arc::new(FaultStorage::new(memory).recording());
            let mut image = reopen(storage.clone());
            edit(&mut image).unwrap();
            let new = content(&image);
            drop(image);
            let log = storage.log();
            // Of a long log, a choice.
            let step = log.len() / 150 + 1;
            for cut in (0..=log.len()).step_by(step).chain([log.len()]) {
                let disk = after_cut(&start, &log, cut, &mut random);
                let case = format!("{name}, clusters of {cluster_size}, cut {cut} of {}", log.len());
                let report = Formats::new().check(disk.clone(), &OpenOptions::new(&NoGate), Repair::None).unwrap();
                assert_eq!((report.corruptions, report.check_errors), (0, 0), "{case}: {:?}", report.messages);
                let image = reopen(disk);
                let now = content(&image);
                assert!(now == old || now == new, "{case}");
                assert!(cut < log.len() || now == new, "{case}");
            }
        }
    }
}

/// Whatever a cut leaves, a bitmap that is not marked as in use knows all that changed.
#[test]
fn a_cut_leaves_no_bitmap_silently_stale() {
    let mut random = Random(79);
    let (mut sound, mut in_use) = (0, 0);
    for (cluster_size, lazy, seed) in [("512", "off", 8), ("4k", "on", 9), ("16k", "off", 10)] {
        let memory = Arc::new(MemStorage::new("bitmaps.qcow2", 0));
        let options = CreateOptions::new().set("cluster_size", cluster_size).set("lazy_refcounts", lazy);
        Qcow2::create(memory.clone(), SIZE, &options).unwrap().flush().unwrap();
        let edit = |storage: Arc<dyn Storage>| Formats::new().open_edit(storage, &OpenOptions::new(&NoGate)).unwrap();
        edit(memory.clone()).bitmaps().unwrap().add("b", Some(1024)).unwrap();
        let start = memory.snapshot();
        let storage = Arc::new(FaultStorage::new(memory).recording());
        let image = reopen(storage.clone());
        let mut random_work = Random(seed);
        for _ in 0..10 {
            let offset = random_work.below(SIZE - 9000);
            image.write_at(&random_work.bytes(9000), offset).unwrap();
            if random_work.below(3) == 0 {
                image.flush().unwrap();
            }
        }
        drop(image);
        let log = storage.log();
        for cut in 0..=log.len() {
            let disk = after_cut(&start, &log, cut, &mut random);
            let report = Formats::new().check(disk.clone(), &OpenOptions::new(&NoGate), Repair::None).unwrap();
            assert!(report.corruptions == 0 || lazy == "on", "cut {cut}: {:?}", report.messages);
            let mut image = edit(disk);
            if image.info().bitmaps[0].in_use {
                in_use += 1;
                continue;
            }
            sound += 1;
            let mut now = vec![0; SIZE as usize];
            image.read_at(&mut now, 0).unwrap();
            for range in image.bitmaps().unwrap().dirty("b").unwrap() {
                now[range.start as usize..range.end as usize].fill(0);
            }
            assert!(now.iter().all(|byte| *byte == 0), "{cluster_size}, cut {cut} of {}", log.len());
        }
    }
    assert!(sound > 3 && in_use > 20);
}
