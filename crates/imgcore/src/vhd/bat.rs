//! The block allocation table: for each block the sector where it lies.

use crate::tables::Tables;
use crate::{Result, Storage};

/// The entry of a block that is not there.
pub(super) const UNUSED: u64 = 0xffff_ffff;

const PAGE_SIZE: u64 = 32 << 10;
/// 8 MiB: the table of the largest disk with blocks of 2 MiB.
const MAX_PAGES: usize = 256;

/// The table of one file.
pub(super) struct Bat {
    /// Where it lies.
    offset: u64,
    /// How many entries it has.
    len: u64,
    tables: Tables,
}

/// Entries are big-endian; the numbers of [`Tables`] are not.
fn swapped(number: u64) -> u64 {
    (number as u32).swap_bytes().into()
}

impl Bat {
    pub fn new(offset: u64, len: u64) -> Self {
        Bat { offset, len, tables: Tables::new(4, PAGE_SIZE, MAX_PAGES) }
    }

    /// How many entries it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The offset in the file of entry `index`.
    pub fn entry_offset(&self, index: u64) -> u64 {
        self.offset + index * 4
    }

    /// Entry `index`.
    pub fn get(&self, storage: &dyn Storage, index: u64) -> Result<u64> {
        self.tables.get(storage, self.entry_offset(index)).map(swapped)
    }

    /// Entry `index`, and how many entries, at most `limit`, are the same from it on.
    pub fn run(&self, storage: &dyn Storage, index: u64, limit: u64) -> Result<(u64, u64)> {
        let mut page = self.tables.page(storage, self.entry_offset(index))?;
        let first = page.get(self.entry_offset(index)).unwrap_or(0);
        let mut run = 1;
        while run < limit.min(self.len.saturating_sub(index)) {
            match page.get(self.entry_offset(index + run)) {
                Some(entry) if entry == first => run += 1,
                Some(_) => break,
                None => page = self.tables.page(storage, self.entry_offset(index + run))?,
            }
        }
        Ok((swapped(first), run))
    }

    /// Changes entry `index` in memory. Says whether so many changes wait that they should be written.
    pub fn set(&self, index: u64, entry: u64) -> bool {
        self.tables.set(self.entry_offset(index), swapped(entry))
    }

    /// The table's changes, to be written.
    pub fn changes(&self) -> &Tables {
        &self.tables
    }
}
