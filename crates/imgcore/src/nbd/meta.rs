//! Metadata contexts: what a client can be told about blocks, and the answers to its questions.

use std::ops::{ControlFlow, Range};

use super::Export;
use super::proto::*;
use crate::{Extent, ExtentKind, Result};

/// Extents in one answer; the client asks again from where they end.
const MAX_EXTENTS: usize = 16 << 10;

const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// A kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: holes and zeroes.
    Allocation,
    /// `qemu:allocation-depth`: 0 is unallocated, 1 the image itself, 2 the one below.
    Depth,
    /// `qemu:dirty-bitmap:NAME`, by its number among the export's.
    Dirty(usize),
}

impl Context {
    /// All that `export` has.
    pub fn all(export: &Export) -> impl Iterator<Item = Context> {
        [Context::Allocation, Context::Depth].into_iter().chain((0..export.bitmaps.len()).map(Context::Dirty))
    }

    /// Its name on the wire.
    pub fn name(self, export: &Export) -> String {
        match self {
            Context::Allocation => "base:allocation".into(),
            Context::Depth => "qemu:allocation-depth".into(),
            Context::Dirty(index) => DIRTY_BITMAP.to_owned() + export.bitmaps.get(index).map_or("", |b| &b.name),
        }
    }

    /// The number by which answers name it. It need not be the same in another session.
    pub fn id(self) -> u32 {
        match self {
            Context::Allocation => 0,
            Context::Depth => 1,
            Context::Dirty(index) => u32::try_from(index).map_or(u32::MAX, |i| i.saturating_add(2)),
        }
    }

    /// Whether a query lists it: its name, or the namespace before it.
    pub fn listed_by(self, query: &[u8], export: &Export) -> bool {
        let name = self.name(export);
        query == name.as_bytes() || (query.ends_with(b":") && name.as_bytes().starts_with(query))
    }

    /// Length and flags of the blocks of `range`, which is not empty: of the first ones at least, and of one only if asked.
    pub fn blocks(self, export: &Export, range: Range<u64>, one: bool) -> Result<Vec<(u32, u32)>> {
        let mut blocks = Blocks { list: Vec::new(), most: if one { 1 } else { MAX_EXTENTS } };
        if let Context::Dirty(index) = self {
            let dirty = export.bitmaps.get(index).map_or(&[][..], |b| &b.dirty);
            let mut at = range.start;
            for part in &dirty[dirty.partition_point(|r| r.end <= range.start)..] {
                let (start, end) = (part.start.clamp(at, range.end), part.end.clamp(at, range.end));
                if blocks.push(start - at, 0).is_break() || blocks.push(end - start, NBD_STATE_DIRTY).is_break() || end == range.end {
                    return Ok(blocks.list);
                }
                at = end;
            }
            let _ = blocks.push(range.end - at, 0);
            return Ok(blocks.list);
        }
        let flags = |extent: &Extent| match self {
            Context::Allocation if extent.kind.reads_zero() => NBD_STATE_HOLE | NBD_STATE_ZERO,
            Context::Allocation => 0,
            _ if extent.kind == ExtentKind::Unallocated => 0,
            _ => extent.depth.saturating_add(1),
        };
        export.content.image().extents(range, &mut |extent| blocks.push(extent.len, flags(&extent)))?;
        Ok(blocks.list)
    }
}

/// Neighbours with the same flags are one block.
struct Blocks {
    list: Vec<(u32, u32)>,
    most: usize,
}

impl Blocks {
    fn push(&mut self, len: u64, flags: u32) -> ControlFlow<()> {
        // A request's length has 32 bits, so the sum has.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let count = self.list.len();
        match self.list.last_mut() {
            _ if len == 0 => {}
            Some((before, same)) if *same == flags => *before = before.saturating_add(len),
            _ if count >= self.most => return ControlFlow::Break(()),
            _ => self.list.push((len, flags)),
        }
        ControlFlow::Continue(())
    }
}
