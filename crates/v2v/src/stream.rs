//! Disks that can be read only once: spooled in one pass, each as it comes, and used from there.

use std::path::Path;
use std::sync::Arc;

use imgcore::formats::{CreateOptions, OpenContext};
use imgcore::qcow2::{Move, Qcow2};
use imgcore::storage::FileStorage;
use imgcore::{Image, ImageMut, NoGate, OpenOptions, Slice};

use crate::disk_build;
use crate::input::DiskStream;
use crate::layout::TargetDisk;
use crate::options::Host;
use crate::source::Source;
use crate::{Error, Result};

/// Disks lie this far apart in the spool: what one L2 table of qcow2 maps, so that none belongs to two disks.
const ALIGNMENT: u64 = 512 << 20;

/// The spool's name in its folder.
const FILE: &str = "stream.qcow2";

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
}

/// Receives all disks.
pub fn receive(stream: Box<dyn DiskStream>, source: &Source, place: &Place<'_>, host: &Host<'_>) -> Result<Spool> {
    let mut starts = Vec::new();
    let mut end: u64 = 0;
    for disk in &source.disks {
        starts.push(end);
        end = disk.size.checked_next_multiple_of(ALIGNMENT).and_then(|len| end.checked_add(len)).filter(|e| *e < 1 << 60).ok_or_else(
            || Error::Invalid(format!("{}: disk {} says that it has {} bytes, which is too large", source.name, disk.target, disk.size)),
        )?;
    }
    let storage = match place {
        Place::Folder(folder) => FileStorage::create(folder.join(FILE))?,
        Place::Nameless(folder) => {
            let name = format!("{}/(stream)", folder.display());
            let file = tempfile::tempfile_in(folder).map_err(|source| Error::Io { file: name.clone(), action: "create", source })?;
            FileStorage::from_file(file, name)?
        }
    };
    let image = host.formats.driver("qcow2")?.create(Arc::new(storage), end.max(ALIGNMENT), &CreateOptions::new())?;
    let spool = Spool { image, starts };
    let targets: Vec<Arc<dyn ImageMut>> =
        (0..source.disks.len()).map(|disk| spool.disk(source, disk).map(|s| Arc::new(s) as _)).collect::<Result<_>>()?;
    stream.receive(&targets, host.progress)?;
    spool.image.flush()?;
    Ok(spool)
}

impl Spool {
    fn disk(&self, source: &Source, disk: usize) -> Result<Slice<dyn ImageMut>> {
        let (start, disk) = self.starts.get(disk).zip(source.disks.get(disk)).ok_or_else(|| Error::Invalid(format!("no disk {disk}")))?;
        Ok(Slice::new(self.image.clone(), *start, disk.size)?)
    }

    /// Gives the source's disks their content.
    pub fn attach(&self, source: &mut Source) -> Result<()> {
        for index in 0..source.disks.len() {
            let image: Arc<dyn Image> = Arc::new(self.disk(source, index)?);
            if let Some(disk) = source.disks.get_mut(index) {
                disk.image = Some(image);
            }
        }
        Ok(())
    }
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
    std::fs::rename(folder.join(FILE), &path).map_err(|source| Error::Io { file: path.display().to_string(), action: "rename", source })?;
    let options = OpenOptions::new(&NoGate);
    let storage = Arc::new(FileStorage::open_writable(&path)?);
    let mut image = Qcow2::open_mut(storage, &OpenContext::new(host.formats, &options, false))?;
    image.remap(disk.size, &moves)?;
    disk_build::write_table(disk, &image)?;
    disk_build::write_swaps(disk, &image)?;
    Ok(Arc::new(image))
}
