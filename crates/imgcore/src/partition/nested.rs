//! Partitions in a partition of an MBR: BSD's disklabels and Solaris's VTOC.
//!
//! Numbers and order are those of Linux's `block/partitions/msdos.c`: they follow the logical partitions.

use super::{Partition, PartitionType, Table, mbr, sector_at};
use crate::{Image, Result};

const SECTOR: u64 = 512;
/// Linux looks at no more of a label.
const MAX_PARTS: usize = 16;

const FREEBSD: u8 = 0xa5;
const OPENBSD: u8 = 0xa6;
const NETBSD: u8 = 0xa9;
/// Also Linux's swap: its label tells.
const SOLARIS: u8 = 0x82;
const SOLARIS_NEW: u8 = 0xbf;

/// What lies in partitions 1 to 4 of `table`, each with the number of the partition that it is in.
pub fn read(image: &dyn Image, table: &Table) -> Result<Vec<(u32, Partition)>> {
    let mut found = Vec::new();
    let mut next = table.partitions.iter().map(|p| p.number + 1).max().unwrap_or(0).max(5);
    for outer in table.partitions.iter().filter(|p| p.number <= 4) {
        let parts = match outer.kind {
            PartitionType::Mbr(kind @ (FREEBSD | OPENBSD | NETBSD)) => bsd(image, outer, kind)?,
            PartitionType::Mbr(SOLARIS | SOLARIS_NEW) => solaris(image, outer)?,
            _ => Vec::new(),
        };
        for (start, len, kind) in parts {
            let end = start.checked_add(len).filter(|_| next <= mbr::MAX_NUMBER);
            let Some(end) = end.filter(|end| start >= outer.start && *end <= outer.end() && len > 0) else { continue };
            let uuid = format!("{}-{next:02x}", table.id);
            let kind = PartitionType::Nested(kind);
            let partition =
                Partition { number: next, start, len: end - start, kind, uuid, name: String::new(), bootable: false, attributes: 0 };
            found.push((outer.number, partition));
            next += 1;
        }
    }
    Ok(found)
}

/// Places, lengths and kinds, in bytes.
type Parts = Vec<(u64, u64, u8)>;

fn le32(sector: &[u8; 512], at: usize) -> u64 {
    sector.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, |b| u32::from_le_bytes(b).into())
}

/// The label in a partition's second sector. (NetBSD's `sys/disklabel.h`)
fn bsd(image: &dyn Image, outer: &Partition, flavour: u8) -> Result<Parts> {
    const MAGIC: u64 = 0x8256_4557;
    /// The whole of the slice or of the disk, by custom.
    const WHOLE: usize = 2;
    let Some(label) = sector_at(image, outer.start + SECTOR)?.filter(|label| le32(label, 0) == MAGIC) else { return Ok(Vec::new()) };
    let entry = |number: usize| 148 + 16 * number;
    // FreeBSD counts from the slice's beginning, unless the label is an old one that counts from the disk's.
    let relative = flavour == FREEBSD && le32(&label, entry(WHOLE) + 4) == 0;
    let base = if relative { outer.start } else { 0 };
    let count = usize::from(u16::from_le_bytes([label[138], label[139]])).min(MAX_PARTS);
    let parts = (0..count).map(entry).filter(|at| label[at + 12] != 0);
    let parts = parts.map(|at| (base.saturating_add(le32(&label, at + 4) * SECTOR), le32(&label, at) * SECTOR, label[at + 12]));
    Ok(parts.filter(|(start, len, _)| (*start, *len) != (outer.start, outer.len)).collect())
}

/// The table of contents in a partition's second sector. (illumos's `sys/vtoc.h`)
fn solaris(image: &dyn Image, outer: &Partition) -> Result<Parts> {
    const SANE: u64 = 0x600d_deee;
    let label = sector_at(image, outer.start + SECTOR)?.filter(|label| (le32(label, 12), le32(label, 16)) == (SANE, 1));
    let Some(label) = label else { return Ok(Vec::new()) };
    let count = if u16::from_le_bytes([label[30], label[31]]) > 8 { MAX_PARTS } else { 8 };
    let part = |number: usize| {
        let at = 72 + 12 * number;
        (outer.start.saturating_add(le32(&label, at + 4) * SECTOR), le32(&label, at + 8) * SECTOR, label[at])
    };
    Ok((0..count).map(part).collect())
}
