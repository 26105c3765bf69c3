//! Partition tables: MBR (logical partitions too) and GPT, read and written.
//!
//! [`read`] numbers partitions as Linux does, so that partition 5 here is `/dev/vda5` there. Offsets and lengths are
//! bytes. A table is hostile input: walks are bounded, loops are found, and what lies outside of the disk is left out
//! or cut with a [warning](Table::warnings), as Linux does.

mod gpt;
mod guid;
mod mbr;

#[cfg(test)]
mod tests;

pub use gpt::BIOS_GRUB;
pub use guid::Guid;

use crate::{Error, Image, ImageMut, Result};

/// The kind of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// A master boot record, also called msdos or dos label.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// A partition table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which kind.
    pub kind: TableKind,
    /// Bytes per sector, as the table counts: 512, or 4096 (GPT only).
    pub sector_size: u64,
    /// `1a2b3c4d` for an MBR, a UUID in lower case for a GPT: blkid's PTUUID.
    pub id: String,
    /// First byte that the table leaves for partitions.
    pub first_usable: u64,
    /// Partitions by number. Never empty slots; none reaches past the end of the disk.
    pub partitions: Vec<Partition>,
    /// What is wrong with the table without making it useless.
    pub warnings: Vec<String>,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As in `/dev/vda5`.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it says it is for.
    pub kind: PartitionType,
    /// blkid's PARTUUID: `1a2b3c4d-05` for an MBR, a UUID in lower case for a GPT.
    pub uuid: String,
    /// The name in a GPT; empty for an MBR.
    pub name: String,
    /// The active flag of an MBR, `legacy BIOS bootable` of a GPT.
    pub bootable: bool,
}

/// A partition's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionType {
    /// An MBR's type byte: 0x83 Linux, 0x82 swap, 0x05 extended.
    Mbr(u8),
    /// A GPT's type.
    Gpt(Guid),
}

impl PartitionType {
    /// Whether this is an MBR's extended partition: a container for logical ones, with no content of its own.
    pub fn is_extended(self) -> bool {
        matches!(self, PartitionType::Mbr(0x05 | 0x0f | 0x85))
    }
}

/// A partition to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPartition {
    /// 1 to 4 in an MBR, 1 to 128 in a GPT.
    pub number: u32,
    /// First byte, a multiple of 512.
    pub start: u64,
    /// Length in bytes, a multiple of 512.
    pub len: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// Set the active flag (`legacy BIOS bootable` in a GPT).
    pub bootable: bool,
    /// Its unique id in a GPT.
    pub guid: Guid,
}

/// What a new partition is for; becomes the type of either table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A Linux filesystem.
    Linux,
    /// Linux swap.
    Swap,
    /// Linux LVM.
    Lvm,
    /// Linux RAID.
    Raid,
    /// Where GRUB's core image lives on a GPT disk that a BIOS starts. GPT only.
    BiosGrub,
}

/// Reads the table of a disk; `None` when there is none: an empty disk, or a filesystem that fills all of it.
///
/// A GPT counts when the protective entry in the MBR is there, as for Linux.
///
/// # Errors
/// [`Error::Corrupt`] for a GPT of which neither the primary nor the backup copy is whole.
pub fn read(image: &dyn Image) -> Result<Option<Table>> {
    let Some(sector) = sector_at(image, 0)? else { return Ok(None) };
    if !mbr::is_table(&sector) {
        return Ok(None);
    }
    if mbr::is_protective(&sector) { gpt::read(image).map(Some) } else { mbr::read(image, &sector).map(Some) }
}

/// Writes a new MBR with the disk signature `id`. The boot code before it stays as it is.
///
/// # Errors
/// [`Error::Invalid`] for partitions that overlap, lie outside of the disk or of what an MBR can say (2 TiB).
pub fn write_mbr(image: &dyn ImageMut, id: u32, partitions: &[NewPartition]) -> Result<()> {
    check(image, partitions, 1..=4, 512..image.size())?;
    mbr::write(image, id, partitions)
}

/// Writes a new GPT of 512-byte sectors, both copies and the protective MBR. The boot code before it stays as it is.
///
/// # Errors
/// [`Error::Invalid`] for partitions that overlap or lie outside of the room between the two copies.
pub fn write_gpt(image: &dyn ImageMut, id: Guid, partitions: &[NewPartition]) -> Result<()> {
    check(image, partitions, 1..=gpt::ENTRIES, gpt::usable(image.size())?)?;
    gpt::write(image, id, partitions)
}

/// Bytes at the end of a disk that a GPT's backup takes: 33 sectors.
pub const GPT_TAIL: u64 = 33 * 512;

/// Sector 0 or another one of 512 bytes; `None` past the end.
fn sector_at(image: &dyn Image, offset: u64) -> Result<Option<[u8; 512]>> {
    if offset.checked_add(512).is_none_or(|end| end > image.size()) {
        return Ok(None);
    }
    let mut sector = [0; 512];
    image.read_at(&mut sector, offset)?;
    Ok(Some(sector))
}

fn check(
    image: &dyn ImageMut,
    partitions: &[NewPartition],
    numbers: std::ops::RangeInclusive<u32>,
    room: std::ops::Range<u64>,
) -> Result<()> {
    let bad = |p: &NewPartition, why: String| {
        Err(Error::Invalid(format!("{}: partition {} of {} bytes at offset {:#x} {why}", image.info().file, p.number, p.len, p.start)))
    };
    for (index, p) in partitions.iter().enumerate() {
        if !numbers.contains(&p.number) {
            return bad(p, format!("must have a number from {} to {}", numbers.start(), numbers.end()));
        }
        if p.start % 512 != 0 || p.len % 512 != 0 || p.len == 0 {
            return bad(p, "must start and end on a sector of 512 bytes".into());
        }
        let Some(end) = p.start.checked_add(p.len).filter(|end| *end <= room.end && p.start >= room.start) else {
            return bad(p, format!("must lie between {:#x} and {:#x}", room.start, room.end));
        };
        for other in &partitions[..index] {
            if other.number == p.number || (p.start < other.start + other.len && other.start < end) {
                return bad(p, format!("is in the way of partition {} of {} bytes at offset {:#x}", other.number, other.len, other.start));
            }
        }
    }
    Ok(())
}
