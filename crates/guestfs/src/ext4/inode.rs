//! Inodes. (ext4 documentation, 4.1)

use super::corrupt;
use crate::bytes::{cut, le16, le32};
use crate::{FileType, Result, Stat, Time};

pub(crate) const FLAG_COMPRESSED: u32 = 0x4;
pub(crate) const FLAG_ENCRYPTED: u32 = 0x800;
pub(crate) const FLAG_HUGE_FILE: u32 = 0x4_0000;
pub(crate) const FLAG_EXTENTS: u32 = 0x8_0000;
pub(crate) const FLAG_EA_INODE: u32 = 0x20_0000;
pub(crate) const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// Bytes of `i_block`.
pub(crate) const I_BLOCK: usize = 60;

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub number: u32,
    pub kind: FileType,
    pub mode: u16,
    pub size: u64,
    pub flags: u32,
    /// The block of extended attributes, 0 if there is none.
    pub file_acl: u64,
    pub i_block: [u8; I_BLOCK],
    /// The inode whole, for attributes in it.
    raw: Vec<u8>,
}

impl Inode {
    /// `raw` is the inode's record, 128 bytes at least.
    pub(crate) fn parse(number: u32, raw: &[u8]) -> Result<Self> {
        let mode = le16(raw, 0x0);
        let kind = FileType::of_mode(mode);
        let kind = kind.ok_or_else(|| corrupt(format!("inode {number} has mode {mode:#o}, which is no kind of file")))?;
        let size = u64::from(le32(raw, 0x4)) | u64::from(le32(raw, 0x6c)) << 32;
        if size > i64::MAX as u64 {
            return Err(corrupt(format!("inode {number} has {size} bytes")));
        }
        let mut i_block = [0; I_BLOCK];
        i_block.copy_from_slice(raw.get(0x28..0x28 + I_BLOCK).ok_or_else(|| corrupt(format!("inode {number} is cut")))?);
        Ok(Inode {
            number,
            kind,
            mode,
            size,
            flags: le32(raw, 0x20),
            file_acl: u64::from(le32(raw, 0x68)) | u64::from(le16(raw, 0x76)) << 32,
            i_block,
            raw: raw.to_vec(),
        })
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The part of the record behind its known fields, where attributes lie; empty in old, small inodes.
    pub(crate) fn tail(&self) -> &[u8] {
        let extra = usize::from(self.extra_size());
        if extra == 0 { &[] } else { self.raw.get(128 + extra..).unwrap_or_default() }
    }

    fn extra_size(&self) -> u16 {
        le16(&self.raw, 0x80)
    }

    /// A field among the extra ones, 0 where the inode is too small for it.
    fn extra32(&self, at: usize) -> u32 {
        if at + 4 <= 128 + usize::from(self.extra_size()) { le32(&self.raw, at) } else { 0 }
    }

    fn time(&self, at: usize, extra_at: usize) -> Time {
        let extra = self.extra32(extra_at);
        let sec = i64::from(le32(&self.raw, at).cast_signed()) + (i64::from(extra & 3) << 32);
        Time { sec, nsec: (extra >> 2).min(999_999_999) }
    }

    /// Whether a symbolic link's target lies in `i_block`.
    pub(crate) fn is_fast_symlink(&self) -> bool {
        self.size < I_BLOCK as u64 && !self.has(FLAG_EXTENTS | FLAG_INLINE_DATA)
    }

    fn rdev(&self) -> (u32, u32) {
        let (old, new) = (le32(&self.i_block, 0), le32(&self.i_block, 4));
        if old != 0 { ((old >> 8) & 0xff, old & 0xff) } else { ((new & 0xf_ff00) >> 8, (new & 0xff) | ((new >> 12) & 0xf_ff00)) }
    }

    pub(crate) fn stat(&self, block_size: u32) -> Stat {
        let raw = &self.raw;
        let blocks = u64::from(le32(raw, 0x1c)) | u64::from(le16(raw, 0x74)) << 32;
        let device = matches!(self.kind, FileType::CharDevice | FileType::BlockDevice);
        Stat {
            kind: self.kind,
            mode: u32::from(self.mode & 0o7777),
            uid: u32::from(le16(raw, 0x2)) | u32::from(le16(raw, 0x78)) << 16,
            gid: u32::from(le16(raw, 0x18)) | u32::from(le16(raw, 0x7a)) << 16,
            size: self.size,
            nlink: u64::from(le16(raw, 0x1a)),
            ino: u64::from(self.number),
            dev: 0,
            rdev: if device { self.rdev() } else { (0, 0) },
            blocks: if self.has(FLAG_HUGE_FILE) { blocks * u64::from(block_size / 512) } else { blocks },
            atime: self.time(0x8, 0x8c),
            mtime: self.time(0x10, 0x88),
            ctime: self.time(0xc, 0x84),
        }
    }

    /// All of `i_block` that `len` bytes of inline data take.
    pub(crate) fn inline_head(&self, len: usize) -> &[u8] {
        cut(&self.i_block, 0, len)
    }
}
