//! Master boot records, with the chain of extended boot records behind them.
//!
//! The order of things is that of Linux's `block/partitions/msdos.c`, since its numbers are what a guest's files name.

use std::collections::HashSet;

use super::{NewPartition, Partition, PartitionType, Purpose, Table, TableKind, sector_at};
use crate::{Error, Image, ImageMut, Result};

const SECTOR: u64 = 512;
const DISK_SIGNATURE: usize = 0x1b8;
const ENTRIES: usize = 0x1be;
const PROTECTIVE: u8 = 0xee;
/// As many partitions as Linux gives a disk.
const MAX_NUMBER: u32 = 255;
/// Extended boot records in a row that hold nothing; Linux gives up then.
const MAX_EMPTY: u32 = 100;

/// One of the four entries of a boot record; start and length in sectors.
struct Entry {
    flag: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        PartitionType::Mbr(self.kind).is_extended()
    }
}

fn entries(sector: &[u8; 512]) -> [Entry; 4] {
    std::array::from_fn(|i| {
        let entry: [u8; 16] = std::array::from_fn(|b| sector[ENTRIES + 16 * i + b]);
        let number = |at: usize| u64::from(u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]));
        Entry { flag: entry[0], kind: entry[4], start: number(8), sectors: number(12) }
    })
}

/// Whether sector 0 holds a table, rather than nothing or the boot sector of a filesystem.
pub fn is_table(sector: &[u8; 512]) -> bool {
    sector[510..] == [0x55, 0xaa] && !is_filesystem(sector) && entries(sector).iter().all(|e| matches!(e.flag, 0 | 0x80))
}

/// FAT, exFAT and NTFS end their boot sectors as an MBR does.
fn is_filesystem(sector: &[u8; 512]) -> bool {
    if matches!(&sector[3..11], b"NTFS    " | b"EXFAT   ") {
        return true;
    }
    let u16_at = |at: usize| u16::from_le_bytes([sector[at], sector[at + 1]]);
    let (bytes, cluster, reserved, fats, media) = (u16_at(11), sector[13], u16_at(14), sector[16], sector[21]);
    // GRUB's boot.img starts with a jump too, and leaves room for these fields; it does not fill them with sense.
    matches!(sector[0], 0xeb | 0xe9)
        && bytes.is_power_of_two()
        && (512..=4096).contains(&bytes)
        && cluster.is_power_of_two()
        && reserved != 0
        && (1..=4).contains(&fats)
        && (media >= 0xf8 || media == 0xf0)
}

/// Whether a GPT protects itself with this MBR.
pub fn is_protective(sector: &[u8; 512]) -> bool {
    entries(sector).iter().any(|e| e.kind == PROTECTIVE)
}

struct Reader<'a> {
    image: &'a dyn Image,
    id: u32,
    table: Table,
}

pub fn read(image: &dyn Image, sector: &[u8; 512]) -> Result<Table> {
    let id = u32::from_le_bytes(std::array::from_fn(|i| sector[DISK_SIGNATURE + i]));
    let disk_id = format!("{id:08x}");
    let table = Table {
        kind: TableKind::Mbr,
        sector_size: SECTOR,
        id: disk_id,
        first_usable: SECTOR,
        partitions: Vec::new(),
        warnings: Vec::new(),
    };
    let mut reader = Reader { image, id, table };
    let primary = entries(sector);
    for (number, entry) in (1..).zip(&primary) {
        reader.add(number, entry.start, entry);
    }
    let mut next = 5;
    for entry in primary.iter().filter(|e| e.sectors > 0 && e.is_extended()) {
        reader.extended(entry.start, entry.sectors, &mut next)?;
    }
    Ok(reader.table)
}

impl Reader<'_> {
    /// Takes a partition that starts at sector `start`, as far as the disk holds it.
    fn add(&mut self, number: u32, start: u64, entry: &Entry) -> bool {
        if entry.sectors == 0 {
            return false;
        }
        // Sectors are sums of a few 32-bit numbers: their bytes fit.
        let (start, wanted) = (start * SECTOR, entry.sectors * SECTOR);
        let size = self.image.size() / SECTOR * SECTOR;
        if start == 0 || start >= size {
            self.table
                .warnings
                .push(format!("partition {number} starts at offset {start:#x}, outside of the disk of {size} bytes: left out"));
            return false;
        }
        let len = wanted.min(size - start);
        if len < wanted {
            self.table.warnings.push(format!("partition {number} has {wanted} bytes, of which the disk holds {len}: cut"));
        }
        self.table.partitions.push(Partition {
            number,
            start,
            len,
            kind: PartitionType::Mbr(entry.kind),
            uuid: format!("{:08x}-{number:02x}", self.id),
            name: String::new(),
            bootable: entry.flag == 0x80,
        });
        true
    }

    /// Walks the chain of extended boot records in an extended partition.
    fn extended(&mut self, first: u64, first_sectors: u64, next: &mut u32) -> Result<()> {
        let (mut this, mut this_sectors) = (first, first_sectors);
        let mut seen = HashSet::new();
        let mut empty = 0;
        while *next <= MAX_NUMBER && empty < MAX_EMPTY {
            if !seen.insert(this) {
                self.table.warnings.push(format!("the chain of extended boot records comes back to sector {this}: not followed further"));
                return Ok(());
            }
            let Some(sector) = sector_at(self.image, this * SECTOR)? else {
                self.table.warnings.push(format!("an extended boot record at sector {this} lies outside of the disk"));
                return Ok(());
            };
            if sector[510..] != [0x55, 0xaa] {
                self.table.warnings.push(format!("the extended boot record at sector {this} has no signature"));
                return Ok(());
            }
            let records = entries(&sector);
            empty += 1;
            for (slot, entry) in records.iter().enumerate().filter(|(_, e)| e.sectors > 0 && !e.is_extended()) {
                let start = this + entry.start;
                // The last two slots are often garbage.
                let inside =
                    entry.start + entry.sectors <= this_sectors && start >= first && start + entry.sectors <= first + first_sectors;
                if (slot < 2 || inside) && *next <= MAX_NUMBER && self.add(*next, start, entry) {
                    *next += 1;
                    empty = 0;
                }
            }
            let Some(link) = records.iter().find(|e| e.sectors > 0 && e.is_extended()) else { return Ok(()) };
            (this, this_sectors) = (first + link.start, link.sectors);
        }
        self.table.warnings.push("the chain of extended boot records is too long: cut".into());
        Ok(())
    }
}

pub fn write(image: &dyn ImageMut, id: u32, partitions: &[NewPartition]) -> Result<()> {
    let mut sector = sector_at(image, 0)?.ok_or_else(|| Error::Invalid(format!("{}: too small for an MBR", image.info().file)))?;
    sector[DISK_SIGNATURE..].fill(0);
    sector[DISK_SIGNATURE..DISK_SIGNATURE + 4].copy_from_slice(&id.to_le_bytes());
    for p in partitions {
        let kind = match p.purpose {
            Purpose::Linux => 0x83,
            Purpose::Swap => 0x82,
            Purpose::Lvm => 0x8e,
            Purpose::Raid => 0xfd,
            Purpose::BiosGrub => return Err(Error::Invalid("a bios_grub partition needs a GPT".into())),
        };
        let (Ok(start), Ok(sectors)) = (u32::try_from(p.start / SECTOR), u32::try_from(p.len / SECTOR)) else {
            let file = image.info().file;
            return Err(Error::Invalid(format!(
                "{file}: partition {} reaches past the 2 TiB that an MBR can address: use a GPT",
                p.number
            )));
        };
        // Numbers are 1 to 4, and so this fits before the signature.
        let at = ENTRIES + 16 * (p.number as usize - 1);
        let last = u64::from(start) + u64::from(sectors) - 1;
        sector[at] = if p.bootable { 0x80 } else { 0 };
        sector[at + 1..at + 4].copy_from_slice(&chs(start.into()));
        sector[at + 4] = kind;
        sector[at + 5..at + 8].copy_from_slice(&chs(last));
        sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    image.write_at(&sector, 0)
}

/// The protective MBR of a GPT; boot code stays.
pub fn write_protective(image: &dyn ImageMut) -> Result<()> {
    let mut sector = sector_at(image, 0)?.unwrap_or([0; 512]);
    sector[DISK_SIGNATURE..].fill(0);
    let sectors = u32::try_from(image.size() / SECTOR - 1).unwrap_or(u32::MAX);
    sector[ENTRIES..ENTRIES + 16].copy_from_slice(&[0, 0, 2, 0, PROTECTIVE, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    sector[ENTRIES + 12..ENTRIES + 16].copy_from_slice(&sectors.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    image.write_at(&sector, 0)
}

/// A sector's cylinder, head and sector in the geometry of 255 heads and 63 sectors, for what still looks at it.
fn chs(sector: u64) -> [u8; 3] {
    let (cylinder, head, within) = (sector / (255 * 63), sector / 63 % 255, sector % 63 + 1);
    match u16::try_from(cylinder) {
        // Both fit: head < 255, within ≤ 63.
        Ok(cylinder) if cylinder < 1024 => [head as u8, within as u8 | (cylinder >> 2) as u8 & 0xc0, cylinder as u8],
        _ => [0xfe, 0xff, 0xff],
    }
}
