//! What of a disk is stored: blocks of 1 MiB that are not all zeroes.

use std::ops::ControlFlow;

use imgcore::{Error, Image, Result};

/// Bytes of a chunk.
pub(super) const CHUNK: u64 = 1 << 20;

/// The size that a disk has in an appliance: whole sectors.
pub(super) fn virtual_size(image: &dyn Image) -> Result<u64> {
    let size = image.size();
    match size.checked_next_multiple_of(512).filter(|s| (1..=i64::MAX as u64).contains(s)) {
        Some(size) => Ok(size),
        None => Err(Error::Invalid(format!("{}: a disk of {size} bytes cannot be part of an appliance", image.info().file))),
    }
}

/// Visits the numbers of the chunks that may hold data, by what the image knows without reading it: ascending, and
/// always with the first and the last.
pub(super) fn chunks(image: &dyn Image, visit: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<()> {
    let last = (virtual_size(image)? - 1) / CHUNK;
    let mut next = 0;
    // Every one of them; stops when the visitor does.
    let mut give = |from: u64, to: u64| -> ControlFlow<()> {
        while next <= to {
            next = next.max(from);
            visit(next)?;
            next += 1;
        }
        ControlFlow::Continue(())
    };
    let mut flow = give(0, 0);
    if flow.is_continue() {
        image.extents(0..image.size(), &mut |extent| {
            if !extent.kind.reads_zero() && extent.len > 0 {
                flow = give(extent.start / CHUNK, extent.start.saturating_add(extent.len - 1) / CHUNK);
            }
            flow
        })?;
    }
    if flow.is_continue() {
        let _ = give(last, last);
    }
    Ok(())
}

/// Bytes of chunk `number`.
pub(super) fn chunk_len(size: u64, number: u64) -> usize {
    // At most a chunk.
    size.saturating_sub(number.saturating_mul(CHUNK)).min(CHUNK) as usize
}

/// Fills `buf` from byte `offset`, with zeroes behind the image's end.
pub(super) fn read(image: &dyn Image, offset: u64, buf: &mut [u8]) -> Result<()> {
    let there = usize::try_from(image.size().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
    let (data, behind) = buf.split_at_mut(there);
    behind.fill(0);
    image.read_at(data, offset)
}
