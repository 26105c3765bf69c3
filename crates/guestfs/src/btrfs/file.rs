//! Files' content: inline, in extents, compressed. (btrfs documentation, EXTENT_DATA)

use std::sync::Arc;

use super::inode::Inode;
use super::tree::{EXTENT_DATA, Found, Key, Root};
use super::{Btrfs, checksum};
use crate::bytes::{cut, le16, le32, le64};
use crate::compression;
use crate::{Error, Result};

const INLINE: u8 = 0;
const REGULAR: u8 = 1;
const PREALLOCATED: u8 = 2;
/// No compressed extent is larger, before and after.
const COMPRESSED_LIMIT: u64 = 128 << 10;
/// Nor inline content, which fits into a node.
const INLINE_LIMIT: u64 = 64 << 10;
/// Bytes of an item before inline content.
const INLINE_HEADER: usize = 21;

/// One piece of a file: up to the end of an extent or of the buffer. `buf` ends with the file at the latest.
pub(crate) fn piece(fs: &Btrfs, tree: Root, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let found = fs.nodes.find(tree, Key::new(inode.number, EXTENT_DATA, offset))?;
    let next = found.next_key().filter(|k| k.object == inode.number && k.kind == EXTENT_DATA).map_or(u64::MAX, |k| k.offset);
    let here = |len: u64| usize::try_from(len).unwrap_or(usize::MAX).max(1).min(buf.len());
    if let Some(slot) = found.slot.filter(|s| (found.key(*s).object, found.key(*s).kind) == (inode.number, EXTENT_DATA)) {
        let skip = offset - found.key(slot).offset;
        if let Some((content, len)) = extent(fs, inode, &found, slot, skip)? {
            let take = here(len.min(next.saturating_sub(offset)));
            match content {
                Content::Zeroes => buf[..take].fill(0),
                Content::At(logical) => checksum::read(fs, inode, logical, &mut buf[..take])?,
                Content::Bytes(bytes, skip) => {
                    let part = bytes.get(skip..).unwrap_or_default();
                    let part = &part[..part.len().min(take)];
                    buf[..part.len()].copy_from_slice(part);
                    buf[part.len()..take].fill(0);
                }
            }
            return Ok(take);
        }
    }
    // A hole that no item tells of.
    let take = here(next.saturating_sub(offset));
    buf[..take].fill(0);
    Ok(take)
}

/// Whether there is a hole at a place, and for how many bytes it goes on so.
pub(crate) fn run_of(fs: &Btrfs, tree: Root, inode: &Inode, offset: u64) -> Result<(bool, u64)> {
    let found = fs.nodes.find(tree, Key::new(inode.number, EXTENT_DATA, offset))?;
    let next = found.next_key().filter(|k| k.object == inode.number && k.kind == EXTENT_DATA).map_or(u64::MAX, |k| k.offset);
    let until_next = next.saturating_sub(offset);
    if let Some(slot) = found.slot.filter(|s| (found.key(*s).object, found.key(*s).kind) == (inode.number, EXTENT_DATA)) {
        let (item, skip) = (found.item(slot), offset - found.key(slot).offset);
        let (len, hole) = match cut(item, 20, 1) {
            [INLINE] => (le64(item, 8), false),
            kind => (le64(item, 45), le64(item, 21) == 0 || kind == [PREALLOCATED]),
        };
        if skip < len {
            return Ok((hole, (len - skip).min(until_next)));
        }
    }
    Ok((true, until_next))
}

enum Content {
    Zeroes,
    /// Where it lies in the filesystem's addresses.
    At(u64),
    /// What was inline or compressed, and the beginning of what is asked for in it.
    Bytes(Arc<[u8]>, usize),
}

/// What an item has `skip` bytes into it, and for how many bytes; `None` behind its end.
fn extent(fs: &Btrfs, inode: &Inode, found: &Found, slot: usize, skip: u64) -> Result<Option<(Content, u64)>> {
    let item = found.item(slot);
    let at = found.key(slot).offset;
    let bad = |what: String| fs.nodes.window.corrupt(format!("inode {}: extent at {at}: {what}", inode.number));
    let (ram, compressed) = (le64(item, 8), cut(item, 16, 1).first().copied().unwrap_or_default());
    if cut(item, 17, 1) != [0] || le16(item, 18) != 0 {
        return Err(Error::Unsupported { filesystem: "btrfs", what: "encrypted files".into() });
    }
    match cut(item, 20, 1) {
        [INLINE] => {
            if skip >= ram {
                return Ok(None);
            }
            if ram > INLINE_LIMIT {
                return Err(bad(format!("{ram} bytes inline")));
            }
            let stored = item.get(INLINE_HEADER..).unwrap_or_default();
            let bytes = unpack(fs, compressed, stored, ram as usize)?;
            Ok(Some((Content::Bytes(bytes, skip as usize), ram - skip)))
        }
        [kind @ (REGULAR | PREALLOCATED)] => {
            let (logical, stored, offset, len) = (le64(item, 21), le64(item, 29), le64(item, 37), le64(item, 45));
            if skip >= len {
                return Ok(None);
            }
            if logical == 0 || *kind == PREALLOCATED {
                return Ok(Some((Content::Zeroes, len - skip)));
            }
            let within = offset.checked_add(skip).ok_or_else(|| bad(format!("an offset of {offset}")))?;
            if compressed == 0 {
                let place = logical.checked_add(within).filter(|_| within < stored).ok_or_else(|| bad(format!("{stored} bytes")))?;
                return Ok(Some((Content::At(place), (len - skip).min(stored - within))));
            }
            if ram > COMPRESSED_LIMIT || stored > COMPRESSED_LIMIT {
                return Err(bad(format!("{ram} bytes compressed to {stored}")));
            }
            let bytes = fs.unpacked.get(logical, || {
                let mut packed = vec![0; stored as usize];
                checksum::read(fs, inode, logical, &mut packed)?;
                unpack(fs, compressed, &packed, ram as usize)
            })?;
            let within = usize::try_from(within).unwrap_or(usize::MAX);
            Ok(Some((Content::Bytes(bytes, within), len - skip)))
        }
        other => Err(bad(format!("type {other:?}"))),
    }
}

/// What compressed bytes stand for; at most `len`.
fn unpack(fs: &Btrfs, method: u8, packed: &[u8], len: usize) -> Result<Arc<[u8]>> {
    let unpacked = match method {
        0 => Some(packed[..packed.len().min(len)].to_vec()),
        1 => compression::zlib(packed, len),
        2 => lzo(packed, len, fs.nodes.superblock.sector_size as usize),
        3 => compression::zstd(packed, len),
        other => return Err(Error::Unsupported { filesystem: "btrfs", what: format!("compression {other}") }),
    };
    Ok(unpacked.ok_or_else(|| fs.nodes.window.corrupt("compressed content is damaged".into()))?.into())
}

/// btrfs puts a sector's worth into each segment; no segment's header crosses a sector's end.
fn lzo(packed: &[u8], len: usize, sector: usize) -> Option<Vec<u8>> {
    let end = packed.len().min(le32(packed, 0) as usize);
    let mut out = Vec::new();
    let mut at = 4;
    while at + 4 <= end && out.len() < len {
        if sector - at % sector < 4 {
            at = at.next_multiple_of(sector);
            continue;
        }
        let segment = le32(packed, at) as usize;
        let bytes = packed.get(at + 4..(at + 4).checked_add(segment)?)?;
        out.extend(compression::lzo(bytes, sector.min(len - out.len()))?);
        at += 4 + segment;
    }
    Some(out)
}
