//! UFS, the BSDs' filesystem: versions 1 and 2 as FreeBSD, NetBSD and OpenBSD write them on little-endian machines.
//!
//! Soft updates leave a filesystem that can be read as it is; what a journal of theirs would only give back as free is no matter for a
//! reader. Not read: the formats before 4.4BSD and Solaris's, extended attributes, and big-endian disks.

use std::ops::Range;
use std::sync::Arc;

use imgcore::Image;

use self::inode::Inode;
use self::superblock::Superblock;
use crate::bytes::{le16, le32};
use crate::directory::{Directories, Directory, NAMES_LIMIT, SIZE_LIMIT, is_name};
use crate::reader::{FsReader, fill, first_data};
use crate::window::Window;
use crate::{DirEntry, Error, FileType, Result, Stat, StatFs};

mod inode;
mod superblock;

pub(crate) use superblock::{MAGIC_AT, PLACES, SIZE};

const ROOT: u64 = 2;
/// Entries of a directory do not cross a border of so many bytes.
const ROW: usize = 512;
/// The kind of a name that hides one below.
const WHITEOUT: u8 = 14;
const SYMLINK_LIMIT: u64 = 4096;
/// Of a directory, read at once.
const PIECE: u64 = 64 << 10;

struct Ufs {
    window: Window,
    superblock: Superblock,
    directories: Directories,
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    let window = Window::new(image, start, len, "ufs");
    let superblock = Superblock::read(&window)?;
    Ok(Arc::new(Ufs { window, superblock, directories: Directories::default() }))
}

/// What Linux's kernel wants to be told.
pub(crate) fn mount_option(image: &dyn Image) -> &'static str {
    let mut magic = [0; 4];
    let (at, version2) = PLACES[0];
    let is_version2 = at.checked_add(MAGIC_AT as u64 + 4).is_some_and(|end| end <= image.size())
        && image.read_at(&mut magic, at + MAGIC_AT as u64).is_ok()
        && le32(&magic, 0) == version2;
    if is_version2 { "ufstype=ufs2" } else { "ufstype=44bsd" }
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported { filesystem: "ufs", what: what.into() }
}

impl Ufs {
    fn inode(&self, number: u64) -> Result<Inode> {
        Inode::read(&self.window, &self.superblock, number)
    }

    /// One piece of a file: up to the end of a block, of the file or of the buffer.
    fn piece(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        if left == 0 {
            return Ok(0);
        }
        let run = inode.run(&self.window, &self.superblock, offset)?;
        let buf = &mut buf[..left.min(usize::try_from(run.len).unwrap_or(usize::MAX))];
        match run.place {
            Some(place) => self.window.read(place, buf)?,
            None => buf.fill(0),
        }
        Ok(buf.len())
    }

    fn directory(&self, number: u64) -> Result<Arc<Directory>> {
        self.directories.get(number, || {
            let inode = self.inode(number)?;
            if inode.kind != FileType::Directory || inode.size > SIZE_LIMIT {
                return Err(self.window.corrupt(format!("inode {number} is no directory of {} bytes", inode.size)));
            }
            let mut directory = Directory::default();
            let mut at = 0;
            while at < inode.size {
                let mut rows = vec![0; usize::try_from((inode.size - at).min(PIECE)).unwrap_or_default()];
                fill(at, &mut rows, |offset, rest| self.piece(&inode, offset, rest))?;
                rows.chunks(ROW).try_for_each(|row| self.row(number, row, &mut directory))?;
                at += rows.len() as u64;
            }
            Ok(directory)
        })
    }

    fn row(&self, number: u64, row: &[u8], directory: &mut Directory) -> Result<()> {
        let mut at = 0;
        while at + 8 <= row.len() {
            let (ino, len) = (u64::from(le32(row, at)), usize::from(le16(row, at + 4)));
            let (kind, name_len) = (row[at + 6], usize::from(row[at + 7]));
            let bad = |what: String| self.window.corrupt(format!("directory inode {number}: {what}"));
            if len < 8 || len % 4 != 0 || len > row.len() - at || ino != 0 && name_len + 8 > len {
                return Err(bad(format!("an entry of {len} bytes with a name of {name_len}")));
            }
            let name = row.get(at + 8..at + 8 + name_len).unwrap_or_default();
            at += len;
            if ino == 0 || kind == WHITEOUT || name == b"." || name == b".." {
                continue;
            }
            if !is_name(name) {
                return Err(bad(format!("a file cannot be called '{}'", crate::show(name))));
            }
            if directory.is_full() {
                return Err(bad(format!("it has more than {NAMES_LIMIT} names")));
            }
            // The number of a kind is what a mode has in its upper bits.
            let kind = match FileType::of_mode(u16::from(kind) << 12) {
                Some(kind) => kind,
                None => self.inode(ino)?.kind,
            };
            directory.add(name, kind, ino, ino);
        }
        Ok(())
    }
}

impl FsReader for Ufs {
    fn root(&self) -> u64 {
        ROOT
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        Ok(self.inode(ino)?.stat())
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.directory(dir)?.lookup(name))
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(dir)?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.kind != FileType::Symlink || inode.size > SYMLINK_LIMIT {
            return Err(self.window.corrupt(format!("inode {ino} is no symbolic link of {} bytes", inode.size)));
        }
        if inode.size < self.superblock.inline_link {
            return Ok(inode.inline(inode.size as usize).to_vec());
        }
        let mut target = vec![0; inode.size as usize];
        fill(0, &mut target, |offset, rest| self.piece(&inode, offset, rest))?;
        Ok(target)
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ino)?;
        fill(offset, buf, |offset, rest| self.piece(&inode, offset, rest))
    }

    fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>> {
        let inode = self.inode(ino)?;
        first_data(offset, inode.size, |at| {
            let run = inode.run(&self.window, &self.superblock, at)?;
            Ok((run.place.is_none(), run.len))
        })
    }

    fn xattrs(&self, _: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(self.superblock.space())
    }
}
