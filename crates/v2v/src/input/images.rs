//! Opens the images that a configuration or the user names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::storage::FileStorage;
use imgcore::{Image, OpenOptions, TreeGate};

use super::{Request, running};
use crate::source::SourceDisk;
use crate::{Error, Result};

/// How a configuration names an image.
pub struct Named<'a> {
    /// The configuration file, where there is one.
    pub config: Option<&'a Path>,
    /// As written.
    pub path: &'a str,
    /// `None`: find out. A configuration's disk without a format is raw, as it is for Xen.
    pub format: Option<&'a str>,
    /// A relative path lies in /dev.
    pub in_dev: bool,
}

/// Finds a file as written, relative to the configuration's folder, or (with a warning) of the same name beside it.
pub fn find(named: &Named<'_>, warnings: &mut Vec<String>) -> Result<PathBuf, String> {
    let path = Path::new(named.path);
    let folder = named.config.map(|c| c.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
    if named.in_dev && path.is_relative() {
        let device = Path::new("/dev").join(path);
        let beside = folder.map(|f| f.join(path.file_name().unwrap_or_default())).filter(|b| b.is_file());
        return match beside {
            _ if device.exists() => Ok(device),
            Some(copy) => {
                warnings.push(format!("{} is not there: {} is used in its place", device.display(), copy.display()));
                Ok(copy)
            }
            None => Err(format!("{} is not there", device.display())),
        };
    }
    if there(path) {
        return Ok(path.to_owned());
    }
    let Some(folder) = folder else { return Err(format!("{} is not there", path.display())) };
    if path.is_relative() {
        let beside = folder.join(path);
        return if there(&beside) { Ok(beside) } else { Err(format!("{} is neither here nor in {}", path.display(), folder.display())) };
    }
    let beside = folder.join(path.file_name().unwrap_or_default());
    if path.file_name().is_some() && beside.is_file() {
        warnings.push(format!("{} is not there: {} is used in its place", path.display(), beside.display()));
        return Ok(beside);
    }
    Err(format!("{} is not there", path.display()))
}

/// Whether there is such a file, or such a disk `FILE#DISK` of a container.
fn there(path: &Path) -> bool {
    path.exists() || path.to_str().and_then(|p| p.rsplit_once('#')).is_some_and(|(file, _)| Path::new(file).exists())
}

/// Opens an image for reading. What it names in turn must lie in its own folder or below an allowed one.
pub fn open(request: &Request<'_>, path: &Path, format: Option<&str>, warnings: &mut Vec<String>) -> Result<Arc<dyn Image>> {
    if !request.in_use {
        running::check_device(path)?;
    }
    open_unchanging(request, path, format, warnings).map_err(explain)
}

/// What to do about a failure to open an image.
pub(super) fn explain(error: Error) -> Error {
    match error {
        Error::Image(e @ imgcore::Error::Locked { .. }) => {
            Error::Invalid(format!("{e}\nA running guest would change it meanwhile: shut it down first, or convert a copy of its disks"))
        }
        e => e,
    }
}

fn open_unchanging(request: &Request<'_>, path: &Path, format: Option<&str>, warnings: &mut Vec<String>) -> Result<Arc<dyn Image>> {
    let gate = TreeGate::new(path, request.allow.iter().cloned());
    let options = OpenOptions::new(&gate).exclusive();
    let Some(format) = format else { return Ok(request.formats.open(path, &options)?) };
    let format = if format == "vhd" { "vpc" } else { format };
    if matches!(format, "qcow" | "qed") {
        return Err(Error::Invalid(format!(
            "{}: the format {format} is not read: make it qcow2 (qemu-img convert -f {format} -O qcow2 OLD NEW), and name that with --disk",
            path.display()
        )));
    }
    if format == "raw" && path.to_str().is_some_and(|p| p.contains('#')) && !path.exists() {
        return Ok(request.formats.open(path, &options)?);
    }
    let storage = Arc::new(FileStorage::open(path)?);
    if format == "raw" {
        let probed = request.formats.probe_storage(&*storage)?.name();
        if probed != "raw" {
            warnings.push(format!(
                "{}: begins like a {probed} image, but is read as raw, as the configuration says; if it is {probed}, name that format there",
                path.display()
            ));
        }
    }
    Ok(request.formats.open_storage(storage, &options.format(format))?)
}

/// Opens the disk `target` of a configuration, or the file that the user named for it.
pub fn open_disk(request: &Request<'_>, target: &str, named: &Named<'_>, warnings: &mut Vec<String>) -> Result<SourceDisk, String> {
    let (path, format) = match request.disks.iter().find(|d| d.target.as_deref() == Some(target)) {
        Some(own) => (own.file.clone(), own.format.as_deref()),
        None => {
            let path = find(named, warnings)
                .map_err(|e| format!("disk {target}: {e}; copy it there, or say where it is with --disk {target}=FILE"))?;
            (path, named.format)
        }
    };
    let image = open(request, &path, format, warnings).map_err(|e| format!("disk {target}: {e}"))?;
    Ok(SourceDisk {
        target: target.to_owned(),
        size: image.size(),
        image: Some(image),
        read_only: false,
        bootable: false,
        origin: path.display().to_string(),
    })
}

/// Refuses two disks of one name, and one file as two disks.
pub fn check_distinct(disks: &[SourceDisk]) -> Result<()> {
    for (at, disk) in disks.iter().enumerate() {
        let real = |d: &SourceDisk| Path::new(&d.origin).canonicalize().unwrap_or_else(|_| d.origin.clone().into());
        for before in &disks[..at] {
            if before.target == disk.target {
                return Err(Error::Invalid(format!("two disks are called {}: {} and {}", disk.target, before.origin, disk.origin)));
            }
            if real(before) == real(disk) {
                return Err(Error::Invalid(format!(
                    "{} would be both disk {} and disk {}; say where they are with --disk {}=FILE",
                    disk.origin, before.target, disk.target, disk.target
                )));
            }
        }
    }
    Ok(())
}
