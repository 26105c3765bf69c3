//! A registry hive of Windows, read only: keys, values and their data, of the main file alone (`regf`, the form of Windows NT 4 and later).
//!
//! What Windows wrote into the transaction logs beside it and not into the hive yet is not seen. The file is read where
//! it is asked for: SOFTWARE has a hundred MiB, of which a few matter.

use crate::bytes::{cut, le16, le32};
use crate::window::Cache;
use crate::{Error, GuestFs, Result};

/// Cells are counted from behind the base block.
const BASE: u64 = 4096;
/// Read at once.
const PIECE: u64 = 64 << 10;
/// Pieces that are kept, in bytes.
const KEPT: usize = 8 << 20;
/// What is looked at of one hive, in bytes: one that leads in circles has more.
const WORK: u64 = 256 << 20;
/// What looking at a cell costs besides its length.
const CELL_COST: u64 = 64;
/// Data of one value; what is longer is cut.
const DATA_LIMIT: usize = 1 << 20;
/// Values of one key.
const VALUES: usize = 1 << 20;
/// What one segment of longer data holds.
const SEGMENT: usize = 16344;
/// Lists of lists, at most.
const LIST_DEPTH: u32 = 3;
const NO_CELL: u32 = 0xffff_ffff;
/// A name of one byte a character, where this flag is set in a key, or the other in a value.
const KEY_COMPRESSED: u16 = 0x20;
const VALUE_COMPRESSED: u16 = 0x1;

/// An open hive.
pub(crate) struct Hive<'a> {
    fs: &'a dyn GuestFs,
    path: Vec<u8>,
    pieces: Cache<u64>,
    work: std::cell::Cell<u64>,
    root: u32,
}

/// A key of a hive.
pub(crate) struct Key<'a> {
    hive: &'a Hive<'a>,
    cell: Vec<u8>,
}

/// A value's data, as it is stored.
pub(crate) struct Value(pub Vec<u8>);

impl Value {
    /// Text, up to its NUL.
    pub(crate) fn text(&self) -> String {
        let units = self.0.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).take_while(|u| *u != 0);
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    /// A number of 32 bits.
    pub(crate) fn number(&self) -> Option<u32> {
        (self.0.len() == 4).then(|| le32(&self.0, 0))
    }
}

impl<'a> Hive<'a> {
    /// Opens a hive by its place in the guest.
    pub(crate) fn open(fs: &'a dyn GuestFs, path: &[u8]) -> Result<Self> {
        let mut hive = Hive { fs, path: path.to_vec(), pieces: Cache::new(KEPT), work: std::cell::Cell::new(0), root: 0 };
        let head = hive.bytes(0, 48)?;
        if cut(&head, 0, 4) != b"regf" {
            return Err(hive.corrupt("it does not begin with 'regf'".into()));
        }
        hive.root = le32(&head, 36);
        Ok(hive)
    }

    /// The key at a path of names, in any case.
    pub(crate) fn key(&'a self, path: &[&str]) -> Result<Option<Key<'a>>> {
        let mut key = self.key_at(self.root)?;
        for name in path {
            match key.child(name)? {
                Some(child) => key = child,
                None => return Ok(None),
            }
        }
        Ok(Some(key))
    }

    fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { filesystem: "registry", what: format!("{}: {what}", crate::show(&self.path)) }
    }

    /// Bytes of the file; fewer than asked for is an error.
    fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut all = Vec::with_capacity(len.min(DATA_LIMIT));
        while all.len() < len {
            let at = offset.saturating_add(all.len() as u64);
            let first = at / PIECE * PIECE;
            let piece = self.pieces.get(first, || {
                let mut piece = vec![0; PIECE as usize];
                let n = crate::reader::fill(first, &mut piece, |at, rest| self.fs.read_at(&self.path, at, rest))?;
                piece.truncate(n);
                Ok(piece.into())
            })?;
            let part = cut(&piece, (at - first) as usize, len - all.len());
            if part.is_empty() {
                return Err(self.corrupt(format!("{len} bytes at {offset:#x} lie behind its end")));
            }
            all.extend_from_slice(part);
        }
        Ok(all)
    }

    /// A cell's content, of which at most `limit` bytes are wanted.
    fn cell(&self, cell: u32, limit: usize) -> Result<Vec<u8>> {
        let at = BASE + u64::from(cell);
        let size = le32(&self.bytes(at, 4)?, 0).cast_signed();
        // One in use is negative.
        let size = size.checked_neg().and_then(|size| usize::try_from(size).ok()).and_then(|size| size.checked_sub(4));
        let size = size.ok_or_else(|| self.corrupt(format!("the cell at {cell:#x} is not in use")))?;
        let size = size.min(limit);
        self.work.set(self.work.get() + size as u64 + CELL_COST);
        if self.work.get() > WORK {
            return Err(self.corrupt(format!("there is no end to it after {WORK} bytes: it leads in circles")));
        }
        self.bytes(at + 4, size)
    }

    fn key_at(&'a self, cell: u32) -> Result<Key<'a>> {
        let content = self.cell(cell, 76 + usize::from(u16::MAX))?;
        if cut(&content, 0, 2) != b"nk" {
            return Err(self.corrupt(format!("there is no key at {cell:#x}")));
        }
        Ok(Key { hive: self, cell: content })
    }

    /// Hands each subkey's cell to `visit` until it says that it has enough.
    fn each_subkey(&self, list: u32, depth: u32, visit: &mut dyn FnMut(u32) -> Result<bool>) -> Result<bool> {
        let content = self.cell(list, 4 + 8 * usize::from(u16::MAX))?;
        let count = usize::from(le16(&content, 2));
        let step = match cut(&content, 0, 2) {
            b"lf" | b"lh" => 8,
            b"li" | b"ri" => 4,
            _ => return Err(self.corrupt(format!("there is no list of keys at {list:#x}"))),
        };
        let is_index = cut(&content, 0, 2) == b"ri";
        if is_index && depth == LIST_DEPTH {
            return Err(self.corrupt(format!("lists of keys lie too deep at {list:#x}")));
        }
        for entry in content.get(4..).unwrap_or_default().chunks_exact(step).take(count) {
            let entry = le32(entry, 0);
            if if is_index { self.each_subkey(entry, depth + 1, visit)? } else { visit(entry)? } {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A value's data, wherever it lies.
    fn data(&self, size: u32, place: u32) -> Result<Vec<u8>> {
        const INLINE: u32 = 0x8000_0000;
        if size & INLINE != 0 {
            let bytes = place.to_le_bytes();
            return Ok(cut(&bytes, 0, (size & !INLINE) as usize).to_vec());
        }
        let size = (size as usize).min(DATA_LIMIT);
        let content = self.cell(place, size.max(8))?;
        if size <= SEGMENT || cut(&content, 0, 2) != b"db" {
            return Ok(cut(&content, 0, size).to_vec());
        }
        let segments = self.cell(le32(&content, 4), 4 * usize::from(le16(&content, 2)))?;
        let mut all = Vec::new();
        for segment in segments.chunks_exact(4) {
            all.extend(self.cell(le32(segment, 0), SEGMENT.min(size - all.len()))?);
            if all.len() == size {
                break;
            }
        }
        Ok(all)
    }
}

impl<'a> Key<'a> {
    /// Its own name.
    pub(crate) fn name(&self) -> String {
        name(cut(&self.cell, 76, usize::from(le16(&self.cell, 72))), le16(&self.cell, 2) & KEY_COMPRESSED != 0)
    }

    /// The subkeys, in the hive's order.
    pub(crate) fn children(&self) -> Result<Vec<Key<'a>>> {
        let mut children = Vec::new();
        self.each_child(&mut |key| {
            children.push(key);
            Ok(false)
        })?;
        Ok(children)
    }

    /// The subkey of this name, in any case.
    pub(crate) fn child(&self, wanted: &str) -> Result<Option<Key<'a>>> {
        let mut found = None;
        self.each_child(&mut |key| {
            let is_it = is_same(&key.name(), wanted);
            if is_it {
                found = Some(key);
            }
            Ok(is_it)
        })?;
        Ok(found)
    }

    fn each_child(&self, visit: &mut dyn FnMut(Key<'a>) -> Result<bool>) -> Result<()> {
        let list = le32(&self.cell, 28);
        if le32(&self.cell, 20) == 0 || list == NO_CELL {
            return Ok(());
        }
        self.hive.each_subkey(list, 0, &mut |cell| visit(self.hive.key_at(cell)?)).map(drop)
    }

    /// All values by name.
    pub(crate) fn values(&self) -> Result<Vec<(String, Value)>> {
        let mut values = Vec::new();
        self.each_value(&mut |name, size, place| {
            values.push((name, Value(self.hive.data(size, place)?)));
            Ok(false)
        })?;
        Ok(values)
    }

    /// The value of this name, in any case.
    pub(crate) fn value(&self, wanted: &str) -> Result<Option<Value>> {
        let mut found = None;
        self.each_value(&mut |name, size, place| {
            let is_it = is_same(&name, wanted);
            if is_it {
                found = Some(Value(self.hive.data(size, place)?));
            }
            Ok(is_it)
        })?;
        Ok(found)
    }

    /// The text of this name; empty when there is none.
    pub(crate) fn text(&self, name: &str) -> Result<String> {
        Ok(self.value(name)?.map(|value| value.text()).unwrap_or_default())
    }

    fn each_value(&self, visit: &mut dyn FnMut(String, u32, u32) -> Result<bool>) -> Result<()> {
        let (count, list) = (le32(&self.cell, 36), le32(&self.cell, 40));
        if count == 0 || list == NO_CELL {
            return Ok(());
        }
        let places = self.hive.cell(list, (count as usize).min(VALUES) * 4)?;
        for place in places.chunks_exact(4) {
            let place = le32(place, 0);
            let cell = self.hive.cell(place, 20 + usize::from(u16::MAX))?;
            if cut(&cell, 0, 2) != b"vk" {
                return Err(self.hive.corrupt(format!("there is no value at {place:#x}")));
            }
            let name = name(cut(&cell, 20, usize::from(le16(&cell, 2))), le16(&cell, 16) & VALUE_COMPRESSED != 0);
            if visit(name, le32(&cell, 4), le32(&cell, 8))? {
                break;
            }
        }
        Ok(())
    }
}

/// A name: in Latin 1 where it is compressed, else in UTF-16.
fn name(bytes: &[u8], compressed: bool) -> String {
    if compressed {
        return bytes.iter().map(|b| char::from(*b)).collect();
    }
    let units = bytes.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

fn is_same(name: &str, wanted: &str) -> bool {
    name.chars().flat_map(char::to_lowercase).eq(wanted.chars().flat_map(char::to_lowercase))
}
