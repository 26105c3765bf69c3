//! What tools need of a guest's tree of files.

use std::io::Read;
use std::ops::Range;

use crate::{Error, Result};

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are POSIX's")]
pub enum FileType {
    Regular,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileType {
    /// From the upper bits of a mode.
    pub(crate) fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            0x1 => FileType::Fifo,
            0x2 => FileType::CharDevice,
            0x4 => FileType::Directory,
            0x6 => FileType::BlockDevice,
            0x8 => FileType::Regular,
            0xa => FileType::Symlink,
            0xc => FileType::Socket,
            _ => return None,
        })
    }

    /// From the number that ext4, XFS and btrfs write into a directory's entry.
    pub(crate) fn of_entry(number: u8) -> Option<Self> {
        Some(match number {
            1 => FileType::Regular,
            2 => FileType::Directory,
            3 => FileType::CharDevice,
            4 => FileType::BlockDevice,
            5 => FileType::Fifo,
            6 => FileType::Socket,
            7 => FileType::Symlink,
            _ => return None,
        })
    }
}

/// Seconds and nanoseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub sec: i64,
    /// 0 to 999 999 999.
    pub nsec: u32,
}

/// Days from 1970-01-01 in the Gregorian calendar.
pub(crate) fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day at their end.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// What lstat(2) tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The kind of file.
    pub kind: FileType,
    /// Permission bits, set-id and sticky bits: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Hard links.
    pub nlink: u64,
    /// Inode number in its filesystem.
    pub ino: u64,
    /// Which filesystem of the tree; equal for files of one filesystem.
    pub dev: u64,
    /// Major and minor number of a device file.
    pub rdev: (u32, u32),
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
}

/// What statfs(2) tells of a filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are statvfs's")]
pub struct StatFs {
    pub block_size: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
}

/// One name in a directory; `.` and `..` are never listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without slashes.
    pub name: Vec<u8>,
    /// The kind of file.
    pub kind: FileType,
    /// Inode number.
    pub ino: u64,
}

/// Extended attributes: full names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Owner, group and mode that a file is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Attributes {
    /// Owned by root with these permission bits.
    pub const fn root(mode: u32) -> Self {
        Attributes { mode, uid: 0, gid: 0 }
    }
}

/// A guest's tree of files, across all its mounted filesystems, for reading.
///
/// Paths are absolute. Symbolic links in all but the last component are followed inside the guest (`..` stops at
/// its root, 40 links at most); the last component is followed by [`stat`](GuestFs::stat),
/// [`read_dir`](GuestFs::read_dir) and [`read_at`](GuestFs::read_at), and not by the others.
pub trait GuestFs {
    /// The file itself, even if it is a symbolic link.
    fn lstat(&self, path: &[u8]) -> Result<Stat>;
    /// What the path leads to.
    fn stat(&self, path: &[u8]) -> Result<Stat>;
    /// A directory's names, in no set order.
    fn read_dir(&self, path: &[u8]) -> Result<Vec<DirEntry>>;
    /// A symbolic link's target as it stands.
    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>>;
    /// Reads bytes of a regular file; 0 at its end, possibly fewer than asked before.
    fn read_at(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The first bytes at or behind `offset` of a regular file that may be other than zero; `None` if all to its end are holes.
    fn next_data(&self, path: &[u8], offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.stat(path)?.size;
        Ok((offset < size).then_some(offset..size))
    }
    /// Extended attributes, ACLs and security labels included, of the file itself.
    fn xattrs(&self, path: &[u8]) -> Result<Xattrs>;
    /// The filesystem that holds the path.
    fn statfs(&self, path: &[u8]) -> Result<StatFs>;
}

/// Changes to a guest's tree. Paths as in [`GuestFs`]; no method follows the last component but
/// [`write`](GuestFsMut::write).
pub trait GuestFsMut: GuestFs {
    /// Replaces or creates a regular file with all that `content` yields. An existing file keeps its owner, mode
    /// and extended attributes unless `attributes` says otherwise; a new one without `attributes` is root's, 0644.
    fn write(&mut self, path: &[u8], content: &mut dyn Read, attributes: Option<Attributes>) -> Result<()>;
    /// Makes one directory.
    fn mkdir(&mut self, path: &[u8], attributes: Attributes) -> Result<()>;
    /// Makes a symbolic link at `path`.
    fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<()>;
    /// Makes a hard link at `path` to the file `existing`.
    fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<()>;
    /// Makes a fifo, socket or device file.
    fn mknod(&mut self, path: &[u8], kind: FileType, rdev: (u32, u32), attributes: Attributes) -> Result<()>;
    /// Renames, replacing a file at `to`.
    fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()>;
    /// Removes a file or an empty directory.
    fn remove(&mut self, path: &[u8]) -> Result<()>;
    /// Sets owner, group and mode.
    fn set_attributes(&mut self, path: &[u8], attributes: Attributes) -> Result<()>;
    /// Sets the times of access and change.
    fn set_times(&mut self, path: &[u8], atime: Time, mtime: Time) -> Result<()>;
    /// Sets an extended attribute.
    fn set_xattr(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()>;
}

/// What everyone would otherwise write again on top of [`GuestFs`].
pub trait Ext: GuestFs {
    /// A whole file of `limit` bytes at most.
    fn read(&self, path: &[u8], limit: u64) -> Result<Vec<u8>> {
        let size = self.stat(path)?.size;
        let mut content = Vec::new();
        let mut chunk = vec![0; 256 << 10];
        loop {
            let n = self.read_at(path, content.len() as u64, &mut chunk)?;
            if n == 0 {
                return Ok(content);
            }
            content.extend_from_slice(&chunk[..n]);
            if content.len() as u64 > limit {
                return Err(Error::Invalid(format!(
                    "{}: {size} bytes, more than the {limit} that such a file may have",
                    crate::error::show(path)
                )));
            }
        }
    }

    /// Whether the path leads to something.
    fn exists(&self, path: &[u8]) -> bool {
        self.stat(path).is_ok()
    }

    /// Whether the path leads to a directory.
    fn is_dir(&self, path: &[u8]) -> bool {
        self.stat(path).is_ok_and(|s| s.kind == FileType::Directory)
    }

    /// Whether the path leads to a regular file.
    fn is_file(&self, path: &[u8]) -> bool {
        self.stat(path).is_ok_and(|s| s.kind == FileType::Regular)
    }
}

impl<T: GuestFs + ?Sized> Ext for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(1969, 12, 31), -1);
    }
}
