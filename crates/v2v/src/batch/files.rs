//! Files that are whole or not there at all, and locks that end with whoever holds them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// No file that is read back is larger: a report holds diffs of configuration files.
const LIMIT: u64 = 64 << 20;

/// Writes a file so that after a crash the old content is there, or the new, and never a part. What is no regular file, as a pipe,
/// is written as it is.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let write = || {
        if path.metadata().is_ok_and(|m| !m.is_file()) {
            return File::options().write(true).open(path)?.write_all(content);
        }
        // Behind a symbolic link the file is replaced, not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".guestlift-").permissions(fs::Permissions::from_mode(0o666)).tempfile_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| io_error(path, "write", source))
}

/// Reads a file that may be missing.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    match File::open(path).and_then(|f| f.take(LIMIT + 1).read_to_end(&mut content)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error(path, "read", e)),
        Ok(_) if content.len() as u64 > LIMIT => Err(Error::Invalid(format!("{}: larger than 64 MiB", path.display()))),
        Ok(_) => Ok(Some(content)),
    }
}

/// Reads a JSON file that may be missing.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(content) = read(path)? else { return Ok(None) };
    serde_json::from_slice(&content).map(Some).map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))
}

/// When a file was written, in seconds since 1970; 0 if it cannot be told.
pub fn written(path: &Path) -> u64 {
    let time = path.metadata().and_then(|m| m.modified()).ok();
    time.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs())
}

/// Removes a file that may be missing.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(path, "remove", e)),
        _ => Ok(()),
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// By one alone.
    Alone,
    /// By several that each do a part.
    Together,
}

/// A lock on a file. It is held until every process that got the file has closed it or ended.
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock, and waits for it so long; `None` when others hold it.
    pub fn take(path: &Path, hold: Hold, patience: Duration) -> Result<Option<Lock>> {
        // Whoever may only read can ask whether it is held.
        let file = match hold {
            Hold::Together if path.exists() => File::open(path),
            _ => File::options().read(true).write(true).create(true).truncate(false).open(path),
        };
        let file = file.map_err(|e| io_error(path, "open", e))?;
        let operation = match hold {
            Hold::Alone => FlockOperation::NonBlockingLockExclusive,
            Hold::Together => FlockOperation::NonBlockingLockShared,
        };
        let start = Instant::now();
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Some(Lock { file, path: path.to_owned() })),
                Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() >= patience => return Ok(None),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => std::thread::sleep(Duration::from_millis(50)),
                Err(e) => return Err(io_error(path, "lock", e.into())),
            }
        }
    }

    /// The file, for a process that shall hold the lock as well.
    pub fn shared(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| io_error(&self.path, "open", e))
    }
}

/// An error of the host.
pub(super) fn io_error(path: &Path, action: &'static str, source: io::Error) -> Error {
    Error::Io { file: path.display().to_string(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("a"), dir.path().join("link"));
        write_whole(&file, b"one").unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        write_whole(&link, b"two").unwrap();
        assert_eq!(read(&file).unwrap().unwrap(), b"two");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a temporary file was left");
        assert!(read(&dir.path().join("none")).unwrap().is_none());
        let error = write_whole(&dir.path().join("none/b"), b"").unwrap_err().to_string();
        assert!(error.contains("none/b: cannot write"), "{error}");
        write_whole(Path::new("/dev/null"), b"x").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }

    #[test]
    fn locks_exclude_and_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let take = |hold| Lock::take(&path, hold, Duration::ZERO).unwrap();
        let first = take(Hold::Together).unwrap();
        let second = take(Hold::Together).unwrap();
        assert!(take(Hold::Alone).is_none());
        let inherited = second.shared().unwrap();
        drop((first, second));
        assert!(take(Hold::Alone).is_none(), "whoever got the file holds it still");
        drop(inherited);
        assert!(take(Hold::Alone).is_some());
    }
}
