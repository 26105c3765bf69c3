//! Image to image: a planner, and workers that read, take their turn, and store.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::plan::{Batch, Kind, Look, Task, planner};
use super::runs::{Packer, Run, split};
use super::target::{Stored, Target};
use super::{Copied, MAX_BUFFERS, Options};
use crate::{Error, Image, ImageMut, Progress, Result};

/// Batches that the planner may be ahead of the workers.
const AHEAD: usize = 64;

/// Copies all of `source` to the start of `target`, which must be at least as large.
///
/// What lies behind it on the target stays as it is. [`ImageMut::flush`] is left to the caller.
///
/// # Errors
/// The first failure in the source's order, with its file and offset; [`Error::Cancelled`] when `progress` says
/// so. What the target holds then is unspecified.
pub fn copy(source: &dyn Image, target: &dyn ImageMut, options: &Options, progress: &dyn Progress) -> Result<Copied> {
    copy_range(source, 0..source.size(), target, 0, options, progress)
}

/// Copies the bytes `range` of `source` to byte `at` of `target`. As [`copy`] else.
pub fn copy_range(
    source: &dyn Image,
    range: Range<u64>,
    target: &dyn ImageMut,
    at: u64,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Copied> {
    let len = range.end.saturating_sub(range.start);
    if range.end > source.size() || at.checked_add(len).is_none_or(|end| end > target.size()) {
        return Err(Error::Invalid(format!(
            "cannot copy {len} bytes from offset {:#x} of {} ({} bytes) to offset {at:#x} of {} ({} bytes): one of them is too small",
            range.start,
            source.info().file,
            source.size(),
            target.info().file,
            target.size()
        )));
    }
    progress.total(len);
    let end = target.size();
    let target = Target::new(target, options)?;
    // Nothing asks for stored zeroes and holes as well.
    let look = Look { unit: target.unit, piece: target.piece, holes: target.granule != 0, only_top: options.only_top };
    let threads = options.threads.clamp(1, (MAX_BUFFERS / target.piece as usize).max(1));

    let (plan, tasks) = sync_channel(AHEAD);
    let copy = Copy {
        source,
        shift: Shift { from: range.start, at },
        tasks: Mutex::new(tasks),
        turn: Mutex::new(Turn { next: 0, waiting: 0, copied: Copied::default(), failure: None }),
        passed: Condvar::new(),
        target,
        progress,
    };
    std::thread::scope(|scope| {
        scope.spawn(move || planner(source, range, at, look, &plan));
        for _ in 1..threads {
            scope.spawn(|| copy.worker(end));
        }
        copy.worker(end);
        // A planner that waits for room in the queue must learn that nobody takes from it any more.
        drop(std::mem::replace(&mut *lock(&copy.tasks), sync_channel(0).1));
    });
    let turn = copy.turn.into_inner().unwrap_or_else(|e| e.into_inner());
    match turn.failure {
        Some((_, error)) => Err(error),
        None => Ok(turn.copied),
    }
}

/// How offsets on the target differ from those on the source.
struct Shift {
    from: u64,
    at: u64,
}

/// What the workers share.
struct Copy<'a> {
    source: &'a dyn Image,
    shift: Shift,
    tasks: Mutex<Receiver<Batch>>,
    turn: Mutex<Turn>,
    passed: Condvar,
    target: Target<'a>,
    progress: &'a dyn Progress,
}

/// Whose turn it is to change the target's layout. It goes through the tasks by their numbers, so the target gets the same
/// calls in the same order whatever the number of workers.
struct Turn {
    next: u64,
    /// Workers that wait for theirs.
    waiting: usize,
    copied: Copied,
    /// The failed task of the lowest number.
    failure: Option<(u64, Error)>,
}

impl Turn {
    fn fail(&mut self, number: u64, error: Error) {
        if self.failure.as_ref().is_none_or(|(first, _)| number < *first) {
            self.failure = Some((number, error));
        }
    }
}

impl Copy<'_> {
    /// Does tasks until there are none left or one has failed. `end` is where the target ends.
    fn worker(&self, end: u64) {
        let _watch = Watch(self);
        let mut packer = self.target.compression.map(|c| Packer::new(c, end));
        let mut buf = Vec::new();
        loop {
            let Ok(batch) = lock(&self.tasks).recv() else { return };
            for Task { number, at, len, kind } in batch {
                let outcome = self.read(kind, at, len, &mut buf, packer.as_mut());
                let Some(mut turn) = self.wait_for(number) else { return };
                let placed = outcome.and_then(|content| self.place(&mut turn, at, len, &buf, content));
                turn.next += 1;
                let stored = placed.and_then(|stored| {
                    self.pass(turn);
                    stored.into_iter().try_for_each(|piece| self.target.store(&buf, piece))
                });
                match stored {
                    Ok(()) => self.progress.advance(len),
                    Err(error) => {
                        let mut turn = lock(&self.turn);
                        turn.fail(number, error);
                        return self.pass(turn);
                    }
                }
            }
        }
    }

    /// Gives the turn away.
    fn pass(&self, turn: MutexGuard<'_, Turn>) {
        let waiting = turn.waiting;
        drop(turn);
        // A call of the kernel even when nobody waits.
        if waiting > 0 {
            self.passed.notify_all();
        }
    }

    /// The first part of a task, which needs no order: reading, looking for zeroes, packing.
    fn read(&self, kind: Kind, at: u64, len: u64, buf: &mut Vec<u8>, packer: Option<&mut Packer>) -> Result<Content> {
        match kind {
            Kind::Fail(error) => Err(error),
            Kind::Skip => Ok(Content::Skip),
            Kind::Zero => Ok(Content::Zero),
            Kind::Data => {
                // Bounded by the piece; a buffer keeps its length, so that it is cleared only the first time.
                let len = len as usize;
                buf.resize(buf.len().max(len), 0);
                let buf = &mut buf[..len];
                self.source.read_at(buf, at - self.shift.at + self.shift.from)?;
                Ok(Content::Runs(match packer {
                    Some(packer) => packer.split(buf, at),
                    None => split(buf, at, self.target.granule),
                }))
            }
        }
    }

    /// The turn of task `number`; `None` when the copy has failed before it.
    fn wait_for(&self, number: u64) -> Option<MutexGuard<'_, Turn>> {
        let mut turn = lock(&self.turn);
        loop {
            if turn.failure.as_ref().is_some_and(|(first, _)| *first < number) {
                return None;
            }
            if turn.next == number {
                return Some(turn);
            }
            turn.waiting += 1;
            turn = self.passed.wait(turn).unwrap_or_else(|e| e.into_inner());
            turn.waiting -= 1;
        }
    }

    /// The part of a task that has an order.
    fn place(&self, turn: &mut Turn, at: u64, len: u64, buf: &[u8], content: Content) -> Result<Vec<Stored>> {
        if self.progress.cancelled() {
            return Err(Error::Cancelled);
        }
        match content {
            Content::Skip => Ok(Vec::new()),
            Content::Zero => self.target.zero(at, len, &mut turn.copied).map(|()| Vec::new()),
            Content::Runs(runs) => self.target.place(buf, runs, at, &mut turn.copied),
        }
    }
}

/// Ends the copy when a worker panics: the others would wait for its turn for ever.
struct Watch<'a, 'b>(&'a Copy<'b>);

impl Drop for Watch<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.turn).fail(0, Error::Cancelled);
            self.0.passed.notify_all();
        }
    }
}

/// What the first part of a task found.
enum Content {
    Runs(Vec<Run>),
    Zero,
    Skip,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
