//! Whether two images hold the same bytes.
//!
//! A walk over both images' extents plans what must be read; what is zeroes in both, or one place of one file, is not.
//! Workers read and compare. The difference reported is the first one, whichever worker is the fastest.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::copy::is_zero;
use crate::cursor::{Cursor, same_bytes};
use crate::{Error, Extent, ExtentKind, Image, Progress};

/// Differences are told by the sector.
const SECTOR: u64 = 512;
/// Bytes of each image that a worker holds: small enough to stay in the processor's cache.
const BLOCK: usize = 256 << 10;
/// Bytes that one worker takes at once; compressed clusters are no larger.
const PIECE: u64 = 2 << 20;
const AHEAD: usize = 64;

/// How to compare.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Workers that read.
    pub threads: usize,
    /// Whether the same bytes must also be stored in the same way: as data, as zeroes, or not at all.
    pub strict: bool,
}

/// What was found first.
#[derive(Debug)]
pub enum Found {
    /// Nothing: the images are the same.
    Same,
    /// The sector at this offset differs.
    Content(u64),
    /// The bytes from this offset on are stored in different ways. Only when strict.
    Status(u64),
    /// It is not known where the parts of one of the images lie.
    Unmapped(Error),
    /// The bytes at this offset of an image cannot be read.
    Unreadable(u64, Error),
}

impl Found {
    /// Where it was found; `u64::MAX` for what has no place.
    pub fn offset(&self) -> u64 {
        match self {
            Found::Same | Found::Unmapped(_) => u64::MAX,
            Found::Content(offset) | Found::Status(offset) | Found::Unreadable(offset, _) => *offset,
        }
    }
}

/// Compares `a` with `b`. Where one is longer, its rest is compared with zeroes.
pub fn compare(a: &dyn Image, b: &dyn Image, options: Options, progress: &dyn Progress) -> Found {
    let total = a.size().max(b.size());
    progress.total(total);
    let search = Search { a, b, first: AtomicU64::new(u64::MAX), found: Mutex::new(Found::Same) };
    let (plan, tasks) = sync_channel(AHEAD);
    let tasks = Mutex::new(tasks);
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| search.work(&tasks, progress));
        }
        if let Err(error) = search.plan(total, options.strict, &plan, progress) {
            search.report(Found::Unmapped(error));
        }
        drop(plan);
    });
    search.found.into_inner().unwrap_or_else(|e| e.into_inner())
}

struct Task {
    at: u64,
    len: u64,
    /// Whether the first and the second image must be read; else it is zeroes there.
    read: [bool; 2],
}

struct Search<'a> {
    a: &'a dyn Image,
    b: &'a dyn Image,
    /// The offset of what is in `found`: nothing behind it matters any more.
    first: AtomicU64,
    found: Mutex<Found>,
}

impl Search<'_> {
    fn report(&self, new: Found) {
        let mut found = self.found.lock().unwrap_or_else(|e| e.into_inner());
        if matches!(*found, Found::Same) || new.offset() < found.offset() {
            self.first.fetch_min(new.offset(), Ordering::Relaxed);
            *found = new;
        }
    }

    fn plan(&self, total: u64, strict: bool, tasks: &SyncSender<Task>, progress: &dyn Progress) -> Result<(), Error> {
        let (mut a, mut b) = (Cursor::new(self.a), Cursor::new(self.b));
        let mut at = 0;
        while at < total && self.first.load(Ordering::Relaxed) == u64::MAX {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let (one, other) = (a.peek()?, b.peek()?);
            if strict && status(&one) != status(&other) {
                self.report(Found::Status(at));
                return Ok(());
            }
            let mut len = one.len.min(other.len).min(total - at);
            if same_bytes(&one, &other) {
                progress.advance(len);
            } else {
                len = len.min(PIECE - at % PIECE);
                let task = Task { at, len, read: [!one.kind.reads_zero(), !other.kind.reads_zero()] };
                if tasks.send(task).is_err() {
                    return Ok(());
                }
            }
            a.advance(len);
            b.advance(len);
            at += len;
        }
        Ok(())
    }

    fn work(&self, tasks: &Mutex<Receiver<Task>>, progress: &dyn Progress) {
        let mut buffers = [Vec::new(), Vec::new()];
        loop {
            let task = tasks.lock().unwrap_or_else(|e| e.into_inner()).recv();
            let Ok(task) = task else { return };
            // What was planned before a difference was found is still looked at, but not what lies behind it.
            let mut at = task.at;
            while at < task.at + task.len && at < self.first.load(Ordering::Relaxed) {
                let len = (task.at + task.len - at).min(BLOCK as u64) as usize;
                match self.block(at, len, task.read, &mut buffers) {
                    Ok(None) => {}
                    Ok(Some(within)) => self.report(Found::Content((at + within as u64) / SECTOR * SECTOR)),
                    Err(error) => self.report(Found::Unreadable(at, error)),
                }
                at += len as u64;
            }
            progress.advance(task.len);
        }
    }

    /// The first byte of a block that differs.
    fn block(&self, at: u64, len: usize, read: [bool; 2], buffers: &mut [Vec<u8>; 2]) -> Result<Option<usize>, Error> {
        for ((image, wanted), buffer) in [self.a, self.b].into_iter().zip(read).zip(&mut *buffers) {
            if wanted {
                buffer.resize(BLOCK, 0);
                image.read_at(&mut buffer[..len], at)?;
            }
        }
        let [a, b] = buffers;
        Ok(match read {
            [true, true] if a[..len] == b[..len] => None,
            [true, true] => a[..len].iter().zip(&b[..len]).position(|(a, b)| a != b),
            [true, false] => first_nonzero(&a[..len]),
            [false, true] => first_nonzero(&b[..len]),
            [false, false] => None,
        })
    }
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) { None } else { bytes.iter().position(|byte| *byte != 0) }
}

/// What QEMU tells of a range: zeroes, allocated, compressed, and whether the bytes lie in a file as they are.
fn status(extent: &Extent) -> (bool, bool, bool, bool) {
    let kind = extent.kind;
    (kind.reads_zero(), kind != ExtentKind::Unallocated, kind == ExtentKind::Compressed, extent.host_offset.is_some())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::raw::Raw;
    use crate::storage::{FaultStorage, MemStorage};
    use crate::{ImageMut, NoProgress};

    /// Each with a name of its own: bytes at one offset of one file need no comparison.
    fn disk(size: u64, data: &[(u64, u8)]) -> Raw {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("disk {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let raw = Raw::create(Arc::new(MemStorage::new(name, 0)), size).unwrap();
        for (at, byte) in data {
            raw.write_at(&[*byte], *at).unwrap();
        }
        raw
    }

    fn found(a: &Raw, b: &Raw) -> Found {
        compare(a, b, Options { threads: 3, strict: false }, &NoProgress)
    }

    #[test]
    fn the_first_difference_is_found_by_sector() {
        let a = disk(64 << 20, &[(5 << 20, 1), (40 << 20, 2)]);
        assert!(matches!(found(&a, &a), Found::Same));
        for at in [0, 700, (5 << 20) - 1, (5 << 20) + 513, (40 << 20) + 5, (64 << 20) - 1] {
            let b = disk(64 << 20, &[(5 << 20, 1), (40 << 20, 2), (at, 9), (60 << 20, 7)]);
            for (x, y) in [(&a, &b), (&b, &a)] {
                let first = at.min(60 << 20) / 512 * 512;
                let found = found(x, y);
                assert!(matches!(found, Found::Content(offset) if offset == first), "{at}: {found:?}");
            }
        }
    }

    #[test]
    fn a_longer_rest_is_compared_with_zeroes() {
        let a = disk(1 << 20, &[(5, 1)]);
        assert!(matches!(found(&a, &disk(9 << 20, &[(5, 1)])), Found::Same));
        assert!(matches!(found(&disk(9 << 20, &[(5, 1), (8 << 20, 3)]), &a), Found::Content(0x80_0000)));
    }

    #[test]
    fn failures_count_where_no_difference_comes_before() {
        let mut bytes = vec![1; 8 << 20];
        let broken = FaultStorage::new(Arc::new(MemStorage::from_bytes("bad", &bytes)));
        broken.set_fail_reads(true);
        let bad = Raw::open(Arc::new(broken)).unwrap();
        bytes[3] = 2;
        let good = Raw::open(Arc::new(MemStorage::from_bytes("good", &bytes))).unwrap();
        let found = compare(&good, &bad, Options { threads: 1, strict: false }, &NoProgress);
        assert!(matches!(found, Found::Unreadable(0, _)), "{found:?}");
    }

    #[test]
    fn strictly_a_hole_is_no_zeroes() {
        let (a, b) = (disk(1 << 20, &[]), disk(1 << 20, &[(8192, 0)]));
        assert!(matches!(found(&a, &b), Found::Same));
        let strict = compare(&a, &b, Options { threads: 2, strict: true }, &NoProgress);
        assert!(matches!(strict, Found::Status(8192)), "{strict:?}");
    }
}
