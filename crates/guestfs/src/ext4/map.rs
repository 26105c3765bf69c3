//! Where a file's blocks lie: extent trees and indirect blocks. (ext4 documentation, 4.3)

use std::sync::Arc;

use super::corrupt;
use super::device::Device;
use super::inode::{FLAG_EXTENTS, Inode};
use crate::Result;
use crate::bytes::{le16, le32};

/// A run of a file's blocks, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first block on the device; `None` where zeroes are read.
    pub physical: Option<u64>,
    /// In blocks, never 0.
    pub len: u64,
}

const EXTENT_MAGIC: u16 = 0xf30a;
/// Extents longer than this are marked as not yet written, and are this much shorter.
const INIT_MAX_LEN: u16 = 32768;
/// The deepest tree that the kernel makes.
const MAX_DEPTH: u16 = 5;

/// What holds the file's block `logical`, and for how many blocks from there on.
pub(crate) fn run(device: &Device, inode: &Inode, logical: u64) -> Result<Run> {
    let run = if inode.has(FLAG_EXTENTS) { extent_run(device, inode, logical)? } else { indirect_run(device, inode, logical)? };
    if let Some(first) = run.physical {
        let end = first.checked_add(run.len);
        if first == 0 || end.is_none_or(|e| e > device.blocks) {
            return Err(corrupt(format!("inode {}: blocks {first}+{} lie outside the filesystem", inode.number, run.len)));
        }
    }
    Ok(run)
}

fn extent_run(device: &Device, inode: &Inode, logical: u64) -> Result<Run> {
    let bad = |what: String| corrupt(format!("inode {}: extent tree: {what}", inode.number));
    // A file has 2^32 blocks at most.
    let mut next_known = (1u64 << 32).max(logical.saturating_add(1));
    let hole = |until: u64| Ok(Run { physical: None, len: until.saturating_sub(logical).max(1) });
    let mut node: Arc<[u8]> = inode.i_block[..].into();
    let mut depth_above = None;
    loop {
        if le16(&node, 0) != EXTENT_MAGIC {
            return Err(bad(format!("magic {:#06x}, expected 0xf30a", le16(&node, 0))));
        }
        let depth = le16(&node, 6);
        if depth_above.map_or(depth > MAX_DEPTH, |above: u16| depth + 1 != above) {
            return Err(bad(format!("depth {depth} below {depth_above:?}")));
        }
        let count = usize::from(le16(&node, 2));
        let Some(entries) = node.get(12..12 + count * 12) else { return Err(bad(format!("{count} entries in one node"))) };
        let first_block = |entry: &[u8]| u64::from(le32(entry, 0));
        // The last entry that begins at or before the block; entries ascend.
        let after = partition_point(count, |i| first_block(&entries[i * 12..]) <= logical);
        if after < count {
            next_known = next_known.min(first_block(&entries[after * 12..]));
        }
        if after == 0 {
            return hole(next_known);
        }
        let entry = &entries[(after - 1) * 12..after * 12];
        if depth == 0 {
            let raw_len = le16(entry, 4);
            let (len, written) = if raw_len > INIT_MAX_LEN { (raw_len - INIT_MAX_LEN, false) } else { (raw_len, true) };
            let skip = logical - first_block(entry);
            if skip >= u64::from(len) {
                return hole(next_known);
            }
            let len = (u64::from(len) - skip).min(next_known - logical).max(1);
            let start = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
            return Ok(Run { physical: written.then_some(start + skip), len });
        }
        let child = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
        if child == 0 {
            return Err(bad("an index leads to block 0".into()));
        }
        depth_above = Some(depth);
        node = device.block(child)?;
    }
}

fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

fn indirect_run(device: &Device, inode: &Inode, logical: u64) -> Result<Run> {
    let per_block = u64::from(device.block_size / 4);
    // Direct blocks, then trees of one, two and three levels.
    let (mut within, mut span, mut slot, mut level) = (logical, 1, logical.min(12), 0);
    if logical >= 12 {
        within = logical - 12;
        (slot, level, span) = (12, 1, per_block);
        while within >= span {
            within -= span;
            (slot, level, span) = (slot + 1, level + 1, span * per_block);
            if level > 3 {
                // Behind the last block that can be addressed.
                return Ok(Run { physical: None, len: u64::from(u32::MAX) });
            }
        }
    }
    let pointer = |table: &[u8], i: u64| le32(table, i as usize * 4);
    if level == 0 {
        return Ok(contiguous(&inode.i_block[..48], logical, 12));
    }
    let mut block = pointer(&inode.i_block, slot);
    loop {
        if block == 0 {
            return Ok(Run { physical: None, len: span - within });
        }
        let table = device.block(u64::from(block))?;
        span /= per_block;
        if span <= 1 {
            return Ok(contiguous(&table, within, per_block));
        }
        block = pointer(&table, within / span);
        within %= span;
    }
}

/// The run from pointer `at` of a table of `count`: following pointers that are all 0, or each one more.
fn contiguous(table: &[u8], at: u64, count: u64) -> Run {
    let pointer = |i: u64| u64::from(le32(table, i as usize * 4));
    let first = pointer(at);
    let mut len = 1;
    while at + len < count && pointer(at + len) == if first == 0 { 0 } else { first + len } {
        len += 1;
    }
    Run { physical: (first != 0).then_some(first), len }
}
