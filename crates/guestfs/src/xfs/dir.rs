//! Directories: names in the inode or in blocks of data. The indexes behind those are not needed, since a directory is
//! read whole. (XFS Algorithms & Data Structures, "Directories")

use super::Xfs;
use super::inode::{Format, Inode};
use crate::bytes::{be16, be32, be64};
use crate::directory::{Directory, SIZE_LIMIT, is_name};
use crate::{Error, FileType, Result};

const BLOCK_V4: u32 = 0x5844_3242;
const DATA_V4: u32 = 0x5844_3244;
const BLOCK_V5: u32 = 0x5844_4233;
const DATA_V5: u32 = 0x5844_4433;
/// Where a block of version 5 has its checksum.
const CRC: usize = 4;
/// Where indexes begin in a directory's address space, in bytes.
const LEAF_OFFSET: u64 = 32 << 30;
const FREE_TAG: u16 = 0xffff;

pub(crate) fn read(fs: &Xfs, inode: &Inode) -> Result<Directory> {
    let mut directory = Directory::default();
    let fork = inode.data(&fs.window)?;
    if fork.format == Format::Local {
        short(fs, inode, fork.bytes, &mut directory)?;
        return Ok(directory);
    }
    let too_large = || Error::Unsupported { filesystem: "XFS", what: format!("a directory of {} bytes", inode.size) };
    if inode.size > SIZE_LIMIT.min(LEAF_OFFSET) {
        return Err(too_large());
    }
    let size = fs.superblock.dir_block_size as usize;
    let mut at = 0;
    while at < inode.size {
        let (hole, len) = fs.run_of(inode, &fork, at)?;
        if hole {
            at = at.saturating_add(len).next_multiple_of(size as u64);
            continue;
        }
        let mut block = vec![0; size];
        fs.fill_from(inode, &fork, at, &mut block)?;
        if matches!(be32(&block, 0), BLOCK_V5 | DATA_V5) {
            fs.check(&block, CRC, || format!("directory inode {}, block at {at}", inode.number))?;
        }
        parse(fs, inode, &block, &mut directory)?;
        if directory.is_full() {
            return Err(too_large());
        }
        at += size as u64;
    }
    Ok(directory)
}

/// The few names of a directory that fits into its inode.
fn short(fs: &Xfs, inode: &Inode, bytes: &[u8], directory: &mut Directory) -> Result<()> {
    let cut = || fs.window.corrupt(format!("directory inode {}: its names are cut", inode.number));
    let [count, wide, ..] = *bytes else { return Err(cut()) };
    let number_len = if wide > 0 { 8 } else { 4 };
    // The parent's number stands first.
    let mut rest = bytes.get(2 + number_len..).ok_or_else(cut)?;
    for _ in 0..count {
        let name_len = usize::from(*rest.first().ok_or_else(cut)?);
        let name = rest.get(3..3 + name_len).ok_or_else(cut)?;
        let kind_len = usize::from(fs.superblock.has_ftype);
        let number = rest.get(3 + name_len + kind_len..).filter(|b| b.len() >= number_len).ok_or_else(cut)?;
        let ino = if wide > 0 { be64(number, 0) } else { be32(number, 0).into() };
        let kind = fs.superblock.has_ftype.then(|| rest[3 + name_len]);
        add(fs, inode, name, ino, kind, directory)?;
        rest = &number[number_len..];
    }
    Ok(())
}

/// The names in one block.
fn parse(fs: &Xfs, inode: &Inode, block: &[u8], directory: &mut Directory) -> Result<()> {
    let bad = |at: usize, what: &str| fs.window.corrupt(format!("directory inode {}, byte {at} of a block: {what}", inode.number));
    let magic = be32(block, 0);
    let (mut at, end) = match magic {
        DATA_V4 => (16, block.len()),
        DATA_V5 => (64, block.len()),
        // One block with all there is: its index stands at its end, with its length behind.
        BLOCK_V4 | BLOCK_V5 => {
            let index = usize::try_from(be32(block, block.len() - 8)).ok().and_then(|n| n.checked_mul(8));
            let end = index.and_then(|n| (block.len() - 8).checked_sub(n)).ok_or_else(|| bad(block.len() - 8, "the index is too long"))?;
            (if magic == BLOCK_V4 { 16 } else { 64 }, end)
        }
        _ => return Err(bad(0, &format!("magic {magic:#010x}"))),
    };
    let kind_len = usize::from(fs.superblock.has_ftype);
    while at + 8 <= end {
        if be16(block, at) == FREE_TAG {
            let len = usize::from(be16(block, at + 2));
            if len < 8 || len % 8 != 0 {
                return Err(bad(at, &format!("free space of {len} bytes")));
            }
            at += len;
            continue;
        }
        let name_len = usize::from(block.get(at + 8).copied().unwrap_or_default());
        // Number, length, name, kind and a tag, in units of eight bytes.
        let len = (8 + 1 + name_len + kind_len + 2).next_multiple_of(8);
        let name = block.get(at + 9..at + 9 + name_len).filter(|_| at + len <= end).ok_or_else(|| bad(at, "a name is cut"))?;
        let kind = fs.superblock.has_ftype.then(|| block[at + 9 + name_len]);
        add(fs, inode, name, be64(block, at), kind, directory)?;
        at += len;
    }
    Ok(())
}

fn add(fs: &Xfs, inode: &Inode, name: &[u8], ino: u64, kind: Option<u8>, directory: &mut Directory) -> Result<()> {
    if name == b"." || name == b".." {
        return Ok(());
    }
    if !is_name(name) {
        let shown = crate::error::show(name);
        return Err(fs.window.corrupt(format!("directory inode {}: a file cannot be called '{shown}'", inode.number)));
    }
    let kind = match kind.and_then(FileType::of_entry) {
        Some(kind) => kind,
        None => fs.inode(ino)?.kind,
    };
    directory.add(name, kind, ino, ino);
    Ok(())
}
