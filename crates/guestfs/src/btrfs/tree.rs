//! Trees: nodes read and checked, and items found in them. (btrfs documentation, "B-trees")
//!
//! Every node must begin with the key that its parent has for it. So no node can be reached in two ways, and a walk
//! over a damaged tree ends.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::chunks::Chunks;
use super::superblock::Superblock;
use crate::bytes::{crc32c, cut, le32, le64};
use crate::{Result, Window};

pub(crate) const INODE_ITEM: u8 = 1;
pub(crate) const INODE_REF: u8 = 12;
pub(crate) const XATTR_ITEM: u8 = 24;
pub(crate) const DIR_ITEM: u8 = 84;
pub(crate) const DIR_INDEX: u8 = 96;
pub(crate) const EXTENT_DATA: u8 = 108;
pub(crate) const ROOT_ITEM: u8 = 132;
pub(crate) const ROOT_BACKREF: u8 = 144;
pub(crate) const BLOCK_GROUP_ITEM: u8 = 192;
pub(crate) const CHUNK_ITEM: u8 = 228;

/// Bytes before a node's items.
const HEADER: usize = 101;
const LEAF_ITEM: usize = 25;
const KEY_POINTER: usize = 33;
const MAX_LEVEL: u8 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub(crate) fn new(object: u64, kind: u8, offset: u64) -> Self {
        Key { object, kind, offset }
    }

    pub(crate) fn parse(bytes: &[u8], at: usize) -> Self {
        Key::new(le64(bytes, at), cut(bytes, at + 8, 1).first().copied().unwrap_or_default(), le64(bytes, at + 9))
    }
}

/// Where a tree begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub address: u64,
    pub level: u8,
}

/// A leaf, and an item in it.
pub(crate) struct Found {
    leaf: Arc<[u8]>,
    /// The last item that is not behind the key that was looked for; `None` if they all are.
    pub slot: Option<usize>,
    /// The first key of the next leaf, if there is one.
    upper: Option<Key>,
}

impl Found {
    pub(crate) fn count(&self) -> usize {
        le32(&self.leaf, 96) as usize
    }

    pub(crate) fn key(&self, slot: usize) -> Key {
        Key::parse(&self.leaf, HEADER + slot * LEAF_ITEM)
    }

    /// The key after the item that was found.
    pub(crate) fn next_key(&self) -> Option<Key> {
        let next = self.slot.map_or(0, |slot| slot + 1);
        if next < self.count() { Some(self.key(next)) } else { self.upper }
    }

    /// An item's bytes; empty where they would lie outside the leaf.
    pub(crate) fn item(&self, slot: usize) -> &[u8] {
        let at = HEADER + slot * LEAF_ITEM;
        let start = HEADER.saturating_add(le32(&self.leaf, at + 17) as usize);
        self.leaf.get(start..start.saturating_add(le32(&self.leaf, at + 21) as usize)).unwrap_or_default()
    }
}

/// What reads nodes.
pub(crate) struct Nodes {
    pub window: Window,
    pub superblock: Superblock,
    pub chunks: Chunks,
}

impl Nodes {
    /// Reads bytes at an address of the filesystem, from the first copy or another one.
    pub(crate) fn read(&self, logical: u64, copy: usize, buf: &mut [u8]) -> Result<()> {
        let outside = || self.window.corrupt(format!("{} bytes at {logical:#x} are in no chunk", buf.len()));
        let (start, chunk) = self.chunks.at(logical).ok_or_else(outside)?;
        let skip = logical - start;
        if chunk.len - skip < buf.len() as u64 {
            return Err(outside());
        }
        let place = chunk.copies.get(copy).and_then(|c| c.checked_add(skip)).ok_or_else(outside)?;
        self.window.read(place, buf)
    }

    /// A node, from whichever copy of it is whole.
    fn node(&self, address: u64, level: u8) -> Result<Arc<[u8]>> {
        let node = self.window.cached_as(address, || {
            let copies = self.chunks.at(address).map_or(1, |(_, chunk)| chunk.copies.len());
            let mut failure = None;
            for copy in 0..copies {
                let mut node = vec![0; self.superblock.node_size as usize];
                let outcome = self.read(address, copy, &mut node).and_then(|()| self.check(&node, address));
                match outcome {
                    Ok(()) => return Ok(node.into()),
                    Err(e) => failure = failure.or(Some(e)),
                }
            }
            Err(failure.unwrap_or_else(|| self.window.corrupt(format!("node {address:#x} has no copy"))))
        })?;
        if node.get(100) != Some(&level) {
            return Err(self.window.corrupt(format!("node {address:#x} has level {:?}, expected {level}", node.get(100))));
        }
        Ok(node)
    }

    fn check(&self, node: &[u8], address: u64) -> Result<()> {
        let bad = |what: String| Err(self.window.corrupt(format!("node {address:#x}: {what}")));
        if self.superblock.crc32c {
            let (actual, stored) = (!crc32c(!0, cut(node, 32, node.len())), le32(node, 0));
            if actual != stored {
                return bad(format!("checksum {actual:#010x}, expected {stored:#010x}"));
            }
        }
        if le64(node, 48) != address {
            return bad(format!("it says that it lies at {:#x}", le64(node, 48)));
        }
        let entry = if node.get(100) == Some(&0) { LEAF_ITEM } else { KEY_POINTER };
        let count = le32(node, 96) as usize;
        if count > (node.len() - HEADER) / entry {
            return bad(format!("{count} entries"));
        }
        Ok(())
    }

    /// The last item of a tree that is not behind `key`.
    pub(crate) fn find(&self, root: Root, key: Key) -> Result<Found> {
        let bad = |address: u64, what: &str| self.window.corrupt(format!("node {address:#x}: {what}"));
        if root.level > MAX_LEVEL {
            return Err(bad(root.address, "too many levels"));
        }
        let (mut address, mut level, mut first, mut upper) = (root.address, root.level, None, None);
        loop {
            let node = self.node(address, level)?;
            let count = le32(&node, 96) as usize;
            let size = if level == 0 { LEAF_ITEM } else { KEY_POINTER };
            let key_of = |slot: usize| Key::parse(&node, HEADER + slot * size);
            if first.is_some_and(|first| count == 0 || key_of(0) != first) {
                return Err(bad(address, "it does not begin with the key that its parent has for it"));
            }
            let after = partition_point(count, |slot| key_of(slot) <= key);
            if level == 0 {
                return Ok(Found { slot: after.checked_sub(1), upper, leaf: node });
            }
            if after < count {
                upper = Some(key_of(after));
            }
            if count == 0 {
                return Err(bad(address, "it is empty"));
            }
            let slot = after.saturating_sub(1);
            first = Some(key_of(slot));
            address = le64(&node, HEADER + slot * KEY_POINTER + 17);
            level -= 1;
        }
    }

    /// Hands the items with keys in a range to `visit`, in order.
    pub(crate) fn walk(&self, root: Root, keys: Range<Key>, mut visit: impl FnMut(Key, &[u8]) -> Result<ControlFlow<()>>) -> Result<()> {
        let mut from = keys.start;
        loop {
            let found = self.find(root, from)?;
            let begin = match found.slot {
                Some(slot) if found.key(slot) >= from => slot,
                Some(slot) => slot + 1,
                None => 0,
            };
            for slot in begin..found.count() {
                let key = found.key(slot);
                if key >= keys.end || visit(key, found.item(slot))?.is_break() {
                    return Ok(());
                }
            }
            match found.upper {
                Some(upper) if upper < keys.end && upper > from => from = upper,
                Some(upper) if upper <= from => return Err(self.window.corrupt("a tree's keys do not ascend".into())),
                _ => return Ok(()),
            }
        }
    }

    /// The item with exactly this key.
    pub(crate) fn get(&self, root: Root, key: Key) -> Result<Option<Vec<u8>>> {
        let found = self.find(root, key)?;
        Ok(found.slot.filter(|slot| found.key(*slot) == key).map(|slot| found.item(slot).to_vec()))
    }
}

fn partition_point(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
