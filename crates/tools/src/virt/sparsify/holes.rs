//! A disk of which parts count for nothing: they read as zeroes, and are holes.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use imgcore::{Extent, ExtentKind, Image, ImageInfo, Result};

/// Ranges that are kept at most; they take 64 MiB.
const LIMIT: usize = 4 << 20;
/// Shorter ranges give nothing back.
const LEAST: u64 = 4096;

/// Ranges of a disk that nothing uses. When there are too many of them, the short ones are forgotten.
#[derive(Default)]
pub(super) struct FreeMap {
    ranges: Vec<Range<u64>>,
    least: u64,
}

impl FreeMap {
    pub(super) fn add(&mut self, range: Range<u64>) {
        let len = range.end.saturating_sub(range.start);
        if len < self.least.max(LEAST) {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > LIMIT {
            self.least = self.least.max(LEAST) * 2;
            let least = self.least;
            self.ranges.retain(|r| r.end - r.start >= least);
        }
    }

    /// The ranges in order, none of which touches another.
    pub(super) fn into_sorted(mut self) -> Vec<Range<u64>> {
        self.ranges.sort_by_key(|r| r.start);
        let mut sorted: Vec<Range<u64>> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges {
            match sorted.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => sorted.push(range),
            }
        }
        sorted
    }
}

/// An image that reads as zeroes in ranges that are free.
pub(super) struct Holes {
    pub inner: Arc<dyn Image>,
    /// In order, and apart.
    pub free: Vec<Range<u64>>,
}

impl Holes {
    /// The free ranges that reach into `range`, cut to it.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.free.partition_point(|f| f.end <= range.start);
        let free = self.free.iter().skip(first).take_while(move |f| f.start < range.end);
        free.map(move |f| f.start.max(range.start)..f.end.min(range.end))
    }
}

impl Image for Holes {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)?;
        for free in self.within(offset..offset + buf.len() as u64) {
            if let Some(part) = buf.get_mut((free.start - offset) as usize..(free.end - offset) as usize) {
                part.fill(0);
            }
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        let mut at = range.start;
        let mut flow = ControlFlow::Continue(());
        let end = range.end..range.end;
        for free in self.within(range).chain([end]) {
            if at < free.start && flow.is_continue() {
                self.inner.extents(at..free.start, &mut |extent| {
                    flow = visit(extent);
                    flow
                })?;
            }
            if free.start < free.end && flow.is_continue() {
                let (start, len) = (free.start, free.end - free.start);
                flow = visit(Extent { start, len, kind: ExtentKind::Zero, depth: 0, host_offset: None, file: None });
            }
            if flow.is_break() {
                break;
            }
            at = free.end;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        self.inner.info()
    }

    fn backing(&self) -> Option<&dyn Image> {
        self.inner.backing()
    }
}

/// A disk whose map tells of each byte where it lies on the disk itself. What is put together of parts of it tells so, too.
pub(super) struct Traced(pub Arc<dyn Image>);

impl Image for Traced {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        let (start, len) = (range.start, range.end.saturating_sub(range.start));
        if len > 0 {
            let _ = visit(Extent { start, len, kind: ExtentKind::Data, depth: 0, host_offset: Some(start), file: None });
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        self.0.info()
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

#[cfg(test)]
mod tests {
    use imgcore::raw::Raw;
    use imgcore::storage::MemStorage;

    use super::*;

    #[test]
    fn free_ranges_read_as_zeroes_and_are_holes() {
        let bytes: Vec<u8> = (0..65536u32).map(|i| i as u8 | 1).collect();
        let inner: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(MemStorage::from_bytes("disk", &bytes))).unwrap());
        let mut map = FreeMap::default();
        for range in [20480..24576, 0..4096, 24576..28672, 8192..16384, 12288..20480, 60000..60100] {
            map.add(range);
        }
        let holes = Holes { inner, free: map.into_sorted() };
        assert_eq!(holes.free, [0..4096, 8192..28672]);
        let mut read = vec![0; 65536];
        holes.read_at(&mut read, 0).unwrap();
        let expected: Vec<u8> =
            bytes.iter().enumerate().map(|(i, b)| if i < 4096 || (8192..28672).contains(&i) { 0 } else { *b }).collect();
        assert!(read == expected);
        let mut part = vec![9; 100];
        holes.read_at(&mut part, 28600).unwrap();
        assert!(part == expected[28600..28700]);
        for range in [0..65536, 100..28000, 4096..8192, 8192..8193] {
            let (mut at, mut zero) = (range.start, 0);
            let visit = &mut |e: Extent| {
                assert_eq!(e.start, at);
                at += e.len;
                zero += if e.kind.reads_zero() { e.len } else { 0 };
                ControlFlow::Continue(())
            };
            holes.extents(range.clone(), visit).unwrap();
            assert_eq!(at, range.end);
            assert_eq!(zero, range.filter(|i| *i < 4096 || (8192..28672).contains(i)).count() as u64);
        }
    }

    #[test]
    fn too_many_ranges_leave_the_short_ones_out() {
        let mut map = FreeMap::default();
        for i in 0..LIMIT as u64 + 10 {
            map.add(i * 65536..i * 65536 + if i % 2 == 0 { 4096 } else { 8192 });
        }
        assert!(map.ranges.len() <= LIMIT / 2 + 10 && map.ranges.iter().all(|r| r.end - r.start == 8192));
    }
}
