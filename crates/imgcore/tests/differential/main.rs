//! Random images, made and written in turns by QEMU's tools and by this crate: all read the same, and all checks are clean.
//!
//! Each case is a chain of one to three images of random formats and options. A model in memory knows what must be read; it
//! is compared with what we read, what qemu-img reads and, where it knows the format, what imago reads.
//!
//! `GUESTLIFT_DIFF_CASES` is the number of cases, `GUESTLIFT_DIFF_SEED` the first one's seed. A failure names its seed and all
//! that was done.

#![allow(missing_docs)]

mod case;
#[path = "../common/mod.rs"]
mod common;
mod kinds;
mod readers;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use case::Case;
use common::have;

/// Few enough for a run of all tests.
const CASES: u64 = 40;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn random_images_are_one_to_all() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let (count, first) = (number("GUESTLIFT_DIFF_CASES", CASES), number("GUESTLIFT_DIFF_SEED", 1));
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    let done = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < first + count) {
            let mut case = Case::new(seed);
            // A panic of ours is a failure like others.
            let result = catch_unwind(AssertUnwindSafe(|| case.run())).unwrap_or_else(|_| Err("panicked".into()));
            if let Err(what) = result {
                failures.lock().unwrap().push(format!("GUESTLIFT_DIFF_SEED={seed}: {what}\n  {}", case.log.join("\n  ")));
            }
            for what in case.counted {
                *done.lock().unwrap().entry(what).or_insert(0) += 1;
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    println!("{:#?}", done.into_inner().unwrap());
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
}
