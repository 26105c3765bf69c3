//! Files' content: blocks of their own, and a tail in a block that several files share.

use std::sync::{Arc, PoisonError};

use super::Squashfs;
use super::inode::{Body, Inode, NO_FRAGMENT};
use crate::Result;
use crate::bytes::{le32, le64};

const PLAIN: u32 = 1 << 24;

/// How far the list of a file's blocks was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    inode: u64,
    /// The next block of the file, and the byte where it is stored.
    block: u64,
    stored: u64,
    /// Where the next entry of the list lies.
    list: (u64, usize),
}

/// One piece of a file: up to the end of a block, of the file or of the buffer.
pub(crate) fn piece(fs: &Squashfs, reference: u64, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let bad = |what: String| fs.metadata.window.corrupt(format!("inode {}: {what}", inode.number));
    let Body::File { start, fragment, fragment_offset, sizes } = inode.body else { return Err(bad("it is not a file".into())) };
    let left = inode.size.saturating_sub(offset);
    if left == 0 {
        return Ok(0);
    }
    let block_size = u64::from(fs.metadata.superblock.block_size);
    let (block, skip) = (offset / block_size, offset % block_size);
    let in_tail = fragment != NO_FRAGMENT && block == inode.size / block_size;
    let len = left.min(block_size - skip);
    let take = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
    let out = &mut buf[..take];
    let content = if in_tail {
        Some((tail(fs, fragment)?, u64::from(fragment_offset) + skip))
    } else {
        let begin = Position { inode: reference, block: 0, stored: start, list: sizes };
        own(fs, begin, block)?.map(|content| (content, skip))
    };
    match content {
        None => out.fill(0),
        Some((content, from)) => {
            let from = usize::try_from(from).unwrap_or(usize::MAX);
            let part = from.checked_add(take).and_then(|end| content.get(from..end));
            out.copy_from_slice(part.ok_or_else(|| bad(format!("block {block} is too short")))?);
        }
    }
    Ok(take)
}

/// Block `wanted` of a file; `None` for zeroes.
fn own(fs: &Squashfs, begin: Position, wanted: u64) -> Result<Option<Arc<[u8]>>> {
    let known = *fs.last.lock().unwrap_or_else(PoisonError::into_inner);
    let mut position = known.filter(|p| p.inode == begin.inode && p.block <= wanted).unwrap_or(begin);
    loop {
        let mut cursor = fs.metadata.at(position.list.0, position.list.1);
        let size = le32(&cursor.take(4)?, 0);
        if position.block == wanted {
            *fs.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
            return if size == 0 { Ok(None) } else { stored(fs, position.stored, size).map(Some) };
        }
        let next = position.stored.checked_add((size & (PLAIN - 1)).into());
        let next = next.ok_or_else(|| fs.metadata.window.corrupt("a file's blocks lie behind the end".into()))?;
        position = Position { inode: begin.inode, block: position.block + 1, stored: next, list: (cursor.place, cursor.offset) };
    }
}

/// The block that holds a file's tail.
fn tail(fs: &Squashfs, fragment: u32) -> Result<Arc<[u8]>> {
    let superblock = &fs.metadata.superblock;
    if fragment >= superblock.fragments {
        return Err(fs.metadata.window.corrupt(format!("fragment {fragment} of {}", superblock.fragments)));
    }
    let entry = fs.metadata.entry(superblock.fragment_table, fragment.into(), 16)?;
    stored(fs, le64(&entry, 0), le32(&entry, 8))
}

fn stored(fs: &Squashfs, place: u64, size: u32) -> Result<Arc<[u8]>> {
    fs.blocks.get(place, || {
        let (limit, len) = (fs.metadata.superblock.block_size as usize, (size & (PLAIN - 1)) as usize);
        if len > limit {
            return Err(fs.metadata.window.corrupt(format!("a block of {len} bytes at {place:#x}")));
        }
        let stored = fs.metadata.window.bytes(place, len)?;
        Ok(if size & PLAIN != 0 { stored } else { fs.metadata.superblock.unpack(&stored, limit, &fs.metadata.window)? }.into())
    })
}
