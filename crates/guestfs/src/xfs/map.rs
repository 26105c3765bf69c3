//! Where a fork's blocks lie: lists of extents and trees of them. (XFS Algorithms & Data Structures, "Data Extents")

use std::sync::Arc;

use super::Xfs;
use super::inode::{Fork, Format};
use crate::Result;
use crate::bytes::{be16, be32, be64};

/// A run of blocks, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The byte where it begins; `None` where zeroes are read.
    pub place: Option<u64>,
    /// In blocks, never 0.
    pub len: u64,
}

const MAGIC_V4: u32 = 0x424d_4150;
const MAGIC_V5: u32 = 0x424d_4133;
/// Where a block of version 5 has its checksum.
const CRC: usize = 64;
/// The deepest tree that the kernel makes.
const MAX_DEPTH: u16 = 9;
/// Bytes of an extent, and of a key and a pointer together.
const RECORD: usize = 16;

/// What holds the fork's block `logical`, and for how many blocks from there on.
pub(crate) fn run(fs: &Xfs, inode: u64, fork: &Fork<'_>, logical: u64) -> Result<Run> {
    let bad = |what: String| fs.window.corrupt(format!("inode {inode}: extents: {what}"));
    // No file has more than 2^54 blocks.
    let end = (1u64 << 54).max(logical.saturating_add(1));
    match fork.format {
        Format::Extents => {
            let count = usize::try_from(fork.extents).ok().and_then(|n| n.checked_mul(RECORD));
            let records = count.and_then(|n| fork.bytes.get(..n)).ok_or_else(|| bad(format!("{} in the inode", fork.extents)))?;
            among(fs, records, logical, end).map_err(bad)
        }
        Format::Btree => in_tree(fs, inode, fork.bytes, logical, end),
        Format::Local | Format::Device => Err(bad("the content has no blocks".into())),
    }
}

fn in_tree(fs: &Xfs, inode: u64, root: &[u8], logical: u64, mut end: u64) -> Result<Run> {
    let bad = |what: String| fs.window.corrupt(format!("inode {inode}: extent tree: {what}"));
    let header = if fs.superblock.v5 { 72 } else { 24 };
    let mut level = be16(root, 0);
    if level == 0 || level > MAX_DEPTH {
        return Err(bad(format!("{level} levels")));
    }
    let mut node: Arc<[u8]> = root.into();
    let (mut start, mut count) = (4, usize::from(be16(root, 2)));
    loop {
        let area = node.get(start..).unwrap_or_default();
        if count > area.len() / RECORD {
            return Err(bad(format!("{count} entries in one block")));
        }
        if level == 0 {
            return among(fs, &area[..count * RECORD], logical, end).map_err(bad);
        }
        let after = partition_point(count, |i| be64(area, i * 8) <= logical);
        if after < count {
            end = end.min(be64(area, after * 8)).max(logical + 1);
        }
        if after == 0 {
            return Ok(Run { place: None, len: end - logical });
        }
        // The pointers stand behind as many keys as there could be.
        let child = be64(area, area.len() / RECORD * 8 + (after - 1) * 8);
        let place = fs.superblock.place(child, 1, &fs.window)?;
        node = fs.window.cached(place, fs.superblock.block_size as usize)?;
        level -= 1;
        let magic = if fs.superblock.v5 { MAGIC_V5 } else { MAGIC_V4 };
        if be32(&node, 0) != magic || be16(&node, 4) != level {
            return Err(bad(format!("block {child} has magic {:#010x} and level {}, expected {level}", be32(&node, 0), be16(&node, 4))));
        }
        if fs.superblock.v5 {
            fs.check(&node, CRC, || format!("inode {inode}: extent tree: block {child}"))?;
        }
        (start, count) = (header, usize::from(be16(&node, 6)));
    }
}

/// Looks into a row of extents, which ascend.
fn among(fs: &Xfs, records: &[u8], logical: u64, end: u64) -> Result<Run, String> {
    let offset = |i: usize| (be64(records, i * RECORD) & !(1 << 63)) >> 9;
    let count = records.len() / RECORD;
    let after = partition_point(count, |i| offset(i) <= logical);
    let next = if after < count { offset(after).min(end) } else { end };
    let hole = Run { place: None, len: next.saturating_sub(logical).max(1) };
    if after == 0 {
        return Ok(hole);
    }
    let (high, low) = (be64(records, (after - 1) * RECORD), be64(records, (after - 1) * RECORD + 8));
    let (len, skip) = (low & 0x1f_ffff, logical - offset(after - 1));
    if skip >= len {
        return Ok(hole);
    }
    let len_left = (len - skip).min(hole.len);
    let first = (high & 0x1ff) << 43 | low >> 21;
    let place = fs.superblock.place(first, len, &fs.window).map_err(|e| e.to_string())?;
    // Space that was reserved, but not written.
    let unwritten = high >> 63 == 1;
    Ok(Run { place: (!unwritten).then_some(place + (skip << fs.superblock.block_log)), len: len_left })
}

fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
