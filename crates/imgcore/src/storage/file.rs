//! A file or block device of the host.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::{Lock, Storage, lock, undo};
use crate::{Error, Result};

/// A file or block device, read and written by position.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    name: String,
    identity: (u64, u64),
    block_device: bool,
    /// Set while the file has no name that anyone would look under: the order in which its parts become durable is then of no
    /// matter, and syncs between them would only take time.
    nameless: bool,
}

impl FileStorage {
    /// Opens `path` for reading only.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), OpenOptions::new().read(true))
    }

    /// Opens `path` for reading and writing.
    pub fn open_writable(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), OpenOptions::new().read(true).write(true))
    }

    /// Creates `path`, or empties it when it is there. Whole outputs are better made with
    /// [`NewFile`](super::NewFile), which leaves no half-written file behind.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), OpenOptions::new().read(true).write(true).create(true).truncate(true))
    }

    fn open_with(path: &Path, options: &OpenOptions) -> Result<Self> {
        let name = path.display().to_string();
        let file = options.open(path).map_err(|e| Error::io(&name, "open", None, e))?;
        Self::from_file(file, name)
    }

    /// Takes an open file; `name` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is neither a file nor a block device: a folder, a pipe, a terminal.
    pub fn from_file(file: File, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let meta = file.metadata().map_err(|e| Error::io(&name, "open", None, e))?;
        let block_device = meta.file_type().is_block_device();
        if meta.is_dir() {
            return Err(Error::Invalid(format!("{name}: is a directory, not a disk image")));
        }
        if !meta.is_file() && !block_device {
            return Err(Error::Invalid(format!(
                "{name}: is neither a file nor a block device, and images need one that can be read at any place"
            )));
        }
        // A block device may have several nodes: its number is what they share.
        let identity = if block_device { (u64::MAX, meta.rdev()) } else { (meta.dev(), meta.ino()) };
        Ok(FileStorage { file, name, identity, block_device, nameless: false })
    }

    /// A file that gets its name only when it is whole: [`sync`](Storage::sync) waits for that.
    pub(super) fn nameless(mut self) -> Self {
        self.nameless = true;
        self
    }

    /// Returns when everything is on stable storage, nameless or not.
    pub(super) fn sync_now(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.name, "sync", None, e))
    }

    /// The open file itself, for system calls between two files such as `copy_file_range`.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    fn error(&self, action: &'static str, offset: u64, e: impl Into<io::Error>) -> Error {
        Error::io(&self.name, action, Some(offset), e.into())
    }

    /// Writes zeroes to what holds no data.
    fn fill_holes(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let data = self.next_data(at)?.unwrap_or(range.end..range.end);
            self.write_zeroes(at, data.start.clamp(at, range.end) - at)?;
            at = data.end.max(data.start);
        }
        Ok(())
    }

    fn write_zeroes(&self, mut offset: u64, len: u64) -> Result<()> {
        let zeroes = [0; 1 << 16];
        let end = offset + len;
        while offset < end {
            let now = (end - offset).min(zeroes.len() as u64) as usize;
            self.write_at(&zeroes[..now], offset)?;
            offset += now as u64;
        }
        Ok(())
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        lock::release(&self.file);
    }
}

impl Storage for FileStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> Result<u64> {
        if self.block_device {
            return seek(&self.file, SeekFrom::End(0)).map_err(|e| Error::io(&self.name, "size", None, e.into()));
        }
        Ok(self.file.metadata().map_err(|e| Error::io(&self.name, "size", None, e))?.len())
    }

    fn allocated(&self) -> Option<u64> {
        // st_blocks counts 512 bytes whatever the filesystem's block size is.
        self.file.metadata().ok().map(|m| m.blocks() * 512)
    }

    fn identity(&self) -> Option<(u64, u64)> {
        Some(self.identity)
    }

    fn lock(&self, lock: &Lock) -> Result<()> {
        lock::take(&self.file, &self.name, lock)?;
        undo::refuse(&self.file, &self.name)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|e| self.error("read", offset, e))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(data, offset).map_err(|e| self.error("write", offset, e))
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).ok_or_else(|| self.error("zero", offset, Errno::OVERFLOW))?;
        let size = self.size()?;
        let inside = end.min(size).saturating_sub(offset);
        if inside > 0 {
            let punched = fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, inside)
                .or_else(|_| fallocate(&self.file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, inside));
            match punched {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => self.write_zeroes(offset, inside)?,
                Err(e) => return Err(self.error("zero", offset, e)),
            }
        }
        if end > size { self.set_size(end) } else { Ok(()) }
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).ok_or_else(|| self.error("reserve", offset, Errno::OVERFLOW))?;
        match fallocate(&self.file, FallocateFlags::empty(), offset, len) {
            Ok(()) => Ok(()),
            // A block device has its room; elsewhere, only what was written is sure to have it.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) if self.block_device => self.set_size(end),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => self.fill_holes(offset..end),
            Err(e) => Err(self.error("reserve", offset, e)),
        }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let all_data = || {
            let size = self.size()?;
            Ok((offset < size).then_some(offset..size))
        };
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return all_data(),
            Err(e) => return Err(self.error("map", offset, e)),
        };
        match seek(&self.file, SeekFrom::Hole(start)) {
            // A file that shrinks between the two calls has no data there any more.
            Err(Errno::NXIO) => Ok(None),
            Ok(end) if end <= start => Ok(None),
            Ok(end) => Ok(Some(start..end)),
            Err(e) => Err(self.error("map", start, e)),
        }
    }

    fn set_size(&self, size: u64) -> Result<()> {
        if self.block_device {
            let there = self.size()?;
            return if size <= there {
                Ok(())
            } else {
                Err(Error::Invalid(format!("{}: the block device has {there} bytes, {size} are needed", self.name)))
            };
        }
        // Not for nothing: ext4 takes a file that was cut to 0 for one being replaced, and flushes it when it is closed.
        if self.size()? == size {
            return Ok(());
        }
        self.file.set_len(size).map_err(|e| self.error("resize", size, e))
    }

    fn sync(&self) -> Result<()> {
        if self.nameless { Ok(()) } else { self.sync_now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        (dir, path)
    }

    #[test]
    fn holes_are_seen_and_made() {
        let (_dir, path) = scratch();
        let file = FileStorage::create(&path).unwrap();
        file.set_size(4 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_at(&[1; 1 << 20], 1 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(1 << 20..2 << 20));
        file.zero_at(1 << 20, 512 << 10).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(3 << 19..2 << 20));
        file.zero_at(7 << 20, 1 << 20).unwrap();
        assert_eq!(file.size().unwrap(), 8 << 20);
        let mut buf = [9; 16];
        file.read_at(&mut buf, (1 << 20) + 5).unwrap();
        assert_eq!(buf, [0; 16]);
        assert!(file.allocated().unwrap() < 4 << 20);
    }

    #[test]
    fn room_is_set_aside() {
        let (_dir, path) = scratch();
        let file = FileStorage::create(&path).unwrap();
        file.write_at(&[7; 5], 100_000).unwrap();
        file.reserve(0, 1 << 20).unwrap();
        assert!(file.allocated().unwrap() >= 1 << 20);
        // Where the host cannot do it, by writing.
        file.fill_holes(0..3 << 20).unwrap();
        assert_eq!(file.size().unwrap(), 3 << 20);
        assert!(file.allocated().unwrap() >= 3 << 20);
        let mut buf = [1; 7];
        file.read_at(&mut buf, 99_999).unwrap();
        assert_eq!(buf, [0, 7, 7, 7, 7, 7, 0]);
    }

    #[test]
    fn errors_name_file_and_offset() {
        let (dir, path) = scratch();
        let error = FileStorage::open(&path).unwrap_err().to_string();
        assert_eq!(error, format!("{}: cannot open: No such file or directory (os error 2)", path.display()));
        let file = FileStorage::create(&path).unwrap();
        let error = file.read_at(&mut [0], 16).unwrap_err().to_string();
        assert!(error.contains("cannot read at offset 0x10"), "{error}");
        let error = FileStorage::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("is a directory, not a disk image"), "{error}");
        assert!(FileStorage::open("/dev/null").is_err());
    }

    #[test]
    fn reading_past_the_end_can_be_padded() {
        let (_dir, path) = scratch();
        let file = FileStorage::create(&path).unwrap();
        file.write_at(&[7; 10], 0).unwrap();
        let mut buf = [1; 20];
        super::super::read_padded(&file, &mut buf, 5).unwrap();
        assert_eq!(buf[..5], [7; 5]);
        assert_eq!(buf[5..], [0; 15]);
        super::super::read_padded(&file, &mut buf, 100).unwrap();
        assert_eq!(buf, [0; 20]);
    }

    #[test]
    fn two_handles_share_an_identity() {
        let (dir, path) = scratch();
        let one = FileStorage::create(&path).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert_eq!(one.identity(), FileStorage::open(dir.path().join("link")).unwrap().identity());
    }
}
