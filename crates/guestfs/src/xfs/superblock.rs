//! The superblock: read once, checked, and held as proper numbers. (XFS Algorithms & Data Structures, "Superblocks")

use crate::bytes::{be16, be32, be64};
use crate::{Error, Result, Window};

/// Bytes of it that are read; the smallest sector has as many.
pub(crate) const SIZE: usize = 512;
const MAGIC: u32 = 0x5846_5342;

const VERSION_MOREBITS: u16 = 0x8000;
const VERSION_DIRV2: u16 = 0x2000;
const FEATURES2_FTYPE: u32 = 0x200;
const INCOMPAT_FTYPE: u32 = 0x1;
const INCOMPAT_NEEDSREPAIR: u32 = 0x10;
/// FTYPE, SPINODES, META_UUID, BIGTIME, NREXT64, EXCHRANGE, PARENT, METADIR.
const INCOMPAT_KNOWN: u32 = 0x1ef;

#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    /// In bytes, a power of two.
    pub block_size: u32,
    pub block_log: u32,
    pub blocks: u64,
    /// Where the log begins, as a block number.
    pub log_start: u64,
    /// In blocks.
    pub log_blocks: u32,
    pub root_inode: u64,
    /// In blocks.
    pub ag_blocks: u32,
    pub ag_count: u32,
    /// Bits of a block's number inside its allocation group.
    pub ag_block_log: u32,
    /// In bytes, a power of two.
    pub inode_size: u32,
    /// Bits of an inode's number inside its block.
    pub inodes_per_block_log: u32,
    /// Percent of the space that inodes may take; 0 is all.
    pub inode_max_percent: u8,
    pub inodes: u64,
    pub free_inodes: u64,
    pub free_blocks: u64,
    /// In bytes.
    pub dir_block_size: u32,
    /// Version 5, where metadata describes itself.
    pub v5: bool,
    /// Directory entries tell the kind of file.
    pub has_ftype: bool,
}

impl Superblock {
    pub(crate) fn parse(b: &[u8], window: &Window) -> Result<Self> {
        let unsupported = |what: String| Err(Error::Unsupported { filesystem: "XFS", what });
        if be32(b, 0) != MAGIC {
            return Err(window.corrupt(format!("superblock magic {:#010x}, expected 0x58465342", be32(b, 0))));
        }
        let version = be16(b, 100);
        let v5 = match version & 0xf {
            4 => false,
            5 => true,
            other => return unsupported(format!("version {other}")),
        };
        if version & VERSION_DIRV2 == 0 {
            return unsupported("directories of version 1".into());
        }
        let incompat = if v5 { be32(b, 216) } else { 0 };
        if incompat & INCOMPAT_NEEDSREPAIR != 0 {
            return unsupported("it needs xfs_repair".into());
        }
        if incompat & !INCOMPAT_KNOWN != 0 {
            return unsupported(format!("unknown features {:#x}", incompat & !INCOMPAT_KNOWN));
        }
        let log = |at: usize, range: std::ops::RangeInclusive<u32>, what: &str| {
            let value = u32::from(b.get(at).copied().unwrap_or_default());
            if range.contains(&value) { Ok(value) } else { Err(window.corrupt(format!("{what} is 2^{value}"))) }
        };
        let block_log = log(120, 9..=16, "the block size")?;
        let inode_log = log(122, 8..=11, "the inode size")?;
        let inodes_per_block_log = log(123, 0..=8, "the number of inodes in a block")?;
        let ag_block_log = log(124, 1..=31, "the size of an allocation group")?;
        let dir_log = log(192, 0..=7, "the size of a directory block in blocks")?;
        let (blocks, ag_blocks, ag_count) = (be64(b, 8), be32(b, 84), be32(b, 88));
        if be32(b, 4) != 1 << block_log
            || u32::from(be16(b, 104)) != 1 << inode_log
            || inode_log + inodes_per_block_log != block_log
            || block_log + dir_log > 16
        {
            return Err(window.corrupt(format!(
                "blocks of {} bytes (2^{block_log}), inodes of {} (2^{inode_log}), 2^{inodes_per_block_log} in a block, directory blocks of 2^{}",
                be32(b, 4),
                be16(b, 104),
                block_log + dir_log
            )));
        }
        let spanned = u64::from(ag_blocks) * u64::from(ag_count);
        if ag_blocks == 0 || u64::from(ag_blocks) > 1 << ag_block_log || blocks > spanned || blocks == 0 || blocks >> 48 != 0 {
            return Err(window.corrupt(format!("{blocks} blocks in {ag_count} groups of {ag_blocks}")));
        }
        let has_ftype =
            if v5 { incompat & INCOMPAT_FTYPE != 0 } else { version & VERSION_MOREBITS != 0 && be32(b, 200) & FEATURES2_FTYPE != 0 };
        Ok(Superblock {
            block_size: 1 << block_log,
            block_log,
            blocks,
            log_start: be64(b, 48),
            log_blocks: be32(b, 96),
            root_inode: be64(b, 56),
            ag_blocks,
            ag_count,
            ag_block_log,
            inode_size: 1 << inode_log,
            inodes_per_block_log,
            inode_max_percent: b.get(127).copied().unwrap_or_default(),
            inodes: be64(b, 128),
            free_inodes: be64(b, 136),
            free_blocks: be64(b, 144),
            dir_block_size: 1 << (block_log + dir_log),
            v5,
            has_ftype,
        })
    }

    /// The byte where a run of blocks lies; `block` has the group's number above its own.
    pub(crate) fn place(&self, block: u64, count: u64, window: &Window) -> Result<u64> {
        let (group, within) = (block >> self.ag_block_log, block & ((1 << self.ag_block_log) - 1));
        let bad = || window.corrupt(format!("blocks {within}+{count} of group {group} lie outside the filesystem"));
        let end = within.checked_add(count).filter(|end| group < u64::from(self.ag_count) && *end <= u64::from(self.ag_blocks));
        end.ok_or_else(bad)?;
        let first = group * u64::from(self.ag_blocks) + within;
        if first + count > self.blocks { Err(bad()) } else { Ok(first << self.block_log) }
    }

    /// The byte where an inode lies.
    pub(crate) fn inode_place(&self, number: u64, window: &Window) -> Result<u64> {
        let index = number & ((1 << self.inodes_per_block_log) - 1);
        let block = self.place(number >> self.inodes_per_block_log, 1, window)?;
        Ok(block + index * u64::from(self.inode_size))
    }

    /// The most inodes that there may be.
    pub(crate) fn inode_limit(&self) -> u64 {
        let blocks = match self.inode_max_percent {
            0 => return u64::MAX,
            percent => u128::from(self.blocks) * u128::from(percent) / 100,
        };
        // Inodes are made 64 at a time.
        let chunk = (64u128 >> self.inodes_per_block_log).max(1);
        u64::try_from((blocks / chunk * chunk) << self.inodes_per_block_log).unwrap_or(u64::MAX)
    }
}
