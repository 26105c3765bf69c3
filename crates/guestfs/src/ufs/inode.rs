//! Inodes, and where a file's blocks lie. (FreeBSD's `sys/ufs/ufs/dinode.h`)

use super::superblock::Superblock;
use crate::bytes::{cut, le16, le32, le64};
use crate::window::Window;
use crate::{FileType, Result, Stat, Time};

/// Blocks that an inode names itself; behind them are blocks of addresses, in up to three layers.
const DIRECT: u64 = 12;
const LAYERS: u32 = 3;

/// An inode.
#[derive(Debug)]
pub(super) struct Inode {
    pub number: u64,
    pub kind: FileType,
    pub size: u64,
    version2: bool,
    raw: Vec<u8>,
}

/// What holds a place of a file.
pub(super) struct Run {
    /// Its byte in the volume; `None` where zeroes are read.
    pub place: Option<u64>,
    /// For how many bytes that goes on, never 0.
    pub len: u64,
}

impl Inode {
    pub fn read(window: &Window, superblock: &Superblock, number: u64) -> Result<Self> {
        let place = superblock.inode_place(number).ok_or_else(|| window.corrupt(format!("there is no inode {number}")))?;
        let raw = window.bytes(place, superblock.inode_size())?;
        let mode = le16(&raw, 0);
        let kind = FileType::of_mode(mode);
        let kind = kind.ok_or_else(|| window.corrupt(format!("inode {number} has mode {mode:#o}, which is no kind of file")))?;
        let size = le64(&raw, if superblock.version2 { 16 } else { 8 });
        if size > i64::MAX as u64 {
            return Err(window.corrupt(format!("inode {number} has {size} bytes")));
        }
        Ok(Inode { number, kind, size, version2: superblock.version2, raw })
    }

    /// Where the inode names its blocks.
    fn addresses(&self) -> usize {
        if self.version2 { 112 } else { 40 }
    }

    /// The text that lies in place of addresses.
    pub fn inline(&self, len: usize) -> &[u8] {
        cut(&self.raw, self.addresses(), len)
    }

    fn address(&self, table: &[u8], index: u64) -> u64 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if self.version2 { le64(table, index.saturating_mul(8)) } else { le32(table, index.saturating_mul(4)).into() }
    }

    /// What holds the file's byte `offset`.
    pub fn run(&self, window: &Window, superblock: &Superblock, offset: u64) -> Result<Run> {
        let block_size = superblock.block_size;
        let (logical, skip) = (offset / block_size, offset % block_size);
        let bytes = |address: u64| {
            let place = address.checked_mul(superblock.fragment_size);
            place.ok_or_else(|| window.corrupt(format!("inode {} has a block at {address:#x}", self.number)))
        };
        let own = self.raw.get(self.addresses()..).unwrap_or_default();
        if logical < DIRECT {
            let address = self.address(own, logical);
            let place = if address == 0 { None } else { Some(bytes(address)?.saturating_add(skip)) };
            return Ok(Run { place, len: block_size - skip });
        }
        let per_block = block_size / if self.version2 { 8 } else { 4 };
        // The tree that reaches so far, and the place in it.
        let (mut index, mut layer, mut covered) = (logical - DIRECT, 0, per_block);
        while index >= covered {
            index -= covered;
            layer += 1;
            covered = covered.saturating_mul(per_block);
            if layer == LAYERS {
                return Err(window.corrupt(format!("inode {} is read at {offset:#x}, where no file can be", self.number)));
            }
        }
        let mut address = self.address(own, DIRECT + u64::from(layer));
        // What an address at this place of the tree stands for, and how many like it there are in a row.
        let (mut hole, mut row) = (covered, 1);
        while address != 0 {
            if hole == 1 {
                return Ok(Run { place: Some(bytes(address)?.saturating_add(skip)), len: block_size - skip });
            }
            let table = window.cached(bytes(address)?, block_size as usize)?;
            hole /= per_block;
            let place = index / hole % per_block;
            address = self.address(&table, place);
            if address == 0 {
                row += (place + 1..per_block).take_while(|next| self.address(&table, *next) == 0).count() as u64;
            }
        }
        // Nothing below these places of the tree.
        let left = hole.saturating_mul(row) - index % hole;
        Ok(Run { place: None, len: left.saturating_mul(block_size) - skip })
    }

    pub fn stat(&self) -> Stat {
        let raw = &self.raw;
        let time = |sec: i64, nsec_at: usize| Time { sec, nsec: le32(raw, nsec_at).min(999_999_999) };
        let long = |at: usize| le64(raw, at).cast_signed();
        let short = |at: usize| i64::from(le32(raw, at).cast_signed());
        let (owners, blocks) = if self.version2 { ((4, 8), le64(raw, 24)) } else { ((112, 116), le32(raw, 104).into()) };
        let (atime, mtime, ctime) = if self.version2 {
            (time(long(32), 68), time(long(40), 64), time(long(48), 72))
        } else {
            (time(short(16), 20), time(short(24), 28), time(short(32), 36))
        };
        let device = matches!(self.kind, FileType::CharDevice | FileType::BlockDevice);
        let number = le32(raw, self.addresses());
        Stat {
            kind: self.kind,
            mode: u32::from(le16(raw, 0) & 0o7777),
            uid: le32(raw, owners.0),
            gid: le32(raw, owners.1),
            size: self.size,
            nlink: le16(raw, 2).into(),
            ino: self.number,
            dev: 0,
            rdev: if device { (number >> 8 & 0xff, number & 0xff) } else { (0, 0) },
            blocks,
            atime,
            mtime,
            ctime,
        }
    }
}
