//! Sector bitmaps: which sectors of a block are in this file. The first sector is the highest bit of the first byte.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::storage::read_padded;
use crate::{Result, Storage};

/// Bytes of bitmaps that are kept.
const KEPT: u64 = 4 << 20;

/// The bitmaps of one file, some of them in memory.
pub(super) struct Bitmaps {
    /// Bytes of each.
    size: u64,
    kept: RwLock<HashMap<u64, Bitmap>>,
}

struct Bitmap {
    bits: Box<[u8]>,
    /// Where it lies.
    offset: u64,
    dirty: bool,
}

impl Bitmap {
    fn bit(&self, sector: u64) -> bool {
        self.bits.get((sector / 8) as usize).is_some_and(|byte| byte >> (7 - sector % 8) & 1 == 1)
    }

    /// The bit of the first of `sectors`, and how many have the same one.
    fn run(&self, sectors: Range<u64>) -> (bool, u64) {
        let first = self.bit(sectors.start);
        let same = if first { 0xff } else { 0 };
        let mut at = sectors.start + 1;
        while at < sectors.end {
            if at.is_multiple_of(8) && self.bits.get((at / 8) as usize) == Some(&same) {
                at += 8;
            } else if self.bit(at) == first {
                at += 1;
            } else {
                break;
            }
        }
        (first, at.min(sectors.end) - sectors.start)
    }

    fn set(&mut self, sectors: Range<u64>) {
        for sector in sectors {
            if let Some(byte) = self.bits.get_mut((sector / 8) as usize) {
                *byte |= 0x80 >> (sector % 8);
            }
        }
        self.dirty = true;
    }
}

impl Bitmaps {
    pub fn new(size: u64) -> Self {
        Bitmaps { size, kept: RwLock::default() }
    }

    /// Whether the first of `sectors` of a block, whose bitmap lies at `offset`, is in the file, and how many are alike.
    pub fn run(&self, storage: &dyn Storage, block: u64, offset: u64, sectors: Range<u64>) -> Result<(bool, u64)> {
        if let Some(bitmap) = self.read().get(&block) {
            return Ok(bitmap.run(sectors));
        }
        Ok(self.load(&mut self.write(), storage, block, offset)?.run(sectors))
    }

    /// Marks sectors of a block as being in the file. Says whether so many changes wait that they should be written.
    pub fn set(&self, storage: &dyn Storage, block: u64, offset: u64, sectors: Range<u64>) -> Result<bool> {
        let mut kept = self.write();
        self.load(&mut kept, storage, block, offset)?.set(sectors);
        Ok(kept.values().filter(|bitmap| bitmap.dirty).count() as u64 * self.size > KEPT / 2)
    }

    /// The bitmaps changed since they were written, in order: where they belong, and their bytes.
    pub fn dirty(&self) -> Vec<(u64, Vec<u8>)> {
        let kept = self.read();
        let mut dirty: Vec<_> = kept.values().filter(|bitmap| bitmap.dirty).map(|b| (b.offset, b.bits.to_vec())).collect();
        dirty.sort_unstable_by_key(|(offset, _)| *offset);
        dirty
    }

    /// All that [`dirty`](Bitmaps::dirty) gave is on disk.
    pub fn set_clean(&self) {
        self.write().values_mut().for_each(|bitmap| bitmap.dirty = false);
    }

    /// Forgets them all: the blocks have other places now.
    pub fn clear(&self) {
        self.write().clear();
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Bitmap>> {
        self.kept.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Bitmap>> {
        self.kept.write().unwrap_or_else(|e| e.into_inner())
    }

    fn load<'a>(&self, kept: &'a mut HashMap<u64, Bitmap>, storage: &dyn Storage, block: u64, offset: u64) -> Result<&'a mut Bitmap> {
        if !kept.contains_key(&block) && kept.len() as u64 * self.size >= KEPT {
            // One in memory is enough to go on where all are to be written.
            kept.retain(|_, bitmap| bitmap.dirty);
        }
        match kept.entry(block) {
            std::collections::hash_map::Entry::Occupied(there) => Ok(there.into_mut()),
            std::collections::hash_map::Entry::Vacant(free) => {
                let mut bits = vec![0; self.size as usize].into_boxed_slice();
                read_padded(storage, &mut bits, offset)?;
                Ok(free.insert(Bitmap { bits, offset, dirty: false }))
            }
        }
    }
}
