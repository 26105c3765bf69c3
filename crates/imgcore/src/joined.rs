//! Several images one behind the other as one image.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::image::check_range;
use crate::{Error, Extent, Image, ImageInfo, Result};

/// Images one behind the other.
pub struct Joined {
    /// Each with the byte at which it begins.
    parts: Vec<(u64, Arc<dyn Image>)>,
    size: u64,
    name: String,
}

impl Joined {
    /// All of `images`, in their order.
    ///
    /// # Errors
    /// [`Error::Invalid`] when they are too large together.
    pub fn new(images: Vec<Arc<dyn Image>>) -> Result<Self> {
        let name = images.first().map_or(String::new(), |image| image.info().file);
        let (mut parts, mut size) = (Vec::new(), 0u64);
        for image in images {
            let end = size.checked_add(image.size()).filter(|end| *end <= i64::MAX as u64);
            let end = end.ok_or_else(|| Error::Invalid("the images are too large to be put behind each other".into()))?;
            parts.push((size, image));
            size = end;
        }
        Ok(Joined { parts, size, name })
    }

    /// The parts of `range`, each with its image, the range in it, and where that image begins.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (&dyn Image, Range<u64>, u64)> {
        self.parts.iter().filter_map(move |(start, image)| {
            let from = range.start.max(*start);
            let to = range.end.min(start + image.size());
            (from < to).then(|| (&**image, from - start..to - start, *start))
        })
    }
}

impl Image for Joined {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.name, self.size, offset, buf.len() as u64)?;
        let mut rest = buf;
        for (image, range, _) in self.parts(offset..offset + rest.len() as u64) {
            let (now, later) = rest.split_at_mut((range.end - range.start) as usize);
            image.read_at(now, range.start)?;
            rest = later;
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.name, self.size, range.start, range.end.saturating_sub(range.start))?;
        for (image, range, start) in self.parts(range) {
            let mut flow = ControlFlow::Continue(());
            image.extents(range, &mut |extent| {
                flow = visit(Extent { start: extent.start + start, ..extent });
                flow
            })?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        let first = self.parts.first().map(|(_, image)| image.info()).unwrap_or_default();
        ImageInfo { virtual_size: self.size, ..first }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;
    use crate::storage::MemStorage;

    #[test]
    fn parts_lie_behind_each_other() {
        let part = |size: usize, byte: u8| -> Arc<dyn Image> {
            Arc::new(Raw::open(Arc::new(MemStorage::from_bytes("part", &vec![byte; size]))).unwrap())
        };
        let joined = Joined::new(vec![part(1024, 1), part(512, 2), part(2048, 3)]).unwrap();
        assert_eq!(joined.size(), 3584);
        let mut buf = vec![0; 1024];
        joined.read_at(&mut buf, 768).unwrap();
        assert!(buf[..256] == [1; 256] && buf[256..768] == [2; 512] && buf[768..] == [3; 256]);
        let mut seen = Vec::new();
        joined
            .extents(512..3000, &mut |extent| {
                seen.push((extent.start, extent.len));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(seen, [(512, 512), (1024, 512), (1536, 1464)]);
        assert!(joined.read_at(&mut buf, 3000).is_err());
    }
}
