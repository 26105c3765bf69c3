//! XFS, versions 4 and 5, read only.
//!
//! A filesystem whose log is waiting to be replayed is left to the appliance: its newest state is only in the log.
//! Realtime files and logs on other devices are too. Version 5 has checksums in its metadata: those of inodes, of trees of extents
//! and of directories' blocks are held against them.

mod dir;
mod inode;
mod log;
mod map;
mod superblock;
mod xattr;

use std::ops::Range;
use std::sync::Arc;

use imgcore::Image;

use self::inode::{Fork, Format, Inode};
use self::superblock::Superblock;
use crate::bytes::{be32, crc32c, cut, le32};
use crate::directory::{Directories, Directory};
use crate::reader::{FsReader, fill, first_data};
use crate::{DirEntry, Error, FileType, Result, Stat, StatFs, Window};

/// The longest target of a symbolic link.
const SYMLINK_LIMIT: u64 = 1024;
const SYMLINK_MAGIC: u32 = 0x5853_4c4d;
/// Bytes before a link's target in a block, of version 5.
const SYMLINK_HEADER: usize = 56;
/// Where an inode of version 5 has its checksum.
const INODE_CRC: usize = 100;
/// Blocks that the kernel keeps for itself in every allocation group.
const SET_ASIDE: u64 = 8;

/// An open filesystem.
pub(crate) struct Xfs {
    window: Window,
    superblock: Superblock,
    directories: Directories,
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    let window = Window::new(image, start, len, "XFS");
    let superblock = Superblock::parse(&window.bytes(0, superblock::SIZE)?, &window)?;
    let unsupported = |what: &str| Err(Error::Unsupported { filesystem: "XFS", what: what.into() });
    if superblock.log_start == 0 {
        return unsupported("a log on another device");
    }
    if !log::is_clean(&window, &superblock)? {
        return unsupported("it was not unmounted, and its log is to be replayed");
    }
    Ok(Arc::new(Xfs { window, superblock, directories: Directories::default() }))
}

impl Xfs {
    /// Holds a structure of version 5 against the checksum in it.
    fn check(&self, bytes: &[u8], at: usize, what: impl FnOnce() -> String) -> Result<()> {
        let (before, after) = (cut(bytes, 0, at), cut(bytes, at + 4, bytes.len()));
        let actual = !crc32c(crc32c(crc32c(!0, before), &[0; 4]), after);
        let stored = le32(bytes, at);
        if actual == stored {
            return Ok(());
        }
        Err(self.window.corrupt(format!("{}: checksum {actual:#010x}, expected {stored:#010x}", what())))
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let place = self.superblock.inode_place(number, &self.window)?;
        let (size, block_size) = (self.superblock.inode_size as usize, u64::from(self.superblock.block_size));
        let (block, within) = (place / block_size * block_size, (place % block_size) as usize);
        let block = self.window.cached(block, block_size as usize)?;
        let raw = block.get(within..within + size).unwrap_or_default().to_vec();
        if self.superblock.v5 {
            self.check(&raw, INODE_CRC, || format!("inode {number}"))?;
        }
        Inode::parse(number, raw, &self.window)
    }

    /// Whether a fork has a hole at a byte, and how many bytes lie from there to the end of the hole or the extent.
    fn run_of(&self, inode: &Inode, fork: &Fork<'_>, offset: u64) -> Result<(bool, u64)> {
        let size = u64::from(self.superblock.block_size);
        let run = map::run(self, inode.number, fork, offset / size)?;
        Ok((run.place.is_none(), run.len.saturating_mul(size) - offset % size))
    }

    /// One piece of a fork, up to the end of an extent or of the buffer.
    fn piece(&self, inode: &Inode, fork: &Fork<'_>, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let size = u64::from(self.superblock.block_size);
        let run = map::run(self, inode.number, fork, offset / size)?;
        let skip = offset % size;
        let take = usize::try_from(run.len.saturating_mul(size) - skip).unwrap_or(usize::MAX).min(buf.len());
        match run.place {
            Some(place) => self.window.read(place + skip, &mut buf[..take])?,
            None => buf[..take].fill(0),
        }
        Ok(take)
    }

    /// Fills all of `buf` from a fork, whatever the file's size.
    fn fill_from(&self, inode: &Inode, fork: &Fork<'_>, offset: u64, buf: &mut [u8]) -> Result<()> {
        fill(offset, buf, |at, rest| self.piece(inode, fork, at, rest)).map(drop)
    }

    fn directory(&self, number: u64) -> Result<Arc<Directory>> {
        self.directories.get(number, || {
            let inode = self.inode(number)?;
            if inode.kind != FileType::Directory {
                return Err(self.window.corrupt(format!("inode {number} is not a directory")));
            }
            dir::read(self, &inode)
        })
    }
}

impl FsReader for Xfs {
    fn root(&self) -> u64 {
        self.superblock.root_inode
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        Ok(self.inode(ino)?.stat(self.superblock.block_size))
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.directory(dir)?.lookup(name))
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(dir)?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        let bad = |what: String| self.window.corrupt(format!("inode {ino}: {what}"));
        if inode.kind != FileType::Symlink || inode.size > SYMLINK_LIMIT {
            return Err(bad(format!("no symbolic link of {} bytes", inode.size)));
        }
        let size = inode.size as usize;
        let fork = inode.data(&self.window)?;
        if fork.format == Format::Local {
            return Ok(fork.bytes.get(..size).ok_or_else(|| bad("its target is cut".into()))?.to_vec());
        }
        let mut target = Vec::with_capacity(size);
        let mut at = 0;
        while target.len() < size {
            // The header of version 5 stands once in every extent.
            let (hole, len) = self.run_of(&inode, &fork, at)?;
            let header = if self.superblock.v5 { SYMLINK_HEADER } else { 0 };
            let part = usize::try_from(len).unwrap_or(usize::MAX).min(size - target.len() + header);
            let mut extent = vec![0; part];
            self.fill_from(&inode, &fork, at, &mut extent)?;
            if hole || header > 0 && be32(&extent, 0) != SYMLINK_MAGIC || part <= header {
                return Err(bad("its target is lost".into()));
            }
            target.extend(&extent[header..]);
            at = at.saturating_add(len);
        }
        Ok(target)
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ino)?;
        if inode.is_realtime() {
            return Err(Error::Unsupported { filesystem: "XFS", what: "realtime files".into() });
        }
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let fork = inode.data(&self.window)?;
        self.fill_from(&inode, &fork, offset, &mut buf[..left])?;
        Ok(left)
    }

    fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>> {
        let inode = self.inode(ino)?;
        let fork = inode.data(&self.window)?;
        first_data(offset, inode.size, |at| self.run_of(&inode, &fork, at))
    }

    fn xattrs(&self, ino: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        xattr::all(self, &self.inode(ino)?)
    }

    fn statfs(&self) -> Result<StatFs> {
        let sb = &self.superblock;
        let free = sb.free_blocks.saturating_sub(SET_ASIDE * u64::from(sb.ag_count));
        let could_be = free.saturating_mul(1 << sb.inodes_per_block_log).saturating_add(sb.inodes);
        let files = could_be.min(u32::MAX.into()).min(sb.inode_limit()).max(sb.inodes);
        Ok(StatFs {
            block_size: sb.block_size.into(),
            blocks: sb.blocks.saturating_sub(sb.log_blocks.into()),
            blocks_free: free,
            blocks_available: free,
            files,
            files_free: files.saturating_sub(sb.inodes.saturating_sub(sb.free_inodes)),
        })
    }
}
