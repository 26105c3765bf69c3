//! GUID partition tables: UEFI specification 2.10, chapter 5.3.

use std::ops::Range;

use super::{Guid, Partition, PartitionType, Purpose, Table, TableKind, mbr};
use crate::{Error, Image, ImageMut, Result};

/// Entries in a table that we write, at least.
const ENTRIES: u64 = 128;
/// The highest number of a partition that is read and written.
pub const MAX_NUMBER: u32 = (MAX_ARRAY / ENTRY_SIZE as u64) as u32;
/// Bytes before the first usable one in a new table.
pub const HEAD: u64 = 34 * 512;
const ENTRY_SIZE: usize = 128;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_SIZE: usize = 92;
/// The largest array of entries that is read, in bytes; tables in the wild have 16 KiB.
const MAX_ARRAY: u64 = 1 << 20;

const LINUX: Guid = Guid::from_printed(0x0fc63daf_8483_4772_8e79_3d69d8477de4);
const SWAP: Guid = Guid::from_printed(0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f);
const LVM: Guid = Guid::from_printed(0xe6d6d379_f507_44c2_a23c_238f2a3df928);
const RAID: Guid = Guid::from_printed(0xa19d880f_05fc_4d3b_a006_743f0f84911e);
/// The type of a partition that holds GRUB's core image; its bytes spell `Hah!IdontNeedEFI`.
pub const BIOS_GRUB: Guid = Guid::from_printed(0x21686148_6449_6e6f_744e_656564454649);

const LEGACY_BIOS_BOOTABLE: u64 = 1 << 2;

/// Reads whichever copy is whole, for either sector size.
pub fn read(image: &dyn Image) -> Result<Table> {
    let mut failures = Vec::new();
    for sector_size in [512, 4096] {
        let Some(last) = (image.size() / sector_size).checked_sub(1) else { continue };
        for (copy, lba) in [("primary", 1), ("backup", last)] {
            match read_copy(image, sector_size, lba, last) {
                Ok(mut table) => {
                    if copy == "backup" {
                        table.warnings.insert(0, format!("the primary GPT is damaged, its backup is used: {}", failures.concat()));
                    }
                    return Ok(table);
                }
                Err(Unreadable::Image(error)) => return Err(error),
                // Without a signature there is no header, and for one of the two sector sizes there never is.
                Err(Unreadable::Absent) => {}
                Err(Unreadable::Damaged(what)) => failures.push(format!("{copy} header at {:#x}: {what}; ", lba * sector_size)),
            }
        }
    }
    let what = if failures.is_empty() { "no header found, neither primary nor backup".into() } else { failures.concat() };
    Err(Error::corrupt(&image.info().file, "GPT", None, what.trim_end_matches("; ")))
}

enum Unreadable {
    Image(Error),
    Absent,
    Damaged(String),
}

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Unreadable::Image(error)
    }
}

/// Little-endian numbers of a structure that is known to be long enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0.get(at + i).copied().unwrap_or(0))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

fn read_copy(image: &dyn Image, sector_size: u64, lba: u64, last: u64) -> Result<Table, Unreadable> {
    let damaged = |what: String| Err(Unreadable::Damaged(what));
    if lba == 0 || lba > last {
        return Err(Unreadable::Absent);
    }
    // 512 or 4096 bytes.
    let mut sector = vec![0; sector_size as usize];
    image.read_at(&mut sector, lba * sector_size)?;
    if !sector.starts_with(SIGNATURE) {
        return Err(Unreadable::Absent);
    }
    let header = Fields(&sector);
    let header_size = header.u32(12) as usize;
    if !(HEADER_SIZE..=sector.len()).contains(&header_size) {
        return damaged(format!("its size is {header_size} bytes"));
    }
    let (stored, mut zeroed) = (header.u32(16), sector[..header_size].to_vec());
    zeroed[16..20].fill(0);
    let computed = crc32fast::hash(&zeroed);
    if stored != computed {
        return damaged(format!("its checksum is {computed:08x}, not {stored:08x}"));
    }
    if header.u64(24) != lba {
        return damaged(format!("it says that it lies at LBA {}, not {lba}", header.u64(24)));
    }
    let (first_usable, last_usable) = (header.u64(40), header.u64(48));
    if first_usable > last_usable.saturating_add(1) || last_usable > last {
        return damaged(format!("its usable LBAs {first_usable} to {last_usable} do not fit the disk's 0 to {last}"));
    }
    let (array_lba, count, entry_size, array_crc) = (header.u64(72), header.u32(80), header.u32(84), header.u32(88));
    if entry_size < 128 || !entry_size.is_power_of_two() {
        return damaged(format!("its entries have {entry_size} bytes"));
    }
    let array_len = u64::from(count) * u64::from(entry_size);
    if array_len == 0 || array_len > MAX_ARRAY {
        return damaged(format!("it has {count} entries of {entry_size} bytes, more than a table may have"));
    }
    let Some(array_offset) = array_lba.checked_mul(sector_size).filter(|o| o.checked_add(array_len).is_some_and(|end| end <= image.size()))
    else {
        return damaged(format!("its entries at LBA {array_lba} lie outside of the disk"));
    };
    // At most MAX_ARRAY.
    let mut array = vec![0; array_len as usize];
    image.read_at(&mut array, array_offset)?;
    let computed = crc32fast::hash(&array);
    if computed != array_crc {
        return damaged(format!("its entries' checksum is {computed:08x}, not {array_crc:08x}"));
    }

    let id = Guid(header.bytes(56)).to_string();
    let first_usable = first_usable.saturating_mul(sector_size);
    let mut table = Table { kind: TableKind::Gpt, sector_size, id, first_usable, partitions: Vec::new(), warnings: Vec::new() };
    for (number, entry) in (1..).zip(array.chunks_exact(entry_size as usize)) {
        let entry = Fields(entry);
        let (kind, first, end) = (Guid(entry.bytes(0)), entry.u64(32), entry.u64(40));
        if kind == Guid::default() {
            continue;
        }
        if first == 0 || first > end || end > last {
            table.warnings.push(format!("partition {number} from LBA {first} to {end} lies outside of the disk's 0 to {last}: left out"));
            continue;
        }
        let units: Vec<u16> = (0..36).map(|i| u16::from_le_bytes(entry.bytes(56 + 2 * i))).take_while(|u| *u != 0).collect();
        table.partitions.push(Partition {
            number,
            start: first * sector_size,
            len: (end - first + 1) * sector_size,
            kind: PartitionType::Gpt(kind),
            uuid: Guid(entry.bytes(16)).to_string(),
            name: String::from_utf16_lossy(&units),
            bootable: entry.u64(48) & LEGACY_BIOS_BOOTABLE != 0,
            attributes: entry.u64(48),
        });
    }
    Ok(table)
}

/// How many entries this table is written with.
fn entries(table: &Table) -> u64 {
    table.partitions.iter().map(|p| u64::from(p.number)).max().unwrap_or(0).next_multiple_of(4).max(ENTRIES)
}

/// Sectors of its entries.
fn array_sectors(table: &Table) -> u64 {
    (entries(table) * ENTRY_SIZE as u64).div_ceil(table.sector_size)
}

/// What lies between the two copies.
pub fn room(table: &Table, size: u64) -> Result<Range<u64>> {
    let (array, unit) = (array_sectors(table), table.sector_size);
    let start = table.first_usable.max((2 + array) * unit);
    match (size / unit).checked_sub(array + 1) {
        Some(end) if end * unit > start => Ok(start..end * unit),
        _ => Err(Error::Invalid(format!("{size} bytes are too small for a GPT"))),
    }
}

/// The type that stands for a purpose.
pub fn kind(purpose: Purpose) -> Guid {
    match purpose {
        Purpose::Linux => LINUX,
        Purpose::Swap => SWAP,
        Purpose::Lvm => LVM,
        Purpose::Raid => RAID,
        Purpose::BiosGrub => BIOS_GRUB,
    }
}

/// Writes both copies and the protective MBR. The table was checked.
pub fn write(image: &dyn ImageMut, table: &Table) -> Result<()> {
    let unit = table.sector_size;
    let room = room(table, image.size())?;
    let (entries, array_sectors) = (entries(table), array_sectors(table));
    // At most MAX_ARRAY, since the numbers were checked.
    let mut array = vec![0; entries as usize * ENTRY_SIZE];
    for p in &table.partitions {
        let PartitionType::Gpt(kind) = p.kind else {
            return Err(Error::Invalid(format!("partition {} has a type that is none of a GPT", p.number)));
        };
        let attributes = p.attributes & !LEGACY_BIOS_BOOTABLE | if p.bootable { LEGACY_BIOS_BOOTABLE } else { 0 };
        let entry = &mut array[(p.number as usize - 1) * ENTRY_SIZE..][..ENTRY_SIZE];
        entry[..16].copy_from_slice(&kind.0);
        entry[16..32].copy_from_slice(&p.uuid.parse::<Guid>()?.0);
        entry[32..40].copy_from_slice(&(p.start / unit).to_le_bytes());
        entry[40..48].copy_from_slice(&(p.end() / unit - 1).to_le_bytes());
        entry[48..56].copy_from_slice(&attributes.to_le_bytes());
        for (place, unit) in entry[56..].chunks_exact_mut(2).zip(p.name.encode_utf16()) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    }
    let crc = crc32fast::hash(&array);
    array.resize((array_sectors * unit) as usize, 0);
    let id: Guid = table.id.parse()?;
    let last = image.size() / unit - 1;
    let header = |my_lba: u64, other_lba: u64, array_lba: u64| {
        let mut h = vec![0; unit as usize];
        h[..8].copy_from_slice(SIGNATURE);
        h[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        h[12..16].copy_from_slice(&(HEADER_SIZE as u32).to_le_bytes());
        for (at, value) in [(24, my_lba), (32, other_lba), (40, room.start / unit), (48, room.end / unit - 1), (72, array_lba)] {
            h[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        h[56..72].copy_from_slice(&id.0);
        for (at, value) in [(80, entries as u32), (84, ENTRY_SIZE as u32), (88, crc)] {
            h[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32fast::hash(&h[..HEADER_SIZE]);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h
    };
    mbr::write_protective(image, unit)?;
    image.write_at(&[header(1, last, 2), array.clone()].concat(), unit)?;
    image.write_at(&[array, header(last, 1, last - array_sectors)].concat(), (last - array_sectors) * unit)
}
