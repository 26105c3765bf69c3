//! Filesystem readers in this process: the trait, and the table of all of them.

use std::ops::Range;
use std::sync::Arc;

use imgcore::Image;

use crate::{DirEntry, Error, Result, Stat, StatFs};

/// A filesystem read in this process, by inode number. Everything is read when it is asked for, and no more.
pub trait FsReader: Send + Sync {
    /// The root directory's inode.
    fn root(&self) -> u64;
    /// An inode; `dev` tells parts of the filesystem apart that number their inodes each for itself.
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

/// Opens the filesystem in `len` bytes of an image from byte `start`, as these mount options say.
pub type Open = fn(image: Arc<dyn Image>, start: u64, len: u64, options: &str) -> Result<Arc<dyn FsReader>>;

/// The filesystems that can be read in this process, by blkid's names.
pub const READERS: &[(&str, Open)] = &[
    ("ext2", |image, start, len, _| crate::ext4::open(image, start, len)),
    ("ext3", |image, start, len, _| crate::ext4::open(image, start, len)),
    ("ext4", |image, start, len, _| crate::ext4::open(image, start, len)),
    ("xfs", |image, start, len, _| crate::xfs::open(image, start, len)),
    ("btrfs", crate::btrfs::open),
    ("vfat", |image, start, len, _| crate::fat::open(image, start, len)),
    ("ntfs", |image, start, len, _| crate::ntfs::open(image, start, len)),
    ("iso9660", |image, start, len, _| crate::iso9660::open(image, start, len)),
    ("squashfs", |image, start, len, _| crate::squashfs::open(image, start, len)),
    ("ufs", |image, start, len, _| crate::ufs::open(image, start, len)),
];

/// Opens a filesystem of this kind, if there is a reader for it.
pub fn open(kind: &str, image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    open_with(kind, image, start, len, "")
}

/// As [`open`], with mount options: btrfs' `subvol=` and `subvolid=` choose what is opened, others change nothing for
/// a reader.
pub fn open_with(kind: &str, image: Arc<dyn Image>, start: u64, len: u64, options: &str) -> Result<Arc<dyn FsReader>> {
    let known = READERS.iter().find(|(name, _)| *name == kind);
    let (_, open) =
        known.ok_or_else(|| Error::Unsupported { filesystem: "volume", what: format!("there is no reader for '{kind}' filesystems") })?;
    open(image, start, len, options)
}

/// The first bytes of a file of `size` at or behind `offset` that are no hole. Of a place, `run` tells whether there is a hole, and how
/// many bytes go on like that.
pub(crate) fn first_data(offset: u64, size: u64, mut run: impl FnMut(u64) -> Result<(bool, u64)>) -> Result<Option<Range<u64>>> {
    let mut at = offset;
    while at < size {
        let (hole, len) = run(at)?;
        let end = at.saturating_add(len.max(1)).min(size);
        if !hole {
            return Ok(Some(at..end));
        }
        at = end;
    }
    Ok(None)
}

/// Fills a buffer with pieces of a file, until it is full or the file ends; `piece` reads some bytes from an offset.
pub(crate) fn fill(offset: u64, buf: &mut [u8], mut piece: impl FnMut(u64, &mut [u8]) -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match piece(offset.saturating_add(done as u64), &mut buf[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}
