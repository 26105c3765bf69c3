//! The footer ("Hard Disk Footer Format"): at the end of every file, and for all but fixed disks copied to its start.

use super::geometry::Geometry;
use super::{FORMAT, MAX_SIZE, SECTOR};
use crate::le::bytes16_at;
use crate::storage::read_padded;
use crate::{Error, Result, Storage, be};

pub(super) const COOKIE: &[u8] = b"conectix";
/// What blktap writes over the cookie of an image that must not be used any more.
pub(super) const POISON: &[u8] = b"v_poison";
/// The data offset of a disk without a header.
const NO_OFFSET: u64 = u64::MAX;
/// Seconds from 1970 to 2000, where the format's time starts.
const EPOCH: u64 = 946_684_800;

/// Whose images have a size that only the geometry tells.
const SIZED_BY_GEOMETRY: [&[u8; 4]; 2] = [b"vpc ", b"qemu"];

/// The kind of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

impl DiskType {
    fn number(self) -> u32 {
        match self {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        }
    }
}

/// A footer whose cookie, version and checksum are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer([u8; SECTOR as usize]);

impl Footer {
    /// The footer of a new disk.
    pub fn new(disk_type: DiskType, size: u64, geometry: Geometry, creator: &[u8; 4], uuid: [u8; 16]) -> Self {
        let mut footer = Footer([0; SECTOR as usize]);
        footer.put(0, COOKIE);
        // A reserved feature that is always set; version 1.0.
        footer.put(8, &2u32.to_be_bytes());
        footer.put(12, &0x0001_0000u32.to_be_bytes());
        let time = crate::derived::source_date().unwrap_or(EPOCH).saturating_sub(EPOCH);
        footer.put(24, &u32::try_from(time).unwrap_or(u32::MAX).to_be_bytes());
        footer.put(28, creator);
        // Virtual PC 2007 on Windows: some readers want to know the creator.
        footer.put(32, &0x0005_0003u32.to_be_bytes());
        footer.put(36, b"Wi2k");
        footer.put(40, &size.to_be_bytes());
        footer.put(68, &uuid);
        footer.set_type(disk_type, if disk_type == DiskType::Fixed { NO_OFFSET } else { SECTOR });
        footer.set_size(size, geometry);
        footer
    }

    /// What `bytes` hold: `None` when they are no footer at all.
    pub fn parse(bytes: &[u8; SECTOR as usize]) -> Option<Result<Self, String>> {
        if !bytes.starts_with(COOKIE) {
            return None;
        }
        let footer = Footer(*bytes);
        let (found, expected) = (be::u32_at(bytes, 64), checksum(bytes, 64));
        Some(if found != expected {
            Err(format!("checksum {found:#010x}, not {expected:#010x}"))
        } else if be::u32_at(bytes, 12) >> 16 != 1 {
            Err(format!("format version {:#x}, not 0x10000", be::u32_at(bytes, 12)))
        } else if footer.checked_type().is_none() {
            Err(format!("disk type {}, not 2, 3 or 4", be::u32_at(bytes, 60)))
        } else {
            Ok(footer)
        })
    }

    fn checked_type(&self) -> Option<DiskType> {
        let number = be::u32_at(&self.0, 60);
        [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing].into_iter().find(|t| t.number() == number)
    }

    pub fn disk_type(&self) -> DiskType {
        // Checked when it was parsed.
        self.checked_type().unwrap_or(DiskType::Fixed)
    }

    /// Where the dynamic disk header lies.
    pub fn data_offset(&self) -> u64 {
        be::u64_at(&self.0, 16)
    }

    pub fn creator(&self) -> &[u8] {
        &self.0[28..32]
    }

    pub fn uuid(&self) -> [u8; 16] {
        bytes16_at(&self.0, 68)
    }

    /// Set by XenServer for images that users do not see, such as the ones below snapshots.
    pub fn hidden(&self) -> bool {
        self.0[85] != 0
    }

    pub fn timestamp(&self) -> u32 {
        be::u32_at(&self.0, 24)
    }

    fn geometry(&self) -> Geometry {
        Geometry { cylinders: be::u16_at(&self.0, 56), heads: self.0[58], sectors_per_track: self.0[59] }
    }

    /// Bytes that the guest sees. Virtual PC and older QEMU write a current size that is not what the guest saw: there the
    /// geometry tells, unless it is the largest and tells nothing.
    pub fn size(&self) -> u64 {
        let geometry = self.geometry();
        if SIZED_BY_GEOMETRY.iter().any(|app| app[..] == *self.creator()) && geometry.sectors() != Geometry::MAX.sectors() {
            return geometry.sectors() * SECTOR;
        }
        be::u64_at(&self.0, 48) / SECTOR * SECTOR
    }

    /// Whether a fixed disk of so many bytes has this footer.
    pub fn fits(&self, bytes: u64) -> bool {
        [self.size(), be::u64_at(&self.0, 48)].contains(&bytes)
    }

    /// Sets the current size and its geometry. The creator becomes one whose current size counts.
    pub fn resize(&mut self, size: u64) {
        if SIZED_BY_GEOMETRY.iter().any(|app| app[..] == *self.creator()) {
            self.put(28, b"qem2");
        }
        self.set_size(size, Geometry::of(size / SECTOR));
    }

    fn set_size(&mut self, size: u64, geometry: Geometry) {
        self.put(48, &size.to_be_bytes());
        self.put(56, &geometry.cylinders.to_be_bytes());
        self.put(58, &[geometry.heads, geometry.sectors_per_track]);
        self.seal();
    }

    /// Makes the disk another kind of disk, whose header lies at `data_offset`.
    pub fn set_type(&mut self, disk_type: DiskType, data_offset: u64) {
        self.put(16, &data_offset.to_be_bytes());
        self.put(60, &disk_type.number().to_be_bytes());
        self.seal();
    }

    fn seal(&mut self) {
        let sum = checksum(&self.0, 64);
        self.put(64, &sum.to_be_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The one's complement of the sum of all bytes, those of the checksum itself left out.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add((*byte).into()));
    !sum(bytes).wrapping_sub(bytes.get(at..at + 4).map_or(0, sum))
}

/// What was found where a footer may be: nothing like one, a damaged one, or a good one.
type Found = Option<Result<Footer, String>>;

/// The footers of a file.
pub(super) struct Footers {
    /// The copy at offset 0.
    pub copy: Found,
    /// The one at the end.
    pub end: Found,
    /// Where the latter starts.
    pub end_offset: u64,
}

impl Footers {
    /// Reads both places.
    ///
    /// # Errors
    /// An image that blktap disabled is [`Error::Unsupported`].
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let file_size = storage.size()?;
        let mut head = [0; SECTOR as usize];
        read_padded(storage, &mut head, 0)?;
        let mut end_offset = file_size.saturating_sub(SECTOR);
        let mut tail = [0; SECTOR as usize];
        read_padded(storage, &mut tail, end_offset)?;
        if [&head, &tail].iter().any(|bytes| bytes.starts_with(POISON)) {
            let what = "it was disabled (its cookie is v_poison) and must not be used; restore the cookie 'conectix' only if you know why";
            return Err(Error::unsupported(storage.name(), FORMAT, what));
        }
        if !tail.starts_with(COOKIE) && file_size >= SECTOR {
            // Virtual PC before 2004 left the last byte out; it counts as zero.
            end_offset += 1;
            read_padded(storage, &mut tail, end_offset)?;
        }
        Ok(Footers { copy: Footer::parse(&head), end: Footer::parse(&tail), end_offset })
    }

    /// The footer to go by. The copy at the start counts, as in QEMU; but a fixed disk has none, and what its guest wrote
    /// to its first sector is not one.
    pub fn choose(&self, file: &str) -> Result<&Footer> {
        let footer = match (&self.copy, &self.end) {
            (_, Some(Ok(end))) if end.disk_type() == DiskType::Fixed && end.size() <= self.end_offset => end,
            (Some(Ok(copy)), _) if copy.disk_type() != DiskType::Fixed => copy,
            (_, Some(Ok(end))) => end,
            (Some(Err(what)), _) => {
                return Err(Error::corrupt(file, FORMAT, 0, format!("the copy of the footer has {what}, and no good one is at the end")));
            }
            (_, Some(Err(what))) => return Err(Error::corrupt(file, FORMAT, self.end_offset, format!("the footer has {what}"))),
            (Some(Ok(_)), _) => return Err(Error::corrupt(file, FORMAT, 0, "a fixed disk has its footer at the end, and there is none")),
            (None, None) => return Err(Error::corrupt(file, FORMAT, None, "no footer, neither at the start of the file nor at its end")),
        };
        if footer.size() > MAX_SIZE {
            let what = format!("the disk has {} bytes, and {MAX_SIZE} (2040 GiB) are the most", footer.size());
            return Err(Error::corrupt(file, FORMAT, None, what));
        }
        Ok(footer)
    }
}
