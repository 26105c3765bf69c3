//! A guest's file read at random: in chunks, the last of which are kept.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use crate::{Error, GuestFs, Result};

/// Bytes read at once.
const CHUNK: u64 = 64 << 10;
/// Chunks kept: 8 MiB.
const KEPT: usize = 128;

#[derive(Default)]
struct Chunks {
    content: HashMap<u64, Vec<u8>>,
    order: VecDeque<u64>,
}

/// A file of a guest.
pub(crate) struct CachedFile<'a> {
    fs: &'a dyn GuestFs,
    path: Vec<u8>,
    size: u64,
    chunks: RefCell<Chunks>,
}

impl<'a> CachedFile<'a> {
    /// The file; `None` when it is not there.
    pub(crate) fn open(fs: &'a dyn GuestFs, path: &[u8]) -> Result<Option<Self>> {
        match fs.stat(path) {
            Ok(stat) => Ok(Some(CachedFile { fs, path: path.to_vec(), size: stat.size, chunks: RefCell::default() })),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The failure of what this file is, `what` being wrong with it.
    pub(crate) fn corrupt(&self, kind: &'static str, what: impl std::fmt::Display) -> Error {
        Error::Corrupt { filesystem: kind, what: format!("{}: {what}", crate::show(&self.path)) }
    }

    /// `len` bytes from `at`, fewer at the file's end. Callers bound `len`.
    pub(crate) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let end = at.saturating_add(len as u64).min(self.size);
        let mut out = Vec::with_capacity(usize::try_from(end.saturating_sub(at)).unwrap_or(0));
        let mut at = at;
        let mut chunks = self.chunks.borrow_mut();
        while at < end {
            let number = at / CHUNK;
            if !chunks.content.contains_key(&number) {
                let content = self.load(number)?;
                if chunks.order.len() >= KEPT
                    && let Some(oldest) = chunks.order.pop_front()
                {
                    chunks.content.remove(&oldest);
                }
                chunks.order.push_back(number);
                chunks.content.insert(number, content);
            }
            let content = chunks.content.get(&number).map_or(&[][..], Vec::as_slice);
            let from = usize::try_from(at % CHUNK).unwrap_or(0);
            let to = usize::try_from(end - number * CHUNK).unwrap_or(usize::MAX).min(content.len());
            // The file is shorter than its inode says.
            let Some(piece) = content.get(from..to).filter(|p| !p.is_empty()) else { break };
            out.extend_from_slice(piece);
            at += piece.len() as u64;
        }
        Ok(out)
    }

    fn load(&self, number: u64) -> Result<Vec<u8>> {
        let start = number * CHUNK;
        let mut content = vec![0; usize::try_from(CHUNK.min(self.size - start)).unwrap_or(0)];
        let mut filled = 0;
        while filled < content.len() {
            match self.fs.read_at(&self.path, start + filled as u64, &mut content[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        content.truncate(filled);
        Ok(content)
    }
}
