//! Power cuts while a VHDX or a VMDK is written: whatever part of the writes after the last sync reached the disk, the image is valid and
//! what was flushed is there.

mod common;

use std::sync::Arc;

use common::Random;
use common::images::after_cut;
use imgcore::formats::{CreateOptions, Repair};
use imgcore::storage::{FaultStorage, MemStorage};
use imgcore::{Formats, ImageMut, NoGate, OpenOptions, Storage};

const SIZE: u64 = 5 << 20;

/// The formats with options that make them small.
const FORMATS: [(&str, &[(&str, &str)]); 2] = [("vhdx", &[("block_size", "1M")]), ("vmdk", &[])];

fn created((format, options): (&str, &[(&str, &str)])) -> Arc<MemStorage> {
    let memory = Arc::new(MemStorage::new("crash", 0));
    let options = options.iter().fold(CreateOptions::new(), |all, (name, value)| all.set(*name, *value));
    Formats::new().driver(format).unwrap().create(memory.clone(), SIZE, &options).unwrap().flush().unwrap();
    memory
}

fn open_mut(storage: Arc<dyn Storage>) -> Arc<dyn ImageMut> {
    Formats::new().open_storage_mut(storage, &OpenOptions::new(&NoGate)).unwrap()
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    FORMATS.into_iter().for_each(cut_everywhere);
}

fn cut_everywhere(format: (&str, &[(&str, &str)])) {
    let mut random = Random(5);
    let memory = created(format);
    let start = memory.snapshot();
    let storage = Arc::new(FaultStorage::new(memory).recording());
    let mut model = vec![0; SIZE as usize];
    // What was flushed when, and for every byte the values that it may have had since.
    let mut flushed = vec![(0, model.clone())];
    let mut changed: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
    for _session in 0..3 {
        let image = open_mut(storage.clone());
        for round in 0..8 {
            let offset = random.below(SIZE);
            let len = random.below(60_000).min(SIZE - offset);
            let range = offset as usize..(offset + len) as usize;
            changed.push((storage.log().len(), range.clone()));
            if random.below(5) == 0 {
                image.discard(offset, len).unwrap();
                model[range].fill(0);
            } else {
                let data = random.bytes(len);
                image.write_at(&data, offset).unwrap();
                model[range].copy_from_slice(&data);
            }
            if round == 7 || random.below(3) == 0 {
                image.flush().unwrap();
                flushed.push((storage.log().len(), model.clone()));
            }
        }
    }
    let log = storage.log();
    let options = OpenOptions::new(&NoGate);
    for cut in 0..=log.len() {
        for _ in 0..2 {
            let disk = after_cut(&start, &log, cut, &mut random);
            let report = Formats::new().check(disk.clone(), &options, Repair::None).unwrap();
            assert_eq!(report.corruptions, 0, "{format:?}, cut {cut}: {:?}", report.messages);
            let (at, mut expected) = flushed.iter().rev().find(|(at, _)| *at <= cut).cloned().unwrap();
            let mut all = vec![1; SIZE as usize];
            Formats::new().open_storage(disk.clone(), &options).unwrap().read_at(&mut all, 0).unwrap();
            // What was written later may be there or not.
            for (_, range) in changed.iter().filter(|(written, _)| *written >= at && *written <= cut) {
                expected[range.clone()].copy_from_slice(&all[range.clone()]);
            }
            assert!(all == expected, "{format:?}, cut {cut}");
            // And the image can be written again.
            let image = open_mut(disk.clone());
            image.write_at(&[3; 100], SIZE - 100).unwrap();
            image.flush().unwrap();
            drop(image);
            all[SIZE as usize - 100..].fill(3);
            let mut again = vec![1; SIZE as usize];
            Formats::new().open_storage(disk, &options).unwrap().read_at(&mut again, 0).unwrap();
            assert!(all == again, "{format:?}, cut {cut}");
        }
    }
}

/// A disk that fails once: the error is reported, and the image stays sound and usable.
#[test]
fn a_failing_write_is_reported_and_harmless() {
    FORMATS.into_iter().for_each(fail_everywhere);
}

fn fail_everywhere(format: (&str, &[(&str, &str)])) {
    for fail in 0.. {
        let memory = created(format);
        let storage = Arc::new(FaultStorage::new(memory.clone()).fail_at(fail));
        let image = open_mut(storage.clone());
        let mut random = Random(fail);
        let mut failures = 0;
        for _ in 0..5 {
            let offset = random.below(SIZE - 5000);
            failures += u64::from(image.write_at(&random.bytes(5000), offset).is_err());
            failures += u64::from(image.flush().is_err());
        }
        let failed = storage.changes() > fail;
        assert_eq!(failures, u64::from(failed), "{format:?}, operation {fail}");
        let data = random.bytes(5000);
        if failed {
            image.write_at(&data, 700).unwrap();
            image.flush().unwrap();
        }
        drop(image);
        let report = Formats::new().check(memory.clone(), &OpenOptions::new(&NoGate), Repair::None).unwrap();
        assert_eq!(report.corruptions, 0, "{format:?}, operation {fail}: {:?}", report.messages);
        if !failed {
            break;
        }
        let mut there = vec![0; 5000];
        Formats::new().open_storage(memory, &OpenOptions::new(&NoGate)).unwrap().read_at(&mut there, 700).unwrap();
        assert!(there == data);
    }
}

/// Threads that write into the same new blocks all get their bytes in.
#[test]
fn writers_share_blocks() {
    FORMATS.into_iter().for_each(write_from_threads);
}

fn write_from_threads(format: (&str, &[(&str, &str)])) {
    let memory = created(format);
    let image = open_mut(memory.clone());
    let model = Random(6).bytes(SIZE);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (image, model) = (&image, &model);
            scope.spawn(move || {
                for at in (thread * 8192..SIZE as usize).step_by(4 * 8192) {
                    let end = (at + 8192).min(SIZE as usize);
                    image.write_at(&model[at..end], at as u64).unwrap();
                }
                image.flush().unwrap();
            });
        }
    });
    let mut all = vec![0; SIZE as usize];
    Formats::new().open_storage(memory, &OpenOptions::new(&NoGate)).unwrap().read_at(&mut all, 0).unwrap();
    assert!(all == model);
}
