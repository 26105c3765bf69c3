//! Partition tables: MBR (logical partitions too) and GPT, read and written.
//!
//! [`read`] numbers partitions as Linux does, so that partition 5 here is `/dev/vda5` there. Offsets and lengths are
//! bytes. A table is hostile input: walks are bounded, loops are found, and what lies outside of the disk is left out
//! or cut with a [warning](Table::warnings), as Linux does.

use std::ops::Range;

mod gpt;
mod guid;
mod mbr;
mod nested;

#[cfg(test)]
mod tests;

pub use gpt::BIOS_GRUB;
pub use guid::Guid;
pub use nested::read as read_nested;

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
    /// All attribute bits of a GPT; 0 for an MBR.
    pub attributes: u64,
}

/// A partition's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionType {
    /// An MBR's type byte: 0x83 Linux, 0x82 swap, 0x05 extended.
    Mbr(u8),
    /// A GPT's type.
    Gpt(Guid),
    /// What a label in a partition of an MBR calls it: BSD's filesystem type, Solaris's tag. No table that is written has it.
    Nested(u8),
}

impl Table {
    /// A table of sectors of 512 bytes that has these partitions.
    pub fn new(kind: TableKind, id: String, partitions: Vec<Partition>) -> Self {
        let first_usable = if kind == TableKind::Gpt { gpt::HEAD } else { 512 };
        Table { kind, sector_size: 512, id, first_usable, partitions, warnings: Vec::new() }
    }
}

impl Partition {
    /// First byte behind it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether it lies in an extended partition of an MBR.
    pub fn is_logical(&self) -> bool {
        matches!(self.kind, PartitionType::Mbr(_)) && self.number > 4
    }
}

impl NewPartition {
    /// As it will be read back from a table of this kind, but for the id that an MBR gives it.
    pub fn partition(&self, kind: TableKind) -> Result<Partition> {
        let kind = match kind {
            TableKind::Mbr => PartitionType::Mbr(mbr::kind(self.purpose)?),
            TableKind::Gpt => PartitionType::Gpt(gpt::kind(self.purpose)),
        };
        Ok(Partition {
            number: self.number,
            start: self.start,
            len: self.len,
            kind,
            uuid: self.guid.to_string(),
            name: if self.purpose == Purpose::BiosGrub { "BIOS boot".into() } else { String::new() },
            bootable: self.bootable,
            attributes: 0,
        })
    }
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

/// Writes a table as it would be [`read`]: numbers, types, ids, names and attributes are kept. The boot code before it stays as it is.
///
/// Logical partitions get their extended boot records in the gaps before them.
///
/// # Errors
/// [`Error::Invalid`] for partitions that overlap, have no room for what the table needs besides them, or lie outside of [`room`].
pub fn write(image: &dyn ImageMut, table: &Table) -> Result<()> {
    check(&image.info().file, table, room(table, image.size())?)?;
    match table.kind {
        TableKind::Mbr => mbr::write(image, table),
        TableKind::Gpt => gpt::write(image, table),
    }
}

/// The bytes of a disk of `size` bytes that partitions of this table may take.
pub fn room(table: &Table, size: u64) -> Result<Range<u64>> {
    match table.kind {
        TableKind::Mbr => Ok(mbr::room(size)),
        TableKind::Gpt => gpt::room(table, size),
    }
}

/// Writes a new MBR with the disk signature `id`. The boot code before it stays as it is.
///
/// # Errors
/// [`Error::Invalid`] for partitions that overlap, lie outside of the disk or of what an MBR can say (2 TiB).
pub fn write_mbr(image: &dyn ImageMut, id: u32, partitions: &[NewPartition]) -> Result<()> {
    write(image, &new(TableKind::Mbr, format!("{id:08x}"), partitions)?)
}

/// Writes a new GPT of 512-byte sectors, both copies and the protective MBR. The boot code before it stays as it is.
///
/// # Errors
/// [`Error::Invalid`] for partitions that overlap or lie outside of the room between the two copies.
pub fn write_gpt(image: &dyn ImageMut, id: Guid, partitions: &[NewPartition]) -> Result<()> {
    write(image, &new(TableKind::Gpt, id.to_string(), partitions)?)
}

fn new(kind: TableKind, id: String, partitions: &[NewPartition]) -> Result<Table> {
    let partitions = partitions.iter().map(|p| p.partition(kind)).collect::<Result<_>>()?;
    Ok(Table::new(kind, id, partitions))
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

/// Partitions that cannot be: outside of the room for them, with one number, or one in the way of another.
fn check(file: &str, table: &Table, room: Range<u64>) -> Result<()> {
    let bad = |p: &Partition, why: String| {
        Err(Error::Invalid(format!("{file}: partition {} of {} bytes at offset {:#x} {why}", p.number, p.len, p.start)))
    };
    let unit = table.sector_size;
    let numbers = if table.kind == TableKind::Mbr { 1..=mbr::MAX_NUMBER } else { 1..=gpt::MAX_NUMBER };
    for (index, p) in table.partitions.iter().enumerate() {
        if !numbers.contains(&p.number) {
            return bad(p, format!("must have a number from {} to {}", numbers.start(), numbers.end()));
        }
        if !p.start.is_multiple_of(unit) || !p.len.is_multiple_of(unit) || p.len == 0 {
            return bad(p, format!("must start and end on a sector of {unit} bytes"));
        }
        let Some(end) = p.start.checked_add(p.len).filter(|end| *end <= room.end && p.start >= room.start) else {
            return bad(p, format!("must lie between {:#x} and {:#x}", room.start, room.end));
        };
        for other in &table.partitions[..index] {
            // A logical partition lies in an extended one: the writer looks that it does.
            let may_overlap = p.is_logical() != other.is_logical();
            if other.number == p.number || !may_overlap && p.start < other.start + other.len && other.start < end {
                return bad(p, format!("is in the way of partition {} of {} bytes at offset {:#x}", other.number, other.len, other.start));
            }
        }
    }
    Ok(())
}
