//! Directories that were read, with an index of their names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{DirEntry, FileType, Result};

/// No directory that we read is larger, in bytes.
pub(crate) const SIZE_LIMIT: u64 = 128 << 20;
/// Nor has more names.
pub(crate) const NAMES_LIMIT: usize = 1_000_000;
/// Of names that are kept, all directories together.
const CACHE: usize = 200_000;

/// A directory's names with an index.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub entries: Vec<DirEntry>,
    /// By name, the number that the reader knows the file by.
    index: HashMap<Vec<u8>, u64>,
}

impl Directory {
    /// Adds a name; `node` is the reader's own number of the file, `ino` the one that users see.
    pub(crate) fn add(&mut self, name: &[u8], kind: FileType, ino: u64, node: u64) {
        self.index.entry(name.to_vec()).or_insert(node);
        self.entries.push(DirEntry { name: name.to_vec(), kind, ino });
    }

    pub(crate) fn lookup(&self, name: &[u8]) -> Option<u64> {
        self.index.get(name).copied()
    }

    /// As [`lookup`](Directory::lookup), with letters of either case when there is no exact match.
    pub(crate) fn lookup_any_case(&self, name: &[u8]) -> Option<u64> {
        self.lookup(name).or_else(|| {
            let lower = |name: &[u8]| String::from_utf8_lossy(name).to_lowercase();
            let wanted = lower(name);
            self.entries.iter().find(|e| lower(&e.name) == wanted).and_then(|e| self.lookup(&e.name))
        })
    }

    /// Whether it has as many names as a directory may have.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= NAMES_LIMIT
    }
}

/// Whether a file can have this name at all: what can't would lead path resolution astray.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, b'/' | 0))
}

/// The directories of a filesystem that were read.
#[derive(Default)]
pub(crate) struct Directories(Mutex<Known>);

#[derive(Default)]
struct Known {
    directories: HashMap<u64, Arc<Directory>>,
    /// How many names they hold together.
    names: usize,
}

impl Directories {
    /// A directory by its number, read if it is not known.
    pub(crate) fn get(&self, number: u64, read: impl FnOnce() -> Result<Directory>) -> Result<Arc<Directory>> {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).directories.get(&number) {
            return Ok(known.clone());
        }
        let directory = Arc::new(read()?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.names > CACHE {
            *known = Known::default();
        }
        known.names += directory.entries.len() + 1;
        known.directories.insert(number, directory.clone());
        Ok(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_exactly_or_in_any_case() {
        let mut directory = Directory::default();
        directory.add("Straße".as_bytes(), FileType::Regular, 1, 10);
        directory.add("STRAẞE".as_bytes(), FileType::Regular, 2, 20);
        assert_eq!(directory.lookup_any_case("STRAẞE".as_bytes()), Some(20));
        assert_eq!(directory.lookup_any_case("sTRAßE".as_bytes()), Some(10));
        assert_eq!(directory.lookup("sTRAßE".as_bytes()), None);
        assert!(!is_name(b"..") && !is_name(b"a/b") && !is_name(b"") && is_name(b"..."));
    }
}
