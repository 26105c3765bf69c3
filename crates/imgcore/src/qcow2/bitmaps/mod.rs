//! Persistent dirty bitmaps: the directory that lists them, and their tables.
//!
//! Source: `docs/interop/qcow2.txt`, section "Bitmaps".
//!
//! An image is read without them. A writer records what it changes in each bitmap that is meant to know ([`record`]);
//! while it does so, and after it failed to, the bitmap is marked as in use, and nobody relies on it.

use std::ops::Range;

use super::Qcow2;
use super::header::{FORMAT, Header, MAX_OFFSET, be32, be64};
use super::l2::words;
use crate::storage::read_padded;
use crate::{BitmapInfo, Error, Result, Storage};

mod edit;
pub(super) mod record;

const FIXED: usize = 24;
/// Flags of a directory entry: its content cannot be relied on; writes are recorded; unknown extra data does no harm.
const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
const DIRTY_TRACKING: u8 = 1;
const GRANULARITY_BITS: Range<u8> = 9..32;
const MAX_NAME: usize = 1023;
const MAX_TABLE_ENTRIES: u64 = 4 << 20;
/// The bit of a table entry without a cluster that says that all of its bits are set.
const ALL_ONES: u64 = 1;
/// The bits of a table entry that hold an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    name: String,
    table_offset: u64,
    table_size: u32,
    flags: u32,
    kind: u8,
    granularity_bits: u8,
    extra: Vec<u8>,
    /// Where the entry lies in the file.
    at: u64,
}

impl Bitmap {
    pub fn info(&self) -> BitmapInfo {
        let granularity = 1u64.checked_shl(self.granularity_bits.into()).unwrap_or(0);
        BitmapInfo { name: self.name.clone(), granularity, in_use: self.flags & IN_USE != 0, auto: self.flags & AUTO != 0 }
    }

    /// Whether its content is known and may be relied on.
    fn is_sound(&self) -> bool {
        self.flags & IN_USE == 0 && self.is_known()
    }

    fn is_known(&self) -> bool {
        self.kind == DIRTY_TRACKING && (self.extra.is_empty() || self.flags & EXTRA_DATA_COMPATIBLE != 0)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.table_offset.to_be_bytes());
        out.extend(self.table_size.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend([self.kind, self.granularity_bits]);
        out.extend((self.name.len() as u16).to_be_bytes());
        out.extend((self.extra.len() as u32).to_be_bytes());
        out.extend(&self.extra);
        out.extend(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }

    /// The clusters of the table.
    fn table_clusters(&self, header: &Header) -> Range<u64> {
        let start = self.table_offset >> header.cluster_bits;
        start..start + (u64::from(self.table_size) * 8).div_ceil(header.cluster_size())
    }

    /// The table, which must fit the disk's size.
    fn table(&self, storage: &dyn Storage, header: &Header) -> Result<Vec<u64>> {
        let needed = table_entries(header, self.granularity_bits);
        if needed != self.table_size.into() {
            let what = format!("bitmap '{}': the table has {} entries, the disk's size needs {needed}", self.name, self.table_size);
            return Err(Error::corrupt(storage.name(), FORMAT, self.table_offset, what));
        }
        self.any_table(storage, header)
    }

    /// The table, whatever its size.
    fn any_table(&self, storage: &dyn Storage, header: &Header) -> Result<Vec<u64>> {
        let corrupt = |what: String| Error::corrupt(storage.name(), FORMAT, self.table_offset, format!("bitmap '{}': {what}", self.name));
        let mut bytes = vec![0; self.table_size as usize * 8];
        read_padded(storage, &mut bytes, self.table_offset)?;
        let table: Vec<u64> = words(&bytes).collect();
        let mut places: Vec<u64> = table.iter().map(|entry| entry & OFFSET).filter(|offset| *offset != 0).collect();
        places.sort_unstable();
        if let Some(offset) = places.iter().find(|offset| *offset % header.cluster_size() != 0) {
            return Err(corrupt(format!("the table names {offset:#x}, which is no cluster's start")));
        }
        // Otherwise, a small file could ask for endless work.
        if let Some(pair) = places.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(corrupt(format!("the table names the cluster at {:#x} twice", pair[0])));
        }
        Ok(table)
    }
}

/// Entries of the table of a bitmap over the whole disk.
fn table_entries(header: &Header, granularity_bits: u8) -> u64 {
    header.size.div_ceil(1 << granularity_bits).div_ceil(header.cluster_size() * 8)
}

/// Reads the directory, with bounds on all that it counts.
pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<Bitmap>> {
    let Some(place) = header.bitmaps else { return Ok(Vec::new()) };
    let corrupt = |at: usize, what: String| Error::corrupt(storage.name(), FORMAT, place.directory_offset + at as u64, what);
    let aligned = |offset: u64| offset.is_multiple_of(header.cluster_size()) && offset < MAX_OFFSET;
    if !aligned(place.directory_offset) || place.directory_offset == 0 {
        return Err(corrupt(0, "the bitmap directory cannot lie here".into()));
    }
    // The header bounds the directory's size.
    let mut bytes = vec![0; place.directory_size as usize];
    read_padded(storage, &mut bytes, place.directory_offset)?;
    let mut bitmaps: Vec<Bitmap> = Vec::new();
    let mut at = 0;
    // Tables do not overlap, and so the file's size bounds all of them together.
    let mut room = storage.size()?.div_ceil(header.cluster_size());
    for index in 0..place.count {
        let outside = || corrupt(at, format!("bitmap {index} lies outside the bitmap directory"));
        let fixed = bytes.get(at..at + FIXED).ok_or_else(outside)?;
        let (name_len, extra_len) = (usize::from(u16::from_be_bytes([fixed[18], fixed[19]])), be32(fixed, 20) as usize);
        let extra = bytes.get(at + FIXED..at + FIXED + extra_len).ok_or_else(outside)?;
        let name = bytes.get(at + FIXED + extra_len..at + FIXED + extra_len + name_len).ok_or_else(outside)?;
        let bitmap = Bitmap {
            name: String::from_utf8(name.to_vec()).map_err(|_| corrupt(at, format!("the name of bitmap {index} is not UTF-8")))?,
            table_offset: be64(fixed, 0),
            table_size: be32(fixed, 8),
            flags: be32(fixed, 12),
            kind: fixed[16],
            granularity_bits: fixed[17],
            extra: extra.to_vec(),
            at: place.directory_offset + at as u64,
        };
        if !GRANULARITY_BITS.contains(&bitmap.granularity_bits) {
            return Err(corrupt(at, format!("bitmap {index} has {} granularity bits, allowed are 9 to 31", bitmap.granularity_bits)));
        }
        if !aligned(bitmap.table_offset) || bitmap.table_offset == 0 || u64::from(bitmap.table_size) > MAX_TABLE_ENTRIES {
            let what = format!("the table of bitmap {index} cannot have {} entries at {:#x}", bitmap.table_size, bitmap.table_offset);
            return Err(corrupt(at, what));
        }
        let clusters = bitmap.table_clusters(header);
        room =
            room.checked_sub(clusters.end - clusters.start).ok_or_else(|| corrupt(at, "bitmap tables are larger than the file".into()))?;
        if bitmap.name.is_empty() || bitmap.name.len() > MAX_NAME || bitmaps.iter().any(|other| other.name == bitmap.name) {
            return Err(corrupt(at, format!("bitmap {index} cannot be called '{}'", bitmap.name)));
        }
        at += (FIXED + extra_len + name_len).next_multiple_of(8);
        bitmaps.push(bitmap);
    }
    Ok(bitmaps)
}

impl Qcow2 {
    /// Sets the flags of the directory entry of `bitmap`, in the file.
    fn write_flags(&self, bitmap: &Bitmap, flags: u32) -> Result<()> {
        self.storage.write_at(&flags.to_be_bytes(), bitmap.at + 12)
    }
}
