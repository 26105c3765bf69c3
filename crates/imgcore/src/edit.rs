//! Changes to an image's structure rather than to its content, by a program that alone has it open.

use crate::formats::CreateOptions;
use crate::{BitmapInfo, Error, ImageMut, Progress, Result, SnapshotInfo};

/// Whether new parts of an image get their storage at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preallocation {
    /// Nothing is reserved.
    #[default]
    Off,
    /// Metadata is written; the data's place is a hole.
    Metadata,
    /// The host reserves the data's place without writing it.
    Falloc,
    /// Zeroes are written.
    Full,
}

impl std::str::FromStr for Preallocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Preallocation::Off),
            "metadata" => Ok(Preallocation::Metadata),
            "falloc" => Ok(Preallocation::Falloc),
            "full" => Ok(Preallocation::Full),
            _ => Err(Error::Invalid(format!("Parameter 'preallocation' does not accept value '{text}'"))),
        }
    }
}

/// An image whose structure can be changed. What a format cannot do says so with [`Error::Unsupported`].
///
/// Each change is durable when its method returns, and a crash meanwhile leaves the old image or the new one, with
/// leaked clusters at worst.
pub trait ImageEdit: ImageMut {
    /// Makes the image `size` bytes long (rounded up to sectors). What is cut off is gone, what is added reads as zeroes.
    fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        let _ = (size, preallocation);
        Err(beyond(self, "changing its size"))
    }

    /// Names `file` as the image below, or none. Content is not touched: what this image does not hold itself reads
    /// as the new image below has it, once this one is opened again.
    fn set_backing(&mut self, file: Option<&str>, format: Option<&str>) -> Result<()> {
        let _ = (file, format);
        Err(beyond(self, "changing its backing file"))
    }

    /// Drops all that this image holds itself, so that it reads as the image below.
    fn make_empty(&mut self) -> Result<()> {
        Err(beyond(self, "emptying it"))
    }

    /// Changes what creation options had set.
    fn amend(&mut self, options: &CreateOptions, progress: &dyn Progress) -> Result<()> {
        let _ = (options, progress);
        Err(beyond(self, "amending its options"))
    }

    /// The internal snapshots.
    fn snapshots(&mut self) -> Result<&mut dyn Snapshots> {
        Err(beyond(self, "internal snapshots"))
    }

    /// The persistent bitmaps.
    fn bitmaps(&mut self) -> Result<&mut dyn Bitmaps> {
        Err(beyond(self, "persistent bitmaps"))
    }
}

fn beyond(image: &(impl ImageEdit + ?Sized), what: &str) -> Error {
    let info = image.info();
    Error::unsupported(&info.file, info.format, what)
}

/// The internal snapshots of an open image.
pub trait Snapshots {
    /// All of them, in the image's order.
    fn list(&self) -> Vec<SnapshotInfo>;

    /// Keeps the disk as it is now under `name`, taken at `date` (seconds since 1970, nanoseconds).
    fn create(&mut self, name: &str, date: (u32, u32)) -> Result<SnapshotInfo>;

    /// Keeps the disk as it is now with all that `info` says of it, such as a snapshot of another image. An empty id is
    /// replaced by the next number.
    fn add(&mut self, info: SnapshotInfo) -> Result<SnapshotInfo>;

    /// Makes the disk what it was at the snapshot with this id or, if there is none, this name.
    fn apply(&mut self, id_or_name: &str) -> Result<()>;

    /// Drops the snapshot with this id or, if there is none, this name.
    fn delete(&mut self, id_or_name: &str) -> Result<()>;
}

/// The persistent dirty bitmaps of an open image.
pub trait Bitmaps {
    /// All of them, in the image's order.
    fn list(&self) -> Vec<BitmapInfo>;

    /// Adds an empty bitmap; `granularity` is in bytes, the format's default when `None`.
    fn add(&mut self, name: &str, granularity: Option<u64>) -> Result<()>;

    /// Drops a bitmap.
    fn remove(&mut self, name: &str) -> Result<()>;

    /// Marks everything in a bitmap as clean.
    fn clear(&mut self, name: &str) -> Result<()>;

    /// Sets whether writes are recorded in a bitmap.
    fn set_recording(&mut self, name: &str, on: bool) -> Result<()>;

    /// The dirty ranges of a bitmap, in bytes, ascending.
    fn dirty(&self, name: &str) -> Result<Vec<std::ops::Range<u64>>>;

    /// Marks ranges of bytes as dirty.
    fn mark(&mut self, name: &str, ranges: &[std::ops::Range<u64>]) -> Result<()>;
}
