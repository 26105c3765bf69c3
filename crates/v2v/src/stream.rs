//! Disks that can be read only once: spooled in one pass, each as it comes, and used from there.

use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use imgcore::formats::{CreateOptions, OpenContext};
use imgcore::qcow2::{Move, Qcow2};
use imgcore::storage::FileStorage;
use imgcore::{Image, ImageMut, NoGate, OpenOptions, Progress, Slice, copy};
use rustix::fs::{Advice, fadvise};

use crate::disk_build;
use crate::input::DiskStream;
use crate::layout::TargetDisk;
use crate::options::Host;
use crate::source::Source;
use crate::{Error, Result};

/// Disks lie this far apart in the spool: what one L2 table of qcow2 maps, so that none belongs to two disks.
const ALIGNMENT: u64 = 512 << 20;

/// The disk is told to write after so many bytes.
const WRITE_BEHIND: u64 = 32 << 20;

/// The spool's name in its folder.
pub(crate) const FILE: &str = "stream.qcow2";

/// Where to spool.
pub enum Place<'a> {
    /// A file of this folder, which the caller removes.
    Folder(&'a Path),
    /// A file without a name on this folder's filesystem.
    Nameless(&'a Path),
}

/// What was received.
pub struct Spool {
    image: Arc<dyn ImageMut>,
    /// First byte of each disk.
    starts: Vec<u64>,
    /// The file, where it has a name.
    file: Option<PathBuf>,
    /// A disk may be made of the file itself.
    pub may_take: bool,
}

/// First byte of each disk of these sizes, and the end of the last.
fn places(sizes: &[u64], name: &str) -> Result<(Vec<u64>, u64)> {
    let mut starts = Vec::new();
    let mut end: u64 = 0;
    for size in sizes {
        starts.push(end);
        end =
            size.checked_next_multiple_of(ALIGNMENT).and_then(|len| end.checked_add(len)).filter(|e| *e < 1 << 60).ok_or_else(|| {
                Error::Invalid(format!("{name}: disk {} says that it has {size} bytes, which is too large", starts.len()))
            })?;
    }
    Ok((starts, end.max(ALIGNMENT)))
}

/// Receives all disks.
pub fn receive(stream: Box<dyn DiskStream>, source: &Source, place: &Place<'_>, host: &Host<'_>) -> Result<Spool> {
    let (spool, file) = create(source, place, host)?;
    stream.receive(&spool.disks(source)?, &WriteBehind::new(file, host.progress))?;
    spool.flush()?;
    Ok(spool)
}

/// Copies disks that can be read at any time, as [`receive`] does those of a stream.
pub fn copy(source: &Source, folder: &Path, host: &Host<'_>) -> Result<()> {
    let (spool, file) = create(source, &Place::Folder(folder), host)?;
    let progress = WriteBehind::new(file, host.progress);
    host.progress.total(source.disks.iter().map(|d| d.size).fold(0, u64::saturating_add));
    for (disk, target) in source.disks.iter().zip(spool.disks(source)?) {
        let image = disk.image.as_ref().ok_or_else(|| Error::Invalid(format!("disk {} ({}) cannot be read", disk.target, disk.origin)))?;
        let options = copy::Options { target_is_zero: true, ..copy::Options::default() };
        copy::copy(image.as_ref(), target.as_ref(), &options, &copy::Part(&progress))?;
    }
    spool.flush()
}

/// A new spool, and its file.
fn create(source: &Source, place: &Place<'_>, host: &Host<'_>) -> Result<(Spool, File)> {
    let sizes: Vec<_> = source.disks.iter().map(|d| d.size).collect();
    let (starts, end) = places(&sizes, &source.name)?;
    let (name, opened) = match place {
        Place::Folder(folder) => {
            let path = folder.join(FILE);
            (path.display().to_string(), File::options().read(true).write(true).create(true).truncate(true).open(path))
        }
        Place::Nameless(folder) => (format!("{}/(stream)", folder.display()), tempfile::tempfile_in(folder)),
    };
    let opened = opened.and_then(|file| Ok((file.try_clone()?, file)));
    let (own, file) = opened.map_err(|source| Error::Io { file: name.clone(), action: "create", source })?;
    let storage = FileStorage::from_file(file, name)?;
    let image = host.formats.driver("qcow2")?.create(Arc::new(storage), end, &CreateOptions::new())?;
    let file = match place {
        Place::Folder(folder) => Some(folder.join(FILE)),
        Place::Nameless(_) => None,
    };
    Ok((Spool { image, starts, file, may_take: true }, own))
}

/// Has the disk write what was appended to a file while more comes: else it would begin when all is there, and the flush wait for it.
struct WriteBehind<'a> {
    file: File,
    progress: &'a dyn Progress,
    /// Bytes that came since the last look.
    pending: AtomicU64,
    /// Up to where the disk was told to write, and how long the file was then: what came last is being written to still.
    told: Mutex<(u64, u64)>,
}

impl<'a> WriteBehind<'a> {
    fn new(file: File, progress: &'a dyn Progress) -> Self {
        WriteBehind { file, progress, pending: AtomicU64::new(0), told: Mutex::default() }
    }

    fn tell(&self) -> std::io::Result<()> {
        let len = self.file.metadata()?.len();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (begin, end) = *told;
        *told = (end, len);
        // For pages that are not written yet it means to begin with that; they are dropped by the next of such calls only.
        match NonZeroU64::new(end.saturating_sub(begin)) {
            Some(bytes) => Ok(fadvise(&self.file, begin, Some(bytes), Advice::DontNeed)?),
            None => Ok(()),
        }
    }
}

impl Progress for WriteBehind<'_> {
    fn total(&self, total: u64) {
        self.progress.total(total);
    }

    fn advance(&self, done: u64) {
        self.progress.advance(done);
        if self.pending.fetch_add(done, Ordering::Relaxed).saturating_add(done) >= WRITE_BEHIND {
            self.pending.store(0, Ordering::Relaxed);
            // Where that cannot be asked for, the flush takes longer.
            let _ = self.tell();
        }
    }

    fn cancelled(&self) -> bool {
        self.progress.cancelled()
    }
}

impl Spool {
    /// One that was made earlier, for disks of these sizes.
    pub fn open(folder: &Path, sizes: &[u64], host: &Host<'_>) -> Result<Self> {
        let file = folder.join(FILE);
        let (starts, end) = places(sizes, &folder.display().to_string())?;
        let image = open(&file, host)?;
        if image.size() != end {
            return Err(Error::Invalid(format!("{}: has {} bytes, and its disks need {end}: it is damaged", file.display(), image.size())));
        }
        Ok(Spool { image: Arc::new(image), starts, file: Some(file), may_take: true })
    }

    /// One of its disks.
    pub fn disk(&self, disk: usize, size: u64) -> Result<Slice<dyn ImageMut>> {
        let start = self.starts.get(disk).ok_or_else(|| Error::Invalid(format!("no disk {disk}")))?;
        Ok(Slice::new(self.image.clone(), *start, size)?)
    }

    fn disks(&self, source: &Source) -> Result<Vec<Arc<dyn ImageMut>>> {
        source.disks.iter().enumerate().map(|(index, disk)| self.disk(index, disk.size).map(|s| Arc::new(s) as _)).collect()
    }

    /// Returns when all that was written is on stable storage.
    pub fn flush(&self) -> Result<()> {
        Ok(self.image.flush()?)
    }

    /// Gives the file another name; the spool keeps its own where the filesystem can share what two files hold.
    fn hand_over(&self, path: &Path) -> std::io::Result<()> {
        let file = self.file.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        let shared = || -> std::io::Result<()> {
            let (from, to) = (File::open(file)?, File::create(path)?);
            Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
        };
        if shared().is_ok() { Ok(()) } else { std::fs::rename(file, path) }
    }

    /// Gives the source's disks their content.
    pub fn attach(&self, source: &mut Source) -> Result<()> {
        for (index, disk) in source.disks.iter_mut().enumerate() {
            let image: Arc<dyn Image> = Arc::new(self.disk(index, disk.size)?);
            disk.image = Some(image);
        }
        Ok(())
    }
}

fn open(file: &Path, host: &Host<'_>) -> Result<Qcow2> {
    let options = OpenOptions::new(&NoGate);
    let storage = Arc::new(FileStorage::open_writable(file)?);
    Ok(Qcow2::open_mut(storage, &OpenContext::new(host.formats, &options, false))?)
}

/// Makes one target disk, `file`, of the spool in `folder` by moving its clusters: nothing is copied. The source's disks can't be
/// read afterwards.
pub fn become_disk(spool: &Spool, disk: &TargetDisk, folder: &Path, file: &str, host: &Host<'_>) -> Result<Arc<dyn ImageMut>> {
    let moves = disk_build::moves(disk).into_iter().map(|m| {
        let start = spool.starts.get(m.disk).and_then(|s| s.checked_add(m.source_offset));
        let source = start.ok_or_else(|| Error::Invalid(format!("{file}: no disk {} was received", m.disk)))?;
        Ok(Move { source, target: m.target_offset, len: m.len })
    });
    let moves = moves.collect::<Result<Vec<_>>>()?;
    let path = folder.join(file);
    spool.hand_over(&path).map_err(|source| Error::Io { file: path.display().to_string(), action: "rename", source })?;
    let mut image = open(&path, host)?;
    image.remap(disk.size, &moves)?;
    disk_build::write_table(disk, &image)?;
    disk_build::write_swaps(disk, &image)?;
    Ok(Arc::new(image))
}
