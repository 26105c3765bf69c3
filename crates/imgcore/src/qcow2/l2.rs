//! The cache of L2 tables, in slices: written back only in the order that the writer keeps, and bounded.
//!
//! A slice is 4 KiB of a table (the whole of a smaller one), so that random access over a huge image reads and keeps
//! what it needs, and a small change is a small write.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::header::Header;
use crate::storage::read_padded;
use crate::{Result, Storage};

const SLICE_BYTES: u64 = 4096;
const MIN_SLICES: usize = 16;

/// An L2 entry, and its subcluster allocation bitmap in images with extended entries (0 in others).
pub(super) type L2Entry = (u64, u64);

/// A part of an L2 table in memory. Entries are changed only by whoever holds the allocation lock, and read by all.
pub(super) struct L2Slice {
    /// Where it lies in the file.
    pub offset: u64,
    words: Box<[AtomicU64]>,
    extended: bool,
    /// Odd while an extended entry changes: its two words belong together.
    version: AtomicU64,
    dirty: AtomicBool,
    /// Whether it was ever changed in memory.
    changed: AtomicBool,
    used: AtomicBool,
}

impl L2Slice {
    fn new(offset: u64, words: Box<[AtomicU64]>, extended: bool, dirty: bool) -> Self {
        L2Slice { offset, words, extended, version: AtomicU64::new(0), dirty: dirty.into(), changed: dirty.into(), used: true.into() }
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The entry number `index` of this slice; 0 past the end.
    pub fn get(&self, index: usize) -> L2Entry {
        if !self.extended {
            return (self.word(index), 0);
        }
        loop {
            let before = self.version.load(Ordering::Acquire);
            let entry = (self.word(index * 2), self.word(index * 2 + 1));
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return entry;
            }
            std::hint::spin_loop();
        }
    }

    /// How many plain entries behind number `index` continue it: each is the one before it and `step`.
    pub fn following(&self, index: usize, step: u64) -> usize {
        let mut expected = self.word(index);
        let rest = self.words.get(index + 1..).unwrap_or_default();
        rest.iter()
            .take_while(|word| {
                expected = expected.wrapping_add(step);
                word.load(Ordering::Acquire) == expected
            })
            .count()
    }

    pub fn set(&self, index: usize, (entry, bitmap): L2Entry) {
        let put = |index: usize, value| {
            if let Some(word) = self.words.get(index) {
                word.store(value, Ordering::Release);
            }
        };
        if !self.extended {
            return put(index, entry);
        }
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        put(index * 2, entry);
        put(index * 2 + 1, bitmap);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }
}

/// The slices in memory, in a ring that the search for one to drop goes round.
#[derive(Default)]
struct Slices {
    places: HashMap<u64, usize>,
    ring: Vec<Arc<L2Slice>>,
    hand: usize,
    /// Rises when a slice that was changed is dropped: what was read from the file meanwhile may be older.
    changed_dropped: u64,
}

impl Slices {
    fn find(&self, offset: u64) -> Option<&Arc<L2Slice>> {
        let slice = self.ring.get(*self.places.get(&offset)?)?;
        slice.used.store(true, Ordering::Relaxed);
        Some(slice)
    }

    /// Puts `slice` in, in place of another of its offset, after making room for it.
    fn put(&mut self, slice: Arc<L2Slice>, max: usize) {
        if let Some(place) = self.places.get(&slice.offset) {
            self.ring[*place] = slice;
            return;
        }
        while self.ring.len() >= max && self.drop_one() {}
        self.places.insert(slice.offset, self.ring.len());
        self.ring.push(slice);
    }

    /// Drops an unchanged slice that was not used since the last look at it; whether there is one.
    fn drop_one(&mut self) -> bool {
        for _ in 0..self.ring.len() * 2 {
            self.hand = if self.hand < self.ring.len() { self.hand } else { 0 };
            let slice = &self.ring[self.hand];
            if !slice.dirty.load(Ordering::Acquire) && !slice.used.swap(false, Ordering::Relaxed) {
                self.changed_dropped += u64::from(slice.changed.load(Ordering::Acquire));
                self.places.remove(&slice.offset);
                self.ring.swap_remove(self.hand);
                if let Some(moved) = self.ring.get(self.hand) {
                    self.places.insert(moved.offset, self.hand);
                }
                return true;
            }
            self.hand += 1;
        }
        false
    }
}

pub(super) struct L2Cache {
    slices: RwLock<Slices>,
    dirty: AtomicUsize,
    extended: bool,
    slice_bytes: u64,
    table_bytes: u64,
    max: usize,
}

/// Parses a table of big-endian numbers.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word))
}

impl L2Cache {
    /// A cache of `bytes` bytes of tables.
    pub fn new(header: &Header, bytes: u64) -> Self {
        let slice_bytes = header.cluster_size().min(SLICE_BYTES);
        L2Cache {
            slices: RwLock::default(),
            dirty: AtomicUsize::new(0),
            extended: header.l2_entry_size() > 8,
            slice_bytes,
            table_bytes: header.cluster_size(),
            max: usize::try_from(bytes / slice_bytes).unwrap_or(usize::MAX).max(MIN_SLICES),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Slices> {
        self.slices.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Slices> {
        self.slices.write().unwrap_or_else(|e| e.into_inner())
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of one slice.
    pub fn slice_entries(&self) -> u64 {
        self.slice_bytes / self.entry_bytes()
    }

    /// Entries of a whole table.
    pub fn table_entries(&self) -> u64 {
        self.table_bytes / self.entry_bytes()
    }

    /// The slice with entry number `index` of the table at `table`, and the entry's number in it.
    pub fn get(&self, storage: &dyn Storage, table: u64, index: u64) -> Result<(Arc<L2Slice>, usize)> {
        let offset = table + index / self.slice_entries() * self.slice_bytes;
        let index = (index % self.slice_entries()) as usize;
        loop {
            let dropped = {
                let slices = self.read();
                if let Some(slice) = slices.find(offset) {
                    return Ok((slice.clone(), index));
                }
                slices.changed_dropped
            };
            let mut bytes = vec![0; self.slice_bytes as usize];
            read_padded(storage, &mut bytes, offset)?;
            let slice = Arc::new(L2Slice::new(offset, words(&bytes).map(AtomicU64::new).collect(), self.extended, false));
            let mut slices = self.write();
            if let Some(slice) = slices.find(offset) {
                return Ok((slice.clone(), index));
            }
            if slices.changed_dropped == dropped {
                slices.put(slice.clone(), self.max);
                return Ok((slice, index));
            }
        }
    }

    /// The same, marked as changed before anyone could drop it.
    pub fn get_for_change(&self, storage: &dyn Storage, table: u64, index: u64) -> Result<(Arc<L2Slice>, usize)> {
        loop {
            let (slice, index) = self.get(storage, table, index)?;
            let slices = self.read();
            if slices.find(slice.offset).is_some_and(|there| Arc::ptr_eq(there, &slice)) {
                self.mark(&slice);
                return Ok((slice, index));
            }
        }
    }

    fn mark(&self, slice: &L2Slice) {
        slice.changed.store(true, Ordering::Release);
        if !slice.dirty.swap(true, Ordering::AcqRel) {
            self.dirty.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All entries of the table at `table`.
    pub fn table(&self, storage: &dyn Storage, table: u64) -> Result<Vec<L2Entry>> {
        let mut entries = Vec::with_capacity(self.table_entries() as usize);
        for first in (0..self.table_entries()).step_by(self.slice_entries() as usize) {
            let (slice, _) = self.get(storage, table, first)?;
            entries.extend((0..self.slice_entries() as usize).map(|index| slice.get(index)));
        }
        Ok(entries)
    }

    /// A new table that will be written to `table`: `entries`, and zeroes behind them.
    pub fn insert(&self, table: u64, entries: &[L2Entry]) {
        for (number, offset) in (table..table + self.table_bytes).step_by(self.slice_bytes as usize).enumerate() {
            let words = (0..self.slice_bytes / 8).map(|_| AtomicU64::new(0)).collect();
            let slice = L2Slice::new(offset, words, self.extended, false);
            let entries = entries.iter().skip(number * self.slice_entries() as usize).take(self.slice_entries() as usize);
            entries.enumerate().for_each(|(index, entry)| slice.set(index, *entry));
            let mut slices = self.write();
            if slices.find(offset).is_some_and(|old| old.dirty.load(Ordering::Acquire)) {
                self.dirty.fetch_sub(1, Ordering::Relaxed);
            }
            self.mark(&slice);
            slices.put(Arc::new(slice), self.max);
        }
    }

    /// Whether so much is changed that it should be written back.
    pub fn crowded(&self) -> bool {
        self.dirty.load(Ordering::Relaxed) > self.max / 2
    }

    /// Writes all that is changed, lowest offset first; whether there was anything. The caller holds the allocation lock,
    /// so nothing changes meanwhile.
    pub fn write_back(&self, storage: &dyn Storage) -> Result<bool> {
        if self.dirty.load(Ordering::Relaxed) == 0 {
            return Ok(false);
        }
        let mut dirty: Vec<_> = self.read().ring.iter().filter(|slice| slice.dirty.load(Ordering::Acquire)).cloned().collect();
        dirty.sort_unstable_by_key(|slice| slice.offset);
        for run in dirty.chunk_by(|a, b| a.offset + self.slice_bytes == b.offset) {
            let bytes: Vec<u8> = run.iter().flat_map(|slice| &slice.words).flat_map(|w| w.load(Ordering::Acquire).to_be_bytes()).collect();
            storage.write_at(&bytes, run[0].offset)?;
            for slice in run {
                slice.dirty.store(false, Ordering::Release);
                self.dirty.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(!dirty.is_empty())
    }
}
