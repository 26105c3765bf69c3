//! A copy-on-write layer: writes stay here, and the image below is changed by [`commit_all`] only.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use crate::cursor::Cursor;
use crate::difference::Work;
use crate::image::check_range;
use crate::size::human;
use crate::storage::{FileStorage, MemStorage, Undo};
use crate::{Error, Extent, ExtentKind, Image, ImageInfo, ImageMut, Result, Storage};

/// Bytes that are copied up together.
const CLUSTER: u64 = 64 << 10;
/// Clusters whose states are kept together.
const GROUP: u64 = 1024;
const LOCKS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// As in the image below.
    Below,
    /// In the layer's storage, at the same offset as in the image.
    Stored,
    /// Zero.
    Zero,
}

/// Held while an image is being committed to.
static COMMITTING: Mutex<()> = Mutex::new(());

/// Waits until no commit is under way, and keeps others from beginning as long as what it returns lives. For whoever is about
/// to end the program.
pub fn between_commits() -> MutexGuard<'static, ()> {
    COMMITTING.lock().unwrap_or_else(|e| e.into_inner())
}

/// Commits the layers of a guest's disks, each to the image below it that `undo` was opened with: all of them, or none.
///
/// # Errors
/// When a filesystem has too little room, that is said before anything is written. The images are what they were, unless the message says that they could not be made so.
pub fn commit_all<'a>(layers: impl IntoIterator<Item = (&'a Overlay, &'a dyn ImageMut)>, undo: &Undo) -> Result<()> {
    let layers: Vec<_> = layers.into_iter().collect();
    let _committing = between_commits();
    layers.iter().try_for_each(|(layer, target)| layer.check_room(*target, undo))?;
    let write = |(layer, target): &(&Overlay, &dyn ImageMut)| {
        layer.keep_old(*target, undo)?;
        layer.write_into(*target)
    };
    layers.iter().try_for_each(write).and_then(|()| undo.settle()).map_err(|e| match undo.roll_back() {
        Ok(()) => e,
        Err(again) => Error::Invalid(format!("{e}; and what was written before could not be taken back: {again}")),
    })
}

/// Where layers that may grow large belong: `$TMPDIR`, or else a folder that is on a disk.
pub fn folder() -> PathBuf {
    let set = std::env::var_os("TMPDIR").map(PathBuf::from);
    set.filter(|f| !f.as_os_str().is_empty()).unwrap_or_else(|| {
        let on_disk = PathBuf::from("/var/tmp");
        if on_disk.is_dir() { on_disk } else { std::env::temp_dir() }
    })
}

/// Bytes that are free for us in the filesystem of `path`, where that can be told.
pub fn free_space(path: impl AsRef<Path>) -> Option<u64> {
    let found = rustix::fs::statvfs(path.as_ref()).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// A writable layer over any image; what is written is gone when it is dropped, unless it was committed.
///
/// Written clusters (64 KiB) lie in memory or in a nameless temporary file at the same offset as in the image, so
/// the layer's own memory is one byte per 64 KiB of what was touched.
pub struct Overlay {
    base: Arc<dyn Image>,
    storage: Box<dyn Storage>,
    states: RwLock<HashMap<u64, Box<[State; GROUP as usize]>>>,
    /// Held while a cluster is copied up, since two threads may write different parts of it.
    copying: [Mutex<()>; LOCKS],
    name: Arc<str>,
}

impl Overlay {
    /// A layer in memory: only where little is written, for all of it stays there.
    pub fn in_memory(base: Arc<dyn Image>) -> Self {
        let storage = MemStorage::new("overlay in memory", base.size());
        Self::new(base, Box::new(storage))
    }

    /// A layer in a nameless file in `folder`, which the system removes even if the process is killed.
    pub fn in_folder(base: Arc<dyn Image>, folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let name = format!("{}/(overlay)", folder.display());
        let file = tempfile::tempfile_in(folder).map_err(|e| Error::io(&name, "create", None, e))?;
        let storage = FileStorage::from_file(file, name)?;
        storage.set_size(base.size())?;
        Ok(Self::new(base, Box::new(storage)))
    }

    fn new(base: Arc<dyn Image>, storage: Box<dyn Storage>) -> Self {
        let name = base.info().file.into();
        Overlay { base, storage, states: RwLock::default(), copying: std::array::from_fn(|_| Mutex::new(())), name }
    }

    /// Makes `target`, the image below opened for writing, read as this layer does: writes what differs and makes it durable.
    fn write_into(&self, target: &dyn ImageMut) -> Result<()> {
        let mut work = Work::new(target, self, target);
        self.own(&mut |state, run| {
            if state == State::Zero {
                return target.zero_at(run.start, run.end - run.start);
            }
            let mut at = run.start;
            while at < run.end {
                let end = run.end.min(at + work.longest(at));
                work.piece(at..end)?;
                at = end;
            }
            Ok(())
        })?;
        target.flush()
    }

    /// Has all be kept that the target has in the places that are about to be written.
    fn keep_old(&self, target: &dyn ImageMut, undo: &Undo) -> Result<()> {
        let mut places: HashMap<Arc<str>, Vec<Range<u64>>> = HashMap::new();
        self.own(&mut |_, run| {
            target.extents(run, &mut |extent| {
                if let (0, Some(host), Some(file)) = (extent.depth, extent.host_offset, extent.file) {
                    places.entry(file).or_default().push(host..host.saturating_add(extent.len));
                }
                ControlFlow::Continue(())
            })
        })?;
        places.iter().try_for_each(|(file, ranges)| undo.keep(file, ranges))
    }

    /// Whether the target's filesystem has room for all that the target has no place for yet, and for what is kept of the rest.
    fn check_room(&self, target: &dyn ImageMut, undo: &Undo) -> Result<()> {
        let info = target.info();
        let kept = undo.has(&info.file);
        // What a snapshot shares is copied before it is written.
        let shared = !info.snapshots.is_empty();
        let mut cursor = Cursor::new(target);
        let (mut at, mut needed) = (0, 0u64);
        self.own(&mut |state, run| {
            while (state == State::Stored || kept) && at < run.end {
                let extent = cursor.peek()?;
                let len = extent.len.min(if at < run.start { run.start } else { run.end } - at);
                let there = extent.kind == ExtentKind::Data && extent.depth == 0 && !shared;
                if at >= run.start && if there { kept } else { state == State::Stored } {
                    needed = needed.saturating_add(len);
                }
                cursor.advance(len);
                at += len;
            }
            Ok(())
        })?;
        match free_space(&info.file) {
            Some(free) if free < needed => {
                let what = format!("the changes need {} more there, and {} are free", human(needed), human(free));
                Err(Error::io(&info.file, "write", None, std::io::Error::new(std::io::ErrorKind::StorageFull, what)))
            }
            _ => Ok(()),
        }
    }

    /// The runs of clusters that this layer has a state for, ascending, in bytes.
    fn own(&self, visit: &mut dyn FnMut(State, Range<u64>) -> Result<()>) -> Result<()> {
        let mut groups: Vec<u64> = self.states.read().unwrap_or_else(|e| e.into_inner()).keys().copied().collect();
        groups.sort_unstable();
        for group in groups {
            let (mut at, end) = (group * GROUP * CLUSTER, self.size().min((group + 1) * GROUP * CLUSTER));
            while at < end {
                let (state, run) = self.run(at, end);
                at = run.end;
                if state != State::Below {
                    visit(state, run)?;
                }
            }
        }
        Ok(())
    }

    fn state(&self, cluster: u64) -> State {
        let states = self.states.read().unwrap_or_else(|e| e.into_inner());
        states.get(&(cluster / GROUP)).map_or(State::Below, |group| group[(cluster % GROUP) as usize])
    }

    fn set_state(&self, cluster: u64, state: State) {
        let mut states = self.states.write().unwrap_or_else(|e| e.into_inner());
        states.entry(cluster / GROUP).or_insert_with(|| Box::new([State::Below; GROUP as usize]))[(cluster % GROUP) as usize] = state;
    }

    /// The run of clusters from byte `at` that share a state, as bytes cut to `end`.
    fn run(&self, at: u64, end: u64) -> (State, Range<u64>) {
        let state = self.state(at / CLUSTER);
        let mut next = (at / CLUSTER + 1) * CLUSTER;
        while next < end && self.state(next / CLUSTER) == state {
            next += CLUSTER;
        }
        (state, at..next.min(end))
    }

    /// Changes bytes within one cluster, copying the rest of it up when it is not stored yet.
    fn change(&self, range: Range<u64>, change: impl Fn() -> Result<()>) -> Result<()> {
        let cluster = range.start / CLUSTER;
        if self.state(cluster) == State::Stored {
            return change();
        }
        let _copying = self.copying[cluster as usize % LOCKS].lock().unwrap_or_else(|e| e.into_inner());
        let whole = cluster * CLUSTER..((cluster + 1) * CLUSTER).min(self.size());
        match self.state(cluster) {
            State::Below if range != whole => {
                let mut buf = vec![0; (whole.end - whole.start) as usize];
                self.base.read_at(&mut buf, whole.start)?;
                self.storage.write_at(&buf, whole.start)?;
            }
            _ => {}
        }
        change()?;
        self.set_state(cluster, State::Stored);
        Ok(())
    }
}

/// Cuts a range at cluster borders.
fn clusters(offset: u64, len: u64) -> impl Iterator<Item = Range<u64>> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let piece = at..((at / CLUSTER + 1) * CLUSTER).min(end);
        at = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

impl Image for Overlay {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.name, self.size(), offset, buf.len() as u64)?;
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let (state, run) = self.run(at, end);
            let part = &mut buf[(run.start - offset) as usize..(run.end - offset) as usize];
            match state {
                State::Below => self.base.read_at(part, run.start)?,
                State::Stored => self.storage.read_at(part, run.start)?,
                State::Zero => part.fill(0),
            }
            at = run.end;
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.name, self.size(), range.start, range.end.saturating_sub(range.start))?;
        let mut at = range.start;
        while at < range.end {
            let (state, run) = self.run(at, range.end);
            at = run.end;
            let own = |kind| Extent { start: run.start, len: run.end - run.start, kind, depth: 0, host_offset: None, file: None };
            let mut stopped = false;
            match state {
                State::Below => self.base.extents(run.clone(), &mut |extent| {
                    let flow = visit(Extent { depth: extent.depth + 1, ..extent });
                    stopped = flow.is_break();
                    flow
                })?,
                State::Stored => stopped = visit(own(ExtentKind::Data)).is_break(),
                State::Zero => stopped = visit(own(ExtentKind::Zero)).is_break(),
            }
            if stopped {
                break;
            }
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: "overlay",
            file: self.name.to_string(),
            virtual_size: self.size(),
            actual_size: self.storage.allocated(),
            cluster_size: Some(CLUSTER),
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        Some(&*self.base)
    }
}

impl ImageMut for Overlay {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.name, self.size(), offset, data.len() as u64)?;
        for piece in clusters(offset, data.len() as u64) {
            let part = &data[(piece.start - offset) as usize..(piece.end - offset) as usize];
            self.change(piece.clone(), || self.storage.write_at(part, piece.start))?;
        }
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.name, self.size(), offset, len)?;
        for piece in clusters(offset, len) {
            let cluster = piece.start / CLUSTER;
            let whole = cluster * CLUSTER..((cluster + 1) * CLUSTER).min(self.size());
            if piece == whole {
                // No other thread writes here now: all of the cluster is this caller's.
                if self.state(cluster) == State::Stored {
                    self.storage.zero_at(piece.start, piece.end - piece.start)?;
                }
                self.set_state(cluster, State::Zero);
            } else if self.state(cluster) != State::Zero {
                self.change(piece.clone(), || self.storage.zero_at(piece.start, piece.end - piece.start))?;
            }
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    /// Nothing of a throw-away layer needs to outlive the process, so there is nothing to sync.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;

    fn base(size: u64) -> (Arc<MemStorage>, Arc<dyn Image>, Vec<u8>) {
        let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
        let storage = Arc::new(MemStorage::from_bytes("base", &bytes));
        (storage.clone(), Arc::new(Raw::open(storage).unwrap()), bytes)
    }

    fn exercise(overlay: &Overlay, mut model: Vec<u8>) {
        let mut state = 99u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for round in 0..400 {
            let offset = random(model.len() as u64);
            let len = random(3 * CLUSTER).min(model.len() as u64 - offset);
            let range = offset as usize..(offset + len) as usize;
            match random(4) {
                0 => {
                    overlay.zero_at(offset, len).unwrap();
                    model[range.clone()].fill(0);
                }
                _ => {
                    overlay.write_at(&vec![round as u8; len as usize], offset).unwrap();
                    model[range.clone()].fill(round as u8);
                }
            }
            let mut all = vec![1; model.len()];
            overlay.read_at(&mut all, 0).unwrap();
            assert!(all == model, "round {round}, {range:?}");
        }
        let mut at = 0;
        overlay
            .extents(0..model.len() as u64, &mut |e| {
                assert_eq!(e.start, at);
                at += e.len;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(at, model.len() as u64);
    }

    #[test]
    fn writes_stay_in_the_layer() {
        let (storage, image, bytes) = base(5 * CLUSTER + 1024);
        exercise(&Overlay::in_memory(image.clone()), bytes.clone());
        exercise(&Overlay::in_folder(image, std::env::temp_dir()).unwrap(), bytes.clone());
        assert!(storage.to_vec() == bytes);
    }

    #[test]
    fn a_commit_writes_what_differs() {
        let (storage, image, mut bytes) = base(3 * CLUSTER + 1024);
        let target = Raw::open(storage.clone()).unwrap();
        let overlay = Overlay::in_memory(image);
        overlay.write_at(&[9; 5], CLUSTER - 2).unwrap();
        overlay.write_at(&bytes[100..200], 100).unwrap();
        overlay.zero_at(2 * CLUSTER, CLUSTER).unwrap();
        overlay.write_at(&[8; 24], 3 * CLUSTER + 1000).unwrap();
        bytes[CLUSTER as usize - 2..CLUSTER as usize + 3].fill(9);
        bytes[2 * CLUSTER as usize..3 * CLUSTER as usize].fill(0);
        bytes[3 * CLUSTER as usize + 1000..].fill(8);
        commit_all([(&overlay, &target as &dyn ImageMut)], &Undo::default()).unwrap();
        assert!(storage.to_vec() == bytes);
    }

    #[test]
    fn threads_may_share_a_cluster() {
        let (_, image, _) = base(CLUSTER);
        let overlay = Overlay::in_memory(image);
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let overlay = &overlay;
                scope.spawn(move || overlay.write_at(&[thread as u8; 8192], thread * 8192).unwrap());
            }
        });
        for thread in 0..8u64 {
            let mut buf = [0; 8192];
            overlay.read_at(&mut buf, thread * 8192).unwrap();
            assert_eq!(buf, [thread as u8; 8192]);
        }
    }
}
