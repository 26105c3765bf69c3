//! An output file that appears under its name only when it is whole.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{FileStorage, Lock, Storage};
use crate::{Error, Result};

/// A file being made. It has a temporary name in the target's folder until [`commit`](NewFile::commit) syncs it and
/// renames it into place; dropped before that, it is removed.
///
/// A target that is a block device is written in place: there is nothing to rename. A target that somebody else uses is
/// left alone.
pub struct NewFile {
    storage: Arc<FileStorage>,
    target: PathBuf,
    /// `None` for a block device.
    temporary: Option<(tempfile::TempPath, Unfinished)>,
    /// What will be replaced, locked until then.
    _replaced: Option<FileStorage>,
}

impl NewFile {
    /// Begins a file that will be called `target`. Messages call it so from the start.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let name = target.as_ref().display().to_string();
        let fail = |e: io::Error| Error::io(&name, "create", None, e);
        // A link stays a link: what it points to is replaced.
        let target = match target.as_ref().canonicalize() {
            Ok(there) => there,
            Err(e) if e.kind() == io::ErrorKind::NotFound => target.as_ref().to_owned(),
            Err(e) => return Err(fail(e)),
        };
        let existing = std::fs::metadata(&target).ok();
        if existing.as_ref().is_some_and(|m| !m.is_file()) {
            let file = File::options().read(true).write(true).open(&target).map_err(fail)?;
            let storage = FileStorage::from_file(file, name)?;
            storage.lock(&Lock::REPLACE)?;
            return Ok(NewFile { storage: Arc::new(storage), target, temporary: None, _replaced: None });
        }
        let replaced = match &existing {
            Some(_) => {
                let old = FileStorage::from_file(File::open(&target).map_err(fail)?, name.as_str())?;
                old.lock(&Lock::REPLACE)?;
                Some(old)
            }
            None => None,
        };
        let folder = folder_of(&target);
        let file_name = target.file_name().ok_or_else(|| Error::Invalid(format!("{name}: is not a file name")))?;
        let mode = existing.map_or(0o666, |m| m.permissions().mode() & 0o777);
        let (file, temporary) = tempfile::Builder::new()
            .prefix(&format!(".{}.", file_name.to_string_lossy()))
            .suffix(".partial")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder)
            .map_err(fail)?
            .into_parts();
        let storage = Arc::new(FileStorage::from_file(file, name)?.nameless());
        let unfinished = Unfinished::new(&temporary);
        Ok(NewFile { storage, target, temporary: Some((temporary, unfinished)), _replaced: replaced })
    }

    /// Where to write.
    pub fn storage(&self) -> Arc<FileStorage> {
        self.storage.clone()
    }

    /// The path that holds the bytes until the commit, for programs that must open it by name.
    pub fn temporary_path(&self) -> &Path {
        self.temporary.as_ref().map_or(&self.target, |(path, _)| path)
    }

    /// Makes everything durable, then gives the file its name, replacing what was there.
    pub fn commit(self) -> Result<()> {
        self.storage.sync_now()?;
        if self.temporary.is_none() {
            return Ok(());
        }
        let (name, folder) = (self.storage.name().to_owned(), folder_of(&self.target).to_owned());
        self.commit_unsynced()?;
        let folder = File::open(folder).and_then(|f| f.sync_all());
        folder.map_err(|e| Error::io(&name, "sync the folder of", None, e))
    }

    /// Gives the file its name and leaves it to the host when its bytes reach the disk, as qemu-img does in its cache mode
    /// `unsafe`: after a power cut soon afterwards it may be incomplete.
    pub fn commit_unsynced(self) -> Result<()> {
        let Some((temporary, _unfinished)) = self.temporary else { return Ok(()) };
        temporary.persist(&self.target).map_err(|e| Error::io(self.storage.name(), "rename into place", None, e.error))
    }
}

/// The temporary files of this process.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes the temporary files of all that is being made: for a process that is about to be ended by a signal. Nothing of it
/// can be committed afterwards.
pub fn remove_unfinished() {
    for path in std::mem::take(&mut *unfinished()) {
        // One that is gone was committed meanwhile.
        let _ = std::fs::remove_file(path);
    }
}

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a path among the temporary files.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(path: &Path) -> Self {
        unfinished().insert(path.into());
        Unfinished(path.into())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_only_when_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.img");
        std::fs::write(&path, "old").unwrap();
        let new = NewFile::create(&path).unwrap();
        new.storage().write_at(b"newer", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(new);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);

        let new = NewFile::create(&path).unwrap();
        assert_eq!(new.storage().name(), path.display().to_string());
        new.storage().write_at(b"newer", 0).unwrap();
        new.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"newer");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let new = NewFile::create(&link).unwrap();
        new.storage().write_at(b"new", 0).unwrap();
        new.commit().unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = NewFile::create("/nonexistent/out.img").err().unwrap().to_string();
        assert!(error.starts_with("/nonexistent/out.img: cannot create: No such file"), "{error}");
    }
}
