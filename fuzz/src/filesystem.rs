//! Filesystems: opened, inspected, and walked from the root as a tool would do it, with bounds of its own.
//!
//! Filesystems are large and mostly empty. An input is their size, and then their pages that are not: a number of eight
//! bytes and 4 KiB each.

use std::sync::Arc;

use guestfs::reader::{self, FsReader};
use guestfs::{FileType, GuestDisk, Roots, Volumes};
use imgcore::raw::Raw;
use imgcore::storage::{MemStorage, Storage};

const PAGE: usize = 4096;
const ENTRY: usize = 8 + PAGE;
/// No input claims more.
const SIZE_LIMIT: u64 = 1 << 30;
/// Files and names that a walk looks at, each at most.
const FILES: usize = 300;

/// The input that stands for an image.
pub fn pack(image: &[u8]) -> Vec<u8> {
    let mut packed = (image.len() as u64).to_le_bytes().to_vec();
    for (number, page) in image.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0)) {
        packed.extend((number as u64).to_le_bytes());
        packed.extend(page);
        packed.resize(packed.len() + PAGE - page.len(), 0);
    }
    packed
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn unpack(packed: &[u8]) -> Option<Raw> {
    let (size, pages) = packed.split_at_checked(8)?;
    let size = number(size) % (SIZE_LIMIT + 1);
    let storage = MemStorage::new("fuzzed", size);
    for entry in pages.chunks_exact(ENTRY) {
        let at = (number(entry) % (SIZE_LIMIT / PAGE as u64)) * PAGE as u64;
        let len = size.saturating_sub(at).min(PAGE as u64) as usize;
        storage.write_at(&entry[8..8 + len], at).ok()?;
    }
    Raw::open(Arc::new(storage)).ok()
}

/// Takes `data` as a filesystem of this kind.
pub fn run(kind: &str, data: &[u8]) {
    let Some(image) = unpack(data) else { return };
    let image: Arc<dyn imgcore::Image> = Arc::new(image);
    let len = image.size();
    for options in ["", "subvolid=5"].into_iter().take(if kind == "btrfs" { 2 } else { 1 }) {
        if let Ok(fs) = reader::open_with(kind, image.clone(), 0, len, options) {
            walk(fs.as_ref());
        }
    }
    if let Ok(volumes) = Volumes::open(vec![GuestDisk { name: "xvda".into(), image }]) {
        Roots::direct(&volumes);
    }
}

/// Reads all that a tool could ask for.
fn walk(fs: &dyn FsReader) {
    let mut pending = vec![fs.root()];
    let mut buf = vec![0; 140_000];
    let mut files = 0;
    while let Some(ino) = pending.pop() {
        files += 1;
        if files > FILES {
            break;
        }
        let _ = fs.xattrs(ino);
        // What stands in an entry may not be what the file says of itself: everything is tried on everything.
        let _ = fs.readlink(ino).map(|target| assert!(target.len() <= 65536, "a link of {} bytes", target.len()));
        let stat = fs.stat(ino);
        if let Ok(stat) = &stat {
            assert!(stat.mode <= 0o7777 && stat.mtime.nsec < 1_000_000_000, "{stat:?}");
        }
        let size = stat.as_ref().map_or(0, |s| s.size);
        for offset in [0, 5000, size / 2, size.saturating_sub(100), u64::MAX - 10] {
            let _ = fs.read_at(ino, offset, &mut buf).map(|n| assert!(n <= buf.len()));
        }
        if stat.is_ok_and(|s| s.kind == FileType::Directory)
            && let Ok(entries) = fs.read_dir(ino)
        {
            for entry in entries.iter().take(FILES) {
                assert!(!entry.name.is_empty() && !entry.name.contains(&b'/') && entry.name != b"." && entry.name != b"..");
                pending.extend(fs.lookup(ino, &entry.name).ok().flatten());
            }
        }
    }
    let _ = fs.statfs();
}

/// Sets the checksums of btrfs' nodes and superblock right, where nodes are as large as pages.
pub fn mend_btrfs(data: &mut [u8]) {
    let pages = || (8..data.len().saturating_sub(ENTRY - 1)).step_by(ENTRY).map(|at| at + 8);
    let superblock = pages().find(|at| &data[at + 64..at + 72] == b"_BHRfS_M");
    let Some(fsid) = superblock.map(|at| data[at + 32..at + 48].to_vec()) else { return };
    for at in pages().filter(|at| data[at + 32..at + 48] == fsid).collect::<Vec<_>>() {
        let sum = super::mend::crc32c(&data[at + 32..at + PAGE]);
        data[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    }
}
