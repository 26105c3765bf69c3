//! A sparse extent: grains found through a directory of tables, stored as they are or compressed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::header::Header;
use super::{FORMAT, SECTOR};
use crate::layers::read_stored;
use crate::le::u32_at;
use crate::storage::read_padded;
use crate::tables::Tables;
use crate::{Error, Result, Storage};

const PAGE_SIZE: u64 = 4096;
/// 4 MiB: the tables of 64 GiB.
const MAX_PAGES: usize = 1024;
/// Of a disk of 1 PiB. The same bound as QEMU's.
const MAX_TABLES: u64 = 32 << 20;
/// Unpacked grains that are kept for reads of parts of them.
const KEPT_GRAINS: usize = 8;
/// What stands before a grain's compressed bytes: its first sector and their number.
const MARKER_LEN: u64 = 12;

/// Where a run of an extent's bytes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The parent, or nothing.
    Absent,
    /// Zeroes of this extent's own.
    Zero,
    /// This offset of the file.
    Data(u64),
    /// The compressed grain at this offset of the file.
    Compressed(u64),
}

/// An open sparse extent.
pub(super) struct Sparse {
    pub storage: Arc<dyn Storage>,
    pub header: Header,
    /// Where the grain directory lies, and its copy.
    directory: u64,
    copy: Option<u64>,
    /// The size of the file when it was opened.
    file_size: u64,
    pub tables: Tables,
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Sparse {
    pub fn open(storage: Arc<dyn Storage>, header: Header) -> Result<Self> {
        let size = storage.size()?;
        if header.tables() > MAX_TABLES {
            let what = format!("a grain directory of {} tables: {MAX_TABLES} are the most", header.tables());
            return Err(Error::unsupported(storage.name(), FORMAT, what));
        }
        let len = header.tables() * 4;
        let inside = |at: &u64| at.checked_add(len).is_some_and(|end| end <= size.next_multiple_of(SECTOR));
        let mut found = header.directories.into_iter().flatten().filter(inside);
        let directory = found.next().ok_or_else(|| {
            let what = format!("the grain directory of {} tables does not lie in the file", header.tables());
            Error::corrupt(storage.name(), FORMAT, 56, what)
        })?;
        let copy = found.next();
        Ok(Sparse {
            storage,
            header,
            directory,
            copy,
            file_size: size,
            tables: Tables::new(4, PAGE_SIZE, MAX_PAGES),
            kept: Mutex::default(),
        })
    }

    /// The place of the entry for byte `at` in the grain tables of a directory; `None` when there is no table.
    fn entry_place_in(&self, directory: u64, at: u64) -> Result<Option<u64>> {
        let index = at / self.header.table_span();
        let entry = self.tables.get(&*self.storage, directory + index * 4)?;
        let table = entry * SECTOR;
        if table >= self.file_size {
            let what = format!("grain table {index} lies at {table:#x}, past the end of the file");
            return Err(Error::corrupt(self.storage.name(), FORMAT, directory + index * 4, what));
        }
        let within = at / self.header.grain_size % self.header.entries_per_table;
        Ok((entry != 0).then_some(table + within * 4))
    }

    /// The place in the file of the entry for byte `at`; `None` when there is no grain table for it.
    pub fn entry_place(&self, at: u64) -> Result<Option<u64>> {
        self.entry_place_in(self.directory, at)
    }

    /// Has the entry for byte `at` point at a sector, in both copies of the tables. Says whether so many changes wait that they
    /// should be written.
    pub fn set_entry(&self, at: u64, sector: u32) -> Result<bool> {
        let Some(place) = self.entry_place(at)? else {
            let what = "writing where an image has no grain table: convert it, and write to the result";
            return Err(Error::unsupported(self.storage.name(), FORMAT, what));
        };
        if let Some(copy) = self.copy
            && let Some(place) = self.entry_place_in(copy, at)?
        {
            self.tables.set(place, u64::from(sector));
        }
        Ok(self.tables.set(place, u64::from(sector)))
    }

    /// Where byte `at` lies, and how many bytes (at most `len`) follow it in the same way.
    pub fn lookup(&self, at: u64, len: u64) -> Result<(Mapping, u64)> {
        let (grain, span) = (self.header.grain_size, self.header.table_span());
        let mut found: Option<Mapping> = None;
        let mut run = 0;
        let mut hole = 0..0;
        while run < len {
            let here = at + run;
            let place = match self.entry_place(here) {
                // What comes before it is not to suffer: whoever asks for more is told then.
                Err(_) if found.is_some() => break,
                place => place?,
            };
            let Some(mut place) = place else {
                if found.is_some_and(|first| first != Mapping::Absent) {
                    break;
                }
                found = Some(Mapping::Absent);
                run += span - here % span;
                continue;
            };
            if here.is_multiple_of(span) && found.is_none_or(|first| first == Mapping::Absent) && self.is_hole(place, &mut hole)? {
                found = Some(Mapping::Absent);
                run += span;
                continue;
            }
            let mut page = self.tables.page(&*self.storage, place)?;
            let table_end = run + (span - here % span);
            while run < len.min(table_end) {
                let entry = match page.get(place) {
                    Some(entry) => entry,
                    None => {
                        page = self.tables.page(&*self.storage, place)?;
                        page.get(place).unwrap_or(0)
                    }
                };
                let within = (at + run) % grain;
                let mapping = match entry {
                    0 => Mapping::Absent,
                    1 if self.header.has_zero_grains => Mapping::Zero,
                    sector if self.header.is_compressed => Mapping::Compressed(sector * SECTOR),
                    sector => Mapping::Data(sector * SECTOR + within),
                };
                match found {
                    Some(first) if !follows(first, mapping, run) => return Ok((first, run)),
                    Some(_) => {}
                    None => found = Some(mapping),
                }
                run += grain - within;
                place += 4;
                if let Mapping::Compressed(_) = mapping {
                    return Ok((mapping, run.min(len)));
                }
            }
        }
        Ok((found.unwrap_or(Mapping::Absent), run.min(len)))
    }

    /// Whether the grain table at `place` was never written: those of an empty disk need not be read. `hole` is what is known of
    /// the file.
    fn is_hole(&self, place: u64, hole: &mut Range<u64>) -> Result<bool> {
        let end = place + self.header.entries_per_table * 4;
        if !hole.contains(&place) || end > hole.end {
            *hole = place..self.storage.next_data(place)?.map_or(u64::MAX, |data| data.start);
        }
        Ok(end <= hole.end && self.tables.is_written())
    }

    /// Reads from byte `within` of the compressed grain at `host`.
    pub fn read_compressed(&self, buf: &mut [u8], host: u64, within: u64) -> Result<()> {
        let grain_size = self.header.grain_size as usize;
        if buf.len() == grain_size {
            let unpacked = self.unpack(host, buf)?;
            return self.expect(host, unpacked, grain_size);
        }
        let mut kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        let found = kept.iter().find(|(key, _)| *key == host).map(|(_, grain)| grain.clone());
        drop(kept);
        let grain = match found {
            Some(grain) => grain,
            None => {
                let mut grain = vec![0; grain_size];
                let unpacked = self.unpack(host, &mut grain)?;
                grain.truncate(unpacked);
                let grain: Arc<[u8]> = grain.into();
                kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
                kept.truncate(KEPT_GRAINS - 1);
                kept.push_front((host, grain.clone()));
                grain
            }
        };
        let within = within as usize;
        match grain.get(within..within.saturating_add(buf.len())) {
            Some(part) => buf.copy_from_slice(part),
            None => self.expect(host, grain.len(), within.saturating_add(buf.len()))?,
        }
        Ok(())
    }

    fn expect(&self, host: u64, unpacked: usize, needed: usize) -> Result<()> {
        if unpacked >= needed {
            return Ok(());
        }
        Err(Error::corrupt(self.storage.name(), FORMAT, host, format!("a grain has {unpacked} bytes, and {needed} are needed")))
    }

    /// Unpacks the grain at `host`, and says how long it is: the last one of a disk may be short.
    fn unpack(&self, host: u64, out: &mut [u8]) -> Result<usize> {
        let corrupt = |what: String| Error::corrupt(self.storage.name(), FORMAT, host, what);
        // Deflate makes nothing longer by more than a small part.
        let longest = (self.header.grain_size + self.header.grain_size / 8 + SECTOR) as usize;
        let (start, len) = if self.header.has_markers {
            let mut marker = [0; MARKER_LEN as usize];
            read_stored(&*self.storage, FORMAT, &mut marker, host)?;
            (host + MARKER_LEN, u32_at(&marker, 8) as usize)
        } else {
            (host, longest)
        };
        if len == 0 || len > longest {
            return Err(corrupt(format!("a grain of {len} compressed bytes: 1 to {longest} are expected")));
        }
        let mut packed = vec![0; len];
        read_padded(&*self.storage, &mut packed, start)?;
        let unpacked = libdeflater::Decompressor::new().zlib_decompress(&packed, out);
        unpacked.map_err(|e| corrupt(format!("a grain of {len} compressed bytes cannot be unpacked: {e}")))
    }
}

/// Whether `next`, `distance` bytes after the start of `first`, continues it.
fn follows(first: Mapping, next: Mapping, distance: u64) -> bool {
    match (first, next) {
        (Mapping::Data(a), Mapping::Data(b)) => a.checked_add(distance) == Some(b),
        (Mapping::Compressed(_), _) => false,
        (a, b) => a == b,
    }
}
