//! The first stage: what is to be read, what is known to be zeroes, and what is left out.

use std::ops::{ControlFlow, Range};
use std::sync::mpsc::SyncSender;

use crate::{Error, Extent, ExtentKind, Image};

/// A piece of work, numbered in the order of the target.
pub(super) struct Task {
    pub number: u64,
    /// Offset on the target.
    pub at: u64,
    pub len: u64,
    pub kind: Kind,
}

/// What is to be done with a range.
#[derive(Debug)]
pub(super) enum Kind {
    Data,
    Zero,
    Skip,
    /// The source could not be looked at any further.
    Fail(Error),
}

/// How the source is looked at.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// Zeroes and what is left out begin and end at multiples of it on the target.
    pub unit: u64,
    /// Data is cut at multiples of it on the target.
    pub piece: u64,
    /// Whether holes stay holes.
    pub holes: bool,
    /// Whether what lies below the source is left out.
    pub only_top: bool,
}

impl Look {
    fn kind(&self, extent: &Extent, has_backing: bool) -> Kind {
        if self.only_top && (extent.depth > 0 || (extent.kind == ExtentKind::Unallocated && has_backing)) {
            return Kind::Skip;
        }
        if extent.kind.reads_zero() && self.holes { Kind::Zero } else { Kind::Data }
    }
}

/// What one worker takes at once: a task with something to read, and those without it that come before. Waking a worker takes
/// longer than a hole.
pub(super) type Batch = Vec<Task>;

/// Most tasks of a batch.
const BATCH: usize = 64;

/// Puts the tasks for `range` of the source, which goes to `at` of the target, into the queue.
pub(super) fn planner(source: &dyn Image, range: Range<u64>, at: u64, look: Look, plan: &SyncSender<Batch>) {
    let has_backing = source.backing().is_some();
    let end = at + (range.end - range.start);
    let mut queue = Queue { plan, piece: look.piece, number: 0, open: at, batch: Batch::new() };
    let mut planned = range.start;
    let walk = source.extents(range.clone(), &mut |extent| {
        if extent.start != planned || extent.len == 0 || extent.len > range.end - extent.start {
            return ControlFlow::Break(());
        }
        planned += extent.len;
        let (from, to) = (extent.start - range.start + at, planned - range.start + at);
        match look.kind(&extent, has_backing) {
            // As much of it as makes whole pieces; the rest may share its last cluster with what follows.
            Kind::Data => queue.data_until(to / look.piece * look.piece),
            kind => {
                let from = if queue.open == from { from } else { from.checked_next_multiple_of(look.unit).unwrap_or(end) };
                let to = if to == end { to } else { to / look.unit * look.unit };
                if from >= to {
                    return ControlFlow::Continue(());
                }
                queue.data_until(from)?;
                queue.push(to, kind)
            }
        }
    });
    let outcome = match walk {
        Err(error) => error,
        // Cut short: by a target that gave up, or by a walk that breaks the rules of Image::extents.
        Ok(()) if planned != range.end => {
            let file = source.info().file;
            Error::Invalid(format!("{file}: the walk over its content stopped at offset {planned:#x} of {:#x}", range.end))
        }
        Ok(()) => {
            if queue.data_until(end).is_continue() {
                let _ = queue.send();
            }
            return;
        }
    };
    let _ = queue.push(end, Kind::Fail(outcome));
}

struct Queue<'a> {
    plan: &'a SyncSender<Batch>,
    piece: u64,
    number: u64,
    /// Where the part of the target begins that no task covers yet.
    open: u64,
    /// Tasks that are not sent yet.
    batch: Batch,
}

impl Queue<'_> {
    fn push(&mut self, to: u64, kind: Kind) -> ControlFlow<()> {
        let is_last = matches!(kind, Kind::Data | Kind::Fail(_)) || self.batch.len() + 1 >= BATCH;
        self.batch.push(Task { number: self.number, at: self.open, len: to - self.open, kind });
        self.number += 1;
        self.open = to;
        if is_last { self.send() } else { ControlFlow::Continue(()) }
    }

    fn send(&mut self) -> ControlFlow<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() || self.plan.send(batch).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Cut at multiples of the piece, which holds whole clusters.
    fn data_until(&mut self, to: u64) -> ControlFlow<()> {
        while self.open < to {
            let boundary = self.open.saturating_add(self.piece - self.open % self.piece);
            self.push(boundary.min(to), Kind::Data)?;
        }
        ControlFlow::Continue(())
    }
}
