//! An image being made, with the file that its data goes to where it has one of its own.

use std::path::Path;
use std::sync::Arc;

use super::{CreateOptions, FormatDriver};
use crate::storage::NewFile;
use crate::{Error, ImageMut, Result};

/// A new image and the files it lies in, which get their names only when it is whole.
pub struct NewImage {
    image: Arc<dyn ImageMut>,
    file: NewFile,
    data: Option<NewFile>,
}

impl NewImage {
    /// Begins an image of `size` bytes that will be called `path`. A data file that `options` ask for is made as well;
    /// as with QEMU, a relative name of it starts at the folder that the program runs in.
    pub fn create(driver: &dyn FormatDriver, path: impl AsRef<Path>, size: u64, options: &CreateOptions) -> Result<Self> {
        let path = path.as_ref();
        let file = NewFile::create(path)?;
        let Some(name) = driver.data_file(options) else {
            let image = driver.create(file.storage(), size, options)?;
            return Ok(NewImage { image, file, data: None });
        };
        let name = Path::new(name.strip_prefix("file:").unwrap_or(name));
        if name == path {
            return Err(Error::Invalid(format!("{}: an image cannot be its own data file", path.display())));
        }
        let data = NewFile::create(name)?;
        let image = driver.create_with_data_file(file.storage(), data.storage(), size, options)?;
        Ok(NewImage { image, file, data: Some(data) })
    }

    /// The image, to be written.
    pub fn image(&self) -> &Arc<dyn ImageMut> {
        &self.image
    }

    /// Whether it reads as zeroes so far: but for its backing file, and unless it lies on a device, which keeps what was on it.
    pub fn is_zero(&self) -> bool {
        ![Some(&self.file), self.data.as_ref()].into_iter().flatten().any(|file| file.storage().is_block_device())
    }

    /// Makes everything durable, then gives the files their names: the image last, since it needs the other.
    pub fn commit(self) -> Result<()> {
        self.image.flush()?;
        drop(self.image);
        if let Some(data) = self.data {
            data.commit()?;
        }
        self.file.commit()
    }

    /// Gives the files their names; the host makes them durable when it likes.
    pub fn commit_unsynced(self) -> Result<()> {
        self.image.flush()?;
        drop(self.image);
        if let Some(data) = self.data {
            data.commit_unsynced()?;
        }
        self.file.commit_unsynced()
    }
}
