//! Inodes and their forks. (XFS Algorithms & Data Structures, "On-disk Inode")

use crate::bytes::{be16, be32, be64};
use crate::{FileType, Result, Stat, Time, Window};

const MAGIC: u16 = 0x494e;
const FLAG_REALTIME: u16 = 0x1;
const FLAG2_BIGTIME: u64 = 0x8;
const FLAG2_NREXT64: u64 = 0x10;

/// How a fork keeps its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A device's number.
    Device,
    /// The content itself.
    Local,
    /// A list of extents.
    Extents,
    /// The root of a tree of extents.
    Btree,
}

/// One of an inode's two areas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fork<'a> {
    pub format: Format,
    /// Extents in a list.
    pub extents: u64,
    pub bytes: &'a [u8],
}

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub number: u64,
    pub kind: FileType,
    pub size: u64,
    raw: Vec<u8>,
}

impl Inode {
    pub(crate) fn parse(number: u64, raw: Vec<u8>, window: &Window) -> Result<Self> {
        let bad = |what: String| window.corrupt(format!("inode {number}: {what}"));
        if be16(&raw, 0) != MAGIC {
            return Err(bad(format!("magic {:#06x}, expected 0x494e", be16(&raw, 0))));
        }
        let mode = be16(&raw, 2);
        let kind = FileType::of_mode(mode).ok_or_else(|| bad(format!("mode {mode:#o} is no kind of file")))?;
        let size = be64(&raw, 56);
        if size > i64::MAX as u64 || !(1..=3).contains(&raw[4]) {
            return Err(bad(format!("version {}, {size} bytes", raw[4])));
        }
        let inode = Inode { number, kind, size, raw };
        if inode.core_size() + inode.fork_offset() > inode.raw.len() {
            return Err(bad(format!("attributes at {} of {}", inode.fork_offset(), inode.raw.len())));
        }
        Ok(inode)
    }

    fn version(&self) -> u8 {
        self.raw[4]
    }

    fn core_size(&self) -> usize {
        if self.version() == 3 { 176 } else { 100 }
    }

    fn flags2(&self) -> u64 {
        if self.version() == 3 { be64(&self.raw, 120) } else { 0 }
    }

    /// Where the fork of attributes begins behind the inode's core; 0 if there is none.
    fn fork_offset(&self) -> usize {
        usize::from(self.raw[82]) * 8
    }

    pub(crate) fn is_realtime(&self) -> bool {
        be16(&self.raw, 90) & FLAG_REALTIME != 0
    }

    fn fork<'a>(&self, format: u8, extents: u64, bytes: &'a [u8], window: &Window) -> Result<Fork<'a>> {
        let format = match format {
            0 => Format::Device,
            1 => Format::Local,
            2 => Format::Extents,
            3 => Format::Btree,
            other => return Err(window.corrupt(format!("inode {}: a fork of format {other}", self.number))),
        };
        Ok(Fork { format, extents, bytes })
    }

    /// The file's content.
    pub(crate) fn data(&self, window: &Window) -> Result<Fork<'_>> {
        let area = self.raw.get(self.core_size()..).unwrap_or_default();
        let bytes = if self.fork_offset() == 0 { area } else { area.get(..self.fork_offset()).unwrap_or_default() };
        let extents = if self.flags2() & FLAG2_NREXT64 != 0 { be64(&self.raw, 24) } else { be32(&self.raw, 76).into() };
        self.fork(self.raw[5], extents, bytes, window)
    }

    /// The extended attributes, if there are any.
    pub(crate) fn attributes(&self, window: &Window) -> Result<Option<Fork<'_>>> {
        if self.fork_offset() == 0 {
            return Ok(None);
        }
        let bytes = self.raw.get(self.core_size() + self.fork_offset()..).unwrap_or_default();
        let extents = if self.flags2() & FLAG2_NREXT64 != 0 { be32(&self.raw, 76) } else { be16(&self.raw, 80).into() };
        self.fork(self.raw[83], extents.into(), bytes, window).map(Some)
    }

    fn time(&self, at: usize) -> Time {
        if self.flags2() & FLAG2_BIGTIME != 0 {
            let nanoseconds = be64(&self.raw, at);
            let sec = (nanoseconds / 1_000_000_000).cast_signed() - (1 << 31);
            return Time { sec, nsec: (nanoseconds % 1_000_000_000) as u32 };
        }
        Time { sec: be32(&self.raw, at).cast_signed().into(), nsec: be32(&self.raw, at + 4).min(999_999_999) }
    }

    pub(crate) fn stat(&self, block_size: u32) -> Stat {
        let raw = &self.raw;
        let device = matches!(self.kind, FileType::CharDevice | FileType::BlockDevice);
        let rdev = be32(raw, self.core_size());
        Stat {
            kind: self.kind,
            mode: u32::from(be16(raw, 2) & 0o7777),
            uid: be32(raw, 8),
            gid: be32(raw, 12),
            size: self.size,
            nlink: if self.version() == 1 { be16(raw, 6).into() } else { be32(raw, 16).into() },
            ino: self.number,
            dev: 0,
            rdev: if device { (rdev >> 18, rdev & 0x3_ffff) } else { (0, 0) },
            blocks: be64(raw, 64).saturating_mul(u64::from(block_size / 512)),
            atime: self.time(32),
            mtime: self.time(40),
            ctime: self.time(48),
        }
    }
}
