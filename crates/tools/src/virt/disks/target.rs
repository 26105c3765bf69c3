//! The image that a program makes, and the one that it reads.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use imgcore::formats::{CreateOptions, NewImage};
use imgcore::{Image, OpenOptions, TreeGate, size};

use crate::common::{Failure, formats};

/// The image to be read. Nobody else may write it meanwhile.
pub(in crate::virt) fn open_source(path: &Path, format: Option<&str>, allowed: &[std::path::PathBuf]) -> Result<Arc<dyn Image>, Failure> {
    let gate = TreeGate::new(path, allowed.iter().cloned());
    Ok(formats().open(path, &OpenOptions::new(&gate).format(format.filter(|f| *f != "auto")).exclusive())?)
}

/// A size, possibly as a number more than `base`: `10G`, `+3G`.
pub(in crate::virt) fn parse_size(text: &str, base: u64) -> Result<u64, Failure> {
    let bytes = match text.strip_prefix('+') {
        Some(more) => base.checked_add(size::parse(more)?),
        None => Some(size::parse(text)?),
    };
    bytes.and_then(|b| b.checked_next_multiple_of(512)).ok_or_else(|| Failure::new(format!("{text}: is too large for a disk")))
}

/// The image that will be written: what is there tells its format and size, unless the user does.
pub(in crate::virt) struct Target {
    /// Its format.
    pub format: String,
    /// Its size in bytes, where something is there.
    pub size: Option<u64>,
    options: CreateOptions,
}

impl Target {
    /// Looks at what is there under the output's name.
    pub(in crate::virt) fn look(path: &Path, source: &Path, format: Option<&str>) -> Result<Self, Failure> {
        let format = format.filter(|f| *f != "auto");
        let metadata = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Target { format: format.unwrap_or("raw").into(), size: None, options: CreateOptions::new() });
            }
            metadata => metadata.map_err(|e| Failure::new(format!("{}: {e}", path.display())))?,
        };
        if path.canonicalize().ok().zip(source.canonicalize().ok()).is_some_and(|(a, b)| a == b) {
            return Err(Failure::new(format!("{}: is the input itself, which is never changed", path.display())));
        }
        // Only its header matters: what it holds, or stands on, is to be replaced.
        let options = OpenOptions::new(&imgcore::NoGate).format(format).without_backing();
        let there = formats().open(path, &options).map_err(|e| Failure::from(e).hint("remove the file, and say --size"))?;
        let info = there.info();
        let device = metadata.file_type().is_block_device();
        let mut create = CreateOptions::new();
        if let Some(cluster) = info.cluster_size.filter(|_| info.format == "qcow2") {
            create = create.set("cluster_size", cluster.to_string());
        }
        let format = if device { format.unwrap_or("raw") } else { info.format };
        Ok(Target { format: format.into(), size: Some(there.size()), options: create })
    }

    /// A new image, whatever is there.
    pub(in crate::virt) fn new(format: &str, options: CreateOptions) -> Self {
        Target { format: format.into(), size: None, options }
    }

    /// Begins the image, which reads as zeroes. It gets its name when it is committed, and nothing is left of it when that does not happen.
    pub(in crate::virt) fn create(&self, path: &Path, size: u64) -> Result<NewImage, Failure> {
        crate::common::signals::clean_up();
        let formats = formats();
        let new = NewImage::create(formats.driver(&self.format)?, path, size, &self.options)?;
        if new.image().size() < size {
            return Err(Failure::new(format!(
                "{}: has {}, and {} are needed",
                path.display(),
                size::human(new.image().size()),
                size::human(size)
            )));
        }
        if !new.is_zero() {
            // A device keeps what was on it.
            new.image().zero_at(0, new.image().size())?;
        }
        Ok(new)
    }
}
