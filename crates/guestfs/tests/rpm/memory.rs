//! A guest's tree in memory.

use std::collections::BTreeMap;

use guestfs::{DirEntry, Error, FileType, GuestFs, Result, Stat, StatFs, Time};

/// Regular files by path.
#[derive(Default)]
pub struct Memory(pub BTreeMap<String, Vec<u8>>);

impl Memory {
    fn file(&self, path: &[u8]) -> Result<&Vec<u8>> {
        self.0.get(&String::from_utf8_lossy(path).into_owned()).ok_or_else(|| Error::NotFound(path.to_vec()))
    }
}

impl GuestFs for Memory {
    fn lstat(&self, path: &[u8]) -> Result<Stat> {
        Ok(Stat {
            kind: FileType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: self.file(path)?.len() as u64,
            nlink: 1,
            ino: 1,
            dev: 1,
            rdev: (0, 0),
            blocks: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
        })
    }
    fn stat(&self, path: &[u8]) -> Result<Stat> {
        self.lstat(path)
    }
    fn read_dir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        Err(Error::NotFound(path.to_vec()))
    }
    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        Err(Error::NotFound(path.to_vec()))
    }
    fn read_at(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize> {
        let rest = self.file(path)?.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn xattrs(&self, _: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }
    fn statfs(&self, _: &[u8]) -> Result<StatFs> {
        Ok(StatFs::default())
    }
}
