//! Images of one size read in turns: RAID 0 without a name of its own.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use imgcore::{Error, Extent, Image, ImageInfo, Result};

/// Several images, of which each has every n-th stripe.
pub(crate) struct Stripes {
    areas: Vec<Arc<dyn Image>>,
    /// Bytes of a stripe.
    unit: u64,
    size: u64,
}

impl Stripes {
    pub fn new(areas: Vec<Arc<dyn Image>>, unit: u64) -> Result<Self, String> {
        let each = areas.first().map_or(0, |area| area.size());
        let size = each.checked_mul(areas.len() as u64).filter(|_| unit > 0 && each.is_multiple_of(unit));
        let size = size.ok_or_else(|| format!("stripes of {unit} bytes do not fill areas of {each} bytes"))?;
        Ok(Stripes { areas, unit, size })
    }

    /// The piece of `range` at its start that lies together: its area, the offset there, and its length.
    fn piece(&self, range: &Range<u64>) -> (&Arc<dyn Image>, u64, u64) {
        let count = self.areas.len() as u64;
        let (stripe, within) = (range.start / self.unit, range.start % self.unit);
        let area = &self.areas[(stripe % count) as usize];
        (area, stripe / count * self.unit + within, (self.unit - within).min(range.end - range.start))
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        let what = || Error::Invalid(format!("{}: bytes {:#x}..{:#x} reach past its stripes", self.info().file, range.start, range.end));
        if range.start <= range.end && range.end <= self.size { Ok(()) } else { Err(what()) }
    }
}

impl Image for Stripes {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut range = offset..offset.saturating_add(buf.len() as u64);
        self.check(&range)?;
        let mut rest = buf;
        while !rest.is_empty() {
            let (area, at, len) = self.piece(&range);
            let (now, later) = rest.split_at_mut(len as usize);
            area.read_at(now, at)?;
            rest = later;
            range.start += len;
        }
        Ok(())
    }

    fn extents(&self, mut range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        self.check(&range)?;
        while !range.is_empty() {
            let (area, at, len) = self.piece(&range);
            let mut flow = ControlFlow::Continue(());
            area.extents(at..at + len, &mut |extent| {
                flow = visit(Extent { start: extent.start - at + range.start, ..extent });
                flow
            })?;
            if flow.is_break() {
                return Ok(());
            }
            range.start += len;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        let first = self.areas.first().map(|area| area.info()).unwrap_or_default();
        ImageInfo { virtual_size: self.size, ..first }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}
