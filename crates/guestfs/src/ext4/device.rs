//! Blocks of the filesystem as they are after the journal's replay, with a small cache for metadata.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use imgcore::Image;

use super::corrupt;
use super::journal::Replayed;
use crate::Result;

/// Metadata blocks that are kept, in bytes.
const CACHE: usize = 16 << 20;

pub(crate) struct Device {
    image: Arc<dyn Image>,
    start: u64,
    len: u64,
    pub block_size: u32,
    pub blocks: u64,
    /// Blocks whose newest content lies in the journal.
    replayed: BTreeMap<u64, Replayed>,
    cache: Mutex<HashMap<u64, Arc<[u8]>>>,
}

impl Device {
    pub(crate) fn new(image: Arc<dyn Image>, start: u64, len: u64, block_size: u32, blocks: u64) -> Self {
        Device { image, start, len, block_size, blocks, replayed: BTreeMap::new(), cache: Mutex::default() }
    }

    /// From now on these blocks are read from the journal.
    pub(crate) fn set_replayed(&mut self, replayed: BTreeMap<u64, Replayed>) {
        self.replayed = replayed;
        self.cache.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Bytes of the volume as they stand, journal or not.
    pub(crate) fn read_raw(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.len => Ok(self.image.read_at(buf, self.start + offset)?),
            _ => Err(corrupt(format!("bytes at {offset:#x} lie behind the volume's end at {:#x}", self.len))),
        }
    }

    /// Bytes from block `block` on, `skip` bytes into it.
    pub(crate) fn read(&self, block: u64, skip: u64, buf: &mut [u8]) -> Result<()> {
        let size = u64::from(self.block_size);
        let first = block.checked_add(skip / size).filter(|b| *b < self.blocks);
        let count = (skip % size + buf.len() as u64).div_ceil(size);
        let Some((first, end)) = first.and_then(|f| Some((f, f.checked_add(count).filter(|e| *e <= self.blocks)?))) else {
            return Err(corrupt(format!("block {block} lies behind the last one, {}", self.blocks - 1)));
        };
        let start = first * size + skip % size;
        if self.replayed.range(first..end).next().is_none() {
            return self.read_raw(start, buf);
        }
        let (mut done, mut at) = (0, start);
        while done < buf.len() {
            let (n, within) = (at / size, (at % size) as usize);
            let take = (buf.len() - done).min(size as usize - within);
            let Some(part) = buf.get_mut(done..done + take) else { break };
            match self.replayed.get(&n) {
                None => self.read_raw(at, part)?,
                Some(newer) => {
                    let mut whole = vec![0; size as usize];
                    self.read_raw(newer.block * size, &mut whole)?;
                    newer.restore(n, &mut whole)?;
                    part.copy_from_slice(&whole[within..within + take]);
                }
            }
            done += take;
            at += take as u64;
        }
        Ok(())
    }

    /// One whole block of metadata.
    pub(crate) fn block(&self, block: u64) -> Result<Arc<[u8]>> {
        if let Some(known) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&block) {
            return Ok(known.clone());
        }
        let mut content = vec![0; self.block_size as usize];
        self.read(block, 0, &mut content)?;
        let content: Arc<[u8]> = content.into();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE / self.block_size as usize {
            cache.clear();
        }
        cache.insert(block, content.clone());
        Ok(content)
    }
}
