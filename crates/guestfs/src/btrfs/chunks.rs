//! From the filesystem's own addresses to places on the volume. (btrfs documentation, "On-disk format", CHUNK_ITEM)

use std::collections::BTreeMap;

use super::superblock::Superblock;
use super::tree::{CHUNK_ITEM, Key};
use crate::bytes::{le16, le64};
use crate::{Error, Result, Window};

/// A filesystem has no more: a list of them is kept in memory.
const CHUNKS_LIMIT: usize = 1 << 20;
/// RAID 0, 10, 5 and 6: what lies together in an address is apart on the devices.
const STRIPED: u64 = 0x8 | 0x40 | 0x80 | 0x100;

#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub len: u64,
    /// Data, system, metadata, and how it is kept: BTRFS_BLOCK_GROUP_….
    pub kind: u64,
    /// Where each of its copies begins.
    pub copies: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks(BTreeMap<u64, Chunk>);

impl Chunks {
    /// Those that the superblock lists, without which the tree of chunks can't be read.
    pub(crate) fn of_system(superblock: &Superblock, window: &Window) -> Result<Self> {
        let mut chunks = Chunks::default();
        let mut rest = superblock.system_chunks.as_slice();
        while !rest.is_empty() {
            let key = Key::parse(rest, 0);
            let item = rest.get(17..).unwrap_or_default();
            let stripes = usize::from(le16(item, 44));
            if key.kind != CHUNK_ITEM {
                return Err(window.corrupt(format!("a system chunk of type {}", key.kind)));
            }
            chunks.add(key.offset, item, superblock, window)?;
            rest = item.get(48 + stripes * 32..).unwrap_or_default();
        }
        Ok(chunks)
    }

    /// Takes up the item of a chunk.
    pub(crate) fn add(&mut self, logical: u64, item: &[u8], superblock: &Superblock, window: &Window) -> Result<()> {
        let (len, kind, stripes) = (le64(item, 0), le64(item, 24), usize::from(le16(item, 44)));
        let bad = |what: String| window.corrupt(format!("chunk {logical:#x}: {what}"));
        if len == 0 || logical.checked_add(len).is_none() || stripes == 0 || item.len() < 48 + stripes * 32 || self.0.len() >= CHUNKS_LIMIT
        {
            return Err(bad(format!("{len} bytes in {stripes} stripes")));
        }
        if kind & STRIPED != 0 && stripes > 1 {
            return Err(Error::Unsupported { filesystem: "btrfs", what: "RAID 0, 10, 5 and 6".into() });
        }
        let stripe = |i: usize| (le64(item, 48 + i * 32), le64(item, 48 + i * 32 + 8));
        let copies: Vec<u64> =
            (0..stripes).map(stripe).filter(|(device, _)| *device == superblock.device).map(|(_, place)| place).collect();
        if copies.is_empty() {
            return Err(bad("it lies on another device".into()));
        }
        self.0.insert(logical, Chunk { len, kind, copies });
        Ok(())
    }

    /// The chunk with an address in it, and where that begins.
    pub(crate) fn at(&self, logical: u64) -> Option<(u64, &Chunk)> {
        let (start, chunk) = self.0.range(..=logical).next_back()?;
        (logical - start < chunk.len).then_some((*start, chunk))
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.0.iter().map(|(start, chunk)| (*start, chunk))
    }
}
