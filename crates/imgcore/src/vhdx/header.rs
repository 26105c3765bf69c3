//! The header section: file type identifier, the two headers and the two region tables (MS-VHDX 2.2).

use std::ops::Range;

use super::{FORMAT, MIB, guid_at};
use crate::le::{u16_at, u32_at, u64_at};
use crate::partition::Guid;
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

pub(super) const SIGNATURE: &[u8; 8] = b"vhdxfile";
const HEADER_OFFSETS: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLE_OFFSETS: [u64; 2] = [192 << 10, 256 << 10];
const HEADER_LEN: usize = 4096;
const REGION_TABLE_LEN: usize = 64 << 10;
const MAX_REGIONS: u32 = 2047;

const BAT: Guid = Guid::from_printed(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
const METADATA: Guid = Guid::from_printed(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);

pub(super) const NO_GUID: Guid = Guid([0; 16]);

/// The current header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// Which of the two places holds it.
    place: usize,
    pub sequence_number: u64,
    pub file_write_guid: Guid,
    pub data_write_guid: Guid,
    /// Set while the log holds what is not in its place yet.
    pub log_guid: Guid,
    pub log_length: u32,
    pub log_offset: u64,
}

/// CRC-32C of a structure whose checksum field lies at byte 4.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (before, rest) = bytes.split_at(bytes.len().min(4));
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), rest.get(4..).unwrap_or_default())
}

fn is_valid(bytes: &[u8], signature: &[u8; 4]) -> bool {
    bytes.starts_with(signature) && u32_at(bytes, 4) == checksum(bytes)
}

impl Header {
    /// The header of a file with an empty log in this place.
    pub fn new(log_offset: u64, log_length: u32, file_write_guid: Guid, data_write_guid: Guid) -> Self {
        Header { place: 1, sequence_number: 0, file_write_guid, data_write_guid, log_guid: NO_GUID, log_length, log_offset }
    }

    /// Finds the current header: the valid one, or of two the one with the higher sequence number.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let file = storage.name();
        let mut signature = [0; 8];
        read_padded(storage, &mut signature, 0)?;
        if signature != *SIGNATURE {
            return Err(Error::corrupt(file, FORMAT, 0, "the file type identifier is not 'vhdxfile'"));
        }
        let mut valid: Vec<(usize, Vec<u8>)> = Vec::new();
        for (place, offset) in HEADER_OFFSETS.into_iter().enumerate() {
            let mut bytes = vec![0; HEADER_LEN];
            read_padded(storage, &mut bytes, offset)?;
            if is_valid(&bytes, b"head") {
                valid.push((place, bytes));
            }
        }
        let current = match &valid[..] {
            [] => return Err(Error::corrupt(file, FORMAT, HEADER_OFFSETS[0], "neither of the two headers is valid")),
            [one] => one,
            [a, b, ..] if u64_at(&a.1, 8) > u64_at(&b.1, 8) || a.1 == b.1 => a,
            [a, b, ..] if u64_at(&a.1, 8) < u64_at(&b.1, 8) => b,
            _ => return Err(Error::corrupt(file, FORMAT, HEADER_OFFSETS[0], "two different headers have one sequence number")),
        };
        Self::parse(storage, current.0, &current.1)
    }

    fn parse(storage: &dyn Storage, place: usize, bytes: &[u8]) -> Result<Self> {
        let (file, at) = (storage.name(), HEADER_OFFSETS[place]);
        let version = u16_at(bytes, 66);
        if version != 1 {
            return Err(Error::unsupported(file, FORMAT, format!("version {version} of the format: only 1 is known")));
        }
        let header = Header {
            place,
            sequence_number: u64_at(bytes, 8),
            file_write_guid: guid_at(bytes, 16),
            data_write_guid: guid_at(bytes, 32),
            log_guid: guid_at(bytes, 48),
            log_length: u32_at(bytes, 68),
            log_offset: u64_at(bytes, 72),
        };
        let log_version = u16_at(bytes, 64);
        if header.is_dirty() && log_version != 0 {
            return Err(Error::unsupported(file, FORMAT, format!("replaying a log of version {log_version}: only 0 is known")));
        }
        let range = header.log_offset..header.log_offset.saturating_add(u64::from(header.log_length));
        let outside = header.is_dirty() && (range.is_empty() || range.end > storage.size()?);
        if range.start < MIB || !range.start.is_multiple_of(MIB) || !range.end.is_multiple_of(MIB) || outside {
            let what = format!("the log at {:#x}..{:#x} does not lie in whole MiB of the file behind the first", range.start, range.end);
            return Err(Error::corrupt(file, FORMAT, at, what));
        }
        Ok(header)
    }

    /// Whether the log must be replayed.
    pub fn is_dirty(&self) -> bool {
        self.log_guid != NO_GUID
    }

    /// Writes this header over the one that is not current, and makes it current. Twice, so that both are up to date.
    pub fn update(&mut self, storage: &dyn Storage) -> Result<()> {
        for _ in 0..2 {
            self.sequence_number = self.sequence_number.wrapping_add(1);
            let place = 1 - self.place;
            storage.write_at(&self.serialize(), HEADER_OFFSETS[place])?;
            storage.sync()?;
            self.place = place;
        }
        Ok(())
    }

    fn serialize(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..4].copy_from_slice(b"head");
        bytes[8..16].copy_from_slice(&self.sequence_number.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.file_write_guid.0);
        bytes[32..48].copy_from_slice(&self.data_write_guid.0);
        bytes[48..64].copy_from_slice(&self.log_guid.0);
        bytes[66..68].copy_from_slice(&1u16.to_le_bytes());
        bytes[68..72].copy_from_slice(&self.log_length.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.log_offset.to_le_bytes());
        seal(bytes)
    }
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A part of the file with a purpose of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub offset: u64,
    pub len: u64,
}

impl Region {
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }
}

/// Where the BAT and the metadata lie, and all of the file that no payload may use.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    pub bat: Region,
    pub metadata: Region,
    /// The header section, the log and all regions, unknown ones too.
    pub reserved: Vec<Range<u64>>,
}

impl Regions {
    /// Reads the first of the two tables that is valid.
    pub fn read(storage: &dyn Storage, header: &Header) -> Result<Self> {
        for offset in REGION_TABLE_OFFSETS {
            let mut bytes = vec![0; REGION_TABLE_LEN];
            read_padded(storage, &mut bytes, offset)?;
            if is_valid(&bytes, b"regi") {
                return Self::parse(storage.name(), &bytes, offset, header);
            }
        }
        Err(Error::corrupt(storage.name(), FORMAT, REGION_TABLE_OFFSETS[0], "neither of the two region tables is valid"))
    }

    fn parse(file: &str, bytes: &[u8], at: u64, header: &Header) -> Result<Self> {
        let corrupt = |at: u64, what: String| Error::corrupt(file, FORMAT, at, what);
        let count = u32_at(bytes, 8);
        if count > MAX_REGIONS {
            return Err(corrupt(at + 8, format!("{count} regions, and {MAX_REGIONS} are allowed")));
        }
        let (mut bat, mut metadata) = (None, None);
        let mut reserved = vec![0..MIB, header.log_offset..header.log_offset + u64::from(header.log_length)];
        for (index, entry) in bytes[16..].chunks_exact(32).take(count as usize).enumerate() {
            let at = at + 16 + index as u64 * 32;
            let (guid, offset, len) = (guid_at(entry, 0), u64_at(entry, 16), u64::from(u32_at(entry, 24)));
            let whole = offset >= MIB && offset.is_multiple_of(MIB) && len.is_multiple_of(MIB) && len > 0;
            let Some(end) = offset.checked_add(len).filter(|_| whole) else {
                return Err(corrupt(at, format!("region {guid} has {len:#x} bytes at {offset:#x}: not whole MiB behind the first")));
            };
            if reserved.iter().any(|r| r.start < end && offset < r.end) {
                return Err(corrupt(at, format!("region {guid} at {offset:#x}..{end:#x} overlaps another part of the file")));
            }
            reserved.push(offset..end);
            let known = match guid {
                BAT => &mut bat,
                METADATA => &mut metadata,
                _ if u32_at(entry, 28) & 1 == 0 => continue,
                _ => return Err(Error::unsupported(file, FORMAT, format!("the required region {guid}"))),
            };
            if known.replace(Region { offset, len }).is_some() {
                return Err(corrupt(at, format!("region {guid} is there twice")));
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata, reserved }),
            (None, _) => Err(corrupt(at, "there is no BAT region".into())),
            (_, None) => Err(corrupt(at, "there is no metadata region".into())),
        }
    }

    /// Writes both tables of a new file.
    pub fn write(storage: &dyn Storage, bat: Region, metadata: Region) -> Result<()> {
        let mut bytes = vec![0; REGION_TABLE_LEN];
        bytes[..4].copy_from_slice(b"regi");
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        for (at, guid, region) in [(16, BAT, bat), (48, METADATA, metadata)] {
            bytes[at..at + 16].copy_from_slice(&guid.0);
            bytes[at + 16..at + 24].copy_from_slice(&region.offset.to_le_bytes());
            bytes[at + 24..at + 28].copy_from_slice(&(region.len as u32).to_le_bytes());
            bytes[at + 28..at + 32].copy_from_slice(&1u32.to_le_bytes());
        }
        let bytes = seal(bytes);
        REGION_TABLE_OFFSETS.into_iter().try_for_each(|offset| storage.write_at(&bytes, offset))
    }
}

/// Writes the file type identifier: from then on the file is an image.
pub(super) fn write_identifier(storage: &dyn Storage) -> Result<()> {
    let creator = concat!("guestlift ", env!("CARGO_PKG_VERSION")).encode_utf16().flat_map(u16::to_le_bytes);
    let bytes: Vec<u8> = SIGNATURE.iter().copied().chain(creator).collect();
    storage.write_at(&bytes, 0)
}
