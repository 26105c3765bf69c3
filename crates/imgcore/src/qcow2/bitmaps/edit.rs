//! Adding, removing, changing and reading the bitmaps of an image that is open for changes to its structure.

use std::ops::Range;

use super::super::Qcow2;
use super::super::header::{self, Header};
use super::record::Bits;
use super::{ALL_ONES, AUTO, Bitmap, DIRTY_TRACKING, GRANULARITY_BITS, IN_USE, MAX_NAME, MAX_TABLE_ENTRIES, OFFSET, read, table_entries};
use crate::storage::read_padded;
use crate::{BitmapInfo, Bitmaps, Error, Image, Result};

/// Dirty ranges that are listed at most: a bound on memory.
const MAX_RANGES: usize = 16 << 20;
/// Without another wish, a bit stands for a cluster, but no less and no more than this.
const DEFAULT_GRANULARITY: (u64, u64) = (4096, 65536);

/// Set bits as ranges of bytes, joined where they adjoin.
struct Runs {
    granularity_bits: u8,
    size: u64,
    ranges: Vec<Range<u64>>,
}

impl Runs {
    /// Takes note that the bits from `first` up to and without `after` are set.
    fn add(&mut self, first: u64, after: u64) {
        let start = first << self.granularity_bits;
        let end = (after << self.granularity_bits).min(self.size);
        match self.ranges.last_mut() {
            _ if start >= end => {}
            Some(last) if last.end == start => last.end = end,
            _ => self.ranges.push(start..end),
        }
    }
}

fn invalid<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(what.into()))
}

impl Qcow2 {
    /// The bitmap called `name`, to be removed or used.
    fn find_bitmap(&self, name: &str) -> Result<Bitmap> {
        let bitmaps = read(&*self.storage, &self.header)?;
        bitmaps.into_iter().find(|b| b.name == name).ok_or_else(|| Error::Invalid(format!("Dirty bitmap '{name}' not found")))
    }

    /// The same, to be used.
    fn sound_bitmap(&self, name: &str) -> Result<Bitmap> {
        let bitmap = self.find_bitmap(name)?;
        if !bitmap.is_sound() {
            return invalid(format!(
                "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
            ));
        }
        Ok(bitmap)
    }

    /// Changes the bitmap's content by `work` while nobody relies on it.
    fn while_in_use(&mut self, bitmap: &Bitmap, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.write_flags(bitmap, bitmap.flags | IN_USE)?;
        self.storage.sync()?;
        work(self)?;
        self.storage.sync()?;
        self.write_flags(bitmap, bitmap.flags)?;
        self.storage.sync()
    }

    /// Makes `bitmaps` all that the image has, and gives back `unused` clusters.
    fn write_directory(&mut self, bitmaps: &[Bitmap], mut unused: Vec<Range<u64>>) -> Result<()> {
        let bits = self.header.cluster_bits;
        let bytes: Vec<u8> = bitmaps.iter().flat_map(Bitmap::to_bytes).collect();
        if let Some(old) = self.header.bitmaps {
            unused.push(old.directory_offset >> bits..(old.directory_offset + old.directory_size).div_ceil(1 << bits));
        }
        let mut place = None;
        {
            let mut allocation = self.allocation()?;
            if !bytes.is_empty() {
                let clusters = allocation.refcounts.allocate_exact((bytes.len() as u64).div_ceil(1 << bits))?;
                allocation.refcounts.is_fresh(&clusters);
                let offset = clusters.start << bits;
                self.storage.write_at(&bytes, offset)?;
                place = Some(header::Bitmaps { count: bitmaps.len() as u32, directory_size: bytes.len() as u64, directory_offset: offset });
            }
            self.write_back(&mut allocation)?;
        }
        let autoclear = self.header.autoclear & !header::BITMAPS | if place.is_some() { header::BITMAPS } else { 0 };
        self.write_header(Header { bitmaps: place, autoclear, ..self.current_header() })?;
        let mut allocation = self.allocation()?;
        unused.into_iter().for_each(|clusters| allocation.refcounts.free_later(clusters, true));
        self.write_back(&mut allocation)
    }

    /// Writes a new table of `entries`; gives its place.
    fn write_bitmap_table(&self, entries: &[u64]) -> Result<u64> {
        let cluster_size = self.cluster_size();
        let mut allocation = self.allocation()?;
        let clusters = allocation.refcounts.allocate_exact((entries.len() as u64 * 8).div_ceil(cluster_size))?;
        allocation.refcounts.is_fresh(&clusters);
        let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(cluster_size as usize), 0);
        self.storage.write_at(&bytes, clusters.start * cluster_size)?;
        Ok(clusters.start * cluster_size)
    }

    /// Marks all bitmaps as in use, since the disk's size is about to change; gives those that were not.
    pub(in super::super) fn suspend_bitmaps(&mut self) -> Result<Vec<Bitmap>> {
        self.store_bitmaps()?;
        let mut bitmaps = read(&*self.storage, &self.header)?;
        bitmaps.retain(Bitmap::is_sound);
        for bitmap in &bitmaps {
            self.write_flags(bitmap, bitmap.flags | IN_USE)?;
        }
        if !bitmaps.is_empty() {
            self.storage.sync()?;
            self.reload()?;
        }
        Ok(bitmaps)
    }

    /// Makes suspended bitmaps fit for a disk that had `before` bytes. What is new is clean.
    pub(in super::super) fn resume_bitmaps(&mut self, suspended: Vec<Bitmap>, before: u64) -> Result<()> {
        if suspended.is_empty() {
            return Ok(());
        }
        let mut bitmaps = read(&*self.storage, &self.header)?;
        let common = Header { size: self.size().min(before), ..self.header.clone() };
        let mut unused = Vec::new();
        for old in suspended {
            let Some(bitmap) = bitmaps.iter_mut().find(|bitmap| bitmap.name == old.name) else { continue };
            let mut table = old.any_table(&*self.storage, &self.header)?;
            let kept = table_entries(&common, old.granularity_bits);
            let beyond = table.split_off(table.len().min(kept as usize));
            unused.extend(beyond.iter().map(|entry| (entry & OFFSET) / self.cluster_size()).filter(|c| *c != 0).map(|c| c..c + 1));
            if let Some(entry) = table.last() {
                let bits = common.size.div_ceil(1 << old.granularity_bits) - (kept - 1) * self.cluster_size() * 8;
                self.clear_bits_from(entry & OFFSET, bits)?;
            }
            let entries = table_entries(&self.header, old.granularity_bits);
            if entries > MAX_TABLE_ENTRIES {
                return invalid(format!("Bitmap '{}' would be too large for this disk and is now inconsistent", old.name));
            }
            table.resize(entries as usize, 0);
            unused.push(old.table_clusters(&self.header));
            *bitmap = Bitmap { table_offset: self.write_bitmap_table(&table)?, table_size: entries as u32, ..old };
        }
        self.write_directory(&bitmaps, unused)
    }

    /// Clears the bits from number `first` on of a bitmap's cluster at `offset`, where there is one.
    fn clear_bits_from(&self, offset: u64, first: u64) -> Result<()> {
        if offset == 0 || first >= self.cluster_size() * 8 {
            return Ok(());
        }
        let mut bytes = vec![0; (self.cluster_size() - first / 8) as usize];
        read_padded(&*self.storage, &mut bytes[..1], offset + first / 8)?;
        bytes[0] &= ((1u16 << (first % 8)) - 1) as u8;
        self.storage.write_at(&bytes, offset + first / 8)
    }

    /// The clusters that hold the content of a bitmap.
    fn content(&self, bitmap: &Bitmap) -> Result<Vec<Range<u64>>> {
        let clusters = bitmap.table(&*self.storage, &self.header)?.into_iter().map(|entry| (entry & OFFSET) / self.cluster_size());
        Ok(clusters.filter(|cluster| *cluster != 0).map(|cluster| cluster..cluster + 1).collect())
    }
}

impl Bitmaps for Qcow2 {
    fn list(&self) -> Vec<BitmapInfo> {
        read(&*self.storage, &self.header).unwrap_or_default().iter().map(Bitmap::info).collect()
    }

    fn add(&mut self, name: &str, granularity: Option<u64>) -> Result<()> {
        if self.header.version == 2 {
            return invalid("Cannot store dirty bitmaps in qcow2 v2 files");
        }
        if name.is_empty() {
            return invalid("Bitmap name cannot be empty");
        }
        if name.len() > MAX_NAME {
            return invalid(format!("Can't make bitmap '{name}' persistent: Name length exceeds maximum ({MAX_NAME} characters)"));
        }
        let granularity = granularity.unwrap_or(self.cluster_size().clamp(DEFAULT_GRANULARITY.0, DEFAULT_GRANULARITY.1));
        let granularity_bits = granularity.trailing_zeros() as u8;
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&granularity_bits) {
            return invalid("Granularity must be power of 2 and at least 512");
        }
        let mut bitmaps = read(&*self.storage, &self.header)?;
        if bitmaps.iter().any(|bitmap| bitmap.name == name) {
            return invalid(format!("Bitmap already exists: {name}"));
        }
        let entries = table_entries(&self.header, granularity_bits);
        if entries == 0 {
            return invalid(format!("Can't make bitmap '{name}' persistent: the disk is empty"));
        }
        if entries > MAX_TABLE_ENTRIES || bitmaps.len() as u32 >= header::MAX_BITMAPS {
            return invalid(format!("Can't make bitmap '{name}' persistent: it would be too large; use a larger granularity"));
        }
        let table_offset = self.write_bitmap_table(&vec![0; entries as usize])?;
        bitmaps.push(Bitmap {
            name: name.into(),
            table_offset,
            table_size: entries as u32,
            flags: AUTO,
            kind: DIRTY_TRACKING,
            granularity_bits,
            extra: Vec::new(),
            at: 0,
        });
        self.write_directory(&bitmaps, Vec::new())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let bitmap = self.find_bitmap(name)?;
        let mut bitmaps = read(&*self.storage, &self.header)?;
        bitmaps.retain(|other| other.name != name);
        let mut unused = self.content(&bitmap)?;
        unused.push(bitmap.table_clusters(&self.header));
        self.write_directory(&bitmaps, unused)
    }

    fn clear(&mut self, name: &str) -> Result<()> {
        let bitmap = self.sound_bitmap(name)?;
        self.while_in_use(&bitmap, |image| {
            let content = image.content(&bitmap)?;
            image.storage.write_at(&vec![0; bitmap.table_size as usize * 8], bitmap.table_offset)?;
            image.storage.sync()?;
            let mut allocation = image.allocation()?;
            content.into_iter().for_each(|clusters| allocation.refcounts.free_later(clusters, true));
            image.write_back(&mut allocation)
        })
    }

    fn set_recording(&mut self, name: &str, on: bool) -> Result<()> {
        let bitmap = self.sound_bitmap(name)?;
        self.write_flags(&bitmap, bitmap.flags & !AUTO | if on { AUTO } else { 0 })?;
        self.storage.sync()?;
        self.reload()
    }

    fn dirty(&self, name: &str) -> Result<Vec<Range<u64>>> {
        let bitmap = self.sound_bitmap(name)?;
        let cluster_size = self.cluster_size();
        let mut runs = Runs { granularity_bits: bitmap.granularity_bits, size: self.size(), ranges: Vec::new() };
        let mut bytes = vec![0; cluster_size as usize];
        for (index, entry) in (0u64..).zip(bitmap.table(&*self.storage, &self.header)?) {
            let first = index * cluster_size * 8;
            if entry & OFFSET == 0 {
                if entry & ALL_ONES != 0 {
                    runs.add(first, first + cluster_size * 8);
                }
                continue;
            }
            read_padded(&*self.storage, &mut bytes, entry & OFFSET)?;
            for (at, byte) in (first..).step_by(8).zip(&bytes) {
                match byte {
                    0 => {}
                    0xff => runs.add(at, at + 8),
                    _ => (0..8).filter(|bit| byte >> bit & 1 == 1).for_each(|bit| runs.add(at + bit, at + bit + 1)),
                }
            }
            if runs.ranges.len() > MAX_RANGES {
                return Err(Error::unsupported(&self.file, header::FORMAT, format!("a bitmap of more than {MAX_RANGES} dirty ranges")));
            }
        }
        Ok(runs.ranges)
    }

    fn mark(&mut self, name: &str, ranges: &[Range<u64>]) -> Result<()> {
        let bitmap = self.sound_bitmap(name)?;
        let mut bits = Bits::new(self.cluster_size());
        for range in ranges {
            let end = range.end.min(self.size());
            if range.start < end {
                bits.set(range.start >> bitmap.granularity_bits, (end - 1) >> bitmap.granularity_bits);
            }
        }
        self.while_in_use(&bitmap, |image| {
            let mut allocation = image.allocation()?;
            image.add_bits(&mut allocation, &bitmap, &bits)?;
            image.write_back(&mut allocation)
        })
    }
}
