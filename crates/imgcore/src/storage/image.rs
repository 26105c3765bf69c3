//! An image as storage: what lies in a volume or an archive may be an image itself.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::{Lock, Storage};
use crate::{Error, Image, Result};

/// The bytes of an image, for reading only.
pub struct ImageStorage {
    image: Arc<dyn Image>,
    name: String,
}

impl ImageStorage {
    /// `name` is what messages call it.
    pub fn new(image: Arc<dyn Image>, name: impl Into<String>) -> Self {
        ImageStorage { image, name: name.into() }
    }

    fn refused<T>(&self, action: &'static str) -> Result<T> {
        Err(Error::io(&self.name, action, None, std::io::ErrorKind::ReadOnlyFilesystem.into()))
    }
}

impl Storage for ImageStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> Result<u64> {
        Ok(self.image.size())
    }

    fn allocated(&self) -> Option<u64> {
        None
    }

    fn identity(&self) -> Option<(u64, u64)> {
        None
    }

    /// What holds the image is locked by whoever opened that.
    fn lock(&self, _: &Lock) -> Result<()> {
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.image.size()) {
            return Err(Error::io(&self.name, "read", Some(offset), std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.image.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        self.refused("write")
    }

    fn zero_at(&self, _: u64, _: u64) -> Result<()> {
        self.refused("write")
    }

    fn reserve(&self, _: u64, _: u64) -> Result<()> {
        self.refused("write")
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.image.size();
        let mut found = None;
        self.image.extents(offset.min(size)..size, &mut |extent| {
            if extent.kind.reads_zero() {
                return ControlFlow::Continue(());
            }
            found = Some(extent.start..extent.start.saturating_add(extent.len));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    fn set_size(&self, _: u64) -> Result<()> {
        self.refused("resize")
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;
    use crate::storage::MemStorage;
    use crate::{ImageMut, Slice};

    #[test]
    fn an_image_in_an_image_is_read_and_not_written() {
        let whole = Raw::create(Arc::new(MemStorage::new("disk", 0)), 1 << 20).unwrap();
        whole.write_at(&[7; 4096], 64 << 10).unwrap();
        let part = Slice::new(Arc::new(whole) as Arc<dyn Image>, 32 << 10, 64 << 10).unwrap();
        let storage = ImageStorage::new(Arc::new(part), "inner");
        assert_eq!(storage.size().unwrap(), 64 << 10);
        assert_eq!(storage.next_data(0).unwrap(), Some(32 << 10..36 << 10));
        assert_eq!(storage.next_data(36 << 10).unwrap(), None);
        let mut buf = [0; 2];
        storage.read_at(&mut buf, (32 << 10) - 1).unwrap();
        assert_eq!(buf, [0, 7]);
        let error = storage.read_at(&mut buf, (64 << 10) - 1).unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof), "{error}");
        assert!(storage.write_at(&[0], 0).unwrap_err().to_string().starts_with("inner: cannot write"));
    }
}
