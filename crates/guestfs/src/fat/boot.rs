//! The boot sector: read once, checked, and held as proper numbers. (FAT32 File System Specification, 3)

use crate::bytes::{cut, le16, le32};
use crate::{Result, Window};

/// How wide the file allocation table's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Fat12,
    Fat16,
    Fat32,
}

#[derive(Clone, Debug)]
pub(crate) struct Boot {
    pub width: Width,
    /// In bytes.
    pub cluster_size: u32,
    /// The highest cluster's number, and one more.
    pub clusters_end: u32,
    /// The byte where the first table begins.
    pub fat: u64,
    /// The byte of a root directory at a fixed place, and its length; of FAT32, 0.
    pub root: (u64, u64),
    /// The first cluster of FAT32's root directory.
    pub root_cluster: u32,
    /// The byte where cluster 2 begins.
    pub data: u64,
    /// Free clusters, as FAT32 keeps count of them.
    pub info_sector: Option<u64>,
}

impl Boot {
    pub(crate) fn parse(b: &[u8], window: &Window) -> Result<Self> {
        let bad = |what: String| window.corrupt(format!("boot sector: {what}"));
        let sector = u64::from(le16(b, 11));
        let per_cluster = u64::from(cut(b, 13, 1).first().copied().unwrap_or_default());
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) || !per_cluster.is_power_of_two() {
            return Err(bad(format!("sectors of {sector} bytes, {per_cluster} in a cluster")));
        }
        let wide = |short: usize, long: usize| match le16(b, short) {
            0 => u64::from(le32(b, long)),
            short => short.into(),
        };
        let (sectors, fat_sectors) = (wide(19, 32), wide(22, 36));
        let (reserved, fats, root_entries) = (u64::from(le16(b, 14)), u64::from(b[16]), u64::from(le16(b, 17)));
        let root_len = root_entries * 32;
        let root_sector = reserved + fats * fat_sectors;
        let data_sector = root_sector + root_len.div_ceil(sector);
        if fats == 0 || reserved == 0 || fat_sectors == 0 || sectors <= data_sector {
            return Err(bad(format!("{sectors} sectors, {reserved} reserved, {fats} tables of {fat_sectors}")));
        }
        // The number of clusters alone says which width it is.
        let clusters = (sectors - data_sector) / per_cluster;
        let width = match clusters {
            _ if le16(b, 22) == 0 => Width::Fat32,
            0..4085 => Width::Fat12,
            _ => Width::Fat16,
        };
        let bits = match width {
            Width::Fat12 => 12,
            Width::Fat16 => 16,
            Width::Fat32 => 32,
        };
        let in_table = fat_sectors * sector * 8 / bits;
        let clusters_end = (clusters + 2).min(in_table).min(0x0fff_fff7);
        let info = u64::from(le16(b, 48));
        Ok(Boot {
            width,
            cluster_size: u32::try_from(sector * per_cluster).unwrap_or_default(),
            clusters_end: u32::try_from(clusters_end).unwrap_or_default(),
            fat: reserved * sector,
            root: (root_sector * sector, root_len),
            root_cluster: le32(b, 44),
            data: data_sector * sector,
            info_sector: (width == Width::Fat32 && (1..0xffff).contains(&info)).then_some(info * sector),
        })
    }
}
