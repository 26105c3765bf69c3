//! The block allocation table, read page by page and kept within bounds (MS-VHDX 2.5).

use super::MIB;
use crate::tables::{Page, Tables};
use crate::{Result, Storage};

const PAGE_SIZE: u64 = 32 << 10;
/// 16 MiB.
const MAX_PAGES: usize = 512;

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
    tables: Tables,
}

impl Bat {
    pub fn new(offset: u64) -> Self {
        Bat { offset, tables: Tables::new(8, PAGE_SIZE, MAX_PAGES) }
    }

    /// The offset in the file of entry `index`.
    pub fn entry_offset(&self, index: u64) -> u64 {
        self.offset + index * 8
    }

    /// The part of the table that holds entry `index`.
    pub fn page(&self, storage: &dyn Storage, index: u64) -> Result<Page> {
        self.tables.page(storage, self.entry_offset(index))
    }

    /// Entry `index`.
    pub fn get(&self, storage: &dyn Storage, index: u64) -> Result<u64> {
        self.tables.get(storage, self.entry_offset(index))
    }

    /// Changes entry `index` in memory. Says whether so many changes wait that they should be written.
    pub fn set(&self, index: u64, entry: u64) -> bool {
        self.tables.set(self.entry_offset(index), entry)
    }

    /// The table's changes, to be written.
    pub fn changes(&self) -> &Tables {
        &self.tables
    }
}
