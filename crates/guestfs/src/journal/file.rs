//! One journal file: its header, its chain of entry arrays, entries and their data. (systemd.io/JOURNAL_FILE_FORMAT)

use std::collections::HashMap;
use std::rc::Rc;

use super::unpack::unpacked;
use super::{Entry, WANTED};
use crate::bytes::{cut, le32, le64};
use crate::cached::CachedFile;
use crate::{Error, GuestFs, Result};

const SIGNATURE: &[u8] = b"LPKSHHRH";

/// Incompatible flags.
const COMPACT: u32 = 16;
const KNOWN_FLAGS: u32 = 1 | 2 | 4 | 8 | COMPACT;

/// Types of objects.
const DATA: u8 = 1;
const ENTRY: u8 = 3;
const ENTRY_ARRAY: u8 = 6;

/// An entry's fields before its items.
const ENTRY_HEAD: usize = 64;
/// An array's fields before its items.
const ARRAY_HEAD: u64 = 24;

/// An entry has no more fields, as in systemd.
const ITEMS: usize = 1024;
/// A field is cut after this many bytes.
const FIELD_LIMIT: usize = 16 << 20;
/// Values no longer than this are remembered: names of hosts and programs come again and again.
const SHORT: usize = 256;
/// So many data objects are remembered.
const REMEMBERED: usize = 64 << 10;

/// A field's name and value; `None` for those that nobody wants.
type Field = Option<(&'static str, Rc<[u8]>)>;

pub(super) struct File<'a> {
    file: CachedFile<'a>,
    compact: bool,
    /// Who counted its entries.
    pub(super) writer: [u8; 16],
    /// The entry array at hand: where its next item and its end are, and where the next array is.
    item: u64,
    end: u64,
    next_array: u64,
    array: u64,
    /// Entries that are still to come, by the header.
    left: u64,
    known: HashMap<u64, Field>,
}

impl<'a> File<'a> {
    pub(super) fn open(fs: &'a dyn GuestFs, path: &[u8]) -> Result<Self> {
        let file = CachedFile::open(fs, path)?.ok_or_else(|| Error::NotFound(path.to_vec()))?;
        let head = file.read(0, 256)?;
        let flags = le32(&head, 12);
        if !head.starts_with(SIGNATURE) {
            return Err(corrupt(&file, "it has no journal's signature"));
        }
        if flags & !KNOWN_FLAGS != 0 {
            return Err(corrupt(&file, format_args!("its flags are {flags:#x}, of which {KNOWN_FLAGS:#x} are known")));
        }
        Ok(File {
            compact: flags & COMPACT != 0,
            writer: cut(&head, 72, 16).try_into().unwrap_or_default(),
            item: 0,
            end: 0,
            next_array: le64(&head, 176),
            array: 0,
            left: le64(&head, 152),
            known: HashMap::new(),
            file,
        })
    }

    /// The next entry, in the order in which they were written.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let outcome = self.advance();
        if outcome.is_err() {
            self.left = 0;
        }
        outcome
    }

    fn advance(&mut self) -> Result<Option<Entry>> {
        while self.left > 0 {
            if self.item >= self.end {
                if self.next_array == 0 {
                    break;
                }
                self.enter(self.next_array)?;
                continue;
            }
            let width = if self.compact { 4 } else { 8 };
            let item = self.file.read(self.item, width)?;
            let offset = if self.compact { u64::from(le32(&item, 0)) } else { le64(&item, 0) };
            // The writer had come no further.
            if offset == 0 {
                break;
            }
            self.item += width as u64;
            self.left -= 1;
            return self.entry(offset).map(Some);
        }
        Ok(None)
    }

    /// Arrays are only ever added at a file's end: a chain that goes back is a circle.
    fn enter(&mut self, array: u64) -> Result<()> {
        let (_, size, head) = self.object(array, ENTRY_ARRAY, ARRAY_HEAD as usize)?;
        if array <= self.array {
            return Err(corrupt(&self.file, format_args!("the list of entries at {array:#x} goes back")));
        }
        self.array = array;
        self.next_array = le64(&head, 16);
        self.item = array + ARRAY_HEAD;
        self.end = array + size;
        Ok(())
    }

    /// An object's flags, its size, and its first bytes.
    fn object(&self, offset: u64, kind: u8, len: usize) -> Result<(u8, u64, Vec<u8>)> {
        let head = self.file.read(offset, len)?;
        let size = le64(&head, 8);
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.file.size());
        if head.first() != Some(&kind) || size < len as u64 || !inside || !offset.is_multiple_of(8) {
            return Err(corrupt(&self.file, format_args!("there is no object of type {kind} at {offset:#x}")));
        }
        Ok((head.get(1).copied().unwrap_or(0), size, head))
    }

    fn entry(&mut self, offset: u64) -> Result<Entry> {
        let (_, size, head) = self.object(offset, ENTRY, ENTRY_HEAD)?;
        let width = if self.compact { 4 } else { 16 };
        let count = usize::try_from((size - ENTRY_HEAD as u64) / width as u64).unwrap_or(ITEMS).min(ITEMS);
        let items = self.file.read(offset + ENTRY_HEAD as u64, count * width)?;
        let mut fields = Vec::new();
        for item in items.chunks_exact(width) {
            let data = if self.compact { u64::from(le32(item, 0)) } else { le64(item, 0) };
            if let Some(field) = self.field(data)? {
                fields.push(field);
            }
        }
        Ok(Entry {
            sequence: le64(&head, 16),
            realtime: le64(&head, 24),
            monotonic: le64(&head, 32),
            hash: le64(&head, 56),
            boot: cut(&head, 40, 16).try_into().unwrap_or_default(),
            fields,
        })
    }

    fn field(&mut self, data: u64) -> Result<Field> {
        if let Some(known) = self.known.get(&data) {
            return Ok(known.clone());
        }
        let field = self.read_field(data)?;
        if field.as_ref().is_none_or(|(_, value)| value.len() <= SHORT) {
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
            self.known.insert(data, field.clone());
        }
        Ok(field)
    }

    fn read_field(&self, data: u64) -> Result<Field> {
        let head = if self.compact { 72 } else { 64 };
        let (flags, size, _) = self.object(data, DATA, head)?;
        let len = usize::try_from(size - head as u64).unwrap_or(FIELD_LIMIT).min(FIELD_LIMIT);
        let payload = |len| self.file.read(data + head as u64, len);
        // The name alone first: most fields are not wanted.
        let longest = WANTED.iter().map(|name| name.len()).max().unwrap_or(0) + 1;
        let stored = if flags == 0 { payload(len.min(longest))? } else { payload(len)? };
        let unpack = |limit| {
            unpacked(flags, &stored, limit).ok_or_else(|| corrupt(&self.file, format_args!("the field at {data:#x} does not unpack")))
        };
        let start = if flags == 0 { stored.clone() } else { unpack(longest)? };
        let Some(name) = WANTED.iter().find(|name| start.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))) else {
            return Ok(None);
        };
        let content = if flags == 0 { payload(len)? } else { unpack(FIELD_LIMIT)? };
        Ok(content.get(name.len() + 1..).map(|value| (*name, value.into())))
    }
}

fn corrupt(file: &CachedFile<'_>, what: impl std::fmt::Display) -> Error {
    file.corrupt("journal", what)
}
