//! Berkeley DB's hash tables, as far as rpm's `Packages` needs them: every pair of every page, in no order.
//! (db's src/dbinc/db_page.h)

use std::collections::HashSet;

use super::{HEADER_LIMIT, Take, corrupt};
use crate::bytes::{cut, le16, le32};
use crate::cached::CachedFile;
use crate::{GuestFs, Result};

const HASH_MAGIC: u32 = 0x061561;
/// A page's header before its index of items.
const PAGE_HEADER: usize = 26;

/// Types of pages.
const HASH_UNSORTED: u8 = 2;
const OVERFLOW: u8 = 7;
const HASH: u8 = 13;

/// Types of items.
const KEY_DATA: u8 = 1;
const OFF_PAGE: u8 = 3;

struct Database<'a> {
    file: &'a CachedFile<'a>,
    page_size: usize,
    last_page: u32,
    /// Written on a machine of the other byte order.
    big_endian: bool,
    /// A chain visits no page twice, and no page belongs to two.
    seen: HashSet<u32>,
}

pub(super) fn each_header(file: &CachedFile<'_>, _: &dyn GuestFs, _: &[u8], take: &mut Take<'_>) -> Result<()> {
    let meta = file.read(0, 512)?;
    let big_endian = match le32(&meta, 12) {
        HASH_MAGIC => false,
        magic if magic.swap_bytes() == HASH_MAGIC => true,
        magic => return Err(corrupt(file, format_args!("it is no hash table of Berkeley DB: its magic is {magic:#x}"))),
    };
    let number = |at| if big_endian { le32(&meta, at).swap_bytes() } else { le32(&meta, at) };
    let page_size = number(20) as usize;
    if !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
        return Err(corrupt(file, format_args!("its pages have {page_size} bytes")));
    }
    if meta.get(24).is_some_and(|algorithm| *algorithm != 0) {
        return Err(corrupt(file, "it is encrypted"));
    }
    let last_page = number(32).min(u32::try_from(file.size() / page_size as u64).unwrap_or(u32::MAX));
    let mut database = Database { file, page_size, last_page, big_endian, seen: HashSet::new() };
    for page in 1..=last_page {
        database.pairs(page, take)?;
    }
    Ok(())
}

impl Database<'_> {
    fn u32(&self, bytes: &[u8], at: usize) -> u32 {
        if self.big_endian { le32(bytes, at).swap_bytes() } else { le32(bytes, at) }
    }

    fn u16(&self, bytes: &[u8], at: usize) -> usize {
        usize::from(if self.big_endian { le16(bytes, at).swap_bytes() } else { le16(bytes, at) })
    }

    fn page(&self, number: u32) -> Result<Vec<u8>> {
        self.file.read(u64::from(number) * self.page_size as u64, self.page_size)
    }

    /// The headers whose pairs begin on this page, if it is one of the table's.
    fn pairs(&mut self, number: u32, take: &mut Take<'_>) -> Result<()> {
        let page = self.page(number)?;
        if !page.get(25).is_some_and(|kind| matches!(*kind, HASH | HASH_UNSORTED)) {
            return Ok(());
        }
        // Items lie from the page's end downwards, each ending where the one before begins.
        let mut end = self.page_size;
        let mut items = Vec::new();
        for index in 0..self.u16(&page, 20).min(self.page_size / 2) {
            let start = self.u16(&page, PAGE_HEADER + index * 2);
            let item = page.get(start..end).filter(|item| !item.is_empty());
            items.push(item.ok_or_else(|| corrupt(self.file, format_args!("page {number}: item {index} lies outside")))?);
            end = start;
        }
        for pair in items.chunks_exact(2) {
            let (key, value) = (pair[0], pair[1]);
            // Key 0 holds the number of the last package.
            if key.first() != Some(&KEY_DATA) || le32(key, 1) == 0 {
                continue;
            }
            match value.first() {
                Some(&KEY_DATA) => take(&value[1..]),
                Some(&OFF_PAGE) => take(&self.overflow(self.u32(value, 4), self.u32(value, 8))?),
                _ => return Err(corrupt(self.file, format_args!("page {number} has values of an unknown kind"))),
            }
        }
        Ok(())
    }

    /// A value of `len` bytes in a chain of pages.
    fn overflow(&mut self, mut number: u32, len: u32) -> Result<Vec<u8>> {
        let len = len as usize;
        let mut out = Vec::new();
        if len > HEADER_LIMIT {
            return Err(corrupt(self.file, format_args!("page {number} begins a value of {len} bytes")));
        }
        while out.len() < len {
            let page = self.page(number)?;
            let piece = cut(&page, PAGE_HEADER, self.u16(&page, 22));
            let bad = page.get(25) != Some(&OVERFLOW) || piece.is_empty() || number > self.last_page;
            if bad || !self.seen.insert(number) {
                return Err(corrupt(self.file, format_args!("page {number} does not continue a value")));
            }
            out.extend_from_slice(piece);
            number = self.u32(&page, 16);
        }
        out.truncate(len);
        Ok(out)
    }
}
