//! Turning the content of one image into that of another, writing only what differs.

use std::ops::Range;

use crate::cursor::{Cursor, same_bytes};
use crate::{Error, Image, ImageMut, Progress, Result};

/// Bytes compared at once.
const PIECE: u64 = 1 << 20;
/// What differs is written in blocks of this size or of the target's clusters.
const BLOCK: u64 = 4096;

/// Makes `target`, which reads as `old`, read as `new`. All that is equal stays as it is, so that it is shared with
/// snapshots. Where `new` ends before `old`, the rest of the target is left alone.
pub fn apply(old: &dyn Image, new: &dyn Image, target: &dyn ImageMut, progress: &dyn Progress) -> Result<()> {
    let end = new.size().min(target.size());
    let mut work = Work::new(old, new, target);
    let (mut before, mut after) = (Cursor::new(old), Cursor::new(new));
    let mut at = 0;
    while at < end {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let (was, is) = (before.peek()?, after.peek()?);
        let mut len = was.len.min(is.len).min(end - at);
        if !same_bytes(&was, &is) {
            if is.kind.reads_zero() {
                target.zero_at(at, len)?;
            } else {
                len = len.min(work.longest(at));
                work.piece(at..at + len)?;
            }
        }
        before.advance(len);
        after.advance(len);
        progress.advance(len);
        at += len;
    }
    Ok(())
}

/// Writes what differs, a piece at a time.
pub(crate) struct Work<'a> {
    old: &'a dyn Image,
    new: &'a dyn Image,
    target: &'a dyn ImageMut,
    block: u64,
    buffers: [Vec<u8>; 2],
}

impl<'a> Work<'a> {
    pub(crate) fn new(old: &'a dyn Image, new: &'a dyn Image, target: &'a dyn ImageMut) -> Self {
        let block = target.info().cluster_size.unwrap_or(BLOCK).max(BLOCK);
        Work { old, new, target, block, buffers: [Vec::new(), Vec::new()] }
    }

    /// Bytes from `at` on that are compared at once at most.
    pub(crate) fn longest(&self, at: u64) -> u64 {
        let piece = PIECE.max(self.block);
        piece - at % piece
    }

    /// Writes the blocks of a range that differ.
    pub(crate) fn piece(&mut self, range: Range<u64>) -> Result<()> {
        let len = (range.end - range.start) as usize;
        let [was, is] = &mut self.buffers;
        was.resize(len, 0);
        is.resize(len, 0);
        self.new.read_at(is, range.start)?;
        let there = self.old.size().saturating_sub(range.start).min(len as u64) as usize;
        was[there..].fill(0);
        if there > 0 {
            self.old.read_at(&mut was[..there], range.start)?;
        }
        let mut from = 0;
        while from < len {
            let to = len.min((self.block - (range.start + from as u64) % self.block) as usize + from);
            if was[from..to] != is[from..to] {
                self.target.write_at(&is[from..to], range.start + from as u64)?;
            }
            from = to;
        }
        Ok(())
    }
}
