//! The block allocation table, read page by page and kept within bounds (MS-VHDX 2.5).

use std::collections::HashMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::MIB;
use crate::le::u64_at;
use crate::storage::read_padded;
use crate::{Result, Storage};

/// Entries of a page.
const PAGE: u64 = 4096;
/// Pages that are kept: 16 MiB.
const MAX_PAGES: usize = 512;
/// Changed pages that may wait for a flush.
const MAX_DIRTY: usize = MAX_PAGES / 2;

/// The state of a payload block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// PAYLOAD_BLOCK_NOT_PRESENT: the parent's, or zeroes.
    NotPresent,
    /// PAYLOAD_BLOCK_UNDEFINED, PAYLOAD_BLOCK_ZERO and PAYLOAD_BLOCK_UNMAPPED (3, and 5 in older files): zeroes.
    Zero,
    /// PAYLOAD_BLOCK_FULLY_PRESENT, at this offset.
    FullyPresent(u64),
    /// PAYLOAD_BLOCK_PARTIALLY_PRESENT, at this offset: the sector bitmap tells what is here.
    PartiallyPresent(u64),
    /// A reserved state.
    Unknown(u64),
}

pub(super) const PRESENT: u64 = 6;
pub(super) const ZERO: u64 = 2;

impl State {
    pub fn of(entry: u64) -> Self {
        let offset = offset_of(entry);
        match entry & 7 {
            0 => State::NotPresent,
            1 | 2 | 3 | 5 => State::Zero,
            PRESENT => State::FullyPresent(offset),
            7 => State::PartiallyPresent(offset),
            other => State::Unknown(other),
        }
    }
}

/// The FileOffsetMB field, in bytes: it takes the place that they have in a number of bytes.
pub(super) fn offset_of(entry: u64) -> u64 {
    entry & !(MIB - 1)
}

/// The table of one file.
pub(super) struct Bat {
    /// Where it lies.
    offset: u64,
    /// How many entries it has.
    len: u64,
    pages: RwLock<HashMap<u64, Page>>,
}

struct Page {
    entries: Arc<[u64]>,
    dirty: bool,
}

impl Bat {
    pub fn new(offset: u64, len: u64) -> Self {
        Bat { offset, len, pages: RwLock::default() }
    }

    /// The offset in the file of entry `index`.
    pub fn entry_offset(&self, index: u64) -> u64 {
        self.offset + index * 8
    }

    /// Entry `index` and those behind it in the same page.
    pub fn entries_from(&self, storage: &dyn Storage, index: u64) -> Result<Entries> {
        let page = index / PAGE;
        let held = self.read().get(&page).map(|page| page.entries.clone());
        let page = match held {
            Some(page) => page,
            None => self.load(&mut self.write(), storage, page)?,
        };
        Ok(Entries { page, first: index / PAGE * PAGE })
    }

    /// Entry `index`.
    pub fn get(&self, storage: &dyn Storage, index: u64) -> Result<u64> {
        Ok(self.entries_from(storage, index)?.get(index).unwrap_or(0))
    }

    /// Changes entry `index` in memory. Only one thread at a time may do so; others may read. Says whether so many
    /// changes wait that they should be written.
    pub fn set(&self, storage: &dyn Storage, index: u64, entry: u64) -> Result<bool> {
        let mut pages = self.write();
        self.load(&mut pages, storage, index / PAGE)?;
        if let Some(page) = pages.get_mut(&(index / PAGE)) {
            if let Some(place) = Arc::make_mut(&mut page.entries).get_mut((index % PAGE) as usize) {
                *place = entry;
            }
            page.dirty = true;
        }
        Ok(pages.values().filter(|page| page.dirty).count() > MAX_DIRTY)
    }

    /// The pages changed since they were written, in order: where they belong, and their bytes.
    pub fn dirty(&self) -> Vec<(u64, Vec<u8>)> {
        let pages = self.read();
        let mut dirty: Vec<_> = pages.iter().filter(|(_, page)| page.dirty).map(|(number, page)| (*number, page)).collect();
        dirty.sort_by_key(|(number, _)| *number);
        let bytes = |page: &Page| page.entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        dirty.into_iter().map(|(number, page)| (self.entry_offset(number * PAGE), bytes(page))).collect()
    }

    /// All that [`dirty`](Bat::dirty) gave is on disk.
    pub fn set_clean(&self) {
        self.write().values_mut().for_each(|page| page.dirty = false);
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Page>> {
        self.pages.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Page>> {
        self.pages.write().unwrap_or_else(|e| e.into_inner())
    }

    fn load(&self, pages: &mut HashMap<u64, Page>, storage: &dyn Storage, number: u64) -> Result<Arc<[u64]>> {
        if let Some(page) = pages.get(&number) {
            return Ok(page.entries.clone());
        }
        let first = number * PAGE;
        let mut bytes = vec![0; (self.len.saturating_sub(first).min(PAGE) * 8) as usize];
        read_padded(storage, &mut bytes, self.entry_offset(first))?;
        let entries: Arc<[u64]> = bytes.chunks_exact(8).map(|entry| u64_at(entry, 0)).collect();
        if pages.len() >= MAX_PAGES
            && let Some(clean) = pages.iter().find(|(_, page)| !page.dirty).map(|(number, _)| *number)
        {
            pages.remove(&clean);
        }
        pages.insert(number, Page { entries: entries.clone(), dirty: false });
        Ok(entries)
    }
}

/// A page of the table.
pub(super) struct Entries {
    page: Arc<[u64]>,
    first: u64,
}

impl Entries {
    /// Entry `index` of the table, if it is in this page.
    pub fn get(&self, index: u64) -> Option<u64> {
        self.page.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }
}
