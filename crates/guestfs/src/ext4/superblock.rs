//! The superblock: read once, checked, and held as proper numbers. (Kernel documentation, "ext4 Data Structures and
//! Algorithms", 3.1)

use super::corrupt;
use crate::bytes::{le16, le32};
use crate::{Error, Result};

pub(crate) const COMPAT_HAS_JOURNAL: u32 = 0x4;
pub(crate) const COMPAT_SPARSE_SUPER2: u32 = 0x200;
pub(crate) const INCOMPAT_COMPRESSION: u32 = 0x1;
pub(crate) const INCOMPAT_FILETYPE: u32 = 0x2;
pub(crate) const INCOMPAT_RECOVER: u32 = 0x4;
pub(crate) const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
pub(crate) const INCOMPAT_META_BG: u32 = 0x10;
pub(crate) const INCOMPAT_EXTENTS: u32 = 0x40;
pub(crate) const INCOMPAT_64BIT: u32 = 0x80;
pub(crate) const INCOMPAT_DIRDATA: u32 = 0x1000;
pub(crate) const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
pub(crate) const RO_COMPAT_GDT_CSUM: u32 = 0x10;
pub(crate) const RO_COMPAT_BIGALLOC: u32 = 0x200;
pub(crate) const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// Bytes of a superblock, which lies at byte 1024.
pub(crate) const SIZE: usize = 1024;
pub(crate) const OFFSET: u64 = 1024;
pub(crate) const MAGIC: u16 = 0xef53;

#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub inodes: u32,
    pub blocks: u64,
    pub reserved_blocks: u64,
    pub free_blocks: u64,
    pub free_inodes: u32,
    pub first_data_block: u32,
    /// In bytes: a power of two from 1024 to 65536.
    pub block_size: u32,
    pub blocks_per_group: u32,
    pub inodes_per_group: u32,
    /// In bytes: a power of two from 128 to the block size.
    pub inode_size: u32,
    /// In bytes, 32 at least.
    pub descriptor_size: u32,
    pub groups: u64,
    pub first_meta_bg: u32,
    pub compat: u32,
    pub incompat: u32,
    pub ro_compat: u32,
    pub backup_groups: [u32; 2],
    pub journal_inode: u32,
    /// Blocks of the descriptor table that are kept free for growing.
    pub reserved_gdt_blocks: u32,
    /// A cluster has as many blocks as 1 shifted by this.
    pub cluster_bits: u32,
    /// What mke2fs counted as taken by the filesystem's own structures, in blocks; 0 if it did not.
    pub overhead: u64,
}

impl Superblock {
    pub(crate) fn parse(b: &[u8]) -> Result<Self> {
        if le16(b, 0x38) != MAGIC {
            return Err(corrupt(format!("superblock magic {:#06x}, expected 0xef53", le16(b, 0x38))));
        }
        let revision = le32(b, 0x4c);
        let incompat = if revision == 0 { 0 } else { le32(b, 0x60) };
        for (bit, name) in [
            (INCOMPAT_COMPRESSION, "compressed files"),
            (INCOMPAT_JOURNAL_DEV, "it is an external journal"),
            (INCOMPAT_DIRDATA, "data in directory entries"),
        ] {
            if incompat & bit != 0 {
                return Err(Error::Unsupported { filesystem: "ext4", what: name.into() });
            }
        }
        if incompat >= 0x40000 {
            return Err(Error::Unsupported { filesystem: "ext4", what: format!("unknown features {:#x}", incompat & !0x3ffff) });
        }
        let is_64bit = incompat & INCOMPAT_64BIT != 0;
        let wide = |lo: usize, hi: usize| u64::from(le32(b, lo)) | if is_64bit { u64::from(le32(b, hi)) << 32 } else { 0 };
        let ro_compat = if revision == 0 { 0 } else { le32(b, 0x64) };
        let log_block_size = le32(b, 0x18);
        if log_block_size > 6 {
            return Err(corrupt(format!("log block size {log_block_size}, at most 6 expected")));
        }
        let block_size = 1024u32 << log_block_size;
        let inode_size = if revision == 0 { 128 } else { u32::from(le16(b, 0x58)) };
        if !inode_size.is_power_of_two() || !(128..=block_size).contains(&inode_size) {
            return Err(corrupt(format!("inode size {inode_size} with blocks of {block_size}")));
        }
        let descriptor_size = if is_64bit { u32::from(le16(b, 0xfe)) } else { 32 };
        if !descriptor_size.is_power_of_two() || !(32..=block_size).contains(&descriptor_size) {
            return Err(corrupt(format!("group descriptor size {descriptor_size}")));
        }
        let (blocks_per_group, inodes_per_group) = (le32(b, 0x20), le32(b, 0x28));
        let blocks = wide(0x4, 0x150);
        let first_data_block = le32(b, 0x14);
        // A group's block bitmap is one block of clusters, a cluster at most 2^18 blocks.
        if blocks_per_group == 0 || inodes_per_group == 0 || blocks <= u64::from(first_data_block) {
            return Err(corrupt(format!(
                "{blocks} blocks from {first_data_block}, {blocks_per_group} blocks and {inodes_per_group} inodes in a group"
            )));
        }
        if blocks > 1 << 48 {
            return Err(corrupt(format!("{blocks} blocks, more than 2^48")));
        }
        let bigalloc = ro_compat & RO_COMPAT_BIGALLOC != 0;
        let cluster_bits = if bigalloc { le32(b, 0x1c).saturating_sub(log_block_size).min(16) } else { 0 };
        Ok(Superblock {
            inodes: le32(b, 0x0),
            blocks,
            reserved_blocks: wide(0x8, 0x154),
            free_blocks: wide(0xc, 0x158),
            free_inodes: le32(b, 0x10),
            first_data_block,
            block_size,
            blocks_per_group,
            inodes_per_group,
            inode_size,
            descriptor_size,
            groups: (blocks - u64::from(first_data_block)).div_ceil(u64::from(blocks_per_group)),
            first_meta_bg: le32(b, 0x104),
            compat: le32(b, 0x5c),
            incompat,
            ro_compat,
            backup_groups: [le32(b, 0x24c), le32(b, 0x250)],
            journal_inode: le32(b, 0xe0),
            reserved_gdt_blocks: u32::from(le16(b, 0xce)),
            cluster_bits,
            overhead: u64::from(le32(b, 0x248)) << cluster_bits,
        })
    }

    pub(crate) fn has_incompat(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    /// Whether the group begins with a copy of the superblock.
    pub(crate) fn has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return self.backup_groups.iter().any(|g| u64::from(*g) == group);
        }
        if group == 1 || self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 {
            return true;
        }
        [3u64, 5, 7].iter().any(|base| {
            let mut power = *base;
            while power < group {
                power = power.saturating_mul(*base);
            }
            power == group
        })
    }

    /// Blocks that the kernel keeps back beside root's, to have room for splitting extents.
    pub(crate) fn kept_back(&self) -> u64 {
        let clusters = if self.has_incompat(INCOMPAT_EXTENTS) { (self.blocks >> self.cluster_bits) / 50 } else { 0 };
        clusters.min(4096) << self.cluster_bits
    }

    /// Blocks of a group's inode table.
    pub(crate) fn table_blocks(&self) -> u64 {
        (u64::from(self.inodes_per_group) * u64::from(self.inode_size)).div_ceil(u64::from(self.block_size))
    }

    /// Blocks that are the filesystem's own, without the journal, as the kernel takes them off.
    pub(crate) fn own_blocks(&self) -> u64 {
        if self.overhead != 0 {
            return self.overhead;
        }
        let descriptors = u64::from(self.block_size / self.descriptor_size);
        let tables = if self.has_incompat(INCOMPAT_META_BG) { u64::from(self.first_meta_bg) } else { self.groups.div_ceil(descriptors) };
        let supers: u64 = (0..self.groups.min(1 << 20)).filter(|g| self.has_super(*g)).count() as u64;
        let inode_blocks = self.table_blocks();
        u64::from(self.first_data_block)
            .saturating_add(supers * (1 + tables + u64::from(self.reserved_gdt_blocks)))
            .saturating_add(self.groups.saturating_mul(inode_blocks + 2))
    }

    /// The block and the byte in it where a group's descriptor lies.
    pub(crate) fn descriptor_place(&self, group: u64) -> (u64, usize) {
        let per_block = u64::from(self.block_size / self.descriptor_size);
        let table_block = group / per_block;
        let byte = (group % per_block) as usize * self.descriptor_size as usize;
        // With blocks of 1 KiB the superblock has block 1 for itself, whatever the first data block is.
        let superblock_block = u64::from(self.block_size == 1024);
        if !self.has_incompat(INCOMPAT_META_BG) || table_block < u64::from(self.first_meta_bg) {
            return (superblock_block + 1 + table_block, byte);
        }
        let first_group = table_block * per_block;
        let mut skip = u64::from(self.has_super(first_group));
        if self.block_size == 1024 && table_block == 0 && self.first_data_block == 0 {
            skip += 1;
        }
        (u64::from(self.first_data_block) + first_group * u64::from(self.blocks_per_group) + skip, byte)
    }
}
