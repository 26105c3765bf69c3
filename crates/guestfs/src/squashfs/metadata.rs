//! The superblock, and metadata: a stream in compressed blocks of 8 KiB, read from any place in it. (squashfs
//! documentation in the kernel, 3)

use std::sync::Arc;

use crate::bytes::{le16, le32, le64};
use crate::window::Cache;
use crate::{Error, Result, Window, compression};

pub(crate) const SUPERBLOCK: usize = 96;
const MAGIC: u32 = 0x7371_7368;
/// What one block of metadata holds at most.
const BLOCK: usize = 8192;
const PLAIN: u16 = 0x8000;
/// Unpacked metadata that is kept, in bytes.
const CACHE: usize = 16 << 20;

#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub inodes: u32,
    /// In bytes, a power of two.
    pub block_size: u32,
    pub fragments: u32,
    pub compressor: u16,
    pub ids: u16,
    pub root_inode: u64,
    pub bytes_used: u64,
    pub id_table: u64,
    pub xattr_table: u64,
    pub inode_table: u64,
    pub directory_table: u64,
    pub fragment_table: u64,
}

impl Superblock {
    pub(crate) fn parse(b: &[u8], window: &Window) -> Result<Self> {
        if le32(b, 0) != MAGIC {
            return Err(window.corrupt(format!("superblock magic {:#010x}, expected 0x73717368", le32(b, 0))));
        }
        let unsupported = |what: String| Err(Error::Unsupported { filesystem: "squashfs", what });
        if le16(b, 28) != 4 {
            return unsupported(format!("version {}", le16(b, 28)));
        }
        let compressor = le16(b, 20);
        if !matches!(compressor, 1 | 3..=6) {
            return unsupported(format!("compressor {compressor}"));
        }
        let (block_size, log) = (le32(b, 12), le16(b, 22));
        if !(12..=20).contains(&log) || block_size != 1 << log {
            return Err(window.corrupt(format!("blocks of {block_size} bytes, 2^{log}")));
        }
        Ok(Superblock {
            inodes: le32(b, 4),
            block_size,
            fragments: le32(b, 16),
            compressor,
            ids: le16(b, 26),
            root_inode: le64(b, 32),
            bytes_used: le64(b, 40),
            id_table: le64(b, 48),
            xattr_table: le64(b, 56),
            inode_table: le64(b, 64),
            directory_table: le64(b, 72),
            fragment_table: le64(b, 80),
        })
    }

    /// Unpacks a block of metadata or data.
    pub(crate) fn unpack(&self, packed: &[u8], limit: usize, window: &Window) -> Result<Vec<u8>> {
        let unpacked = match self.compressor {
            1 => compression::zlib(packed, limit),
            3 => compression::lzo(packed, limit),
            4 => compression::xz(packed, limit),
            5 => compression::lz4(packed, limit),
            _ => compression::zstd(packed, limit),
        };
        unpacked.ok_or_else(|| window.corrupt("a compressed block is damaged".into()))
    }
}

/// What reads metadata.
pub(crate) struct Metadata {
    pub window: Window,
    pub superblock: Superblock,
    /// By place: the next block's place in eight bytes, then the content.
    blocks: Cache<u64>,
}

impl Metadata {
    pub(crate) fn new(window: Window, superblock: Superblock) -> Self {
        Metadata { window, superblock, blocks: Cache::new(CACHE) }
    }

    fn block(&self, place: u64) -> Result<Arc<[u8]>> {
        self.blocks.get(place, || {
            let header = le16(&self.window.bytes(place, 2)?, 0);
            let len = usize::from(header & !PLAIN);
            if len > BLOCK {
                return Err(self.window.corrupt(format!("a block of metadata of {len} bytes at {place:#x}")));
            }
            let stored = self.window.bytes(place.saturating_add(2), len)?;
            let content = if header & PLAIN != 0 { stored } else { self.superblock.unpack(&stored, BLOCK, &self.window)? };
            let next = place + 2 + len as u64;
            Ok([&next.to_le_bytes()[..], &content].concat().into())
        })
    }

    /// A reader from `offset` on in the block at `place`.
    pub(crate) fn at(&self, place: u64, offset: usize) -> Cursor<'_> {
        Cursor { metadata: self, place, offset }
    }

    /// Entry `index` of a table of entries with `size` bytes, whose blocks are listed at `list`.
    pub(crate) fn entry(&self, list: u64, index: u64, size: u64) -> Result<Vec<u8>> {
        let at = index * size;
        let pointer = list.checked_add(at / BLOCK as u64 * 8).ok_or_else(|| self.window.corrupt("a table's place".into()))?;
        let place = le64(&self.window.bytes(pointer, 8)?, 0);
        self.at(place, (at % BLOCK as u64) as usize).take(size as usize)
    }
}

/// A place in a stream of metadata.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    metadata: &'a Metadata,
    pub place: u64,
    pub offset: usize,
}

impl Cursor<'_> {
    /// The next bytes; the caller has bounded how many.
    pub(crate) fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut taken = Vec::with_capacity(len.min(64 << 10));
        while taken.len() < len {
            let block = self.metadata.block(self.place)?;
            let part = block.get(8 + self.offset..).unwrap_or_default();
            if part.is_empty() {
                // An empty block would be one that goes on forever.
                if block.len() <= 8 || self.offset > block.len() - 8 {
                    return Err(self.metadata.window.corrupt(format!("metadata at {:#x} ends early", self.place)));
                }
                (self.place, self.offset) = (le64(&block, 0), 0);
                continue;
            }
            let part = &part[..part.len().min(len - taken.len())];
            taken.extend(part);
            self.offset += part.len();
        }
        Ok(taken)
    }
}
