//! What image formats have in common that store ranges of bytes as they are and show a parent where they store nothing.

use std::io::ErrorKind;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::storage::read_padded;
use crate::{Error, Extent, ExtentKind, Image, Result, Storage};

type Visit<'a> = &'a mut dyn FnMut(Extent) -> ControlFlow<()>;

/// A file's last sector may be cut short: the rest of it is zeroes.
const SECTOR: u64 = 512;

/// Reads stored bytes at `host`. A file of a `format` that ends before them was cut off.
pub(crate) fn read_stored(storage: &dyn Storage, format: &'static str, buf: &mut [u8], host: u64) -> Result<()> {
    match storage.read_at(buf, host) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::UnexpectedEof => {
            let end = host.saturating_add(buf.len() as u64);
            if end.saturating_sub(storage.size()?) < SECTOR {
                return read_padded(storage, buf, host);
            }
            let what = format!("{} bytes of the disk lie past the end of the file, which was cut off", buf.len());
            Err(Error::corrupt(storage.name(), format, host, what))
        }
        other => other,
    }
}

/// Visits `range` of a disk that is stored at `host` of a file: what is a hole of the file as zeroes.
pub(crate) fn stored_extents(
    storage: &dyn Storage,
    file: &Arc<str>,
    range: Range<u64>,
    host: u64,
    visit: Visit<'_>,
) -> Result<ControlFlow<()>> {
    let mut at = range.start;
    while at < range.end {
        let data = storage.next_data(host + (at - range.start))?;
        let guest = |offset: u64| range.start.saturating_add(offset.saturating_sub(host)).clamp(at, range.end);
        let data = data.map_or(range.end..range.end, |data| guest(data.start)..guest(data.end));
        for (part, kind) in [(at..data.start, ExtentKind::Zero), (data.clone(), ExtentKind::Data)] {
            let host_offset = Some(host + (part.start - range.start));
            let extent = Extent { start: part.start, len: part.end - part.start, kind, depth: 0, host_offset, file: Some(file.clone()) };
            if extent.len > 0 && visit(extent).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        at = data.end;
    }
    Ok(ControlFlow::Continue(()))
}

/// How many of `len` bytes at `at` the parent has.
fn below(parent: Option<&dyn Image>, at: u64, len: u64) -> u64 {
    parent.map_or(0, |parent| parent.size().saturating_sub(at)).min(len)
}

/// Reads what the parent has at byte `at`, and zeroes past its end.
pub(crate) fn read_below(parent: Option<&dyn Image>, buf: &mut [u8], at: u64) -> Result<()> {
    let there = below(parent, at, buf.len() as u64) as usize;
    let (below, past) = buf.split_at_mut(there);
    past.fill(0);
    match parent {
        Some(parent) if there > 0 => parent.read_at(below, at),
        _ => Ok(()),
    }
}

/// Visits what the parent has in `range`, one layer farther down, and what is past its end as unallocated.
pub(crate) fn extents_below(parent: Option<&dyn Image>, range: Range<u64>, visit: Visit<'_>) -> Result<ControlFlow<()>> {
    let there = range.start + below(parent, range.start, range.end - range.start);
    let mut flow = ControlFlow::Continue(());
    if let (Some(parent), true) = (parent, range.start < there) {
        parent.extents(range.start..there, &mut |extent| {
            flow = visit(Extent { depth: extent.depth + 1, ..extent });
            flow
        })?;
    }
    if flow.is_continue() && there < range.end {
        flow = visit(unstored(there..range.end, ExtentKind::Unallocated));
    }
    Ok(flow)
}

/// An extent of this layer with nothing stored behind it.
pub(crate) fn unstored(range: Range<u64>, kind: ExtentKind) -> Extent {
    Extent { start: range.start, len: range.end - range.start, kind, depth: 0, host_offset: None, file: None }
}
