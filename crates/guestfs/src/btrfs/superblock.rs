//! The superblock: read once, checked, and held as proper numbers. (btrfs documentation, "On-disk format")

use crate::bytes::{crc32c, cut, le16, le32, le64};
use crate::{Error, Result, Window};

pub(crate) const OFFSET: u64 = 64 << 10;
pub(crate) const SIZE: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";
/// Where the chunks of the system are listed, and how long that list can be.
const SYSTEM_CHUNKS: usize = 0x32b;
const SYSTEM_CHUNKS_LEN: usize = 2048;

/// MIXED_BACKREF to RAID1C34 without RAID56, and SIMPLE_QUOTA.
const INCOMPAT_KNOWN: u64 = 0x1_0f7f;
const COMPAT_RO_BLOCK_GROUP_TREE: u64 = 0x8;

#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub root: u64,
    pub root_level: u8,
    pub chunk_root: u64,
    pub chunk_root_level: u8,
    pub total_bytes: u64,
    pub root_dir: u64,
    pub device: u64,
    /// In bytes, a power of two.
    pub sector_size: u32,
    /// In bytes, a power of two.
    pub node_size: u32,
    /// Metadata has checksums that are known here.
    pub crc32c: bool,
    /// Block groups have a tree of their own.
    pub block_group_tree: bool,
    pub system_chunks: Vec<u8>,
}

impl Superblock {
    pub(crate) fn parse(b: &[u8], window: &Window) -> Result<Self> {
        let unsupported = |what: String| Err(Error::Unsupported { filesystem: "btrfs", what });
        if cut(b, 0x40, 8) != MAGIC {
            return Err(window.corrupt("the superblock's magic is missing".into()));
        }
        let crc32c_type = le16(b, 0xc4) == 0;
        if crc32c_type && !crc32c(!0, cut(b, 32, SIZE - 32)) != le32(b, 0) {
            return Err(window.corrupt("the superblock's checksum is wrong".into()));
        }
        let incompat = le64(b, 0xbc);
        if incompat & !INCOMPAT_KNOWN != 0 {
            return unsupported(format!("features {:#x}", incompat & !INCOMPAT_KNOWN));
        }
        if le64(b, 0x88) != 1 {
            return unsupported(format!("a filesystem on {} devices", le64(b, 0x88)));
        }
        if le64(b, 0x60) != 0 {
            return unsupported("it was not unmounted, and its log is to be replayed".into());
        }
        let (sector_size, node_size) = (le32(b, 0x90), le32(b, 0x94));
        let sane = |size: u32| size.is_power_of_two() && (4096..=65536).contains(&size);
        if !sane(sector_size) || !sane(node_size) {
            return Err(window.corrupt(format!("sectors of {sector_size} bytes, nodes of {node_size}")));
        }
        let system_len = le32(b, 0xa0) as usize;
        if system_len > SYSTEM_CHUNKS_LEN {
            return Err(window.corrupt(format!("{system_len} bytes of system chunks")));
        }
        Ok(Superblock {
            root: le64(b, 0x50),
            root_level: b.get(0xc6).copied().unwrap_or_default(),
            chunk_root: le64(b, 0x58),
            chunk_root_level: b.get(0xc7).copied().unwrap_or_default(),
            total_bytes: le64(b, 0x70),
            root_dir: le64(b, 0x80),
            device: le64(b, 0xc9),
            sector_size,
            node_size,
            crc32c: crc32c_type,
            block_group_tree: le64(b, 0xb4) & COMPAT_RO_BLOCK_GROUP_TREE != 0,
            system_chunks: cut(b, SYSTEM_CHUNKS, system_len).to_vec(),
        })
    }
}
