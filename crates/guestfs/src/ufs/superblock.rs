//! The superblock, and where inodes lie. (FreeBSD's `sys/ufs/ffs/fs.h`)

use super::unsupported;
use crate::bytes::{cut, le32, le64};
use crate::window::Window;
use crate::{Result, StatFs};

const UFS1: u32 = 0x0001_1954;
const UFS2: u32 = 0x1954_0119;
/// Where it may lie: version 2 keeps the first 64 KiB free, version 1 and some of NetBSD's 8 KiB.
pub(crate) const PLACES: [(u64, u32); 3] = [(65536, UFS2), (8192, UFS1), (8192, UFS2)];
/// Its length, and where in it the magic number is.
pub(crate) const SIZE: usize = 1376;
pub(crate) const MAGIC_AT: usize = 1372;

/// Inodes as 4.4BSD has them: owners of 32 bits, and kinds in directories.
const FORMAT_44BSD: u32 = 2;
/// Of `fs_old_flags`: the counts of version 2 are kept in version 1, too.
const FLAG_UPDATED: u8 = 0x80;

#[derive(Debug)]
pub(super) struct Superblock {
    pub version2: bool,
    /// Bytes of a block, and of a fragment, which is what addresses count.
    pub block_size: u64,
    pub fragment_size: u64,
    /// Symbolic links shorter than this lie in their inodes.
    pub inline_link: u64,
    groups: u64,
    inodes_per_group: u64,
    fragments_per_group: u64,
    inode_block: u64,
    /// Version 1 shifts its groups' tables by cylinders.
    shift: (u32, u32),
    space: StatFs,
}

impl Superblock {
    pub fn read(window: &Window) -> Result<Self> {
        let found = PLACES.iter().find_map(|(at, magic)| {
            let bytes = window.bytes(*at, SIZE).ok()?;
            (le32(&bytes, MAGIC_AT) == *magic).then_some((bytes, *magic == UFS2))
        });
        // In the other order of bytes it is not recognised as one, either.
        let (b, version2) = found.ok_or_else(|| window.corrupt("there is no superblock".into()))?;
        if !version2 && le32(&b, 1324) != FORMAT_44BSD {
            return Err(unsupported("inodes older than 4.4BSD's, or Solaris's"));
        }
        let field = |at: usize| u64::from(le32(&b, at));
        let (block_size, fragment_size) = (field(48), field(52));
        let (groups, inodes_per_group, fragments_per_group) = (field(44), field(184), field(188));
        let sizes = block_size.is_power_of_two() && (4096..=65536).contains(&block_size);
        if !sizes || !fragment_size.is_power_of_two() || !(512..=block_size).contains(&fragment_size) || block_size / fragment_size > 8 {
            return Err(window.corrupt(format!("blocks of {block_size} bytes, fragments of {fragment_size}")));
        }
        if groups == 0 || inodes_per_group == 0 || fragments_per_group == 0 {
            return Err(window.corrupt(format!("{groups} groups of {inodes_per_group} inodes and {fragments_per_group} fragments")));
        }
        let updated = version2 || cut(&b, 211, 1).iter().any(|flags| flags & FLAG_UPDATED != 0);
        let count = |number: usize| if updated { le64(&b, 1008 + 8 * number) } else { field(192 + 4 * number) };
        let blocks = if version2 { le64(&b, 1088) } else { field(40) };
        let free = count(1).saturating_mul(block_size / fragment_size).saturating_add(count(3)).min(blocks);
        let reserved = u128::from(blocks) * u128::from(field(60).min(100)) / 100;
        let space = StatFs {
            block_size: fragment_size,
            blocks,
            blocks_free: free,
            blocks_available: free.saturating_sub(reserved as u64),
            files: groups.saturating_mul(inodes_per_group),
            files_free: count(2),
        };
        let shift = if version2 { (0, 0) } else { (le32(&b, 24), le32(&b, 28)) };
        let inline_link = field(1320).min(if version2 { 120 } else { 60 });
        Ok(Superblock {
            version2,
            block_size,
            fragment_size,
            inline_link,
            groups,
            inodes_per_group,
            fragments_per_group,
            inode_block: field(16),
            shift,
            space,
        })
    }

    pub fn inode_size(&self) -> usize {
        if self.version2 { 256 } else { 128 }
    }

    /// The byte where an inode lies, if there can be one of this number.
    pub fn inode_place(&self, number: u64) -> Option<u64> {
        let (group, index) = (number / self.inodes_per_group, number % self.inodes_per_group);
        if number == 0 || group >= self.groups {
            return None;
        }
        let (offset, mask) = self.shift;
        let shifted = u64::from(offset) * (group & u64::from(!mask));
        let table = self.fragments_per_group.checked_mul(group)?.checked_add(shifted)?.checked_add(self.inode_block)?;
        table.checked_mul(self.fragment_size)?.checked_add(index * self.inode_size() as u64)
    }

    pub fn space(&self) -> StatFs {
        self.space.clone()
    }
}
