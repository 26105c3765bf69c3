//! Keeping bitmaps right while the image is written.
//!
//! Before the first change, each bitmap that records is durably marked as in use. What changes is noted in memory; when
//! the image is closed, it is added to the bitmaps in the file, which only then stop being in use. A crash meanwhile
//! leaves bitmaps that everybody knows to be useless, never ones that are silently stale.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::Qcow2;
use super::super::refcount::Metadata;
use super::super::write::Allocation;
use super::{ALL_ONES, AUTO, Bitmap, IN_USE, OFFSET, read};
use crate::storage::read_padded;
use crate::{Error, Result};

/// Bytes of a bitmap that are noted, and added to the file, together.
const PAGE: u64 = 4096;
/// Pages in memory before they are added to the file.
const MAX_PAGES: usize = 4096;

/// Set bits of a bitmap, in pages of so many bytes.
pub(super) struct Bits {
    page_bytes: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Bits {
    /// None set, of a bitmap that lies in clusters of this size.
    pub fn new(cluster_size: u64) -> Self {
        Bits { page_bytes: cluster_size.min(PAGE), pages: BTreeMap::new() }
    }

    /// Sets the bits from `first` to `last`.
    pub fn set(&mut self, first: u64, last: u64) {
        let per_page = self.page_bytes * 8;
        let mut at = first;
        while at <= last {
            let page = at / per_page;
            let bytes = self.pages.entry(page).or_insert_with(|| vec![0; self.page_bytes as usize].into());
            let end = last.min((page + 1) * per_page - 1);
            for bit in at..=end {
                bytes[(bit % per_page / 8) as usize] |= 1 << (bit % 8);
            }
            at = end + 1;
        }
    }
}

/// What was changed since the image was opened.
#[derive(Default)]
pub(in super::super) struct Recorder {
    /// Whether any bitmap records.
    active: AtomicBool,
    recording: Mutex<Recording>,
}

#[derive(Default)]
struct Recording {
    /// Whether the file says that the bitmaps are in use.
    marked: bool,
    bitmaps: Vec<(Bitmap, Bits)>,
}

impl Recorder {
    pub fn new(bitmaps: Vec<Bitmap>, cluster_size: u64) -> Self {
        let bitmaps: Vec<_> = bitmaps.into_iter().filter(|bitmap| bitmap.flags & (AUTO | IN_USE) == AUTO).collect();
        let bitmaps: Vec<_> = bitmaps.into_iter().map(|bitmap| (bitmap, Bits::new(cluster_size))).collect();
        Recorder { active: AtomicBool::new(!bitmaps.is_empty()), recording: Mutex::new(Recording { marked: false, bitmaps }) }
    }
}

impl Qcow2 {
    /// Takes note of the bitmaps of an image that is opened for writing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where a bitmap's clusters are others' as well: to update it would damage those.
    pub(in super::super) fn recorder(&self, metadata: &Metadata) -> Result<Recorder> {
        let bitmaps = read(&*self.storage, &self.header)?;
        let bits = self.header.cluster_bits;
        let mut own = Vec::new();
        if let Some(place) = self.header.bitmaps {
            own.extend(place.directory_offset >> bits..(place.directory_offset + place.directory_size).div_ceil(1 << bits));
        }
        for bitmap in bitmaps.iter().filter(|bitmap| bitmap.is_sound()) {
            own.extend(bitmap.table_clusters(&self.header));
            let table = bitmap.table(&*self.storage, &self.header)?;
            own.extend(table.iter().map(|entry| (entry & OFFSET) >> bits).filter(|cluster| *cluster != 0));
        }
        own.sort_unstable();
        let twice = own.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        if let Some(cluster) = twice.or_else(|| own.iter().copied().find(|cluster| metadata.contains(*cluster))) {
            let what = "a bitmap lies where other metadata does; run 'img check'";
            return Err(Error::corrupt(&self.file, super::FORMAT, cluster << bits, what));
        }
        metadata.add(own);
        Ok(Recorder::new(bitmaps, self.cluster_size()))
    }

    /// Notes that `len` bytes at `offset` are about to change.
    pub(in super::super) fn record(&self, offset: u64, len: u64) -> Result<()> {
        let recorder = &self.writer()?.recorder;
        if len == 0 || !recorder.active.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut recording = recorder.recording.lock().unwrap_or_else(|e| e.into_inner());
        if !recording.marked {
            for (bitmap, _) in &recording.bitmaps {
                self.write_flags(bitmap, bitmap.flags | IN_USE)?;
            }
            self.storage.sync()?;
            recording.marked = true;
        }
        let mut pages = 0;
        for (bitmap, bits) in recording.bitmaps.iter_mut().filter(|(bitmap, _)| bitmap.is_known()) {
            bits.set(offset >> bitmap.granularity_bits, (offset + len - 1) >> bitmap.granularity_bits);
            pages += bits.pages.len();
        }
        if pages > MAX_PAGES { self.add_noted(&mut recording) } else { Ok(()) }
    }

    fn add_noted(&self, recording: &mut Recording) -> Result<()> {
        let mut allocation = self.allocation()?;
        for (bitmap, bits) in recording.bitmaps.iter_mut().filter(|(bitmap, _)| bitmap.is_known()) {
            self.add_bits(&mut allocation, bitmap, bits)?;
            bits.pages.clear();
        }
        Ok(())
    }

    /// Brings the bitmaps in the file up to date, so that they can be relied on again.
    pub(in super::super) fn store_bitmaps(&self) -> Result<()> {
        let recorder = &self.writer()?.recorder;
        if !recorder.active.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut recording = recorder.recording.lock().unwrap_or_else(|e| e.into_inner());
        if !recording.marked {
            return Ok(());
        }
        // What they tell of must be in the file before them.
        self.write_back(&mut *self.allocation()?)?;
        self.add_noted(&mut recording)?;
        self.storage.sync()?;
        for (bitmap, _) in recording.bitmaps.iter().filter(|(bitmap, _)| bitmap.is_known()) {
            self.write_flags(bitmap, bitmap.flags)?;
        }
        self.storage.sync()?;
        recording.marked = false;
        Ok(())
    }

    /// Sets bits of a bitmap in the file, which is marked as in use.
    pub(super) fn add_bits(&self, allocation: &mut Allocation, bitmap: &Bitmap, bits: &Bits) -> Result<()> {
        if bits.pages.is_empty() {
            return Ok(());
        }
        let cluster_size = self.cluster_size();
        let mut table = bitmap.table(&*self.storage, &self.header)?;
        let before = table.clone();
        let mut bytes = vec![0; bits.page_bytes as usize];
        for (page, set) in &bits.pages {
            let at = page * bits.page_bytes;
            let Some(entry) = usize::try_from(at / cluster_size).ok().and_then(|index| table.get_mut(index)) else { break };
            if *entry & OFFSET == 0 {
                if *entry & ALL_ONES != 0 {
                    continue;
                }
                let cluster = allocation.refcounts.allocate(1)?;
                allocation.refcounts.is_fresh(&cluster);
                *entry = cluster.start * cluster_size;
                self.storage.write_at(&vec![0; cluster_size as usize], *entry)?;
                allocation.refcounts.protect(cluster);
            }
            let place = (*entry & OFFSET) + at % cluster_size;
            read_padded(&*self.storage, &mut bytes, place)?;
            bytes.iter_mut().zip(set.iter()).for_each(|(byte, set)| *byte |= set);
            self.storage.write_at(&bytes, place)?;
        }
        if table != before {
            allocation.refcounts.write_back()?;
            self.storage.sync()?;
            let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            self.storage.write_at(&bytes, bitmap.table_offset)?;
        }
        Ok(())
    }
}
