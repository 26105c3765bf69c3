//! The headers of sparse extents: hosted ones (`KDMV`) and those of ESX (`COWD`).

use super::{FORMAT, SECTOR};
use crate::le::{u16_at, u32_at, u64_at};
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

pub(super) const MAGIC: &[u8; 4] = b"KDMV";
pub(super) const COWD_MAGIC: &[u8; 4] = b"COWD";
/// The grain directory's place in a header whose footer tells the true one.
pub(super) const AT_END: u64 = u64::MAX;
pub(super) const ENTRIES_PER_TABLE: u64 = 512;
const COWD_ENTRIES_PER_TABLE: u64 = 4096;
/// Larger grains are refused: one is unpacked in memory.
const MAX_GRAIN: u64 = 64 << 20;

const VALID_NEWLINES: u32 = 1;
const REDUNDANT: u32 = 2;
const ZERO_GRAINS: u32 = 4;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;

/// Bytes that a transfer as text would change.
const NEWLINES: [u8; 4] = *b"\n \r\n";

/// What a header says, checked, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub capacity: u64,
    pub grain_size: u64,
    /// Offset and length of the descriptor inside the extent.
    pub descriptor: Option<(u64, u64)>,
    pub entries_per_table: u64,
    /// The metadata at the start of the file: no grain may lie there.
    pub overhead: u64,
    /// Where the grain directories may lie: the first that is inside the file is used.
    pub directories: [Option<u64>; 2],
    pub has_zero_grains: bool,
    pub is_compressed: bool,
    pub has_markers: bool,
    pub is_cowd: bool,
}

fn sectors(number: u64) -> Option<u64> {
    number.checked_mul(SECTOR).filter(|bytes| *bytes <= i64::MAX as u64)
}

impl Header {
    /// Reads the header at the start of `storage` or, where it says so, the footer at its end.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let mut bytes = [0; SECTOR as usize];
        read_padded(storage, &mut bytes, 0)?;
        if bytes.starts_with(COWD_MAGIC) {
            return Self::parse_cowd(storage.name(), &bytes);
        }
        if u64_at(&bytes, 56) != AT_END {
            return Self::parse(storage.name(), &bytes, 0);
        }
        // Footer marker, footer, end-of-stream marker.
        let size = storage.size()? / SECTOR * SECTOR;
        let at = size.checked_sub(3 * SECTOR);
        let at = at.ok_or_else(|| Error::corrupt(storage.name(), FORMAT, 56, "a stream that was cut off: its footer is missing"))?;
        let mut tail = [0; 3 * SECTOR as usize];
        read_padded(storage, &mut tail, at)?;
        let footer = &tail[SECTOR as usize..2 * SECTOR as usize];
        let is_footer = u32_at(&tail, 8) == 0 && u32_at(&tail, 12) == Marker::Footer as u32 && footer.starts_with(MAGIC);
        let ends = tail[2 * SECTOR as usize..].iter().take(16).all(|b| *b == 0);
        if !is_footer || !ends || u64_at(footer, 56) == AT_END {
            return Err(Error::corrupt(storage.name(), FORMAT, at, "a stream that was cut off: its footer is missing"));
        }
        let header = Self::parse(storage.name(), footer, at + SECTOR)?;
        // The descriptor is named by the header at the start.
        Ok(Header { descriptor: Self::parse(storage.name(), &bytes, 0)?.descriptor, ..header })
    }

    fn parse(file: &str, bytes: &[u8], at: u64) -> Result<Self> {
        let corrupt = |within: u64, what: String| Error::corrupt(file, FORMAT, at + within, what);
        let (version, flags) = (u32_at(bytes, 4), u32_at(bytes, 8));
        if !bytes.starts_with(MAGIC) {
            return Err(corrupt(0, "no header of a sparse extent".into()));
        }
        if !(1..=3).contains(&version) {
            return Err(Error::unsupported(file, FORMAT, format!("sparse extents of version {version}: 1 to 3 are known")));
        }
        if flags & VALID_NEWLINES != 0 && bytes.get(73..77) != Some(&NEWLINES) {
            return Err(corrupt(73, "line ends in it were changed: it was transferred as text".into()));
        }
        let is_compressed = flags & COMPRESSED != 0;
        let algorithm = u16_at(bytes, 77);
        if is_compressed && algorithm != 1 {
            return Err(Error::unsupported(file, FORMAT, format!("grains compressed by algorithm {algorithm}: 1, deflate, is known")));
        }
        let entries_per_table = u64::from(u32_at(bytes, 44));
        if !(1..=ENTRIES_PER_TABLE).contains(&entries_per_table) {
            return Err(corrupt(44, format!("grain tables of {entries_per_table} entries: 1 to {ENTRIES_PER_TABLE} are allowed")));
        }
        let capacity = sectors(u64_at(bytes, 12)).ok_or_else(|| corrupt(12, "the capacity is beyond any disk's".into()))?;
        let descriptor = match (sectors(u64_at(bytes, 28)), sectors(u64_at(bytes, 36))) {
            (Some(0), _) | (_, Some(0)) => None,
            (Some(offset), Some(len)) => Some((offset, len)),
            _ => return Err(corrupt(28, "the descriptor lies beyond any file".into())),
        };
        let place = |at| Some(u64_at(bytes, at)).filter(|sector| *sector != 0).and_then(sectors);
        let redundant = place(48).filter(|_| flags & REDUNDANT != 0);
        let header = Header {
            capacity,
            grain_size: sectors(u64_at(bytes, 20)).unwrap_or(0),
            descriptor,
            entries_per_table,
            overhead: sectors(u64_at(bytes, 64)).unwrap_or(0),
            directories: [place(56), redundant],
            has_zero_grains: flags & ZERO_GRAINS != 0,
            is_compressed,
            has_markers: flags & MARKERS != 0,
            is_cowd: false,
        };
        header.checked(file, at)
    }

    fn parse_cowd(file: &str, bytes: &[u8]) -> Result<Self> {
        let version = u32_at(bytes, 4);
        if version != 1 {
            return Err(Error::unsupported(file, FORMAT, format!("COWD extents of version {version}: 1 is known")));
        }
        let field = |at| u64::from(u32_at(bytes, at)) * SECTOR;
        let header = Header {
            capacity: field(12),
            grain_size: field(16),
            descriptor: None,
            entries_per_table: COWD_ENTRIES_PER_TABLE,
            overhead: 0,
            directories: [Some(field(20)), None],
            has_zero_grains: false,
            is_compressed: false,
            has_markers: false,
            is_cowd: true,
        };
        header.checked(file, 0)
    }

    fn checked(self, file: &str, at: u64) -> Result<Self> {
        if !self.grain_size.is_power_of_two() || self.grain_size > MAX_GRAIN {
            let what = format!("grains of {} bytes: a power of two up to 64 MiB is expected", self.grain_size);
            return Err(Error::corrupt(file, FORMAT, at + 20, what));
        }
        Ok(self)
    }

    /// Bytes of the disk that one grain table stands for.
    pub fn table_span(&self) -> u64 {
        self.grain_size * self.entries_per_table
    }

    /// How many grain tables there are.
    pub fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.table_span())
    }
}

/// What a marker of a stream says that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    EndOfStream = 0,
    GrainTable = 1,
    GrainDirectory = 2,
    Footer = 3,
}

/// A header that is to be written, of grains of 64 KiB; places are in sectors.
pub(super) struct NewHeader {
    pub version: u32,
    pub is_stream: bool,
    pub has_zero_grains: bool,
    pub capacity: u64,
    pub descriptor: (u64, u64),
    pub redundant_directory: u64,
    pub directory: u64,
    pub overhead: u64,
}

impl NewHeader {
    pub fn serialize(&self) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        let flags = VALID_NEWLINES
            | if self.redundant_directory != 0 { REDUNDANT } else { 0 }
            | if self.has_zero_grains { ZERO_GRAINS } else { 0 }
            | if self.is_stream { COMPRESSED | MARKERS } else { 0 };
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        let numbers = [
            (12, self.capacity),
            (20, super::GRAIN_SIZE / SECTOR),
            (28, self.descriptor.0),
            (36, self.descriptor.1),
            (48, self.redundant_directory),
            (56, self.directory),
            (64, self.overhead),
        ];
        for (at, number) in numbers {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[44..48].copy_from_slice(&(ENTRIES_PER_TABLE as u32).to_le_bytes());
        bytes[73..77].copy_from_slice(&NEWLINES);
        bytes[77] = u8::from(self.is_stream);
        bytes
    }
}
