//! Master boot records, with the chain of extended boot records behind them.
//!
//! The order of things is that of Linux's `block/partitions/msdos.c`, since its numbers are what a guest's files name.

use std::collections::HashSet;
use std::ops::Range;

use super::{Partition, PartitionType, Purpose, Table, TableKind, sector_at};
use crate::{Error, Image, ImageMut, Result};

const SECTOR: u64 = 512;
const DISK_SIGNATURE: usize = 0x1b8;
const ENTRIES: usize = 0x1be;
const PROTECTIVE: u8 = 0xee;
/// As many partitions as Linux gives a disk.
pub const MAX_NUMBER: u32 = 255;
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
            attributes: 0,
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

/// What partitions may take: from the sector behind the table to the end of the disk, or of what 32 bits can number.
pub fn room(size: u64) -> Range<u64> {
    SECTOR..(size / SECTOR).min(u64::from(u32::MAX)) * SECTOR
}

/// The type that stands for a purpose.
pub fn kind(purpose: Purpose) -> Result<u8> {
    Ok(match purpose {
        Purpose::Linux => 0x83,
        Purpose::Swap => 0x82,
        Purpose::Lvm => 0x8e,
        Purpose::Raid => 0xfd,
        Purpose::BiosGrub => return Err(Error::Invalid("a bios_grub partition needs a GPT".into())),
    })
}

/// Writes the record and the chains of extended ones. The table was checked.
pub fn write(image: &dyn ImageMut, table: &Table) -> Result<()> {
    let bad = |what: String| Error::Invalid(format!("{}: {what}", image.info().file));
    let id = u32::from_str_radix(&table.id, 16).map_err(|_| bad(format!("'{}' is no signature of a disk", table.id)))?;
    let (logical, mut primary): (Vec<&Partition>, Vec<&Partition>) = table.partitions.iter().partition(|p| p.is_logical());
    primary.sort_by_key(|p| p.number);
    let mut records = Vec::new();
    for extended in primary.iter().filter(|p| p.kind.is_extended()) {
        records.extend(chain(extended, &logical).map_err(bad)?);
    }
    // The numbers are not in the table: they follow from the order in the chains.
    let numbers = records.iter().flat_map(|r| r.own).map(|p| p.number);
    if records.iter().filter(|r| r.own.is_some()).count() != logical.len() || !numbers.eq((5..).take(logical.len())) {
        return Err(bad("logical partitions must lie in extended ones, and have the numbers from 5 on in the order of their chain".into()));
    }

    let mut sector = sector_at(image, 0)?.ok_or_else(|| bad("too small for an MBR".into()))?;
    sector[DISK_SIGNATURE..].fill(0);
    sector[DISK_SIGNATURE..DISK_SIGNATURE + 4].copy_from_slice(&id.to_le_bytes());
    for p in &primary {
        // Numbers are 1 to 4, and so this fits before the signature.
        put(&mut sector, p.number as usize - 1, p.bootable, type_of(p)?, p.start..p.end(), 0)?;
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    for record in records {
        record.write(image)?;
    }
    image.write_at(&sector, 0)
}

/// An extended boot record that is to be written.
struct Record<'a> {
    /// Its place, in bytes.
    at: u64,
    /// Whether it is the first of its chain, whose code may be a boot loader.
    is_first: bool,
    own: Option<&'a Partition>,
    /// Where the extended partition begins, and the bytes from the next record to its partition's end.
    next: Option<(u64, Range<u64>)>,
}

/// The records of one extended partition. The first lies at its beginning, each other one in the gap before its partition.
fn chain<'a>(extended: &Partition, logical: &[&'a Partition]) -> Result<Vec<Record<'a>>, String> {
    let mut inside: Vec<&Partition> = logical.iter().copied().filter(|p| p.start > extended.start && p.end() <= extended.end()).collect();
    inside.sort_by_key(|p| p.number);
    let place = |(index, p): (usize, &&Partition)| {
        if index == 0 {
            return Ok(extended.start);
        }
        let before = inside.iter().map(|o| o.end()).filter(|end| *end <= p.start).max().unwrap_or(extended.start + SECTOR);
        if before < p.start { Ok(before) } else { Err(format!("there is no sector before partition {} for its boot record", p.number)) }
    };
    let places = inside.iter().enumerate().map(place).collect::<Result<Vec<_>, _>>()?;
    let next = |i: usize| inside.get(i).zip(places.get(i)).map(|(p, at)| (extended.start, *at..p.end()));
    let mut records: Vec<Record<'_>> = inside
        .iter()
        .zip(&places)
        .enumerate()
        .map(|(i, (own, at))| Record { at: *at, is_first: i == 0, own: Some(own), next: next(i + 1) })
        .collect();
    if records.is_empty() {
        records.push(Record { at: extended.start, is_first: true, own: None, next: None });
    }
    Ok(records)
}

impl Record<'_> {
    fn write(&self, image: &dyn ImageMut) -> Result<()> {
        let mut sector = if self.is_first { sector_at(image, self.at)?.unwrap_or([0; 512]) } else { [0; 512] };
        sector[ENTRIES..].fill(0);
        if let Some(own) = self.own {
            put(&mut sector, 0, own.bootable, type_of(own)?, own.start..own.end(), self.at)?;
        }
        if let Some((base, next)) = &self.next {
            put(&mut sector, 1, false, 0x05, next.clone(), *base)?;
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        image.write_at(&sector, self.at)
    }
}

fn type_of(p: &Partition) -> Result<u8> {
    match p.kind {
        PartitionType::Mbr(kind) => Ok(kind),
        PartitionType::Gpt(_) | PartitionType::Nested(_) => {
            Err(Error::Invalid(format!("partition {} has a type that is none of an MBR", p.number)))
        }
    }
}

/// Fills an entry of a record with what stands for `range`; `base` is the byte that its start counts from.
fn put(sector: &mut [u8; 512], slot: usize, bootable: bool, kind: u8, range: Range<u64>, base: u64) -> Result<()> {
    let sectors = |bytes: u64| {
        u32::try_from(bytes / SECTOR).map_err(|_| Error::Invalid("a partition past the 2 TiB that an MBR can address: use a GPT".into()))
    };
    let entry = &mut sector[ENTRIES + 16 * slot..][..16];
    entry[0] = if bootable { 0x80 } else { 0 };
    entry[1..4].copy_from_slice(&chs(range.start / SECTOR));
    entry[4] = kind;
    entry[5..8].copy_from_slice(&chs(range.end / SECTOR - 1));
    entry[8..12].copy_from_slice(&sectors(range.start - base)?.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors(range.end - range.start)?.to_le_bytes());
    Ok(())
}

/// The protective MBR of a GPT with sectors of `unit` bytes; boot code stays, and the flag that some BIOSes want.
pub fn write_protective(image: &dyn ImageMut, unit: u64) -> Result<()> {
    let mut sector = sector_at(image, 0)?.unwrap_or([0; 512]);
    let flag = entries(&sector).iter().find(|e| e.kind == PROTECTIVE).map_or(0, |e| e.flag & 0x80);
    sector[DISK_SIGNATURE..].fill(0);
    let sectors = u32::try_from(image.size() / unit - 1).unwrap_or(u32::MAX);
    sector[ENTRIES..ENTRIES + 16].copy_from_slice(&[flag, 0, 2, 0, PROTECTIVE, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
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
