//! The copy engine: every byte that goes from one disk to another goes through here.
//!
//! A walk over the source's extents feeds a bounded queue of tasks. Workers read, look for zeroes and compress; then each
//! waits for its turn, in which it takes room on the target in the order of the tasks; then it stores the bytes, while
//! others have theirs. So the target is laid out in the same way whatever the number of workers, and has the same bytes
//! in its file. Each worker has one piece in memory, all together 64 MiB at most. Holes of the source are never
//! read, and become holes of the target.
//!
//! [`copy`] and [`copy_range`] pull from an image; [`Sink`] takes what a stream pushes.

mod engine;
mod plan;
mod runs;
mod sink;
mod target;

#[cfg(test)]
mod tests;

pub use engine::{copy, copy_range};
pub use runs::is_zero;
pub use sink::Sink;

use crate::Progress;

/// Bytes that are read and written at once, unless the target's clusters are larger. They stay in a core's own cache from the
/// read to the write; measured, 128 to 512 KiB are best, and 1 MiB takes twice as long.
const PIECE: u64 = 256 << 10;
/// Bytes of all workers' pieces together.
const MAX_BUFFERS: usize = 64 << 20;

/// How to copy.
#[derive(Clone, Debug)]
pub struct Options {
    /// Workers that read, at least 1.
    pub threads: usize,
    /// The target reads as zeroes everywhere already: nothing need be done for a source's zeroes.
    pub target_is_zero: bool,
    /// Runs of zero bytes of this length, aligned to it, become holes; with 0 everything is stored, holes too. The
    /// target's cluster size is used where that is larger.
    pub sparse: u64,
    /// Leave out what lies in the images below the source, and not in its own layer: it shows through on the target.
    pub only_top: bool,
    /// Store the target compressed.
    pub compress: bool,
}

impl Default for Options {
    /// As many workers as processors, a target of unknown content, holes from 4 KiB, nothing left out or compressed.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(16);
        Options { threads, target_is_zero: false, sparse: 4096, only_top: false, compress: false }
    }
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes written as data.
    pub data: u64,
    /// Bytes that were zeroes, whether the target had to be told or not.
    pub zero: u64,
}

/// The progress of one of several copies, for a caller that told the total of all before.
pub struct Part<'a>(pub &'a dyn Progress);

impl Progress for Part<'_> {
    fn total(&self, _: u64) {}

    fn advance(&self, done: u64) {
        self.0.advance(done);
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}
