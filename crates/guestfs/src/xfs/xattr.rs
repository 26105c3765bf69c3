//! Extended attributes: in the inode, in a block, or in many below a tree. (XFS Algorithms & Data Structures,
//! "Extended Attributes")

use super::Xfs;
use super::inode::{Fork, Format, Inode};
use crate::bytes::{be16, be32};
use crate::{Error, Result};

const LEAF_V4: u16 = 0xfbee;
const LEAF_V5: u16 = 0x3bee;
const NODE_V4: u16 = 0xfebe;
const NODE_V5: u16 = 0x3ebe;
const REMOTE: u32 = 0x5841_524d;
/// Bytes before a value in a block of its own, of version 5.
const REMOTE_HEADER: usize = 56;

const LOCAL: u8 = 0x1;
const ROOT: u8 = 0x2;
const SECURE: u8 = 0x4;
const PARENT: u8 = 0x8;
const INCOMPLETE: u8 = 0x80;

const MAX_DEPTH: usize = 5;
/// Blocks of attributes that one file may have.
const LEAVES_LIMIT: usize = 4096;
/// Of a value, as the kernel has it.
const VALUE_LIMIT: usize = 64 << 10;
/// Of all values of one file.
const TOTAL_LIMIT: usize = 16 << 20;

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

pub(crate) fn all(fs: &Xfs, inode: &Inode) -> Result<Attributes> {
    let mut found = Vec::new();
    match inode.attributes(&fs.window)? {
        None => {}
        Some(fork) if fork.format == Format::Local => short(fs, inode, fork.bytes, &mut found)?,
        // A fork that never had a block.
        Some(fork) if fork.format == Format::Extents && fork.extents == 0 => {}
        Some(fork) => leaves(fs, inode, &fork, &mut found)?,
    }
    Ok(found)
}

fn short(fs: &Xfs, inode: &Inode, bytes: &[u8], found: &mut Attributes) -> Result<()> {
    let cut = || fs.window.corrupt(format!("inode {}: its attributes are cut", inode.number));
    let count = *bytes.get(2).ok_or_else(cut)?;
    let mut rest = bytes.get(4..).ok_or_else(cut)?;
    for _ in 0..count {
        let [name_len, value_len, flags, ..] = *rest else { return Err(cut()) };
        let (name_len, value_len) = (usize::from(name_len), usize::from(value_len));
        let name = rest.get(3..3 + name_len).ok_or_else(cut)?;
        let value = rest.get(3 + name_len..3 + name_len + value_len).ok_or_else(cut)?;
        add(flags, name, value, found);
        rest = &rest[3 + name_len + value_len..];
    }
    Ok(())
}

/// One block of the attributes' address space.
fn block(fs: &Xfs, inode: &Inode, fork: &Fork<'_>, number: u32) -> Result<Vec<u8>> {
    let mut block = vec![0; fs.superblock.block_size as usize];
    fs.fill_from(inode, fork, u64::from(number) << fs.superblock.block_log, &mut block)?;
    Ok(block)
}

fn leaves(fs: &Xfs, inode: &Inode, fork: &Fork<'_>, found: &mut Attributes) -> Result<()> {
    let bad = |what: String| fs.window.corrupt(format!("inode {}: attributes: {what}", inode.number));
    let mut number = 0;
    let mut leaf = block(fs, inode, fork, number)?;
    // Down to the first leaf, then from each to the next.
    for depth in 0.. {
        let first = match be16(&leaf, 8) {
            NODE_V4 => be32(&leaf, 16 + 4),
            NODE_V5 => be32(&leaf, 64 + 4),
            _ => break,
        };
        if depth == MAX_DEPTH {
            return Err(bad("the tree is too deep".into()));
        }
        number = first;
        leaf = block(fs, inode, fork, number)?;
    }
    for _ in 0..LEAVES_LIMIT {
        let (count, entries) = match be16(&leaf, 8) {
            LEAF_V4 => (be16(&leaf, 12), 32),
            LEAF_V5 => (be16(&leaf, 56), 80),
            other => return Err(bad(format!("block {number} has magic {other:#06x}"))),
        };
        for i in 0..usize::from(count) {
            let entry = leaf.get(entries + i * 8..entries + i * 8 + 8).ok_or_else(|| bad(format!("{count} in one block")))?;
            attribute(fs, inode, fork, &leaf, usize::from(be16(entry, 4)), entry[6], found)?;
            if found.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() > TOTAL_LIMIT {
                return Err(bad(format!("more than {TOTAL_LIMIT} bytes")));
            }
        }
        number = be32(&leaf, 0);
        if number == 0 {
            return Ok(());
        }
        leaf = block(fs, inode, fork, number)?;
    }
    Err(Error::Unsupported { filesystem: "XFS", what: format!("more than {LEAVES_LIMIT} blocks of attributes") })
}

fn attribute(fs: &Xfs, inode: &Inode, fork: &Fork<'_>, leaf: &[u8], at: usize, flags: u8, found: &mut Attributes) -> Result<()> {
    let cut = || fs.window.corrupt(format!("inode {}: an attribute at byte {at} is cut", inode.number));
    let stored = leaf.get(at..).ok_or_else(cut)?;
    if flags & LOCAL != 0 {
        let (value_len, name_len) = (usize::from(be16(stored, 0)), usize::from(*stored.get(2).ok_or_else(cut)?));
        let name = stored.get(3..3 + name_len).ok_or_else(cut)?;
        let value = stored.get(3 + name_len..3 + name_len + value_len).ok_or_else(cut)?;
        add(flags, name, value, found);
        return Ok(());
    }
    let name_len = usize::from(*stored.get(8).ok_or_else(cut)?);
    let name = stored.get(9..9 + name_len).ok_or_else(cut)?;
    if flags & INCOMPLETE == 0 {
        let len = usize::try_from(be32(stored, 4)).ok().filter(|n| *n <= VALUE_LIMIT).ok_or_else(cut)?;
        let value = remote(fs, inode, fork, be32(stored, 0), len)?;
        add(flags, name, &value, found);
    }
    Ok(())
}

/// A value in blocks of its own.
fn remote(fs: &Xfs, inode: &Inode, fork: &Fork<'_>, first: u32, len: usize) -> Result<Vec<u8>> {
    let mut value = Vec::with_capacity(len);
    let mut number = first;
    while value.len() < len {
        let block = block(fs, inode, fork, number)?;
        let part = if fs.superblock.v5 {
            if be32(&block, 0) != REMOTE {
                return Err(fs.window.corrupt(format!("inode {}: block {number} holds no attribute's value", inode.number)));
            }
            &block[REMOTE_HEADER..]
        } else {
            &block[..]
        };
        value.extend(&part[..part.len().min(len - value.len())]);
        number = number.wrapping_add(1);
    }
    Ok(value)
}

/// Takes an attribute up under the name that getxattr(2) has for it.
fn add(flags: u8, name: &[u8], value: &[u8], found: &mut Attributes) {
    if flags & (INCOMPLETE | PARENT) != 0 {
        return;
    }
    let prefix: &[u8] = match flags & (ROOT | SECURE) {
        0 => b"user.",
        SECURE => b"security.",
        _ => {
            let acl: Option<&[u8]> = match name {
                b"SGI_ACL_FILE" => Some(b"system.posix_acl_access"),
                b"SGI_ACL_DEFAULT" => Some(b"system.posix_acl_default"),
                _ => None,
            };
            if let Some(acl) = acl {
                found.extend(access_list(value).map(|value| (acl.to_vec(), value)));
                return;
            }
            b"trusted."
        }
    };
    found.push(([prefix, name].concat(), value.to_vec()));
}

/// From XFS's form of an ACL to the kernel's (version 2).
fn access_list(stored: &[u8]) -> Option<Vec<u8>> {
    const USER: u32 = 2;
    const GROUP: u32 = 8;
    let mut out = 2u32.to_le_bytes().to_vec();
    let entries = stored.get(4..)?.chunks_exact(12);
    for entry in entries.take(usize::try_from(be32(stored, 0)).ok()?) {
        let (tag, permissions) = (be32(entry, 0), be16(entry, 8));
        let id = if tag == USER || tag == GROUP { be32(entry, 4) } else { u32::MAX };
        out.extend(u16::try_from(tag).ok()?.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Some(out)
}
