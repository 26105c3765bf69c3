//! Whether the log was written out: the last record is then the one that unmounting leaves. (XFS Algorithms & Data
//! Structures, "Journaling Log")
//!
//! What looks different in any way counts as dirty: the kernel in the appliance replays it.

use super::superblock::Superblock;
use crate::bytes::{be32, be64};
use crate::{Result, Window};

/// The log's own unit, in bytes.
const BLOCK: u64 = 512;
const RECORD_MAGIC: u32 = 0xfeed_babe;
/// The record of an unmount is padded to the log's stripe unit: 256 KiB at most.
const SEARCH: u64 = 520;
const UNMOUNT: u8 = 0x20;
/// Bytes of record that one block of header describes.
const CYCLES: u32 = 32 << 10;

struct Log<'a> {
    window: &'a Window,
    start: u64,
    /// In units of 512 bytes.
    blocks: u64,
}

impl Log<'_> {
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        self.window.bytes(self.start + number % self.blocks * BLOCK, BLOCK as usize)
    }

    /// How often the log had been written from end to end when this block was.
    fn cycle(&self, number: u64) -> Result<u32> {
        let block = self.block(number)?;
        Ok(if be32(&block, 0) == RECORD_MAGIC { be32(&block, 4) } else { be32(&block, 0) })
    }

    /// The first block behind what was written last.
    fn head(&self) -> Result<u64> {
        let first = self.cycle(0)?;
        if first == 0 || self.cycle(self.blocks - 1)? == first {
            return Ok(0);
        }
        let (mut same, mut other) = (0, self.blocks - 1);
        while other - same > 1 {
            let middle = same.midpoint(other);
            if self.cycle(middle)? == first { same = middle } else { other = middle }
        }
        Ok(other)
    }
}

/// Whether nothing in the log is waiting to be replayed.
pub(crate) fn is_clean(window: &Window, superblock: &Superblock) -> Result<bool> {
    let start = superblock.place(superblock.log_start, superblock.log_blocks.into(), window)?;
    let blocks = u64::from(superblock.log_blocks) * (u64::from(superblock.block_size) / BLOCK);
    if blocks < SEARCH {
        return Ok(false);
    }
    let log = Log { window, start, blocks };
    let head = log.head()?;
    for back in 1..=SEARCH {
        let number = head + blocks - back;
        let header = log.block(number)?;
        if be32(&header, 0) != RECORD_MAGIC {
            continue;
        }
        // h_size: version 1 has none, and one block of header.
        let size = if be32(&header, 8) & 2 != 0 { be32(&header, 320) } else { 0 };
        let headers = u64::from(size.div_ceil(CYCLES).clamp(1, 16));
        let body = u64::from(be32(&header, 12)).div_ceil(BLOCK);
        let operation = log.block(number + headers)?;
        let is_last = headers + body == back;
        let is_unmount = be32(&header, 40) == 1 && operation.get(9).is_some_and(|flags| flags & UNMOUNT != 0);
        return Ok(is_last && is_unmount && be64(&header, 16) != 0);
    }
    Ok(false)
}
