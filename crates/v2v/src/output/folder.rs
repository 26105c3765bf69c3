//! The folder that results go to: whole or not at all.
//!
//! Everything is written to a hidden folder in it first, `.NAME.v2v`, which is locked while a conversion works there. The
//! files are then renamed into place, disks first and `NAME.xml` last: where that is, the result is whole. What a killed
//! conversion left behind is not locked, and the next one of that name removes it: also the files that have their place already,
//! which a list in the hidden folder names.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};

/// In the hidden folder, while files get their place: a line with the inode and the name of each, in order.
const PLACING: &str = ".placing";
/// No such list is longer.
const PLACING_LIMIT: u64 = 1 << 20;

/// The place of one result while it is made. Dropped before [`commit`](Folder::commit), it leaves nothing behind.
pub struct Folder {
    target: PathBuf,
    work: PathBuf,
    /// Holds the lock until it is closed.
    _lock: File,
    made_target: bool,
    committed: bool,
}

impl Folder {
    /// Begins a result called `name` in the folder `target`, which is made where it is missing.
    pub fn begin(target: &Path, name: &str) -> Result<Self> {
        let made_target = !target.exists();
        fs::create_dir_all(target).map_err(|e| failed(target, "create", e))?;
        let target = target.canonicalize().map_err(|e| failed(target, "open", e))?;
        let work = target.join(format!(".{name}.v2v"));
        let lock = match lock(&work) {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                return Err(Error::Invalid(format!(
                    "{}: another conversion of {name} is at work here: wait for it, or choose another -os or -on",
                    target.display()
                )));
            }
            Err(e) => {
                if made_target {
                    let _ = fs::remove_dir(&target);
                }
                return Err(failed(&work, "create", e));
            }
        };
        let folder = Folder { target, work, _lock: lock, made_target, committed: false };
        folder.take_back().and_then(|()| empty(&folder.work)).map_err(|e| failed(&folder.work, "clean up", e))?;
        Ok(folder)
    }

    /// Where files are written before they get their place.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The absolute path that a file will have.
    pub fn path_of(&self, file: &str) -> PathBuf {
        self.target.join(file)
    }

    /// Refuses to begin where one of these files is there already.
    pub fn check_free(&self, files: &[String]) -> Result<()> {
        match files.iter().map(|f| self.path_of(f)).find(|p| p.symlink_metadata().is_ok()) {
            None => Ok(()),
            Some(there) => Err(Error::Invalid(format!(
                "{}: is there already; --force replaces it, -on gives the result another name",
                there.display()
            ))),
        }
    }

    /// Writes a small file.
    pub fn write(&self, file: &str, content: &str, executable: bool) -> Result<()> {
        let path = self.work.join(file);
        let write = || {
            let mut out = File::create(&path)?;
            out.write_all(content.as_bytes())?;
            if executable {
                // As the umask allows, where it allows reading.
                let mode = out.metadata()?.permissions().mode();
                out.set_permissions(fs::Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
            }
            out.sync_all()
        };
        write().map_err(|e| failed(&self.path_of(file), "write", e))
    }

    /// Sees to it that none of these files is there: with `force` they are removed, the last one, the mark of a whole result, before
    /// any other.
    pub fn make_way(&self, files: &[String], force: bool) -> Result<()> {
        if !force {
            return self.check_free(files);
        }
        for file in files.iter().rev() {
            match fs::remove_file(self.path_of(file)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&self.path_of(file), "replace", e)),
                _ => {}
            }
        }
        sync(&self.target)
    }

    /// Gives all files their place, in this order.
    pub fn commit(mut self, files: &[String]) -> Result<()> {
        self.list(files).map_err(|e| failed(&self.work.join(PLACING), "write", e))?;
        for (index, file) in files.iter().enumerate() {
            let place = fs::rename(self.work.join(file), self.path_of(file));
            if let Err(e) = place {
                for placed in &files[..index] {
                    let _ = fs::remove_file(self.path_of(placed));
                }
                return Err(failed(&self.path_of(file), "put into place", e));
            }
            if index + 2 >= files.len() {
                // All others are in place for good before the mark is.
                sync(&self.target)?;
            }
        }
        self.committed = true;
        Ok(())
    }

    /// Writes down which files will get their place.
    fn list(&self, files: &[String]) -> io::Result<()> {
        let mut list = String::new();
        for file in files {
            list += &format!("{} {file}\n", self.work.join(file).symlink_metadata()?.ino());
        }
        let mut out = File::create(self.work.join(PLACING))?;
        out.write_all(list.as_bytes())?;
        out.sync_all()?;
        File::open(&self.work)?.sync_all()
    }

    /// Removes the files that a conversion put into place before it was killed, unless it had come to the last one.
    fn take_back(&self) -> io::Result<()> {
        let list = match File::open(self.work.join(PLACING)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            list => io::read_to_string(list?.take(PLACING_LIMIT))?,
        };
        let files: Vec<_> = list.lines().filter_map(|l| l.split_once(' ')).filter(|(_, file)| !file.contains('/')).collect();
        // Another file may have got the name meanwhile.
        let is_placed =
            |(inode, file): &&(&str, &str)| self.path_of(file).symlink_metadata().is_ok_and(|there| there.ino().to_string() == *inode);
        if files.last().is_some_and(|last| !is_placed(&last)) {
            for (_, file) in files.iter().filter(is_placed) {
                fs::remove_file(self.path_of(file))?;
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = empty(&self.work);
        let _ = fs::remove_dir(&self.work);
        if self.made_target && !self.committed {
            // Only goes when it is empty.
            let _ = fs::remove_dir(&self.target);
        }
    }
}

/// Makes the folder and locks it; `None` when another holds it.
pub(crate) fn lock(work: &Path) -> io::Result<Option<File>> {
    loop {
        match fs::create_dir(work) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        if !work.symlink_metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let file = match File::open(work) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        // The one before may have removed it between opening and locking.
        let (mine, there) = (file.metadata()?, work.metadata());
        if there.is_ok_and(|t| (t.dev(), t.ino()) == (mine.dev(), mine.ino())) {
            return Ok(Some(file));
        }
    }
}

fn empty(work: &Path) -> io::Result<()> {
    for entry in fs::read_dir(work)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed(folder, "sync", e))
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> Error {
    Error::Io { file: path.display().to_string(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn nothing_is_left_of_what_was_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        let folder = Folder::begin(&out, "web").unwrap();
        folder.write("web.xml", "x", false).unwrap();
        assert_eq!(names(&out), [".web.v2v"]);
        drop(folder);
        assert!(!out.exists());
        fs::create_dir(&out).unwrap();
        drop(Folder::begin(&out, "web").unwrap());
        assert!(out.exists());
    }

    #[test]
    fn a_result_appears_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::begin(dir.path(), "web").unwrap();
        let all = files(&["web-run.sh", "web.xml"]);
        folder.write("web-run.sh", "#!/bin/sh\n", true).unwrap();
        folder.write("web.xml", "x", false).unwrap();
        folder.check_free(&all).unwrap();
        folder.make_way(&all, false).unwrap();
        folder.commit(&all).unwrap();
        assert_eq!(names(dir.path()), all);
        assert_ne!(fs::metadata(dir.path().join("web-run.sh")).unwrap().permissions().mode() & 0o100, 0);

        let folder = Folder::begin(dir.path(), "web").unwrap();
        let error = folder.check_free(&all).unwrap_err().to_string();
        assert!(error.ends_with("web-run.sh: is there already; --force replaces it, -on gives the result another name"), "{error}");
        folder.write("web-run.sh", "new", true).unwrap();
        folder.write("web.xml", "new", false).unwrap();
        folder.make_way(&all, true).unwrap();
        folder.commit(&all).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("web.xml")).unwrap(), "new");
    }

    #[test]
    fn two_conversions_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::begin(dir.path(), "web").unwrap();
        let error = Folder::begin(dir.path(), "web").err().unwrap().to_string();
        assert!(error.contains("another conversion of web is at work here"), "{error}");
        drop(Folder::begin(dir.path(), "db").unwrap());
        drop(first);
        drop(Folder::begin(dir.path(), "web").unwrap());
    }

    #[test]
    fn what_a_killed_conversion_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".web.v2v")).unwrap();
        fs::write(dir.path().join(".web.v2v/web-vda.qcow2"), "half").unwrap();
        let folder = Folder::begin(dir.path(), "web").unwrap();
        assert!(names(folder.work()).is_empty());
        drop(folder);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn what_was_killed_while_it_got_its_place_is_taken_back() {
        let all = files(&["web-vda.qcow2", "web-run.sh", "web.xml"]);
        for placed in 0..=all.len() {
            let dir = tempfile::tempdir().unwrap();
            let killed = Folder::begin(dir.path(), "web").unwrap();
            all.iter().for_each(|file| killed.write(file, file, false).unwrap());
            killed.list(&all).unwrap();
            for file in &all[..placed] {
                fs::rename(killed.work().join(file), killed.path_of(file)).unwrap();
            }
            let Folder { work, _lock, .. } = &killed;
            flock(_lock, FlockOperation::Unlock).unwrap();
            assert!(work.join(PLACING).exists());
            std::mem::forget(killed);

            drop(Folder::begin(dir.path(), "web").unwrap());
            assert_eq!(names(dir.path()).len(), if placed == all.len() { 3 } else { 0 }, "{placed} placed");
        }
    }

    #[test]
    fn what_another_put_there_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".web.v2v")).unwrap();
        fs::write(dir.path().join("web.img"), "another's").unwrap();
        fs::write(dir.path().join(".web.v2v").join(PLACING), "0 web.img\n1 ../x\n7 web.xml\n").unwrap();
        drop(Folder::begin(dir.path(), "web").unwrap());
        assert_eq!(names(dir.path()), ["web.img"]);
    }
}
