//! SQLite, as far as rpm's table `Packages` needs it: its b-tree of rows, and a log not yet merged.
//! (sqlite.org's "Database File Format", sections 1.6, 2.1 and 4)

use std::collections::{HashMap, HashSet};

use super::{HEADER_LIMIT, LIMIT, Take, corrupt};
use crate::bytes::{be16, be32, le32};
use crate::cached::CachedFile;
use crate::{GuestFs, Result};

const MAGIC: &[u8] = b"SQLite format 3\0";
/// Types of b-tree pages.
const TABLE_INTERIOR: u8 = 5;
const TABLE_LEAF: u8 = 13;
/// The log's header, and each frame's.
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

pub(super) fn each_header(file: &CachedFile<'_>, fs: &dyn GuestFs, path: &[u8], take: &mut Take<'_>) -> Result<()> {
    let wal = CachedFile::open(fs, &[path, b"-wal"].concat())?.filter(|w| w.size() > WAL_HEADER as u64);
    // A database that was never merged has all of it in the log, page 1 as well.
    let head = file.read(0, 100)?;
    let page_size = match wal.as_ref().map(|w| w.read(8, 4)).transpose()? {
        Some(size) => be32(&size, 0),
        None if be16(&head, 16) == 1 => 65536,
        None => u32::from(be16(&head, 16)),
    };
    if !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
        return Err(corrupt(file, format_args!("its pages have {page_size} bytes")));
    }
    let logged = wal.as_ref().map(|w| committed(w, page_size as usize)).transpose()?.unwrap_or_default();
    let mut database = Database { file, wal, logged, page_size: page_size as usize, usable: 0, seen: HashSet::new() };
    let first = database.page(1)?;
    if !first.starts_with(MAGIC) {
        return Err(corrupt(file, "it is no SQLite database"));
    }
    let reserved = first.get(20).map_or(0, |b| usize::from(*b));
    database.usable = Some(database.page_size - reserved).filter(|u| *u >= 480).ok_or_else(|| corrupt(file, "its pages have no room"))?;
    let mut root = None;
    database.rows(1, &mut |row| {
        let column = |n| Row::new(row).nth(n).unwrap_or_default();
        if column(0) == Value::Bytes(b"table") && column(1) == Value::Bytes(b"Packages") {
            root = column(3).number();
        }
    })?;
    let root = root.ok_or_else(|| corrupt(file, "it has no table Packages"))?;
    database.rows(root, &mut |row| {
        if let Some(Value::Bytes(blob)) = Row::new(row).nth(1) {
            take(blob);
        }
    })
}

/// Where the log holds the last committed content of each page.
fn committed(wal: &CachedFile<'_>, page_size: usize) -> Result<HashMap<u32, u64>> {
    let head = wal.read(0, WAL_HEADER)?;
    let big_endian = match be32(&head, 0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return Ok(HashMap::new()),
    };
    let mut sum = Sum { big_endian, s0: 0, s1: 0 };
    sum.add(head.get(..24).unwrap_or_default());
    if !sum.is(&head, 24) || wal.size() > LIMIT {
        return Ok(HashMap::new());
    }
    let (mut pages, mut open) = (HashMap::new(), Vec::new());
    let frame_size = FRAME_HEADER + page_size;
    for frame in 0..(wal.size() - WAL_HEADER as u64) / frame_size as u64 {
        let at = WAL_HEADER as u64 + frame * frame_size as u64;
        let bytes = wal.read(at, frame_size)?;
        let (Some(start), Some(content)) = (bytes.get(..8), bytes.get(FRAME_HEADER..)) else { break };
        sum.add(start);
        sum.add(content);
        // Frames of an older round follow those of this one.
        if bytes.get(8..16) != head.get(16..24) || !sum.is(&bytes, 16) {
            break;
        }
        open.push((be32(&bytes, 0), at + FRAME_HEADER as u64));
        if be32(&bytes, 4) != 0 {
            pages.extend(open.drain(..));
        }
    }
    Ok(pages)
}

/// The log's running checksum.
struct Sum {
    big_endian: bool,
    s0: u32,
    s1: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let word = |at| if self.big_endian { be32(bytes, at) } else { le32(bytes, at) };
        for at in (0..bytes.len()).step_by(8) {
            self.s0 = self.s0.wrapping_add(word(at)).wrapping_add(self.s1);
            self.s1 = self.s1.wrapping_add(word(at + 4)).wrapping_add(self.s0);
        }
    }

    /// Whether it stands there.
    fn is(&self, bytes: &[u8], at: usize) -> bool {
        (be32(bytes, at), be32(bytes, at + 4)) == (self.s0, self.s1)
    }
}

struct Database<'a> {
    file: &'a CachedFile<'a>,
    wal: Option<CachedFile<'a>>,
    logged: HashMap<u32, u64>,
    page_size: usize,
    /// Bytes of a page that are SQLite's.
    usable: usize,
    /// No page is in two places: work is bounded by the file's length.
    seen: HashSet<u32>,
}

impl Database<'_> {
    fn page(&self, number: u32) -> Result<Vec<u8>> {
        let place = self.wal.as_ref().zip(self.logged.get(&number));
        let page = match place {
            Some((wal, at)) => wal.read(*at, self.page_size)?,
            None => self.file.read(u64::from(number.saturating_sub(1)) * self.page_size as u64, self.page_size)?,
        };
        if number == 0 || page.len() < self.page_size {
            return Err(corrupt(self.file, format_args!("page {number} lies outside")));
        }
        Ok(page)
    }

    fn visit(&mut self, number: u32) -> Result<Vec<u8>> {
        if !self.seen.insert(number) {
            return Err(corrupt(self.file, format_args!("page {number} is in two places")));
        }
        self.page(number)
    }

    /// Hands over the rows of a table, in order.
    fn rows(&mut self, root: u32, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut pending = vec![root];
        while let Some(number) = pending.pop() {
            let page = self.visit(number)?;
            let start = if number == 1 { 100 } else { 0 };
            let kind = page.get(start).copied().unwrap_or(0);
            let pointers = start + if kind == TABLE_INTERIOR { 12 } else { 8 };
            let cells = (0..usize::from(be16(&page, start + 3))).map(|n| usize::from(be16(&page, pointers + 2 * n)));
            match kind {
                TABLE_INTERIOR => {
                    pending.push(be32(&page, start + 8));
                    pending.extend(cells.rev().map(|at| be32(&page, at)));
                    if pending.len() as u64 > LIMIT / 512 {
                        return Err(corrupt(self.file, "its pages branch without end"));
                    }
                }
                TABLE_LEAF => {
                    for at in cells {
                        let row = self.payload(&page, at)?;
                        take(&row);
                    }
                }
                _ => return Err(corrupt(self.file, format_args!("page {number} is of type {kind}"))),
            }
        }
        Ok(())
    }

    /// A cell's content, of which what does not fit the page is in a chain of others.
    fn payload(&mut self, page: &[u8], at: usize) -> Result<Vec<u8>> {
        let bad = |what: &str| corrupt(self.file, format_args!("a row {what}"));
        let mut rest = page.get(at..).unwrap_or_default();
        let len = varint(&mut rest).and_then(|len| usize::try_from(len).ok());
        let (Some(len), Some(_row)) = (len.filter(|len| *len <= HEADER_LIMIT), varint(&mut rest)) else {
            return Err(bad("has no length"));
        };
        let most = self.usable - 35;
        let least = (self.usable - 12) * 32 / 255 - 23;
        let local =
            if len <= most { len } else { Some(least + (len - least) % (self.usable - 4)).filter(|local| *local <= most).unwrap_or(least) };
        let mut out = rest.get(..local).ok_or_else(|| bad("lies outside its page"))?.to_vec();
        let mut next = be32(rest, local);
        while out.len() < len {
            let page = self.visit(next)?;
            let piece = page.get(4..self.usable).unwrap_or_default();
            out.extend_from_slice(&piece[..piece.len().min(len - out.len())]);
            next = be32(&page, 0);
        }
        Ok(out)
    }
}

/// A column of a row, as far as we need it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Value<'a> {
    #[default]
    Null,
    Number(i64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    fn number(self) -> Option<u32> {
        if let Value::Number(number) = self { number.try_into().ok() } else { None }
    }
}

/// A row's columns.
struct Row<'a> {
    types: &'a [u8],
    content: &'a [u8],
}

impl<'a> Row<'a> {
    fn new(row: &'a [u8]) -> Self {
        let mut rest = row;
        let head = varint(&mut rest).and_then(|len| row.split_at_checked(usize::try_from(len).ok()?));
        let (head, content) = head.unwrap_or_default();
        Row { types: head.get(row.len() - rest.len()..).unwrap_or_default(), content }
    }
}

impl<'a> Iterator for Row<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let kind = varint(&mut self.types)?;
        let len = match kind {
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            0 | 8..12 => 0,
            kind => (kind - 12) / 2,
        };
        let (bytes, rest) = self.content.split_at_checked(usize::try_from(len).ok()?)?;
        self.content = rest;
        let integer =
            || bytes.iter().fold(i64::from(bytes.first().is_some_and(|b| b & 0x80 != 0)).wrapping_neg(), |n, b| n << 8 | i64::from(*b));
        Some(match kind {
            0 | 7 | 10 | 11 => Value::Null,
            1..=6 => Value::Number(integer()),
            8 | 9 => Value::Number(i64::from(kind == 9)),
            _ => Value::Bytes(bytes),
        })
    }
}

/// Big-endian groups of seven bits, nine bytes at most.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for n in 0..9 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        if n == 8 {
            return Some(value << 8 | u64::from(*byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints() {
        for (bytes, value) in [(&[0x7f][..], 0x7f), (&[0x81, 0x00], 0x80), (&[0xff; 9], u64::MAX), (&[0x82, 0x80, 0x01, 9], 0x8001)] {
            assert_eq!(varint(&mut &bytes[..]), Some(value));
        }
        assert_eq!(varint(&mut &[0x80][..]), None);
    }

    #[test]
    fn columns() {
        let row: Vec<Value<'_>> = Row::new(b"\x07\x00\x01\x02\x11\x08\x09\xff\x01\x00ab").collect();
        let expected = [Value::Null, Value::Number(-1), Value::Number(256), Value::Bytes(b"ab"), Value::Number(0), Value::Number(1)];
        assert_eq!(row, expected);
        assert_eq!(Row::new(b"\x03\x00\x30abc").collect::<Vec<_>>(), [Value::Null]);
        assert_eq!(Row::new(b"\xff\xff").count(), 0);
    }
}
