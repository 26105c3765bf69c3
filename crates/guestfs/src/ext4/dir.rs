//! Directories: names in blocks, hash trees read as the plain rows of entries that they also are, and small ones
//! inside the inode. (ext4 documentation, 4.4)

use super::Ext4;
use super::corrupt;
use super::inode::{FLAG_ENCRYPTED, FLAG_INLINE_DATA, Inode};
use super::map;
use super::superblock::INCOMPAT_FILETYPE;
use crate::bytes::{le16, le32};
use crate::directory::{Directory, NAMES_LIMIT, SIZE_LIMIT, is_name};
use crate::{Error, FileType, Result};

pub(crate) fn read(fs: &Ext4, dir: &Inode) -> Result<Directory> {
    if dir.has(FLAG_ENCRYPTED) {
        return Err(Error::Unsupported { filesystem: "ext4", what: "encrypted directories".into() });
    }
    let too_large = || Error::Unsupported { filesystem: "ext4", what: format!("a directory of {} bytes", dir.size) };
    if dir.size > SIZE_LIMIT {
        return Err(too_large());
    }
    let mut raw = Vec::new();
    if dir.has(FLAG_INLINE_DATA) {
        // The first four bytes are the parent's inode; the rest of `i_block` and the attribute are two rows of entries.
        let data = fs.inline_data(dir)?;
        let (head, tail) = data.split_at(data.len().min(super::inode::I_BLOCK));
        parse(fs, dir, head.get(4..).unwrap_or_default(), &mut raw)?;
        parse(fs, dir, tail, &mut raw)?;
    } else {
        let block_size = u64::from(fs.device.block_size);
        let (mut at, blocks) = (0, dir.size.div_ceil(block_size));
        while at < blocks {
            let run = map::run(&fs.device, dir, at)?;
            if let Some(first) = run.physical {
                for i in 0..run.len.min(blocks - at) {
                    parse(fs, dir, &fs.device.block(first + i)?, &mut raw)?;
                    if raw.len() > NAMES_LIMIT {
                        return Err(too_large());
                    }
                }
            }
            at = at.saturating_add(run.len);
        }
    }
    let mut directory = Directory::default();
    for (name, ino, kind) in raw {
        // Old filesystems keep no kinds in directories, and the field is only a hint.
        let kind = match kind {
            Some(kind) => kind,
            None => fs.inode(ino)?.kind,
        };
        directory.add(&name, kind, ino.into(), ino.into());
    }
    Ok(directory)
}

type RawEntry = (Vec<u8>, u32, Option<FileType>);

/// Entries of one row: a block, or a part of an inode.
fn parse(fs: &Ext4, dir: &Inode, row: &[u8], entries: &mut Vec<RawEntry>) -> Result<()> {
    let bad = |at: usize, what: String| corrupt(format!("directory inode {}, byte {at} of a block: {what}", dir.number));
    let mut at = 0;
    while at + 8 <= row.len() {
        let ino = le32(row, at);
        let len = match le16(row, at + 4) {
            // 64 KiB don't fit into 16 bits.
            0 | 0xffff if row.len() == 65536 => 65536,
            odd if row.len() == 65536 => usize::from(odd & 0xfffc) | usize::from(odd & 3) << 16,
            len => usize::from(len),
        };
        let filetype = fs.superblock.has_incompat(INCOMPAT_FILETYPE);
        // Of 16 bits without kinds, but never above 255; the upper half marks a checksum even there.
        let name_len = usize::from(row[at + 6]);
        if len < 8 || len % 4 != 0 || at + len > row.len() || name_len + 8 > len {
            if ino == 0 && len == 0 {
                // The unused end of an inline directory.
                break;
            }
            return Err(bad(at, format!("an entry of {len} bytes with a name of {name_len}")));
        }
        if ino != 0 {
            let name = &row[at + 8..at + 8 + name_len];
            if name != b"." && name != b".." {
                if !is_name(name) {
                    return Err(bad(at, format!("a file cannot be called '{}'", crate::error::show(name))));
                }
                let kind = filetype.then(|| FileType::of_entry(row[at + 7])).flatten();
                entries.push((name.to_vec(), ino, kind));
            }
        }
        at += len;
    }
    Ok(())
}
