//! Directories: an index of names, whose nodes are read one by one, in no order. (Linux-NTFS documentation, "$INDEX_ROOT",
//! "$INDEX_ALLOCATION")

use super::record::{self, BITMAP, INDEX_ALLOCATION, INDEX_ROOT, Record};
use super::{Ntfs, reparse, text};
use crate::bytes::{cut, le16, le32, le64};
use crate::directory::{Directory, SIZE_LIMIT, is_name};
use crate::{Error, FileType, Result};

/// "$I30": the index of names.
pub(crate) const NAME: &[u8] = b"$\0I\x003\x000\0";
/// Files below this number are the filesystem's own.
const FIRST_USER: u64 = 24;
const LAST_ENTRY: u16 = 2;
/// A name that only DOS sees.
const NAMESPACE_DOS: u8 = 2;
const FLAG_DIRECTORY: u32 = 0x1000_0000;
const FLAG_REPARSE: u32 = 0x400;

pub(crate) fn read(fs: &Ntfs, record: &Record) -> Result<Directory> {
    let bad = |what: &str| fs.window.corrupt(format!("record {}: its index {what}", record.number));
    let mut directory = Directory::default();
    let root = fs.content(record, INDEX_ROOT, NAME, 64 << 10)?.ok_or_else(|| bad("is missing"))?;
    entries(fs, record, root.get(16..).unwrap_or_default(), &mut directory)?;
    let Some(nodes) = fs.stream(record, INDEX_ALLOCATION, NAME)? else { return Ok(directory) };
    let size = le32(&root, 8) as usize;
    if !size.is_power_of_two() || !(512..=65536).contains(&size) {
        return Err(bad(&format!("has nodes of {size} bytes")));
    }
    if nodes.size() > SIZE_LIMIT {
        return Err(Error::Unsupported { filesystem: "NTFS", what: format!("a directory of {} bytes", nodes.size()) });
    }
    let used = fs.content(record, BITMAP, NAME, SIZE_LIMIT / 512)?.unwrap_or_default();
    for index in 0..nodes.size() / size as u64 {
        let byte = usize::try_from(index / 8).ok().and_then(|i| used.get(i)).copied().unwrap_or_default();
        if byte & (1 << (index % 8)) == 0 {
            continue;
        }
        let mut node = vec![0; size];
        crate::reader::fill(index * size as u64, &mut node, |at, rest| nodes.piece(fs, record.number, at, rest))?;
        record::fix(&mut node, b"INDX", &fs.window, &format!("node {index} of record {}'s index", record.number))?;
        entries(fs, record, &node[24..], &mut directory)?;
        if directory.is_full() {
            return Err(Error::Unsupported { filesystem: "NTFS", what: format!("a directory of {} bytes", nodes.size()) });
        }
    }
    Ok(directory)
}

/// The entries of one node, which begins with its header.
fn entries(fs: &Ntfs, record: &Record, node: &[u8], directory: &mut Directory) -> Result<()> {
    let bad = |what: String| fs.window.corrupt(format!("record {}: its index has {what}", record.number));
    let mut at = le32(node, 0) as usize;
    let end = (le32(node, 4) as usize).min(node.len());
    while at + 16 <= end {
        let (len, flags) = (usize::from(le16(node, at + 8)), le16(node, at + 12));
        if flags & LAST_ENTRY != 0 {
            break;
        }
        let entry = node.get(at..at + len).filter(|_| len >= 16 + 66 && at + len <= end);
        let entry = entry.ok_or_else(|| bad(format!("an entry of {len} bytes at {at}")))?;
        at += len;
        // The sequence number above says which of the files that had this record is meant.
        let number = le64(entry, 0) & 0xffff_ffff_ffff;
        let key = &entry[16..];
        let (name_len, namespace) = (usize::from(key[64]) * 2, key[65]);
        if namespace == NAMESPACE_DOS || number < FIRST_USER {
            continue;
        }
        let name = text(key.get(66..66 + name_len).ok_or_else(|| bad("a name that is cut".into()))?);
        if !is_name(name.as_bytes()) {
            return Err(bad(format!("a file called '{}'", crate::error::show(name.as_bytes()))));
        }
        let flags = le32(key, 56);
        let kind = match flags {
            _ if flags & FLAG_REPARSE != 0 && reparse::is_link(le32(cut(key, 60, 4), 0)) => FileType::Symlink,
            _ if flags & FLAG_DIRECTORY != 0 => FileType::Directory,
            _ => FileType::Regular,
        };
        directory.add(name.as_bytes(), kind, number, number);
    }
    Ok(())
}
