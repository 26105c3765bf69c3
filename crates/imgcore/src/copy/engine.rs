//! Image to image: planner, workers, one ordered writer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use super::plan::{Kind, planner};
use super::runs::{Packer, Run, Target, split};
use super::{Copied, Options};
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
    let end = target.size();
    let mut target = Target::new(target, options)?;
    let (granule, unit, compression) = (target.granule, target.unit, target.compression);
    // Compressed clusters are packed by whoever asks for it; nothing asks for stored holes as well.
    let look = super::plan::Look { unit, holes: granule != 0, only_top: options.only_top };
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
            move || planner(source, range, at, look, &plan, &results)
        });
        for _ in 0..threads {
            let (feed, results) = (feed.clone(), results.clone());
            scope.spawn(move || {
                let packer = compression.map(|c| Packer::new(c, end));
                worker(source, &feed, &results, granule, packer, from, at);
            });
        }
        // From here on only the threads hold these ends: when they are gone, the writer's loop ends.
        drop((feed, results));
        writer(&mut target, finished, give_back, progress)
    })?;
    // Threads that end early without an error have panicked, and the scope has then passed that on.
    Ok(target.copied)
}

/// What the workers take from, both under one lock: whoever has the lowest task then also has a buffer, so that the
/// writer always gets the piece it waits for.
struct Feed {
    tasks: Receiver<super::plan::Task>,
    buffers: Receiver<Vec<u8>>,
}

/// A finished task. The buffer goes back once it is written.
pub(super) struct Finished {
    pub number: u64,
    pub at: u64,
    pub len: u64,
    pub outcome: Result<Outcome>,
}

/// What a worker made of a task.
pub(super) enum Outcome {
    /// A buffer and what is in it.
    Read(Vec<u8>, Vec<Run>),
    Zero(Vec<u8>),
    Skip(Vec<u8>),
}

fn worker(
    source: &dyn Image,
    feed: &Mutex<Feed>,
    results: &SyncSender<Finished>,
    granule: u64,
    mut packer: Option<Packer>,
    from: u64,
    at: u64,
) {
    loop {
        let (task, mut buf) = {
            let Ok(feed) = feed.lock() else { return };
            let Ok(buf) = feed.buffers.recv() else { return };
            let Ok(task) = feed.tasks.recv() else { return };
            (task, buf)
        };
        let outcome = match task.kind {
            Kind::Skip => Ok(Outcome::Skip(buf)),
            Kind::Zero => Ok(Outcome::Zero(buf)),
            Kind::Data => {
                // Bounded by PIECE; a buffer keeps its length, so that it is cleared only the first time.
                let len = task.len as usize;
                buf.resize(buf.len().max(len), 0);
                source.read_at(&mut buf[..len], task.at - at + from).map(|()| {
                    let runs = match &mut packer {
                        Some(packer) => packer.split(&buf[..len], task.at),
                        None => split(&buf[..len], task.at, granule),
                    };
                    Outcome::Read(buf, runs)
                })
            }
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
            let buf = match result.outcome? {
                Outcome::Read(buf, runs) => {
                    target.write(&buf, &runs, result.at)?;
                    buf
                }
                Outcome::Zero(buf) => {
                    target.zero(result.at, result.len)?;
                    buf
                }
                Outcome::Skip(buf) => buf,
            };
            // The workers are gone when all is planned and done.
            let _ = give_back.send(buf);
            progress.advance(result.len);
        }
    }
    Ok(())
}
