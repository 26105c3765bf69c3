//! The cache of L2 tables: written back only in the order that the writer keeps, and bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use crate::storage::read_padded;
use crate::{Result, Storage};

/// Bytes of tables that are kept.
const MAX_BYTES: u64 = 32 << 20;
const MIN_TABLES: usize = 16;

/// One L2 table in memory. Entries are changed only by whoever holds the allocation lock, and read by all.
pub(super) struct L2Table {
    /// Where it lies in the file.
    pub offset: u64,
    entries: Box<[AtomicU64]>,
    dirty: AtomicBool,
    used: AtomicU64,
}

impl L2Table {
    fn new(offset: u64, entries: impl Iterator<Item = u64>, dirty: bool) -> Self {
        L2Table { offset, entries: entries.map(AtomicU64::new).collect(), dirty: AtomicBool::new(dirty), used: AtomicU64::new(0) }
    }

    /// The entry number `index` in 8-byte words; 0 past the end.
    pub fn get(&self, index: usize) -> u64 {
        self.entries.get(index).map_or(0, |e| e.load(Ordering::Acquire))
    }

    pub fn set(&self, index: usize, entry: u64) {
        if let Some(e) = self.entries.get(index) {
            e.store(entry, Ordering::Release);
        }
    }

    /// All entries, as numbers.
    pub fn to_vec(&self) -> Vec<u64> {
        self.entries.iter().map(|e| e.load(Ordering::Acquire)).collect()
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.entries.iter().flat_map(|e| e.load(Ordering::Acquire).to_be_bytes()).collect()
    }
}

pub(super) struct L2Cache {
    tables: RwLock<HashMap<u64, Arc<L2Table>>>,
    /// Rises with every eviction: a table read meanwhile may be older than one that was written back.
    evictions: AtomicU64,
    clock: AtomicU64,
    words: usize,
    max_tables: usize,
}

/// Parses a table of big-endian numbers.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|b| b.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

impl L2Cache {
    pub fn new(cluster_size: u64) -> Self {
        L2Cache {
            tables: RwLock::default(),
            evictions: AtomicU64::new(0),
            clock: AtomicU64::new(0),
            words: (cluster_size / 8) as usize,
            max_tables: ((MAX_BYTES / cluster_size) as usize).max(MIN_TABLES),
        }
    }

    /// The table at `offset` of `storage`.
    pub fn get(&self, storage: &dyn Storage, offset: u64) -> Result<Arc<L2Table>> {
        loop {
            if let Some(table) = self.tables.read().unwrap_or_else(|e| e.into_inner()).get(&offset) {
                table.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
                return Ok(table.clone());
            }
            let before = self.evictions.load(Ordering::Acquire);
            let mut bytes = vec![0; self.words * 8];
            read_padded(storage, &mut bytes, offset)?;
            let mut tables = self.tables.write().unwrap_or_else(|e| e.into_inner());
            if self.evictions.load(Ordering::Acquire) != before {
                continue;
            }
            if tables.len() >= self.max_tables {
                self.evict(&mut tables);
            }
            let table = tables.entry(offset).or_insert_with(|| Arc::new(L2Table::new(offset, words(&bytes), false)));
            table.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            return Ok(table.clone());
        }
    }

    /// The table at `offset`, marked as changed before anyone could evict it.
    pub fn get_for_change(&self, storage: &dyn Storage, offset: u64) -> Result<Arc<L2Table>> {
        loop {
            self.get(storage, offset)?;
            if let Some(table) = self.tables.read().unwrap_or_else(|e| e.into_inner()).get(&offset) {
                table.dirty.store(true, Ordering::Release);
                return Ok(table.clone());
            }
        }
    }

    /// A new table that will be written to `offset`.
    pub fn insert(&self, offset: u64, entries: impl Iterator<Item = u64>) -> Arc<L2Table> {
        let table = Arc::new(L2Table::new(offset, entries.chain(std::iter::repeat(0)).take(self.words), true));
        table.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let mut tables = self.tables.write().unwrap_or_else(|e| e.into_inner());
        if tables.len() >= self.max_tables {
            self.evict(&mut tables);
        }
        tables.insert(offset, table.clone());
        table
    }

    /// Drops the older half of the unchanged tables.
    fn evict(&self, tables: &mut HashMap<u64, Arc<L2Table>>) {
        let mut clean: Vec<_> =
            tables.values().filter(|t| !t.dirty.load(Ordering::Acquire)).map(|t| (t.used.load(Ordering::Relaxed), t.offset)).collect();
        clean.sort_unstable();
        clean.truncate(clean.len().div_ceil(2));
        for (_, offset) in clean {
            tables.remove(&offset);
        }
        self.evictions.fetch_add(1, Ordering::Release);
    }

    /// Whether so many tables are changed that they should be written back.
    pub fn crowded(&self) -> bool {
        let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
        tables.len() >= self.max_tables && tables.values().filter(|t| t.dirty.load(Ordering::Acquire)).count() > self.max_tables / 2
    }

    /// Writes all changed tables, lowest offset first; whether there were any. The caller holds the allocation lock, so
    /// none changes meanwhile.
    pub fn write_back(&self, storage: &dyn Storage) -> Result<bool> {
        let mut dirty: Vec<_> = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            tables.values().filter(|t| t.dirty.load(Ordering::Acquire)).cloned().collect()
        };
        dirty.sort_unstable_by_key(|t| t.offset);
        for table in &dirty {
            storage.write_at(&table.to_bytes(), table.offset)?;
            table.dirty.store(false, Ordering::Release);
        }
        Ok(!dirty.is_empty())
    }
}
