//! What a guest sees of an image: a row of bytes, some of which were never written.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::{Error, Result};

/// What a range of an image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored bytes.
    Data,
    /// Reads as zeroes, and the image says so.
    Zero,
    /// Nothing in this image nor below: reads as zeroes.
    Unallocated,
    /// Stored bytes for which the host has room, but nothing in it yet: reads as zeroes.
    Hole,
    /// Stored compressed: no host offset can be mapped.
    Compressed,
}

impl ExtentKind {
    /// Whether reading gives zeroes without touching storage.
    pub fn reads_zero(self) -> bool {
        matches!(self, ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Unallocated)
    }
}

/// A run of bytes of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the image.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// What lies there.
    pub kind: ExtentKind,
    /// Which image of the chain holds it: 0 is this one, 1 its backing image.
    pub depth: u32,
    /// The byte offset in the file behind it, where the bytes lie there as they are.
    pub host_offset: Option<u64>,
    /// The name of that file.
    pub file: Option<Arc<str>>,
}

/// One internal snapshot of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id, mostly a number.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// The nanoseconds of that.
    pub date_nsec: u32,
    /// The guest's clock then, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of saved machine state; 0 for a snapshot of the disk alone.
    pub vm_state_size: u64,
    /// Instructions executed then, where recorded.
    pub icount: Option<u64>,
}

/// One persistent dirty bitmap of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// Whether it was in use when the image was last written: its content cannot be relied on.
    pub in_use: bool,
    /// Whether writes are recorded in it.
    pub auto: bool,
}

/// One of the files, or none, that an image of several parts is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartInfo {
    /// The file as it is named in messages; empty where there is none.
    pub file: String,
    /// Bytes of the disk that it holds.
    pub virtual_size: u64,
    /// Allocation unit in bytes, where it has one.
    pub cluster_size: Option<u64>,
    /// Its kind, as the image names it.
    pub format: String,
    /// Whether its bytes are compressed.
    pub is_compressed: bool,
    /// Length of the file, where known.
    pub file_size: Option<u64>,
    /// Bytes that the file occupies on the host, where known.
    pub actual_size: Option<u64>,
}

/// What a person wants to know of an image, for `img info`.
#[derive(Clone, Debug, Default)]
pub struct ImageInfo {
    /// The format's name: `raw`, `qcow2`.
    pub format: &'static str,
    /// The file as the user named it.
    pub file: String,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes that the image occupies on the host, where known.
    pub actual_size: Option<u64>,
    /// Allocation unit in bytes, for formats that have one.
    pub cluster_size: Option<u64>,
    /// The backing file as it stands in the image.
    pub backing_file: Option<String>,
    /// The backing file's format as it stands in the image.
    pub backing_format: Option<String>,
    /// Set when the image was not closed cleanly.
    pub dirty: bool,
    /// Length of the file, where known.
    pub file_size: Option<u64>,
    /// Internal snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// Persistent bitmaps.
    pub bitmaps: Vec<BitmapInfo>,
    /// The parts of an image that says what its parts are, in their order.
    pub parts: Vec<PartInfo>,
    /// Details of the format, in the order in which they are shown.
    pub details: Vec<(String, String)>,
}

/// An open disk image, readable at any offset from any thread.
pub trait Image: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// A range that goes past the end is [`Error::Invalid`](crate::Error::Invalid); nothing is read short.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Visits what `range` is made of: ascending, without gaps, cut to the range.
    ///
    /// The visitor ends the walk with [`ControlFlow::Break`]. The walk reads metadata only.
    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()>;

    /// Describes the image.
    fn info(&self) -> ImageInfo;

    /// The image below this one in the chain.
    fn backing(&self) -> Option<&dyn Image>;

    /// The dirty ranges of a persistent bitmap, in bytes, ascending.
    fn dirty_ranges(&self, bitmap: &str) -> Result<Vec<Range<u64>>> {
        Err(Error::Invalid(format!("Dirty bitmap '{bitmap}' not found")))
    }
}

/// An image that can be written. Writers on different threads must not overlap.
pub trait ImageMut: Image {
    /// Writes `data` at byte `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;

    /// Makes `len` bytes at `offset` read as zeroes, without storing them where the format can.
    fn zero_at(&self, offset: u64, len: u64) -> Result<()>;

    /// Gives the storage of `len` bytes at `offset` back. Afterwards they read as zeroes.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Returns when all that was written is on stable storage, metadata included.
    fn flush(&self) -> Result<()>;

    /// Holes that begin and end at multiples of so many bytes are worth leaving: a cluster, unless the format keeps smaller ones.
    fn hole_unit(&self) -> u64 {
        self.info().cluster_size.unwrap_or(1)
    }

    /// How to store bytes compressed, for formats that can.
    fn compression(&self) -> Option<&dyn Compression> {
        None
    }

    /// How to write in two steps, for formats that can. Without, a copy writes with one thread.
    fn placing(&self) -> Option<&dyn Placing> {
        None
    }
}

/// Writing in two steps: what takes room in the file has an order, and the layout depends on it alone; the bytes are then
/// stored by any thread at any time.
///
/// Until the bytes are stored, the range reads as anything.
pub trait Placing: Sync {
    /// Takes room for the first part of `len` bytes at byte `offset` of the image, as much as lies together. `None` where
    /// it takes more than that, such as bytes of a cluster that are to be kept: then [`ImageMut::write_at`] does it all.
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>>;

    /// Stores `data` at the place `host`.
    fn store(&self, data: &[u8], host: u64) -> Result<()>;
}

/// Room in an image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte offset in the file.
    pub host: u64,
    /// Bytes that belong there.
    pub len: u64,
}

/// Compresses the bytes of one cluster; `None` when they do not get smaller.
pub type Compressor = Box<dyn FnMut(&[u8]) -> Option<Vec<u8>> + Send>;

/// Storing clusters compressed: packing may go on in many threads, storing has an order.
pub trait Compression: Sync {
    /// Bytes that are compressed together, at multiples of as many bytes.
    fn cluster_size(&self) -> u64;

    /// A compressor for one thread. It takes whole clusters; past the end of the image they are zeroes.
    fn compressor(&self) -> Compressor;

    /// Stores what a compressor made of the cluster at byte `offset`, where nothing is stored yet.
    fn write_packed(&self, packed: &[u8], offset: u64) -> Result<()>;

    /// Takes room for `len` such bytes and gives their place, for [`Placing::store`]. `None` where they can only be written in
    /// their order, by [`write_packed`](Compression::write_packed).
    fn place_packed(&self, offset: u64, len: u64) -> Result<Option<u64>>;

    /// Whether the image can hold nothing that is not compressed.
    fn is_needed(&self) -> bool {
        false
    }
}

/// Whether `len` bytes at `offset` lie within an image of `size` bytes that messages call `file`.
pub(crate) fn check_range(file: &str, size: u64, offset: u64, len: u64) -> Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{file}: {len} bytes at offset {offset:#x} reach past the end of the image, which has {size} bytes")))
}
