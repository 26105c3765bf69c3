//! Sparse memory as storage: for tests, and for throw-away data of bounded size.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Lock, Storage};
use crate::{Error, Result};

const PAGE: u64 = 4096;

#[derive(Clone, Default)]
struct Pages {
    size: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// Bytes in memory; pages never written take no room.
#[derive(Default)]
pub struct MemStorage {
    name: String,
    inner: RwLock<Pages>,
}

impl MemStorage {
    /// `size` zero bytes that messages call `name`.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        MemStorage { name: name.into(), inner: RwLock::new(Pages { size, pages: BTreeMap::new() }) }
    }

    /// A copy of `bytes`.
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        let storage = MemStorage::new(name, bytes.len() as u64);
        storage.write().put(bytes, 0);
        storage
    }

    /// A second storage with the same content that changes on its own from now on.
    pub fn snapshot(&self) -> Self {
        MemStorage { name: self.name.clone(), inner: RwLock::new(self.read().clone()) }
    }

    /// All bytes; for small storages.
    pub fn to_vec(&self) -> Vec<u8> {
        let inner = self.read();
        let mut all = vec![0; inner.size as usize];
        inner.get(&mut all, 0);
        all
    }

    fn read(&self) -> RwLockReadGuard<'_, Pages> {
        self.inner.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pages> {
        self.inner.write().unwrap_or_else(|e| e.into_inner())
    }
}

/// Cuts `offset..offset+len` at page borders: (page, range in the page, range in the buffer).
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let now = (PAGE as usize - within).min(len - done);
        done += now;
        Some((at / PAGE, within..within + now, done - now..done))
    })
}

impl Pages {
    fn get(&self, buf: &mut [u8], offset: u64) {
        for (page, within, part) in pieces(offset, buf.len()) {
            match self.pages.get(&page) {
                Some(bytes) => buf[part].copy_from_slice(&bytes[within]),
                None => buf[part].fill(0),
            }
        }
    }

    fn put(&mut self, data: &[u8], offset: u64) {
        for (page, within, part) in pieces(offset, data.len()) {
            let bytes = self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
            bytes[within].copy_from_slice(&data[part]);
        }
    }

    fn clear(&mut self, range: Range<u64>) {
        let whole = range.start.div_ceil(PAGE)..range.end / PAGE;
        if whole.start < whole.end {
            let mut kept = self.pages.split_off(&whole.start);
            self.pages.append(&mut kept.split_off(&whole.end));
        }
        for page in [range.start / PAGE, range.end / PAGE] {
            if let Some(bytes) = self.pages.get_mut(&page) {
                let base = page * PAGE;
                let from = range.start.clamp(base, base + PAGE) - base;
                let to = range.end.clamp(base, base + PAGE) - base;
                bytes[from as usize..to as usize].fill(0);
            }
        }
    }
}

impl Storage for MemStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> Result<u64> {
        Ok(self.read().size)
    }

    fn allocated(&self) -> Option<u64> {
        Some(self.read().pages.len() as u64 * PAGE)
    }

    fn identity(&self) -> Option<(u64, u64)> {
        None
    }

    fn lock(&self, _: &Lock) -> Result<()> {
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let inner = self.read();
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > inner.size) {
            return Err(Error::io(&self.name, "read", Some(offset), io::ErrorKind::UnexpectedEof.into()));
        }
        inner.get(buf, offset);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(data.len() as u64);
        let end = end.ok_or_else(|| Error::io(&self.name, "write", Some(offset), io::ErrorKind::FileTooLarge.into()))?;
        let mut inner = self.write();
        inner.put(data, offset);
        inner.size = inner.size.max(end);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len);
        let end = end.ok_or_else(|| Error::io(&self.name, "zero", Some(offset), io::ErrorKind::FileTooLarge.into()))?;
        let mut inner = self.write();
        inner.clear(offset..end);
        inner.size = inner.size.max(end);
        Ok(())
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len);
        if end > self.size()? { self.set_size(end) } else { Ok(()) }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let inner = self.read();
        let mut pages = inner.pages.range(offset / PAGE..).map(|(page, _)| *page);
        let Some(first) = pages.next() else { return Ok(None) };
        let end = pages.zip(first + 1..).take_while(|(page, expected)| page == expected).last().map_or(first, |(page, _)| page);
        let data = (first * PAGE).max(offset)..((end + 1) * PAGE).min(inner.size);
        Ok((data.start < data.end).then_some(data))
    }

    fn set_size(&self, size: u64) -> Result<()> {
        let mut inner = self.write();
        if size < inner.size {
            let end = inner.size;
            inner.clear(size..end);
        }
        inner.size = size;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_vector_of_bytes() {
        let storage = MemStorage::new("mem", 0);
        let mut model: Vec<u8> = Vec::new();
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for round in 0..2000 {
            let (offset, len) = (random(60_000), random(12_000));
            let end = (offset + len) as usize;
            match random(5) {
                0 => {
                    storage.zero_at(offset, len).unwrap();
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].fill(0);
                }
                1 if round % 10 == 0 => {
                    storage.set_size(offset).unwrap();
                    model.resize(offset as usize, 0);
                }
                _ => {
                    storage.write_at(&vec![round as u8; len as usize], offset).unwrap();
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].fill(round as u8);
                }
            }
        }
        assert!(storage.to_vec() == model);
        assert_eq!(storage.snapshot().to_vec(), model);
    }

    #[test]
    fn data_ranges_skip_what_was_never_written() {
        let storage = MemStorage::new("mem", 1 << 40);
        storage.write_at(&[1; 8192], 1 << 30).unwrap();
        assert_eq!(storage.next_data(0).unwrap(), Some(1 << 30..(1 << 30) + 8192));
        assert_eq!(storage.next_data((1 << 30) + 100).unwrap(), Some((1 << 30) + 100..(1 << 30) + 8192));
        assert_eq!(storage.next_data((1 << 30) + 8192).unwrap(), None);
        assert_eq!(storage.allocated(), Some(8192));
    }
}
