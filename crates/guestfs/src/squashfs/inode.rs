//! Inodes. (squashfs documentation in the kernel, 3.1)

use super::metadata::Metadata;
use crate::bytes::{le16, le32, le64};
use crate::{FileType, Result, Stat, Time};

pub(crate) const NO_FRAGMENT: u32 = u32::MAX;
const NO_XATTRS: u32 = u32::MAX;
/// The longest target of a symbolic link.
const SYMLINK_LIMIT: usize = 4096;

/// What an inode has besides what all have.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Directory { block: u32, offset: u16 },
    File { start: u64, fragment: u32, fragment_offset: u32, sizes: (u64, usize) },
    Symlink { target: Vec<u8> },
    Device { number: u32 },
    Other,
}

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub kind: FileType,
    pub number: u32,
    pub size: u64,
    pub body: Body,
    /// Which list of extended attributes it has.
    pub xattrs: Option<u32>,
    /// Bytes of holes, of which the kernel takes no account.
    sparse: u64,
    mode: u32,
    ids: [u16; 2],
    mtime: u32,
    nlink: u32,
}

/// `reference` names the block of metadata behind the inode table's beginning, and the byte in it.
pub(crate) fn read(metadata: &Metadata, reference: u64) -> Result<Inode> {
    let bad = |what: String| metadata.window.corrupt(format!("inode {reference:#x}: {what}"));
    let place = metadata.superblock.inode_table.checked_add(reference >> 16).ok_or_else(|| bad("its place".into()))?;
    let mut cursor = metadata.at(place, (reference & 0xffff) as usize);
    let head = cursor.take(16)?;
    let kind_number = le16(&head, 0);
    let kind = match kind_number {
        1 | 8 => FileType::Directory,
        2 | 9 => FileType::Regular,
        3 | 10 => FileType::Symlink,
        4 | 11 => FileType::BlockDevice,
        5 | 12 => FileType::CharDevice,
        6 | 13 => FileType::Fifo,
        7 | 14 => FileType::Socket,
        other => return Err(bad(format!("type {other}"))),
    };
    let (mut size, mut nlink, mut xattrs, mut sparse) = (0, 1, NO_XATTRS, 0);
    let body = match kind_number {
        1 => {
            let b = cursor.take(16)?;
            (nlink, size) = (le32(&b, 4), le16(&b, 8).into());
            Body::Directory { block: le32(&b, 0), offset: le16(&b, 10) }
        }
        8 => {
            let b = cursor.take(24)?;
            (nlink, size, xattrs) = (le32(&b, 0), le32(&b, 4).into(), le32(&b, 20));
            Body::Directory { block: le32(&b, 8), offset: le16(&b, 18) }
        }
        2 => {
            let b = cursor.take(16)?;
            size = le32(&b, 12).into();
            let sizes = (cursor.place, cursor.offset);
            Body::File { start: le32(&b, 0).into(), fragment: le32(&b, 4), fragment_offset: le32(&b, 8), sizes }
        }
        9 => {
            let b = cursor.take(40)?;
            (size, sparse, nlink, xattrs) = (le64(&b, 8), le64(&b, 16), le32(&b, 24), le32(&b, 36));
            let sizes = (cursor.place, cursor.offset);
            Body::File { start: le64(&b, 0), fragment: le32(&b, 28), fragment_offset: le32(&b, 32), sizes }
        }
        3 | 10 => {
            let b = cursor.take(8)?;
            nlink = le32(&b, 0);
            let len = le32(&b, 4) as usize;
            if len > SYMLINK_LIMIT {
                return Err(bad(format!("a symbolic link of {len} bytes")));
            }
            let target = cursor.take(len)?;
            size = len as u64;
            if kind_number == 10 {
                xattrs = le32(&cursor.take(4)?, 0);
            }
            Body::Symlink { target }
        }
        4 | 5 | 11 | 12 => {
            let b = cursor.take(8)?;
            nlink = le32(&b, 0);
            if kind_number > 10 {
                xattrs = le32(&cursor.take(4)?, 0);
            }
            Body::Device { number: le32(&b, 4) }
        }
        _ => {
            nlink = le32(&cursor.take(4)?, 0);
            if kind_number > 10 {
                xattrs = le32(&cursor.take(4)?, 0);
            }
            Body::Other
        }
    };
    if size > i64::MAX as u64 {
        return Err(bad(format!("{size} bytes")));
    }
    Ok(Inode {
        kind,
        number: le32(&head, 12),
        size,
        body,
        xattrs: Some(xattrs).filter(|x| *x != NO_XATTRS),
        sparse,
        mode: u32::from(le16(&head, 2) & 0o7777),
        ids: [le16(&head, 4), le16(&head, 6)],
        mtime: le32(&head, 8),
        nlink,
    })
}

impl Inode {
    pub(crate) fn stat(&self, metadata: &Metadata) -> Result<Stat> {
        let superblock = &metadata.superblock;
        let id = |index: u16| {
            if index >= superblock.ids {
                return Err(metadata.window.corrupt(format!("inode {}: owner {index} of {}", self.number, superblock.ids)));
            }
            Ok(le32(&metadata.entry(superblock.id_table, index.into(), 4)?, 0))
        };
        let time = Time { sec: self.mtime.into(), nsec: 0 };
        let rdev = match self.body {
            Body::Device { number } => ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00)),
            _ => (0, 0),
        };
        Ok(Stat {
            kind: self.kind,
            mode: self.mode,
            uid: id(self.ids[0])?,
            gid: id(self.ids[1])?,
            size: self.size,
            nlink: self.nlink.into(),
            ino: self.number.into(),
            dev: 0,
            rdev,
            blocks: if self.kind == FileType::Regular { self.size.saturating_sub(self.sparse).div_ceil(512) } else { 0 },
            atime: time,
            mtime: time,
            ctime: time,
        })
    }
}
