//! FAT12, FAT16 and FAT32 with long names, read only.
//!
//! FAT has no inodes: a file's number here is the byte of the volume where its directory entry lies.

mod boot;
mod dir;

use std::sync::{Arc, Mutex, PoisonError};

use imgcore::Image;

use self::boot::{Boot, Width};
use self::dir::{Entry, Long, Seen};
use crate::bytes::{le16, le32};
use crate::directory::{Directories, Directory, is_name};
use crate::reader::{FsReader, fill};
use crate::{DirEntry, FileType, Result, Stat, StatFs, Time, Window};

/// No directory entry lies there.
const ROOT: u64 = 0;
/// The specification's limit for a directory, and some more for those who break it.
const DIRECTORY_LIMIT: u64 = 16 << 20;
/// Of the table, read at once and kept.
const PAGE: u64 = 4096;
const INFO_MAGIC: u32 = 0x6141_7272;

/// An open filesystem.
pub(crate) struct Fat {
    window: Window,
    boot: Boot,
    directories: Directories,
    /// Where a chain was followed to last: its first cluster, an index, and the cluster there.
    last: Mutex<(u32, u64, u32)>,
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    let window = Window::new(image, start, len, "FAT");
    let boot = Boot::parse(&window.bytes(0, 512)?, &window)?;
    Ok(Arc::new(Fat { window, boot, directories: Directories::default(), last: Mutex::new((0, 0, 0)) }))
}

impl Fat {
    /// A byte of the table and the one behind it, and so on.
    fn table(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let place = self.boot.fat + at;
        let mut bytes = Vec::with_capacity(len);
        for i in 0..len as u64 {
            let (page, within) = ((place + i) / PAGE * PAGE, ((place + i) % PAGE) as usize);
            let page = self.window.cached_as(page, || {
                // The last page may be cut short by the volume's end.
                let whole = self.window.bytes(page, PAGE as usize).or_else(|_| self.window.bytes(page, within + 1));
                Ok(whole?.into())
            })?;
            bytes.push(page.get(within).copied().unwrap_or_default());
        }
        Ok(bytes)
    }

    /// What follows a cluster; `None` at the end of its chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = u64::from(cluster);
        let (next, end) = match self.boot.width {
            Width::Fat12 => {
                let pair = le16(&self.table(at + at / 2, 2)?, 0);
                (u32::from(if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }), 0xff8)
            }
            Width::Fat16 => (u32::from(le16(&self.table(at * 2, 2)?, 0)), 0xfff8),
            Width::Fat32 => (le32(&self.table(at * 4, 4)?, 0) & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((next < end).then_some(next))
    }

    /// The byte where a cluster lies.
    fn place(&self, cluster: u32) -> Result<u64> {
        if !(2..self.boot.clusters_end).contains(&cluster) {
            return Err(self.window.corrupt(format!("cluster {cluster} of {}", self.boot.clusters_end)));
        }
        Ok(self.boot.data + u64::from(cluster - 2) * u64::from(self.boot.cluster_size))
    }

    /// The cluster with an index in a chain; `None` behind the chain's end.
    fn cluster(&self, first: u32, index: u64) -> Result<Option<u32>> {
        if index > u64::from(self.boot.clusters_end) {
            return Ok(None);
        }
        let known = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at, mut cluster) = if known.0 == first && known.1 <= index { (known.1, known.2) } else { (0, first) };
        while at < index {
            self.place(cluster)?;
            match self.next(cluster)? {
                None => return Ok(None),
                Some(next) => (at, cluster) = (at + 1, next),
            }
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (first, at, cluster);
        Ok(Some(cluster))
    }

    fn entry(&self, number: u64) -> Result<Entry> {
        if number == ROOT {
            let never = Time::default();
            let (kind, cluster) = (FileType::Directory, if self.boot.width == Width::Fat32 { self.boot.root_cluster } else { 0 });
            return Ok(Entry { name: Vec::new(), kind, read_only: false, cluster, size: 0, mtime: never, ctime: never, atime: never });
        }
        let mut entry = dir::file(&self.window.bytes(number, dir::ENTRY)?, Vec::new());
        if self.boot.width != Width::Fat32 {
            // The upper half has another meaning there.
            entry.cluster &= 0xffff;
        }
        Ok(entry)
    }

    /// Where the pieces of a directory lie, each with its length.
    fn pieces(&self, number: u64) -> Result<Vec<(u64, u64)>> {
        let entry = self.entry(number)?;
        if entry.kind != FileType::Directory {
            return Err(self.window.corrupt(format!("the entry at {number:#x} is not a directory")));
        }
        if number == ROOT && self.boot.width != Width::Fat32 {
            return Ok(vec![self.boot.root]);
        }
        let size = u64::from(self.boot.cluster_size);
        let mut pieces = Vec::new();
        let mut cluster = Some(entry.cluster).filter(|c| *c != 0);
        while let Some(here) = cluster {
            pieces.push((self.place(here)?, size));
            if pieces.len() as u64 * size > DIRECTORY_LIMIT {
                return Err(self.window.corrupt(format!("the directory at {number:#x} does not end")));
            }
            cluster = self.next(here)?;
        }
        Ok(pieces)
    }

    fn directory(&self, number: u64) -> Result<Arc<Directory>> {
        self.directories.get(number, || {
            let mut directory = Directory::default();
            let mut long = Long::default();
            for (place, len) in self.pieces(number)? {
                let piece = self.window.bytes(place, usize::try_from(len).unwrap_or_default())?;
                for (i, raw) in piece.chunks_exact(dir::ENTRY).enumerate() {
                    match dir::take(raw, &mut long) {
                        Seen::End => return Ok(directory),
                        Seen::Nothing => {}
                        Seen::File(entry) => {
                            let number = place + (i * dir::ENTRY) as u64;
                            if !is_name(&entry.name) {
                                let shown = crate::error::show(&entry.name);
                                return Err(self.window.corrupt(format!("{number:#x}: a file cannot be called '{shown}'")));
                            }
                            directory.add(&entry.name, entry.kind, number, number);
                        }
                    }
                }
            }
            Ok(directory)
        })
    }
}

impl FsReader for Fat {
    fn root(&self) -> u64 {
        ROOT
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        let entry = self.entry(ino)?;
        let is_directory = entry.kind == FileType::Directory;
        let (size, nlink) = if is_directory {
            let below = self.directory(ino)?.entries.iter().filter(|e| e.kind == FileType::Directory).count();
            (self.pieces(ino)?.iter().map(|(_, len)| len).sum(), 2 + below as u64)
        } else {
            (u64::from(entry.size), 1)
        };
        let blocks = size.next_multiple_of(self.boot.cluster_size.max(1).into()) / 512;
        Ok(Stat {
            kind: entry.kind,
            // Root's, and everyone may run all that is there, as the kernel mounts it.
            mode: if entry.read_only && !is_directory { 0o555 } else { 0o755 },
            uid: 0,
            gid: 0,
            size,
            nlink,
            ino,
            dev: 0,
            rdev: (0, 0),
            blocks,
            atime: entry.atime,
            mtime: entry.mtime,
            ctime: entry.ctime,
        })
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.directory(dir)?.lookup_any_case(name))
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(dir)?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        Err(self.window.corrupt(format!("the entry at {ino:#x} is a symbolic link, which FAT does not have")))
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let entry = self.entry(ino)?;
        let size = u64::from(self.boot.cluster_size);
        let left = usize::try_from(u64::from(entry.size).saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        fill(offset, &mut buf[..left], |at, rest| {
            let ends = || self.window.corrupt(format!("the file at {ino:#x} ends at {at}, before its {} bytes", entry.size));
            let cluster = self.cluster(entry.cluster, at / size)?.ok_or_else(ends)?;
            let skip = at % size;
            let take = usize::try_from(size - skip).unwrap_or(usize::MAX).min(rest.len());
            self.window.read(self.place(cluster)? + skip, &mut rest[..take])?;
            Ok(take)
        })
    }

    fn xattrs(&self, _: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }

    fn statfs(&self) -> Result<StatFs> {
        let clusters = self.boot.clusters_end.saturating_sub(2);
        let counted = self.boot.info_sector.and_then(|at| {
            let info = self.window.bytes(at, 512).ok()?;
            Some(le32(&info, 488)).filter(|free| le32(&info, 484) == INFO_MAGIC && *free <= clusters)
        });
        let free = match counted {
            Some(free) => free.into(),
            None => {
                let mut free = 0;
                for cluster in 2..self.boot.clusters_end {
                    free += u64::from(self.next(cluster)? == Some(0));
                }
                free
            }
        };
        Ok(StatFs {
            block_size: self.boot.cluster_size.into(),
            blocks: clusters.into(),
            blocks_free: free,
            blocks_available: free,
            files: 0,
            files_free: 0,
        })
    }
}
