//! Copies compared byte for byte, call for call, and under failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Copied, Options, PIECE, Sink, copy, copy_range};
use crate::formats::CreateOptions;
use crate::storage::MemStorage;
use crate::testing::TestImage;
use crate::{Error, Formats, Image, ImageMut, NoProgress, Overlay, Progress, Storage};

const SIZE: u64 = 20 << 20;

/// Data with a hole, stored zeroes, and odd edges.
fn source() -> TestImage {
    let noise: Vec<u8> = (0..7_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    TestImage::with(SIZE, &[(12_345, &noise), (10 << 20, &vec![0; 3 << 20]), (SIZE - 700, &noise[..700])])
}

fn options(threads: usize, target_is_zero: bool) -> Options {
    Options { threads, target_is_zero, ..Options::default() }
}

#[test]
fn the_target_gets_the_same_calls_whatever_the_thread_count() {
    let source = source();
    let mut logs = Vec::new();
    for threads in [1, 2, 7] {
        let target = TestImage::with(SIZE, &[(0, &vec![0xee; SIZE as usize])]);
        let copied = copy(&source, &target, &options(threads, false), &NoProgress).unwrap();
        assert!(target.bytes() == source.bytes());
        assert_eq!(copied.data + copied.zero, SIZE);
        logs.push(target.log.lock().unwrap().clone());
    }
    assert!(logs.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_zero_target_is_written_only_where_there_is_data() {
    let (source, target) = (source(), TestImage::new(SIZE));
    copy(&source, &target, &options(2, true), &NoProgress).unwrap();
    assert!(target.bytes() == source.bytes());
    let log = target.log.lock().unwrap();
    assert!(log.iter().all(|(_, len, zero)| !zero && *len <= PIECE));
    let written: u64 = log.iter().map(|(_, len, _)| len).sum();
    assert!(written < 7_000_001 + 700 + 4 * 4096, "{written}");
}

#[test]
fn without_sparseness_stored_zeroes_stay_stored() {
    let (source, target) = (source(), TestImage::new(SIZE));
    let all = Options { sparse: 0, ..options(2, true) };
    let copied = copy(&source, &target, &all, &NoProgress).unwrap();
    assert_eq!(copied, Copied { data: SIZE, zero: 0 });
    assert!(target.bytes() == source.bytes());
}

#[test]
fn ranges_go_to_their_place_and_nothing_else_is_touched() {
    let source = source();
    let target = TestImage::with(SIZE, &[(0, &vec![0xee; SIZE as usize])]);
    copy_range(&source, 5_000_001..9_000_000, &target, 77, &options(3, false), &NoProgress).unwrap();
    let mut expected = vec![0xee; SIZE as usize];
    expected[77..77 + 3_999_999].copy_from_slice(&source.bytes()[5_000_001..9_000_000]);
    assert!(target.bytes() == expected);
}

#[test]
fn nothing_is_copied_past_an_end() {
    let (source, target) = (TestImage::new(4096), TestImage::new(4096));
    for (range, at) in [(0..4097, 0), (0..4096, 1), (1..2, u64::MAX)] {
        let result = copy_range(&source, range, &target, at, &options(1, false), &NoProgress);
        assert!(matches!(result, Err(Error::Invalid(_))));
    }
    assert_eq!(copy_range(&source, 5..5, &target, 4096, &options(1, false), &NoProgress).unwrap(), Copied::default());
}

#[test]
fn a_failure_comes_back_with_its_offset_and_all_threads_end() {
    let mut bad_source = source();
    bad_source.bad = Some(5 << 20..(5 << 20) + 1);
    let mut bad_target = TestImage::new(SIZE);
    bad_target.bad = Some(3 << 20..(3 << 20) + 1);
    for threads in [1, 4] {
        let read = copy(&bad_source, &TestImage::new(SIZE), &options(threads, true), &NoProgress).unwrap_err();
        assert_eq!(read.to_string(), "test: cannot read at offset 0x500000: bad block");
        let write = copy(&source(), &bad_target, &options(threads, true), &NoProgress).unwrap_err();
        assert_eq!(write.to_string(), "test: cannot write at offset 0x300000: bad block");
    }
}

struct Meter {
    total: AtomicU64,
    done: AtomicU64,
    stop_at: u64,
}

impl Progress for Meter {
    fn total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }
    fn advance(&self, done: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
    }
    fn cancelled(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.stop_at
    }
}

#[test]
fn progress_adds_up_and_can_stop_the_work() {
    let meter = |stop_at| Meter { total: AtomicU64::new(0), done: AtomicU64::new(0), stop_at };
    let whole = meter(u64::MAX);
    copy(&source(), &TestImage::new(SIZE), &options(3, true), &whole).unwrap();
    assert_eq!((whole.total.into_inner(), whole.done.into_inner()), (SIZE, SIZE));

    let stopped = meter(4 << 20);
    let result = copy(&source(), &TestImage::new(SIZE), &options(3, true), &stopped);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert!(stopped.done.into_inner() < 7 << 20);
}

#[test]
fn a_sink_writes_what_a_stream_pushes_in_any_order() {
    let content = source().bytes();
    let target = Arc::new(TestImage::new(SIZE));
    let mut sink = Sink::new(target.clone(), options(1, true)).unwrap();
    let piece = 1 << 20;
    for number in (0..20).rev() {
        sink.write(number * piece, content[(number * piece) as usize..][..piece as usize].to_vec()).unwrap();
    }
    sink.zero(0, 0).unwrap();
    let copied = sink.finish().unwrap();
    assert_eq!(copied.data + copied.zero, SIZE);
    assert!(target.bytes() == content);
    let order: Vec<_> = target.log.lock().unwrap().iter().map(|(offset, ..)| offset / piece).collect();
    assert!(order.is_sorted_by(|a, b| a >= b), "{order:?}");
}

#[test]
fn a_sink_reports_the_failure_of_an_earlier_piece() {
    let mut target = TestImage::new(SIZE);
    target.bad = Some(0..1);
    let mut sink = Sink::new(Arc::new(target), options(1, true)).unwrap();
    let failed = (0..100).find_map(|i| sink.write(i * 4096, vec![1; 4096]).err()).expect("an error");
    assert_eq!(failed.to_string(), "test: cannot write at offset 0x0: bad block");
    assert!(sink.write(0, vec![1]).is_err());
}

#[test]
fn a_qcow2_target_gets_whole_clusters_and_packed_ones_when_asked() {
    let noise: Vec<u8> = (0..3 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let text: Vec<u8> = b"the same words again and again. ".repeat(40_000);
    let size = (9 << 20) + 512;
    // Data that begins and ends in the middle of clusters, and in the last one, which is cut by the image's end.
    let source = TestImage::with(size, &[(8192, &noise[..1_000_000]), (2 << 20, &text), (6_000_000, &noise), (size - 512, &[7; 512])]);
    let make = |threads, compress| {
        let storage = Arc::new(MemStorage::new("disk.qcow2", 0));
        let create = CreateOptions::new();
        let target = Formats::new().driver("qcow2").unwrap().create(storage.clone(), size, &create).unwrap();
        copy(&source, &*target, &Options { compress, ..options(threads, true) }, &NoProgress).unwrap();
        target.flush().unwrap();
        let mut bytes = vec![0; size as usize];
        target.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == source.bytes());
        let mut file = vec![0; storage.size().unwrap() as usize];
        storage.read_at(&mut file, 0).unwrap();
        file
    };
    let (plain, packed) = (make(1, false), make(1, true));
    assert!(plain == make(5, false) && packed == make(5, true));
    assert!(packed.len() + 1_000_000 < plain.len(), "{} {}", packed.len(), plain.len());
    let raw = TestImage::new(size);
    let refused = copy(&source, &raw, &Options { compress: true, ..options(1, true) }, &NoProgress);
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}

#[test]
fn with_sparse_0_holes_are_stored_too() {
    let target = TestImage::with(1 << 20, &[(0, &[1; 1 << 20])]);
    let copied = copy(&TestImage::new(1 << 20), &target, &Options { sparse: 0, ..options(1, true) }, &NoProgress).unwrap();
    assert_eq!(copied, Copied { data: 1 << 20, zero: 0 });
    assert!(target.bytes().iter().all(|b| *b == 0));
}

#[test]
fn the_layers_below_can_be_left_out() {
    let below = Arc::new(TestImage::with(SIZE, &[(0, &vec![1; 1 << 20])]));
    let source = Overlay::in_memory(below.clone());
    source.write_at(&[2; 70_000], 65_536).unwrap();
    source.zero_at(400_000, 100_000).unwrap();
    // What stands for the same layer on the target.
    let target = TestImage::with(SIZE, &[(0, &below.bytes())]);
    copy(&source, &target, &Options { only_top: true, ..options(2, false) }, &NoProgress).unwrap();
    let mut expected = vec![0; SIZE as usize];
    source.read_at(&mut expected, 0).unwrap();
    assert!(target.bytes() == expected);
    let written: u64 = target.log.lock().unwrap().iter().map(|(_, len, _)| len).sum();
    assert!(written < 500_000, "{written}");
}
