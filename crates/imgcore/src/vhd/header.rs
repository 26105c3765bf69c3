//! The dynamic disk header ("Dynamic Disk Header Format"), and the parent locators in it.

use std::ops::Range;

use super::footer::{Footer, checksum};
use super::{FORMAT, SECTOR};
use crate::le::bytes16_at;
use crate::storage::read_padded;
use crate::{Error, Result, Storage, be};

/// Bytes of the header.
pub(super) const LEN: usize = 1024;
pub(super) const COOKIE: &[u8] = b"cxsparse";
/// Where the parent's name stands, in UTF-16.
const NAME: Range<usize> = 64..576;
const LOCATORS: Range<usize> = 576..768;
const LOCATOR_LEN: usize = 24;

/// A header whose cookie, version, checksum and sizes are right.
#[derive(Clone)]
pub(super) struct Header([u8; LEN]);

/// An entry of the parent locator table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    /// How the name is written: `W2ku`, `W2ru`, `MacX`.
    pub platform: [u8; 4],
    /// Bytes kept for it.
    pub space: u64,
    /// Bytes that it has.
    pub len: u64,
    /// Where it lies.
    pub offset: u64,
}

impl Header {
    pub fn new(table_offset: u64, entries: u32, block_size: u32) -> Self {
        let mut header = Header([0; LEN]);
        header.put(0, COOKIE);
        // No next structure: 64 bits set, though the specification says 32.
        header.put(8, &u64::MAX.to_be_bytes());
        header.put(24, &0x0001_0000u32.to_be_bytes());
        header.put(32, &block_size.to_be_bytes());
        header.set_table(table_offset, entries);
        header
    }

    /// Reads the header that `footer` leads to.
    pub fn read(storage: &dyn Storage, footer: &Footer) -> Result<Self> {
        let at = footer.data_offset();
        let mut bytes = [0; LEN];
        let corrupt = |what: String| Error::corrupt(storage.name(), FORMAT, at, what);
        let file_size = storage.size()?;
        if at.checked_add(LEN as u64).is_none_or(|end| end > file_size) {
            return Err(corrupt(format!("the dynamic disk header would lie past the end of the file, which has {file_size} bytes")));
        }
        read_padded(storage, &mut bytes, at)?;
        if !bytes.starts_with(COOKIE) {
            return Err(corrupt("no dynamic disk header (cookie cxsparse)".into()));
        }
        let header = Header(bytes);
        let (found, expected) = (be::u32_at(&bytes, 36), checksum(&bytes, 36));
        if found != expected {
            return Err(corrupt(format!("the dynamic disk header has the checksum {found:#010x}, not {expected:#010x}")));
        }
        if be::u32_at(&bytes, 24) >> 16 != 1 {
            return Err(corrupt(format!("the dynamic disk header has the version {:#x}, not 0x10000", be::u32_at(&bytes, 24))));
        }
        let block_size = header.block_size();
        if !block_size.is_power_of_two() || block_size < SECTOR {
            return Err(corrupt(format!("the block size is {block_size}, which is no power of two from 512 on")));
        }
        let needed = footer.size().div_ceil(block_size);
        if header.entries() < needed {
            return Err(corrupt(format!("the BAT has {} entries, and {} bytes need {needed}", header.entries(), footer.size())));
        }
        let table = header.table_offset();
        if !table.is_multiple_of(SECTOR) || table.checked_add(needed * 4).is_none_or(|end| end > file_size) {
            return Err(corrupt(format!("the BAT of {needed} entries cannot lie at {table:#x}: the file has {file_size} bytes")));
        }
        Ok(header)
    }

    /// Where the BAT lies.
    pub fn table_offset(&self) -> u64 {
        be::u64_at(&self.0, 16)
    }

    /// How many entries it has.
    pub fn entries(&self) -> u64 {
        be::u32_at(&self.0, 28).into()
    }

    /// Bytes of the BAT, in whole sectors.
    pub fn table_len(&self) -> u64 {
        (self.entries() * 4).next_multiple_of(SECTOR)
    }

    /// Bytes of a block's data.
    pub fn block_size(&self) -> u64 {
        be::u32_at(&self.0, 32).into()
    }

    /// Bytes of the sector bitmap before a block's data.
    pub fn bitmap_size(&self) -> u64 {
        (self.block_size() / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    pub fn parent_uuid(&self) -> [u8; 16] {
        bytes16_at(&self.0, 40)
    }

    /// The parent's file name.
    pub fn parent_name(&self) -> String {
        let units = self.0[NAME].chunks_exact(2).map(|pair| be::u16_at(pair, 0)).take_while(|unit| *unit != 0);
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    /// The parent locators in use.
    pub fn locators(&self) -> Vec<Locator> {
        self.0[LOCATORS].chunks_exact(LOCATOR_LEN).filter(|entry| be::u32_at(entry, 0) != 0).map(Locator::parse).collect()
    }

    /// Places the BAT.
    pub fn set_table(&mut self, offset: u64, entries: u32) {
        self.put(16, &offset.to_be_bytes());
        self.put(28, &entries.to_be_bytes());
        self.seal();
    }

    /// Names the parent, or none.
    pub fn set_parent(&mut self, uuid: [u8; 16], timestamp: u32, name: &str, locators: &[Locator]) {
        self.0[NAME.start..LOCATORS.end].fill(0);
        self.put(40, &uuid);
        self.put(56, &timestamp.to_be_bytes());
        let units = name.encode_utf16().take(NAME.len() / 2 - 1).flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        self.put(NAME.start, &units);
        for (at, locator) in (LOCATORS.start..LOCATORS.end).step_by(LOCATOR_LEN).zip(locators) {
            self.put(at, &locator.bytes());
        }
        self.seal();
    }

    fn seal(&mut self) {
        let sum = checksum(&self.0, 36);
        self.put(36, &sum.to_be_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Locator {
    fn parse(entry: &[u8]) -> Self {
        let space = u64::from(be::u32_at(entry, 4));
        Locator {
            platform: be::u32_at(entry, 0).to_be_bytes(),
            // Sectors by the specification, bytes by most who write it.
            space: if space < SECTOR { space * SECTOR } else { space },
            len: be::u32_at(entry, 8).into(),
            offset: be::u64_at(entry, 16),
        }
    }

    fn bytes(&self) -> [u8; LOCATOR_LEN] {
        let mut entry = [0; LOCATOR_LEN];
        entry[..4].copy_from_slice(&self.platform);
        // Ours have one sector, and few bytes in it.
        entry[4..8].copy_from_slice(&(self.space as u32).to_be_bytes());
        entry[8..12].copy_from_slice(&(self.len as u32).to_be_bytes());
        entry[16..].copy_from_slice(&self.offset.to_be_bytes());
        entry
    }

    /// The part of the file that is kept for it.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.space.max(self.len))
    }
}
