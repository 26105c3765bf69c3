//! squashfs 4.0, with every compressor that its kernel driver knows.

mod file;
mod inode;
mod metadata;
mod xattr;

use std::sync::{Arc, Mutex};

use imgcore::Image;

use self::inode::{Body, Inode};
use self::metadata::{Metadata, Superblock};
use crate::bytes::{le16, le32};
use crate::directory::{Directories, Directory, SIZE_LIMIT, is_name};
use crate::reader::{FsReader, fill};
use crate::window::Cache;
use crate::{DirEntry, Error, FileType, Result, Stat, StatFs, Window};

/// Unpacked blocks of files that are kept, in bytes.
const CACHE: usize = 8 << 20;
/// Bytes that a directory's size counts for `.` and `..`, which are not stored.
const DOTS: u64 = 3;

/// An open filesystem. Its numbers of inodes are their references, as directories have them.
pub(crate) struct Squashfs {
    metadata: Metadata,
    directories: Directories,
    blocks: Cache<u64>,
    /// Where the list of a file's blocks was read to last.
    last: Mutex<Option<file::Position>>,
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    let window = Window::new(image, start, len, "squashfs");
    let superblock = Superblock::parse(&window.bytes(0, metadata::SUPERBLOCK)?, &window)?;
    Ok(Arc::new(Squashfs {
        metadata: Metadata::new(window, superblock),
        directories: Directories::default(),
        blocks: Cache::new(CACHE),
        last: Mutex::default(),
    }))
}

impl Squashfs {
    fn inode(&self, reference: u64) -> Result<Inode> {
        inode::read(&self.metadata, reference)
    }

    fn directory(&self, reference: u64) -> Result<Arc<Directory>> {
        self.directories.get(reference, || self.read_directory(&self.inode(reference)?))
    }

    fn read_directory(&self, inode: &Inode) -> Result<Directory> {
        let bad = |what: String| self.metadata.window.corrupt(format!("directory inode {}: {what}", inode.number));
        let Body::Directory { block, offset } = inode.body else { return Err(bad("it is not a directory".into())) };
        if inode.size > SIZE_LIMIT {
            return Err(Error::Unsupported { filesystem: "squashfs", what: format!("a directory of {} bytes", inode.size) });
        }
        let place = self.metadata.superblock.directory_table.checked_add(block.into()).ok_or_else(|| bad("its place".into()))?;
        let mut cursor = self.metadata.at(place, offset.into());
        let mut left = inode.size.saturating_sub(DOTS);
        let mut directory = Directory::default();
        while left > 0 {
            let header = cursor.take(12)?;
            left = left.saturating_sub(12);
            let (count, start, base) = (le32(&header, 0), le32(&header, 4), le32(&header, 8));
            if count >= 256 {
                return Err(bad(format!("{count} names in one row")));
            }
            for _ in 0..=count {
                let entry = cursor.take(8)?;
                let name = cursor.take(usize::from(le16(&entry, 6)) + 1)?;
                left = left.saturating_sub(8 + name.len() as u64);
                if !is_name(&name) {
                    return Err(bad(format!("a file cannot be called '{}'", crate::error::show(&name))));
                }
                let kind = match le16(&entry, 4) {
                    1 => FileType::Directory,
                    2 => FileType::Regular,
                    3 => FileType::Symlink,
                    4 => FileType::BlockDevice,
                    5 => FileType::CharDevice,
                    6 => FileType::Fifo,
                    7 => FileType::Socket,
                    other => return Err(bad(format!("a name of type {other}"))),
                };
                let number = base.wrapping_add_signed(le16(&entry, 2).cast_signed().into());
                directory.add(&name, kind, number.into(), u64::from(start) << 16 | u64::from(le16(&entry, 0)));
            }
            if directory.is_full() {
                return Err(Error::Unsupported { filesystem: "squashfs", what: format!("a directory of {} bytes", inode.size) });
            }
        }
        Ok(directory)
    }
}

impl FsReader for Squashfs {
    fn root(&self) -> u64 {
        self.metadata.superblock.root_inode
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        let inode = self.inode(ino)?;
        let mut stat = inode.stat(&self.metadata)?;
        if let Some(index) = inode.xattrs {
            stat.blocks += xattr::size(&self.metadata, index)?.div_ceil(512);
        }
        Ok(stat)
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.directory(dir)?.lookup(name))
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(dir)?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        match self.inode(ino)?.body {
            Body::Symlink { target } => Ok(target),
            _ => Err(self.metadata.window.corrupt(format!("inode {ino:#x} is no symbolic link"))),
        }
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ino)?;
        fill(offset, buf, |at, rest| file::piece(self, ino, &inode, at, rest))
    }

    fn xattrs(&self, ino: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match self.inode(ino)?.xattrs {
            Some(index) => xattr::all(&self.metadata, index),
            None => Ok(Vec::new()),
        }
    }

    fn statfs(&self) -> Result<StatFs> {
        let superblock = &self.metadata.superblock;
        let block_size = u64::from(superblock.block_size);
        Ok(StatFs { block_size, blocks: superblock.bytes_used.div_ceil(block_size), files: superblock.inodes.into(), ..StatFs::default() })
    }
}
