//! Filesystem readers in this process: the trait, and the table of all of them.

use std::ops::Range;
use std::sync::Arc;

use imgcore::Image;

use crate::{DirEntry, Error, Result, Stat, StatFs};

/// A filesystem read in this process, by inode number. Everything is read when it is asked for, and no more.
pub trait FsReader: Send + Sync {
    /// The root directory's inode.
    fn root(&self) -> u64;
    /// An inode; `dev` is 0.
    fn stat(&self, ino: u64) -> Result<Stat>;
    /// The inode behind a directory's name.
    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>>;
    /// A directory's names, without `.` and `..`.
    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>>;
    /// A symbolic link's target.
    fn readlink(&self, ino: u64) -> Result<Vec<u8>>;
    /// Reads bytes of a regular file; 0 at its end, possibly fewer than asked before.
    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The first bytes at or behind `offset` of a regular file that may be other than zero; a reader that knows no holes
    /// tells of all to its end.
    fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.stat(ino)?.size;
        Ok((offset < size).then_some(offset..size))
    }
    /// Extended attributes with their full names.
    fn xattrs(&self, ino: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;
    /// Space and inodes.
    fn statfs(&self) -> Result<StatFs>;
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub type Open = fn(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>>;

/// The filesystems that can be read in this process, by blkid's names.
pub const READERS: &[(&str, Open)] = &[("ext2", crate::ext4::open), ("ext3", crate::ext4::open), ("ext4", crate::ext4::open)];

/// Opens a filesystem of this kind, if there is a reader for it.
pub fn open(kind: &str, image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    let known = READERS.iter().find(|(name, _)| *name == kind);
    let (_, open) =
        known.ok_or_else(|| Error::Unsupported { filesystem: "volume", what: format!("there is no reader for '{kind}' filesystems") })?;
    open(image, start, len)
}
