//! Inodes, names in directories, and extended attributes. (btrfs documentation, INODE_ITEM, DIR_ITEM, XATTR_ITEM)

use super::tree::Key;
use crate::bytes::{le16, le32, le64};
use crate::{FileType, Result, Stat, Time, Window};

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub number: u64,
    pub kind: FileType,
    pub size: u64,
    raw: Vec<u8>,
}

impl Inode {
    pub(crate) fn parse(number: u64, raw: Vec<u8>, window: &Window) -> Result<Self> {
        let (mode, size) = (le32(&raw, 52), le64(&raw, 16));
        let kind = u16::try_from(mode).ok().and_then(FileType::of_mode).filter(|_| size <= i64::MAX as u64);
        let kind = kind.ok_or_else(|| window.corrupt(format!("inode {number}: mode {mode:#o}, {size} bytes")))?;
        Ok(Inode { number, kind, size, raw })
    }

    /// NODATASUM and others.
    pub(crate) fn flags(&self) -> u64 {
        le64(&self.raw, 64)
    }

    fn time(&self, at: usize) -> Time {
        Time { sec: le64(&self.raw, at).cast_signed(), nsec: le32(&self.raw, at + 8).min(999_999_999) }
    }

    pub(crate) fn stat(&self, sector_size: u32) -> Stat {
        let raw = &self.raw;
        let rdev = le64(raw, 56);
        let device = matches!(self.kind, FileType::CharDevice | FileType::BlockDevice);
        Stat {
            kind: self.kind,
            mode: le32(raw, 52) & 0o7777,
            uid: le32(raw, 44),
            gid: le32(raw, 48),
            size: self.size,
            nlink: le32(raw, 40).into(),
            ino: self.number,
            dev: 0,
            rdev: if device { ((rdev >> 20) as u32, (rdev & 0xf_ffff) as u32) } else { (0, 0) },
            blocks: le64(raw, 24).checked_next_multiple_of(sector_size.into()).unwrap_or(u64::MAX) / 512,
            atime: self.time(112),
            mtime: self.time(136),
            ctime: self.time(124),
        }
    }
}

/// A name and what it stands for: a file, a subvolume, or an attribute's value.
pub(crate) struct Named<'a> {
    pub location: Key,
    pub kind: u8,
    pub name: &'a [u8],
    pub value: &'a [u8],
}

/// All that one item holds: names whose hash is the same stand together.
pub(crate) fn names<'a>(item: &'a [u8], window: &Window) -> Result<Vec<Named<'a>>> {
    let mut found = Vec::new();
    let mut rest = item;
    while !rest.is_empty() {
        let (value_len, name_len) = (usize::from(le16(rest, 25)), usize::from(le16(rest, 27)));
        let (end_of_name, end) = (30 + name_len, 30 + name_len + value_len);
        let (Some(name), Some(value)) = (rest.get(30..end_of_name), rest.get(end_of_name..end)) else {
            return Err(window.corrupt("a directory's item is cut".into()));
        };
        found.push(Named { location: Key::parse(rest, 0), kind: rest[29], name, value });
        rest = &rest[end..];
    }
    Ok(found)
}
