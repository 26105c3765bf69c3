//! Image to image: planner, workers, one ordered writer.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use super::runs::{Run, Target, split};
use super::{Copied, Options, PIECE};
use crate::{Error, Image, ImageMut, Progress, Result};

/// Tasks that the planner may be ahead of the workers.
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
    let mut target = Target::new(target, options);
    let granule = target.granule;
    let threads = options.threads.max(1);

    let (plan, tasks) = sync_channel(AHEAD);
    let (give_back, buffers) = channel();
    for _ in 0..threads + 2 {
        // The receiver is alive here, and so the send can't fail.
        let _ = give_back.send(Vec::new());
    }
    let feed = Arc::new(Mutex::new(Feed { tasks, buffers }));
    let (results, finished) = sync_channel(threads + 2);
    std::thread::scope(|scope| {
        let from = range.start;
        scope.spawn({
            let results = results.clone();
            move || planner(source, range, at, &plan, &results)
        });
        for _ in 0..threads {
            let (feed, results) = (feed.clone(), results.clone());
            scope.spawn(move || worker(source, &feed, &results, granule, from, at));
        }
        // From here on only the threads hold these ends: when they are gone, the writer's loop ends.
        drop((feed, results));
        writer(&mut target, finished, give_back, progress)
    })?;
    // Threads that end early without an error have panicked, and the scope has then passed that on.
    Ok(target.copied)
}

/// A piece of work, numbered in the order of the target.
struct Task {
    number: u64,
    /// Offset on the target.
    at: u64,
    len: u64,
    zero: bool,
}

/// What the workers take from, both under one lock: whoever has the lowest task then also has a buffer, so that the
/// writer always gets the piece it waits for.
struct Feed {
    tasks: Receiver<Task>,
    buffers: Receiver<Vec<u8>>,
}

/// A finished task. The buffer goes back once it is written.
struct Finished {
    number: u64,
    at: u64,
    len: u64,
    outcome: Result<Option<(Vec<u8>, Vec<Run>)>>,
}

fn planner(source: &dyn Image, range: Range<u64>, at: u64, plan: &SyncSender<Task>, results: &SyncSender<Finished>) {
    let mut number = 0;
    let mut planned = range.start;
    let mut send = |start: u64, len: u64, zero: bool| {
        let sent = plan.send(Task { number, at: at + (start - range.start), len, zero });
        number += 1;
        if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let walk = source.extents(range.clone(), &mut |extent| {
        if extent.start != planned || extent.len == 0 || extent.len > range.end - extent.start {
            return ControlFlow::Break(());
        }
        planned += extent.len;
        if extent.kind.reads_zero() {
            return send(extent.start, extent.len, true);
        }
        // Cut at multiples of PIECE on the target, so that pieces hold whole clusters of it.
        let (mut start, end) = (extent.start, extent.start + extent.len);
        while start < end {
            let on_target = at + (start - range.start);
            let len = (PIECE as u64 - on_target % PIECE as u64).min(end - start);
            send(start, len, false)?;
            start += len;
        }
        ControlFlow::Continue(())
    });
    let outcome = match walk {
        Err(error) => Err(error),
        // Cut short: by a target that gave up, or by a walk that breaks the rules of Image::extents.
        Ok(()) if planned != range.end => Err(Error::Invalid(format!(
            "{}: the walk over its content stopped at offset {planned:#x} of {:#x}",
            source.info().file,
            range.end
        ))),
        Ok(()) => return,
    };
    let _ = results.send(Finished { number, at: 0, len: 0, outcome: outcome.map(|()| None) });
}

fn worker(source: &dyn Image, feed: &Mutex<Feed>, results: &SyncSender<Finished>, granule: u64, from: u64, at: u64) {
    loop {
        let (task, mut buf) = {
            let Ok(feed) = feed.lock() else { return };
            let Ok(buf) = feed.buffers.recv() else { return };
            let Ok(task) = feed.tasks.recv() else { return };
            (task, buf)
        };
        let outcome = if task.zero {
            Ok(Some((buf, Vec::new())))
        } else {
            // Bounded by PIECE; a buffer keeps its length, so that it is cleared only the first time.
            let len = task.len as usize;
            buf.resize(buf.len().max(len), 0);
            source.read_at(&mut buf[..len], task.at - at + from).map(|()| {
                let runs = split(&buf[..len], task.at, granule);
                Some((buf, runs))
            })
        };
        if results.send(Finished { number: task.number, at: task.at, len: task.len, outcome }).is_err() {
            return;
        }
    }
}

fn writer(target: &mut Target<'_>, finished: Receiver<Finished>, give_back: Sender<Vec<u8>>, progress: &dyn Progress) -> Result<()> {
    let mut early: BTreeMap<u64, Finished> = BTreeMap::new();
    let mut next = 0;
    for result in finished {
        early.insert(result.number, result);
        while let Some(result) = early.remove(&next) {
            next += 1;
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let Some((buf, runs)) = result.outcome? else { continue };
            if runs.is_empty() {
                target.zero(result.at, result.len)?;
            } else {
                target.write(&buf, &runs, result.at)?;
            }
            // The workers are gone when all is planned and done.
            let _ = give_back.send(buf);
            progress.advance(result.len);
        }
    }
    Ok(())
}
