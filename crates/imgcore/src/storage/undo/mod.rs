//! Changes that are made as a whole or not at all: what files hold is kept beside them before it is overwritten.
//!
//! A change that fails is put back at once. One whose program was killed, or that a power cut ended, leaves its journals behind
//! (see [`journal`]): from then on the files are refused to everybody, until [`recover`] has put them back.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use self::journal::{Found, Journal};
use super::{FileStorage, Lock, Storage, lock};
use crate::{Error, Result};

mod journal;

/// What is kept at once, in bytes: neighbours of what is written now are often written next.
const BLOCK: u64 = 64 << 10;

/// One change of any number of files. Cheap to clone.
#[derive(Clone, Default)]
pub struct Undo {
    files: Arc<Mutex<Vec<Arc<Kept>>>>,
    leader: Arc<Leader>,
}

/// The journal that says whether the change is done.
type Leader = Mutex<Option<PathBuf>>;

impl Undo {
    /// The same storage, whose changes belong to this one. What is no file (a block device, memory) is changed without a way back.
    pub fn storage(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        let Some(place) = journal::place(inner.name()) else { return inner };
        let kept = Arc::new(Kept { inner, place, leader: self.leader.clone(), state: Mutex::new(State::Untouched) });
        locked(&self.files).push(kept.clone());
        kept
    }

    /// Whether changes of the file called `name` belong to this one.
    pub fn has(&self, name: &str) -> bool {
        locked(&self.files).iter().any(|file| file.inner.name() == name)
    }

    /// Keeps what is in these ranges of the file called `name`, which are about to be written: many at once are quicker than each by itself.
    pub fn keep(&self, name: &str, ranges: &[Range<u64>]) -> Result<()> {
        let file = locked(&self.files).iter().find(|file| file.inner.name() == name).cloned();
        file.map_or(Ok(()), |file| file.keep(ranges))
    }

    /// Ends the change: everything is as it was written from here on, in all files. After an error it can still be taken back.
    pub fn settle(&self) -> Result<()> {
        self.end(|| State::Settled)
    }

    /// What was written so far stays, whatever becomes of what is written from here on: what opening images mends in them.
    pub fn keep_so_far(&self) -> Result<()> {
        self.end(|| State::Untouched)
    }

    fn end(&self, next: impl Fn() -> State) -> Result<()> {
        let files = locked(&self.files);
        files.iter().try_for_each(|file| file.sync())?;
        let (mut leader, mut members) = (None, Vec::new());
        for file in files.iter() {
            match &*locked(&file.state) {
                State::Changing(journal) if self.leads(journal) => leader = Some(file),
                State::Changing(journal) => members.push(journal.path().to_owned()),
                State::Untouched | State::Settled | State::TakenBack => {}
            }
        }
        if let Some(State::Changing(journal)) = leader.map(|file| locked(&file.state)).as_deref_mut() {
            journal.mark_done(&members)?;
        }
        // From here on the journals say so themselves: one that cannot be removed does no harm.
        let (leader, members): (Vec<_>, Vec<_>) = self.take(&files, next).into_iter().partition(|(_, journal)| self.leads(journal));
        *locked(&self.leader) = None;
        let _ = members.into_iter().chain(leader).try_for_each(|(_, journal)| journal.remove());
        Ok(())
    }

    /// Makes all files what they were. They cannot be written through this any more.
    pub fn roll_back(&self) -> Result<()> {
        let files = locked(&self.files);
        let (leader, members): (Vec<_>, Vec<_>) =
            self.take(&files, || State::TakenBack).into_iter().partition(|(_, journal)| self.leads(journal));
        members.into_iter().chain(leader).try_for_each(|(file, journal)| {
            journal.put_back(&*file.inner)?;
            journal.remove()
        })
    }

    fn leads(&self, journal: &Journal) -> bool {
        locked(&self.leader).as_deref() == Some(journal.path())
    }

    fn take<'a>(&self, files: &'a [Arc<Kept>], next: impl Fn() -> State) -> Vec<(&'a Kept, Journal)> {
        let journal = |file: &'a Arc<Kept>| match std::mem::replace(&mut *locked(&file.state), next()) {
            State::Changing(journal) => Some((&**file, journal)),
            State::Untouched | State::Settled | State::TakenBack => None,
        };
        files.iter().filter_map(journal).collect()
    }
}

/// Puts an image back that a change left half done; tells whether there was one.
///
/// # Errors
/// [`Error::Locked`] while somebody uses it, [`Error::Invalid`] when somebody else wrote to it since.
pub fn recover(path: impl AsRef<Path>) -> Result<bool> {
    let name = path.as_ref().display().to_string();
    let Some(place) = journal::place(&name) else { return Ok(false) };
    if let Found::Nothing | Found::Live = journal::look(&place)? {
        return Ok(false);
    }
    let storage = FileStorage::open_writable(&path)?;
    lock::take(storage.file(), &name, &Lock::WRITE)?;
    // Before the image was ours, somebody else may have put it back.
    match journal::look(&place)? {
        Found::Nothing | Found::Live => Ok(false),
        Found::Over(journal) => journal.remove_with_members().map(|()| false),
        Found::Cut(journal) => {
            journal.check_unchanged(&metadata(storage.file(), &name)?, &name)?;
            journal.put_back(&storage)?;
            journal.remove()?;
            Ok(true)
        }
    }
}

/// Refuses a file that a change left half done.
pub(super) fn refuse(file: &File, name: &str) -> Result<()> {
    let Some(place) = journal::place(name) else { return Ok(()) };
    match journal::look(&place)? {
        Found::Cut(journal) => {
            journal.check_unchanged(&metadata(file, name)?, name)?;
            Err(Error::Invalid(format!(
                "{name}: a change to it was cut short, and it is half done; 'img check -r all {name}' makes it what it was before, \
                 and so does any virt program that changes it"
            )))
        }
        Found::Nothing | Found::Live | Found::Over(_) => Ok(()),
    }
}

fn metadata(file: &File, name: &str) -> Result<Metadata> {
    file.metadata().map_err(|e| Error::io(name, "look at", None, e))
}

enum State {
    /// Nothing was written yet.
    Untouched,
    /// What is overwritten is kept here.
    Changing(Journal),
    /// The change is done, or there is no place for a journal: what is written now has no way back.
    Settled,
    /// The change was taken back, and nothing is written any more.
    TakenBack,
}

/// A file whose old bytes are kept.
struct Kept {
    inner: Arc<dyn Storage>,
    /// Where its journal belongs.
    place: PathBuf,
    leader: Arc<Leader>,
    state: Mutex<State>,
}

impl Kept {
    fn keep(&self, ranges: &[Range<u64>]) -> Result<()> {
        let mut state = locked(&self.state);
        if let State::Untouched = &*state {
            *state = match self.begin() {
                Ok(journal) => State::Changing(journal),
                // Whoever may write the file, but nothing beside it, still may.
                Err(Error::Io { source, .. }) if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                    State::Settled
                }
                Err(e) => return Err(e),
            };
        }
        match &mut *state {
            State::Changing(journal) => {
                let whole = |range: &Range<u64>| range.start / BLOCK * BLOCK..range.end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
                journal.keep(&*self.inner, ranges.iter().filter(|range| !range.is_empty()).map(whole))
            }
            State::Untouched | State::Settled => Ok(()),
            State::TakenBack => Err(Error::io(self.name(), "write", None, std::io::Error::other("the change was taken back"))),
        }
    }

    fn begin(&self) -> Result<Journal> {
        // A journal of a change that is over may be left.
        if let Found::Over(old) = journal::look(&self.place)? {
            old.remove_with_members()?;
        }
        let mut leader = locked(&self.leader);
        let journal = Journal::begin(&self.place, self.inner.size()?, leader.as_deref())?;
        leader.get_or_insert_with(|| self.place.clone());
        Ok(journal)
    }
}

impl Drop for Kept {
    /// Whoever ended in between has not settled it.
    fn drop(&mut self) {
        if let State::Changing(journal) = std::mem::replace(&mut *locked(&self.state), State::TakenBack)
            && journal.put_back(&*self.inner).is_ok()
        {
            // One that stays would be found, and put back again.
            let _ = journal.remove();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn span(offset: u64, len: u64) -> Range<u64> {
    offset..offset.saturating_add(len)
}

impl Storage for Kept {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn size(&self) -> Result<u64> {
        self.inner.size()
    }

    fn allocated(&self) -> Option<u64> {
        self.inner.allocated()
    }

    fn identity(&self) -> Option<(u64, u64)> {
        self.inner.identity()
    }

    fn lock(&self, lock: &Lock) -> Result<()> {
        self.inner.lock(lock)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.keep(&[span(offset, data.len() as u64)])?;
        self.inner.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.keep(&[span(offset, len)])?;
        self.inner.zero_at(offset, len)
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        self.keep(&[span(offset, len)])?;
        self.inner.reserve(offset, len)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.keep(&[span(size, self.inner.size()?.saturating_sub(size))])?;
        self.inner.set_size(size)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{Overlay, commit_all};
    use crate::storage::FaultStorage;
    use crate::{Formats, ImageMut, LocalGate, OpenOptions};

    /// Files of a folder, and what was in them.
    struct Files {
        dir: tempfile::TempDir,
        names: Vec<(PathBuf, Vec<u8>)>,
    }

    impl Files {
        /// A raw image with a hole and a qcow2 with data.
        fn new() -> Self {
            // In memory, where there is such a folder: hundreds of syncs.
            let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            let (raw, qcow2) = (dir.path().join("a.raw"), dir.path().join("b.qcow2"));
            let storage = FileStorage::create(&raw).unwrap();
            storage.write_at(&[1; 300_000], 0).unwrap();
            storage.write_at(&[2; 100_000], 1 << 20).unwrap();
            storage.set_size((2 << 20) + 512).unwrap();
            let storage = Arc::new(FileStorage::create(&qcow2).unwrap());
            let image = Formats::new().driver("qcow2").unwrap().create(storage, 4 << 20, &Default::default()).unwrap();
            image.write_at(&[3; 200_000], 1 << 20).unwrap();
            image.flush().unwrap();
            drop(image);
            let names = [raw, qcow2].map(|path| (path.clone(), std::fs::read(path).unwrap()));
            Files { dir, names: names.into() }
        }

        fn assert_old(&self, what: &str) {
            for (path, bytes) in &self.names {
                assert!(std::fs::read(path).unwrap() == *bytes, "{what}: {}", path.display());
            }
            assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), 2, "{what}: no journal is left");
        }

        /// Changes both, through storage of `wrap`'s making.
        fn change(&self, undo: &Undo, wrap: &dyn Fn(FileStorage) -> Arc<dyn Storage>) -> Result<()> {
            let mut layers = Vec::new();
            for (path, _) in &self.names {
                let storage = undo.storage(wrap(FileStorage::open_writable(path)?));
                let image = Formats::new().open_storage_mut(storage, &OpenOptions::new(&LocalGate).exclusive())?;
                let layer = Overlay::in_memory(image.clone());
                layer.write_at(&[7; 500_000], 200_000)?;
                layer.zero_at(1 << 20, 70_000)?;
                layer.write_at(&[8; 512], image.size() - 512)?;
                layers.push((layer, image));
            }
            commit_all(layers.iter().map(|(layer, image)| (layer, &**image)), undo)
        }
    }

    /// Leaves everything as a killed program would: no journal is taken away, no lock stays.
    fn kill(undo: &Undo) {
        for file in locked(&undo.files).iter() {
            *locked(&file.state) = State::Settled;
        }
    }

    #[test]
    fn a_change_is_whole_or_not_there() {
        let files = Files::new();
        let plain = |file| Arc::new(file) as Arc<dyn Storage>;
        files.change(&Undo::default(), &plain).unwrap();
        let new: Vec<Vec<u8>> = files.names.iter().map(|(path, _)| std::fs::read(path).unwrap()).collect();
        assert!(files.names.iter().zip(&new).all(|((_, old), new)| old != new));
        assert_eq!(std::fs::read_dir(files.dir.path()).unwrap().count(), 2);
        // Every change of the first file and of the second fails once; then the power is cut there.
        let (mut put_back, mut cut) = (0, 0);
        for faulty in [0, 1] {
            for n in 0.. {
                let files = Files::new();
                let is_faulty = |file: &FileStorage| file.name().ends_with(["a.raw", "b.qcow2"][faulty]);
                let failing = |file: FileStorage| match is_faulty(&file) {
                    true => Arc::new(FaultStorage::new(Arc::new(file)).fail_at(n)) as Arc<dyn Storage>,
                    false => Arc::new(file),
                };
                if files.change(&Undo::default(), &failing).is_ok() {
                    break;
                }
                files.assert_old(&format!("change {n} of {faulty} failed"));
                put_back += 1;

                let files = Files::new();
                let cutting = |file: FileStorage| match is_faulty(&file) {
                    true => Arc::new(FaultStorage::new(Arc::new(file)).cut_at(n, 100)) as Arc<dyn Storage>,
                    false => Arc::new(file),
                };
                let undo = Undo::default();
                files.change(&undo, &cutting).unwrap_err();
                kill(&undo);
                drop(undo);
                for (path, _) in &files.names {
                    let left = path.with_extension(format!("{}.guestlift-undo", path.extension().unwrap().display())).exists();
                    let opened = Formats::new().open(path, &OpenOptions::new(&LocalGate));
                    assert_eq!(opened.is_err(), left);
                    if left {
                        let message = opened.err().unwrap().to_string();
                        assert!(message.contains("half done"), "{message}");
                        cut += 1;
                    }
                    assert_eq!(recover(path).unwrap(), left);
                }
                files.assert_old(&format!("cut at {n} of {faulty}"));
            }
        }
        assert!(put_back > 8 && cut > 8, "{put_back} {cut}");
    }

    #[test]
    fn all_files_are_new_once_the_change_is_done() {
        let files = Files::new();
        let undo = Undo::default();
        for (path, _) in &files.names {
            let storage = undo.storage(Arc::new(FileStorage::open_writable(path).unwrap()));
            storage.write_at(b"new", 5).unwrap();
            undo.keep(storage.name(), &[]).unwrap();
        }
        let journals: Vec<PathBuf> = files.names.iter().map(|(path, _)| journal::place(path.to_str().unwrap()).unwrap()).collect();
        {
            // As settling does, cut before the first journal is gone.
            let all = locked(&undo.files);
            let mut taken: Vec<Journal> = undo.take(&all, || State::Settled).into_iter().map(|(_, journal)| journal).collect();
            let members: Vec<PathBuf> = taken.split_off(1).iter().map(|journal| journal.path().to_owned()).collect();
            taken[0].mark_done(&members).unwrap();
        }
        drop(undo);
        // The second alone knows by the first; the first takes the second's away, too.
        assert!(!recover(&files.names[0].0).unwrap());
        for ((path, _), journal) in files.names.iter().zip(&journals) {
            assert_eq!(&std::fs::read(path).unwrap()[5..8], b"new");
            assert!(!journal.exists());
        }
    }

    #[test]
    fn who_wrote_since_is_not_undone() {
        let files = Files::new();
        let path = &files.names[0].0;
        let undo = Undo::default();
        undo.storage(Arc::new(FileStorage::open_writable(path).unwrap())).write_at(b"half", 0).unwrap();
        kill(&undo);
        drop(undo);
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(600);
        File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
        let message = recover(path).unwrap_err().to_string();
        assert!(message.contains("written by something else since") && message.ends_with("a.raw.guestlift-undo"), "{message}");
        assert_eq!(&std::fs::read(path).unwrap()[..4], b"half");
        // A journal whose own beginning was cut off says that nothing was written.
        let journal = journal::place(path.to_str().unwrap()).unwrap();
        std::fs::write(&journal, &std::fs::read(&journal).unwrap()[..20]).unwrap();
        assert!(!recover(path).unwrap() && !journal.exists());
    }

    /// Leaves the raw image half done, an hour ago; its journal's place.
    fn half_done(files: &Files) -> PathBuf {
        let path = &files.names[0].0;
        let at = |path: &Path, hours: u64| {
            let then = std::time::SystemTime::now() - std::time::Duration::from_secs(3600 * hours);
            File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
        };
        at(path, 2);
        let undo = Undo::default();
        let storage = undo.storage(Arc::new(FileStorage::open_writable(path).unwrap()));
        storage.write_at(&[9; 200_000], 100_000).unwrap();
        storage.set_size(1 << 20).unwrap();
        kill(&undo);
        let journal = journal::place(path.to_str().unwrap()).unwrap();
        at(path, 1);
        at(&journal, 1);
        journal
    }

    #[test]
    fn what_is_put_back_may_be_cut_short_too() {
        let files = Files::new();
        let path = &files.names[0].0;
        let place = half_done(&files);
        for n in 0..4 {
            let Found::Cut(journal) = journal::look(&place).unwrap() else { panic!("it is half done") };
            let storage = FaultStorage::new(Arc::new(FileStorage::open_writable(path).unwrap())).cut_at(n, 100);
            journal.put_back(&storage).unwrap_err();
        }
        assert!(recover(path).unwrap());
        files.assert_old("put back at last");
    }

    #[test]
    fn another_file_of_that_name_is_left_alone() {
        let files = Files::new();
        let path = &files.names[0].0;
        let journal = half_done(&files);
        let new = files.dir.path().join("new");
        std::fs::write(&new, "another").unwrap();
        std::fs::rename(&new, path).unwrap();
        for error in [recover(path).unwrap_err(), FileStorage::open(path).unwrap().lock(&Lock::READ).unwrap_err()] {
            assert!(error.to_string().contains("replaced or written by something else since"), "{error}");
        }
        assert_eq!(std::fs::read(path).unwrap(), b"another");
        std::fs::remove_file(journal).unwrap();
        assert!(!recover(path).unwrap());
    }

    #[test]
    fn what_only_looks_like_a_journal_is_not_followed() {
        let files = Files::new();
        let path = &files.names[0].0;
        let place = journal::place(path.to_str().unwrap()).unwrap();
        let refused = |what: &str| {
            let error = recover(path).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("a.raw.guestlift-undo"), "{error}");
            std::fs::remove_file(&place).unwrap();
        };
        std::os::unix::fs::symlink(&files.names[1].0, &place).unwrap();
        refused("Too many levels of symbolic links");
        rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        refused("is no file");
        std::fs::write(&place, "GLundo9\n and more").unwrap();
        refused("none that this program knows");
        files.assert_old("nothing was put back");
        // A name with no room for another ending has no journal, and is read all the same.
        let long = files.dir.path().join("x".repeat(250));
        std::fs::write(&long, "x").unwrap();
        assert!(!recover(&long).unwrap());
    }
}
