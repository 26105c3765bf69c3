//! A byte range of an image as an image of its own: a partition, a volume.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::image::check_range;
use crate::{Extent, Image, ImageInfo, ImageMut, Result};

/// A byte range of another image. Writable when that one is: `Slice<dyn Image>` or `Slice<dyn ImageMut>`.
pub struct Slice<I: ?Sized> {
    inner: Arc<I>,
    start: u64,
    len: u64,
    name: String,
}

impl<I: Image + ?Sized> Slice<I> {
    /// `len` bytes of `inner` from byte `start`.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when the range goes past the end of `inner`.
    pub fn new(inner: Arc<I>, start: u64, len: u64) -> Result<Self> {
        let name = inner.info().file;
        check_range(&name, inner.size(), start, len)?;
        Ok(Slice { inner, start, len, name })
    }

    /// The first byte in the whole image.
    pub fn start(&self) -> u64 {
        self.start
    }
}

impl<I: Image + ?Sized> Image for Slice<I> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.name, self.len, offset, buf.len() as u64)?;
        self.inner.read_at(buf, self.start + offset)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.name, self.len, range.start, range.end.saturating_sub(range.start))?;
        self.inner.extents(range.start + self.start..range.end.max(range.start) + self.start, &mut |extent| {
            visit(Extent { start: extent.start - self.start, ..extent })
        })
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { virtual_size: self.len, actual_size: None, ..self.inner.info() }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

impl<I: ImageMut + ?Sized> ImageMut for Slice<I> {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.name, self.len, offset, data.len() as u64)?;
        self.inner.write_at(data, self.start + offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.name, self.len, offset, len)?;
        self.inner.zero_at(self.start + offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.name, self.len, offset, len)?;
        self.inner.discard(self.start + offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;
    use crate::storage::MemStorage;

    #[test]
    fn stays_within_its_range() {
        let whole: Arc<dyn ImageMut> = Arc::new(Raw::create(Arc::new(MemStorage::new("disk", 0)), 1 << 20).unwrap());
        let part = Slice::new(whole.clone(), 4096, 8192).unwrap();
        part.write_at(&[3; 8192], 0).unwrap();
        part.write_at(&[3], 8192).unwrap_err();
        part.zero_at(4096, 4097).unwrap_err();
        let mut buf = [9; 2];
        whole.read_at(&mut buf, 4095).unwrap();
        assert_eq!(buf, [0, 3]);
        whole.read_at(&mut buf, 12287).unwrap();
        assert_eq!(buf, [3, 0]);
        let mut seen = Vec::new();
        part.extents(0..8192, &mut |e| {
            seen.push((e.start, e.len, e.host_offset));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, [(0, 8192, Some(4096))]);
        assert!(Slice::new(whole, u64::MAX, 2).is_err());
    }
}
