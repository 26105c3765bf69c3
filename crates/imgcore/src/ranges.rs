//! Locks on ranges of an image, for writers that must not meet: two that fill parts of one new cluster, say, must not both
//! allocate it.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard};

/// The ranges being written now.
#[derive(Default)]
pub(crate) struct RangeLocks {
    held: Mutex<Vec<Range<u64>>>,
    released: Condvar,
}

/// Gives the range free when dropped.
pub(crate) struct RangeLock<'a> {
    locks: &'a RangeLocks,
    range: Range<u64>,
}

impl RangeLocks {
    /// Waits until no other holds any part of `range`, then holds it.
    pub fn lock(&self, range: Range<u64>) -> RangeLock<'_> {
        let mut held = self.held();
        while held.iter().any(|h| h.start < range.end && range.start < h.end) {
            held = self.released.wait(held).unwrap_or_else(|e| e.into_inner());
        }
        held.push(range.clone());
        RangeLock { locks: self, range }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for RangeLock<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        if let Some(at) = held.iter().position(|h| *h == self.range) {
            held.swap_remove(at);
        }
        self.locks.released.notify_all();
    }
}
