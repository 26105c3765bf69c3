//! ext2, ext3 and ext4, read only: every feature that mke2fs makes, and dirty journals as if they were replayed.
//!
//! Everything comes from hostile disks. All places are checked against the filesystem's size, trees have a bounded
//! depth, directories and attributes a bounded size. Checksums of metadata are not enforced: a damaged guest
//! should give up as much as it can.

mod device;
mod dir;
mod free;
mod inode;
mod journal;
mod map;
mod superblock;
mod xattr;

use std::ops::Range;
use std::sync::Arc;

use imgcore::Image;

use self::device::Device;
use self::inode::{FLAG_COMPRESSED, FLAG_ENCRYPTED, FLAG_INLINE_DATA, I_BLOCK, Inode};
use self::superblock::{COMPAT_HAS_JOURNAL, INCOMPAT_64BIT, INCOMPAT_RECOVER, Superblock};
use crate::bytes::le32;
use crate::directory::{Directories, Directory};
use crate::reader::{FsReader, fill};
use crate::{DirEntry, Error, FileType, Result, Stat, StatFs};

const ROOT: u64 = 2;
/// The longest target of a symbolic link, as the kernel has it.
const SYMLINK_LIMIT: u64 = 4096;

fn corrupt(what: String) -> Error {
    Error::Corrupt { filesystem: "ext4", what }
}

/// An open filesystem.
pub(crate) struct Ext4 {
    device: Device,
    superblock: Superblock,
    directories: Directories,
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    Ok(Arc::new(Ext4::open(image, start, len)?))
}

impl Ext4 {
    pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Self> {
        let len = len.min(image.size().saturating_sub(start));
        let mut device = Device::new(image, start, len, 1024, 2);
        let mut raw = vec![0; superblock::SIZE];
        device.read_raw(superblock::OFFSET, &mut raw)?;
        let superblock = Superblock::parse(&raw)?;
        device.block_size = superblock.block_size;
        device.blocks = superblock.blocks;
        let mut fs = Ext4 { device, superblock, directories: Directories::default() };
        if fs.superblock.has_incompat(INCOMPAT_RECOVER) {
            fs.replay()?;
        }
        Ok(fs)
    }

    /// Looks at the filesystem as it is after its journal's replay.
    fn replay(&mut self) -> Result<()> {
        if self.superblock.compat & COMPAT_HAS_JOURNAL == 0 || self.superblock.journal_inode == 0 {
            return Err(Error::Unsupported { filesystem: "ext4", what: "a dirty journal on another device".into() });
        }
        let inode = self.inode(self.superblock.journal_inode)?;
        let replayed = journal::replay(&self.device, &inode)?;
        self.device.set_replayed(replayed);
        let block_size = u64::from(self.device.block_size);
        let mut raw = vec![0; superblock::SIZE];
        self.device.read(superblock::OFFSET / block_size, superblock::OFFSET % block_size, &mut raw)?;
        let superblock = Superblock::parse(&raw)?;
        if superblock.block_size != self.superblock.block_size {
            return Err(corrupt("the journal changes the block size".into()));
        }
        self.device.blocks = superblock.blocks;
        self.superblock = superblock;
        Ok(())
    }

    fn inode(&self, number: u32) -> Result<Inode> {
        let sb = &self.superblock;
        if number == 0 || number > sb.inodes {
            return Err(corrupt(format!("inode {number}, the filesystem has {}", sb.inodes)));
        }
        let (group, index) = ((number - 1) / sb.inodes_per_group, (number - 1) % sb.inodes_per_group);
        if u64::from(group) >= sb.groups {
            return Err(corrupt(format!("inode {number} in group {group} of {}", sb.groups)));
        }
        let (block, byte) = sb.descriptor_place(u64::from(group));
        let block = self.device.block(block)?;
        let high = if sb.has_incompat(INCOMPAT_64BIT) && sb.descriptor_size >= 64 { le32(&block, byte + 0x28) } else { 0 };
        let table = u64::from(le32(&block, byte + 8)) | u64::from(high) << 32;
        let offset = u64::from(index) * u64::from(sb.inode_size);
        let block_size = u64::from(sb.block_size);
        let place = table.checked_add(offset / block_size).filter(|b| table != 0 && *b < sb.blocks);
        let Some(place) = place else { return Err(corrupt(format!("group {group} has its inodes at block {table}"))) };
        let block = self.device.block(place)?;
        let at = (offset % block_size) as usize;
        let raw = block.get(at..at + sb.inode_size as usize).ok_or_else(|| corrupt(format!("inode {number} is cut")))?;
        Inode::parse(number, raw)
    }

    fn inode_of(&self, ino: u64) -> Result<Inode> {
        self.inode(u32::try_from(ino).map_err(|_| corrupt(format!("inode {ino}")))?)
    }

    /// The content of a file that lies in its inode.
    fn inline_data(&self, inode: &Inode) -> Result<Vec<u8>> {
        let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
        let mut data = inode.inline_head(size).to_vec();
        if size > I_BLOCK {
            let attribute = xattr::in_inode(self, inode)?.into_iter().find(xattr::is_inline_data);
            data.extend(attribute.map(|a| a.value).unwrap_or_default());
            data.truncate(size);
        }
        Ok(data)
    }

    /// One piece of a file: up to the end of a run of blocks, of the file or of the buffer.
    fn read_file(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if inode.has(FLAG_ENCRYPTED | FLAG_COMPRESSED) {
            return Err(Error::Unsupported { filesystem: "ext4", what: "encrypted or compressed files".into() });
        }
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..left];
        if buf.is_empty() {
            return Ok(0);
        }
        if inode.has(FLAG_INLINE_DATA) {
            let data = self.inline_data(inode)?;
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
            let part = &data[from..];
            let n = part.len().min(buf.len());
            buf[..n].copy_from_slice(&part[..n]);
            buf[n..].fill(0);
            return Ok(buf.len());
        }
        let block_size = u64::from(self.device.block_size);
        let (block, skip) = (offset / block_size, offset % block_size);
        let run = map::run(&self.device, inode, block)?;
        let len = run.len.saturating_mul(block_size).saturating_sub(skip);
        let take = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
        match run.physical {
            Some(first) => self.device.read(first, skip, &mut buf[..take])?,
            None => buf[..take].fill(0),
        }
        Ok(take)
    }

    fn directory(&self, ino: u64) -> Result<Arc<Directory>> {
        self.directories.get(ino, || {
            let inode = self.inode_of(ino)?;
            if inode.kind != FileType::Directory {
                return Err(corrupt(format!("inode {ino} is not a directory")));
            }
            dir::read(self, &inode)
        })
    }
}

impl FsReader for Ext4 {
    fn root(&self) -> u64 {
        ROOT
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        Ok(self.inode_of(ino)?.stat(self.device.block_size))
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.directory(dir)?.lookup(name))
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(dir)?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inode_of(ino)?;
        if inode.has(FLAG_ENCRYPTED) {
            return Err(Error::Unsupported { filesystem: "ext4", what: "encrypted symbolic links".into() });
        }
        if inode.kind != FileType::Symlink || inode.size > SYMLINK_LIMIT {
            return Err(corrupt(format!("inode {ino} is no symbolic link of {} bytes", inode.size)));
        }
        let size = inode.size as usize;
        if inode.is_fast_symlink() {
            return Ok(inode.inline_head(size).to_vec());
        }
        let mut target = vec![0; size];
        fill(0, &mut target, |offset, rest| self.read_file(&inode, offset, rest))?;
        Ok(target)
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode_of(ino)?;
        fill(offset, buf, |offset, rest| self.read_file(&inode, offset, rest))
    }

    fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>> {
        let inode = self.inode_of(ino)?;
        if inode.has(FLAG_INLINE_DATA) {
            return Ok((offset < inode.size).then_some(offset..inode.size));
        }
        let block_size = u64::from(self.device.block_size);
        let mut logical = offset / block_size;
        while logical < inode.size.div_ceil(block_size) {
            let run = map::run(&self.device, &inode, logical)?;
            let after = logical.saturating_add(run.len);
            if run.physical.is_some() {
                return Ok(Some(offset.max(logical * block_size)..after.saturating_mul(block_size).min(inode.size)));
            }
            logical = after;
        }
        Ok(None)
    }

    fn xattrs(&self, ino: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(xattr::all(self, &self.inode_of(ino)?)?.into_iter().filter_map(xattr::public).collect())
    }

    fn statfs(&self) -> Result<StatFs> {
        let sb = &self.superblock;
        let mut own = sb.own_blocks();
        // mke2fs counts its journal, the kernel adds it to its own count.
        if sb.overhead == 0 && sb.compat & COMPAT_HAS_JOURNAL != 0 && sb.journal_inode != 0 {
            own = own.saturating_add(self.inode(sb.journal_inode)?.size / u64::from(sb.block_size));
        }
        Ok(StatFs {
            block_size: u64::from(sb.block_size),
            blocks: sb.blocks.saturating_sub(own),
            blocks_free: sb.free_blocks,
            blocks_available: sb.free_blocks.saturating_sub(sb.reserved_blocks.saturating_add(sb.kept_back())),
            files: u64::from(sb.inodes),
            files_free: u64::from(sb.free_inodes),
        })
    }
}
