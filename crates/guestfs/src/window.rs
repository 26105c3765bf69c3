//! A volume as the readers see it: reads inside its bounds, and a cache of metadata that cannot grow without end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use imgcore::Image;

use crate::{Error, Result};

/// Metadata that is kept, in bytes.
const CACHE: usize = 16 << 20;

/// Bytes `0..len` of a volume.
pub(crate) struct Window {
    image: Arc<dyn Image>,
    start: u64,
    len: u64,
    filesystem: &'static str,
    cache: Cache<u64>,
}

impl Window {
    pub(crate) fn new(image: Arc<dyn Image>, start: u64, len: u64, filesystem: &'static str) -> Self {
        let len = len.min(image.size().saturating_sub(start));
        Window { image, start, len, filesystem, cache: Cache::new(CACHE) }
    }

    /// Fills all of `buf`.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.len => Ok(self.image.read_at(buf, self.start + offset)?),
            _ => Err(self.corrupt(format!("{} bytes at {offset:#x} lie behind the volume's end at {:#x}", buf.len(), self.len))),
        }
    }

    /// Some bytes; the caller has bounded how many.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Metadata, which is likely to be asked for again. The same place must always be read with the same length.
    pub(crate) fn cached(&self, offset: u64, len: usize) -> Result<Arc<[u8]>> {
        self.cache.get(offset, || Ok(self.bytes(offset, len)?.into()))
    }

    /// As [`cached`](Window::cached), of what is made of the bytes there.
    pub(crate) fn cached_as(&self, offset: u64, make: impl FnOnce() -> Result<Arc<[u8]>>) -> Result<Arc<[u8]>> {
        self.cache.get(offset, make)
    }

    pub(crate) fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { filesystem: self.filesystem, what }
    }
}

/// Byte strings by a key, thrown away all at once when they become too many.
pub(crate) struct Cache<K> {
    known: Mutex<Known<K>>,
    limit: usize,
}

/// What is kept, and how many bytes that is.
type Known<K> = (HashMap<K, Arc<[u8]>>, usize);

impl<K: std::hash::Hash + Eq> Cache<K> {
    /// `limit` is in bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Cache { known: Mutex::default(), limit }
    }

    /// What is kept for the key, or what `make` makes and is kept from then on.
    pub(crate) fn get(&self, key: K, make: impl FnOnce() -> Result<Arc<[u8]>>) -> Result<Arc<[u8]>> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).0.get(&key) {
            return Ok(known.clone());
        }
        let made = make()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, bytes) = &mut *known;
        *bytes += made.len();
        if *bytes > self.limit {
            map.clear();
            *bytes = made.len();
        }
        map.insert(key, made.clone());
        Ok(made)
    }
}
