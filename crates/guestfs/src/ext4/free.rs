//! Which blocks nothing uses, by the groups' bitmaps. (Kernel documentation, "ext4 Data Structures and Algorithms", 3.2 and 3.3)
//!
//! Whoever asks will throw away what lies there. So bitmaps are believed only where checksums and counts agree with them.

use std::ops::Range;

use super::superblock::{self, COMPAT_HAS_JOURNAL, INCOMPAT_64BIT, INCOMPAT_META_BG, RO_COMPAT_GDT_CSUM, RO_COMPAT_METADATA_CSUM};
use super::{Ext4, corrupt};
use crate::bytes::{crc32c, cut, le16, le32};
use crate::{Error, Result};

const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
/// A group's flag: its bitmap is not written, for it has no blocks but its own.
const BLOCK_UNINIT: u16 = 2;
/// Groups of the largest filesystem that is looked at, 512 TiB; what they keep of their own is kept in memory.
const MAX_GROUPS: u64 = 1 << 22;

/// What a group's descriptor tells.
struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    flags: u16,
    checksum: u32,
}

impl Ext4 {
    /// Calls `visit` with the byte ranges of the volume that no file and no structure uses: ascending, as long as they can be.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a filesystem that was not left clean, and [`Error::Corrupt`] where bitmaps contradict what else there is.
    /// Ranges that were visited before are right all the same.
    pub(crate) fn free(&self, visit: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let sb = &self.superblock;
        let mut raw = vec![0; superblock::SIZE];
        let unit = u64::from(sb.block_size);
        self.device.read(superblock::OFFSET / unit, superblock::OFFSET % unit, &mut raw)?;
        let state = le16(&raw, 0x3a);
        // With a journal it is always as good as clean: what is in the journal was replayed.
        if state & STATE_ERRORS != 0 || state & STATE_VALID == 0 && sb.compat & COMPAT_HAS_JOURNAL == 0 {
            return Err(Error::Unsupported { filesystem: "ext4", what: "free space of a filesystem that must be checked first".into() });
        }
        let ratio = 1u64 << sb.cluster_bits;
        let clusters = u64::from(sb.blocks_per_group) / ratio;
        if !clusters.is_multiple_of(8) || clusters == 0 || clusters > 8 * unit || clusters * ratio != u64::from(sb.blocks_per_group) {
            return Err(corrupt(format!("{} blocks in a group", sb.blocks_per_group)));
        }
        if sb.groups > MAX_GROUPS {
            return Err(corrupt(format!("{} groups", sb.groups)));
        }
        let seed = if sb.has_incompat(INCOMPAT_CSUM_SEED) { le32(&raw, 0x270) } else { crc32c(!0, cut(&raw, 0x68, 16)) };
        let structures = self.structures()?;
        let mut open: Option<Range<u64>> = None;
        for number in 0..sb.groups {
            let group = self.group(number)?;
            let first = u64::from(sb.first_data_block) + number * u64::from(sb.blocks_per_group);
            let blocks = u64::from(sb.blocks_per_group).min(sb.blocks - first);
            let bitmap = if group.flags & BLOCK_UNINIT != 0 && sb.ro_compat & (RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM) != 0 {
                self.implied_bitmap(number, first..first + blocks, ratio, &structures)
            } else {
                let mut bitmap = vec![0; unit as usize];
                self.device.read(group.block_bitmap, 0, &mut bitmap)?;
                if sb.ro_compat & RO_COMPAT_METADATA_CSUM != 0 {
                    let wide = sb.has_incompat(INCOMPAT_64BIT) && sb.descriptor_size >= 64;
                    let expected = crc32c(seed, cut(&bitmap, 0, (clusters / 8) as usize)) & if wide { !0 } else { 0xffff };
                    if expected != group.checksum {
                        return Err(corrupt(format!(
                            "the block bitmap of group {number} has checksum {expected:#x}, not {:#x}",
                            group.checksum
                        )));
                    }
                }
                bitmap
            };
            let is_free = |cluster: u64| bitmap.get((cluster / 8) as usize).is_some_and(|byte| byte >> (cluster % 8) & 1 == 0);
            let count = (0..blocks.div_ceil(ratio)).filter(|c| is_free(*c)).count() as u64;
            if count != group.free {
                return Err(corrupt(format!("group {number} says that {} clusters are free, and its bitmap has {count}", group.free)));
            }
            for cluster in (0..blocks.div_ceil(ratio)).filter(|c| is_free(*c)) {
                let start = (first + cluster * ratio) * unit;
                let end = (first + ((cluster + 1) * ratio).min(blocks)) * unit;
                open = match open.take() {
                    Some(range) if range.end == start => Some(range.start..end),
                    Some(range) => {
                        visit(range);
                        Some(start..end)
                    }
                    None => Some(start..end),
                };
            }
        }
        open.map_or(Ok(()), |range| {
            visit(range);
            Ok(())
        })
    }

    fn group(&self, number: u64) -> Result<Group> {
        let sb = &self.superblock;
        let (block, at) = sb.descriptor_place(number);
        let block = self.device.block(block)?;
        let b = cut(&block, at, sb.descriptor_size as usize);
        let wide = sb.has_incompat(INCOMPAT_64BIT) && sb.descriptor_size >= 64;
        let high = |at: usize| if wide { u64::from(le32(b, at)) << 32 } else { 0 };
        let half = |at: usize| if wide { u32::from(le16(b, at)) << 16 } else { 0 };
        Ok(Group {
            block_bitmap: u64::from(le32(b, 0)) | high(0x20),
            inode_bitmap: u64::from(le32(b, 4)) | high(0x24),
            inode_table: u64::from(le32(b, 8)) | high(0x28),
            free: u64::from(u32::from(le16(b, 0xc)) | half(0x2c)),
            flags: le16(b, 0x12),
            checksum: u32::from(le16(b, 0x18)) | half(0x38),
        })
    }

    /// The blocks of all groups' bitmaps and inode tables, in order. With flex_bg they lie in other groups than their own.
    fn structures(&self) -> Result<Vec<Range<u64>>> {
        let sb = &self.superblock;
        let table = sb.table_blocks();
        let mut all = Vec::new();
        for number in 0..sb.groups {
            let group = self.group(number)?;
            for (start, len) in [(group.block_bitmap, 1), (group.inode_bitmap, 1), (group.inode_table, table)] {
                all.push(start..start.saturating_add(len));
            }
        }
        all.sort_by_key(|r| r.start);
        all.dedup();
        Ok(all)
    }

    /// The bitmap of a group that has none on the disk: its share of the superblocks, descriptors, bitmaps and inode tables.
    fn implied_bitmap(&self, number: u64, range: Range<u64>, ratio: u64, structures: &[Range<u64>]) -> Vec<u8> {
        let sb = &self.superblock;
        let mut bitmap = vec![0u8; sb.block_size as usize];
        let mut take = |blocks: Range<u64>| {
            for block in blocks.start.max(range.start)..blocks.end.min(range.end) {
                let cluster = (block - range.start) / ratio;
                if let Some(byte) = bitmap.get_mut((cluster / 8) as usize) {
                    *byte |= 1 << (cluster % 8);
                }
            }
        };
        let per_block = u64::from(sb.block_size / sb.descriptor_size);
        let has_super = u64::from(sb.has_super(number));
        let own = if sb.has_incompat(INCOMPAT_META_BG) && number / per_block >= u64::from(sb.first_meta_bg) {
            // The first, second and last group of as many as a block describes have that block.
            has_super + u64::from([0, 1, per_block - 1].contains(&(number % per_block)))
        } else {
            let tables = if sb.has_incompat(INCOMPAT_META_BG) { u64::from(sb.first_meta_bg) } else { sb.groups.div_ceil(per_block) };
            has_super * (1 + tables + u64::from(sb.reserved_gdt_blocks))
        };
        take(range.start..range.start.saturating_add(own));
        // None is longer than a table: those that begin further before the group cannot reach into it.
        let table = sb.table_blocks();
        let from = structures.partition_point(|s| s.start.saturating_add(table) <= range.start);
        for blocks in structures.iter().skip(from).take_while(|s| s.start < range.end) {
            take(blocks.clone());
        }
        bitmap
    }
}
