//! Tables of little-endian numbers in a file: read page by page and kept within bounds, changed in memory until they are
//! written together.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::le::{u32_at, u64_at};
use crate::storage::read_padded;
use crate::{Result, Storage};

/// Changes that may wait to be written.
const MAX_PENDING: usize = 1 << 16;

/// The tables of one file, all of numbers of one width.
pub(crate) struct Tables {
    /// Bytes of a number: 4 or 8.
    width: u64,
    page_size: u64,
    max_pages: usize,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Parts of the file by their offset, with the pending changes in them.
    pages: HashMap<u64, Arc<[u8]>>,
    /// Numbers that are not written yet, by their offset in the file.
    pending: BTreeMap<u64, u64>,
}

/// A part of the file.
pub(crate) struct Page {
    offset: u64,
    width: u64,
    bytes: Arc<[u8]>,
}

impl Page {
    /// The number at `offset` of the file, if it is in this page.
    pub fn get(&self, offset: u64) -> Option<u64> {
        let at = usize::try_from(offset.checked_sub(self.offset)?).ok().filter(|at| *at < self.bytes.len())?;
        Some(if self.width == 4 { u64::from(u32_at(&self.bytes, at)) } else { u64_at(&self.bytes, at) })
    }
}

impl Tables {
    /// Numbers of `width` bytes, at multiples of as many bytes; the file is read in parts of `page_size` bytes, of which no
    /// more than `max_pages` are kept.
    pub fn new(width: u64, page_size: u64, max_pages: usize) -> Self {
        Tables { width, page_size, max_pages, inner: RwLock::default() }
    }

    /// The page that holds the number at `offset`.
    pub fn page(&self, storage: &dyn Storage, offset: u64) -> Result<Page> {
        let start = offset / self.page_size * self.page_size;
        let held = self.read().pages.get(&start).cloned();
        let bytes = match held {
            Some(bytes) => bytes,
            None => self.load(&mut self.write(), storage, start)?,
        };
        Ok(Page { offset: start, width: self.width, bytes })
    }

    /// The number at `offset`.
    pub fn get(&self, storage: &dyn Storage, offset: u64) -> Result<u64> {
        Ok(self.page(storage, offset)?.get(offset).unwrap_or(0))
    }

    /// Changes the number at `offset` in memory. Says whether so many changes wait that they should be written.
    pub fn set(&self, offset: u64, number: u64) -> bool {
        let mut inner = self.write();
        inner.pending.insert(offset, number);
        if let Some(page) = inner.pages.get_mut(&(offset / self.page_size * self.page_size)) {
            self.put(Arc::make_mut(page), offset, number);
        }
        inner.pending.len() >= MAX_PENDING
    }

    /// The changes that are not written yet, ascending, adjoining ones together: where they belong, and their bytes.
    pub fn pending(&self) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (offset, number) in &self.read().pending {
            let bytes = &number.to_le_bytes()[..self.width as usize];
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == *offset => run.extend_from_slice(bytes),
                _ => runs.push((*offset, bytes.to_vec())),
            }
        }
        runs
    }

    /// Whether the file says all.
    pub fn is_written(&self) -> bool {
        self.read().pending.is_empty()
    }

    /// All that [`pending`](Tables::pending) gave is in the file. Nothing may be changed between the two.
    pub fn set_written(&self) {
        self.write().pending.clear();
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(|e| e.into_inner())
    }

    fn load(&self, inner: &mut Inner, storage: &dyn Storage, start: u64) -> Result<Arc<[u8]>> {
        if let Some(bytes) = inner.pages.get(&start) {
            return Ok(bytes.clone());
        }
        let mut bytes = vec![0; self.page_size as usize];
        read_padded(storage, &mut bytes, start)?;
        for (offset, number) in inner.pending.range(start..start.saturating_add(self.page_size)) {
            self.put(&mut bytes, *offset, *number);
        }
        if inner.pages.len() >= self.max_pages
            && let Some(other) = inner.pages.keys().next().copied()
        {
            inner.pages.remove(&other);
        }
        let bytes: Arc<[u8]> = bytes.into();
        inner.pages.insert(start, bytes.clone());
        Ok(bytes)
    }

    fn put(&self, page: &mut [u8], offset: u64, number: u64) {
        let at = (offset % self.page_size) as usize;
        if let Some(place) = page.get_mut(at..at + self.width as usize) {
            place.copy_from_slice(&number.to_le_bytes()[..self.width as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;

    #[test]
    fn changes_are_seen_before_and_after_they_are_written() {
        let storage = MemStorage::from_bytes("tables", &[1; 4096]);
        let tables = Tables::new(4, 512, 2);
        assert_eq!(tables.get(&storage, 8).unwrap(), 0x0101_0101);
        for offset in [8, 1000, 12, 3000] {
            tables.set(offset, offset);
        }
        let check = || {
            for offset in [8, 12, 1000, 3000] {
                assert_eq!(tables.get(&storage, offset).unwrap(), offset);
                assert_eq!(tables.get(&storage, offset + 64).unwrap(), 0x0101_0101);
            }
        };
        check();
        let pending = tables.pending();
        assert_eq!(pending[0], (8, vec![8, 0, 0, 0, 12, 0, 0, 0]));
        assert_eq!(pending.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [8, 1000, 3000]);
        for (offset, bytes) in pending {
            storage.write_at(&bytes, offset).unwrap();
        }
        tables.set_written();
        check();
        assert!(tables.pending().is_empty());
        assert_eq!(tables.page(&storage, 8).unwrap().get(512), None);
        assert_eq!(tables.get(&storage, 5000).unwrap(), 0);
    }
}
