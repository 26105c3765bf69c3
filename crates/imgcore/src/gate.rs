//! Which other files an image may name.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::storage::FileStorage;
use crate::{Error, Result, Storage};

/// A file that an image names, as it stands in the image.
#[derive(Clone, Debug)]
pub struct Reference<'a> {
    /// The file that holds the reference, as it was opened.
    pub from: &'a str,
    /// The reference: a path, mostly relative to `from`'s folder.
    pub target: &'a str,
    /// The role: `backing file`, `data file`, `parent`, `extent`.
    pub role: &'static str,
}

impl Reference<'_> {
    fn refused(&self, why: impl Into<String>) -> Error {
        Error::Refused { file: self.from.into(), reference: self.target.into(), why: why.into() }
    }

    /// The path that is meant: a relative one starts at the folder of the file that names it. `file:` is taken off, other
    /// protocols are refused.
    pub fn path(&self) -> Result<PathBuf> {
        let target = self.target.strip_prefix("file:").unwrap_or(self.target);
        if target.is_empty() {
            return Err(self.refused("the name is empty"));
        }
        if let Some(protocol) = protocol(target) {
            return Err(self.refused(format!("'{protocol}:' is not a local file; copy the {} here and rebase the image on it", self.role)));
        }
        Ok(Path::new(self.from).parent().unwrap_or(Path::new("")).join(target))
    }
}

/// The protocol that QEMU would see in a file name: what stands before a `:` that comes before any `/`.
fn protocol(target: &str) -> Option<&str> {
    let (before, _) = target.split_once(':')?;
    (!before.contains('/')).then_some(before)
}

/// The role of the file that holds an image's guest data where the image itself has none.
pub(crate) const DATA_FILE: &str = "data file";

/// A caller's policy on files that images name. No image opens another file but through a gate.
pub trait Gate: Send + Sync {
    /// Opens the referenced file for reading, or says why not with
    /// [`Error::Refused`](crate::Error::Refused).
    fn open(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>>;

    /// Opens the referenced file, a part of an image that is written, for reading and writing.
    fn open_writable(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        Err(reference.refused("it may only be read"))
    }
}

/// No other file at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoGate;

impl Gate for NoGate {
    fn open(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        Err(reference.refused("other files are not opened here"))
    }
}

/// Any local file, as qemu-img does: for images that the user made.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalGate;

impl Gate for LocalGate {
    fn open(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::open(Self::path(reference)?)?))
    }

    fn open_writable(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::open_writable(Self::path(reference)?)?))
    }
}

impl LocalGate {
    /// QEMU looks for a data file, unlike other files, from the folder that the program runs in. It is sought there, but
    /// found beside its image, too.
    fn path(reference: &Reference<'_>) -> Result<PathBuf> {
        let path = reference.path()?;
        let here = Path::new(reference.target.strip_prefix("file:").unwrap_or(reference.target));
        Ok(if reference.role == DATA_FILE && here.exists() { here.to_owned() } else { path })
    }
}

/// Only files below the folder of the first image, or below folders that the user allowed: for images from elsewhere.
///
/// Links are resolved before the comparison.
#[derive(Clone, Debug)]
pub struct TreeGate {
    allowed: Vec<PathBuf>,
}

impl TreeGate {
    /// Files below the folder of `image` or below (or equal to) one of `allowed`. What does not exist allows nothing.
    pub fn new(image: impl AsRef<Path>, allowed: impl IntoIterator<Item = PathBuf>) -> Self {
        let own = image.as_ref().canonicalize().ok().and_then(|p| p.parent().map(Path::to_owned));
        TreeGate { allowed: own.into_iter().chain(allowed.into_iter().filter_map(|p| p.canonicalize().ok())).collect() }
    }
}

impl TreeGate {
    fn path(&self, reference: &Reference<'_>) -> Result<PathBuf> {
        let path = reference.path()?;
        let outside = || reference.refused(format!("it lies outside the image's own folder; --allow-path {} allows it", path.display()));
        // Whether a file outside exists is none of the image's business.
        let real = path.canonicalize().map_err(|e| {
            let climbs = path.components().any(|c| c == Component::ParentDir) || Path::new(reference.target).is_absolute();
            if climbs { outside() } else { Error::io(&path.display().to_string(), "open", None, e) }
        })?;
        if !self.allowed.iter().any(|folder| real.starts_with(folder)) {
            return Err(outside());
        }
        Ok(real)
    }
}

impl Gate for TreeGate {
    fn open(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::open(self.path(reference)?)?))
    }

    fn open_writable(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::open_writable(self.path(reference)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(gate: &dyn Gate, from: &Path, target: &str) -> Result<Arc<dyn Storage>> {
        gate.open(&Reference { from: from.to_str().unwrap(), target, role: "backing file" })
    }

    #[test]
    fn protocols_are_refused() {
        for target in ["json:{\"driver\":\"nbd\"}", "nbd:localhost:1", "http://host/x", "ssh://h/x", ""] {
            let error = open(&LocalGate, Path::new("/a/b.qcow2"), target).err().unwrap();
            assert!(matches!(error, Error::Refused { .. }), "{error}");
        }
        let reference = Reference { from: "/a/b.qcow2", target: "sub/x:y", role: "backing file" };
        assert_eq!(reference.path().unwrap(), Path::new("/a/sub/x:y"));
        assert_eq!(Reference { target: "file:x", ..reference }.path().unwrap(), Path::new("/a/x"));
    }

    #[test]
    fn a_tree_gate_keeps_to_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["own/sub", "other"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["own/top.qcow2", "own/sub/base", "other/base"] {
            std::fs::write(root.join(file), "x").unwrap();
        }
        std::os::unix::fs::symlink(root.join("other/base"), root.join("own/link")).unwrap();
        let top = root.join("own/top.qcow2");
        let gate = TreeGate::new(&top, []);
        assert!(open(&gate, &top, "sub/base").is_ok());
        for outside in ["../other/base", "link", "/etc/hostname", "/nonexistent", "../none"] {
            let error = open(&gate, &top, outside).err().unwrap();
            assert!(matches!(error, Error::Refused { .. }), "{outside}: {error}");
        }
        assert!(matches!(open(&gate, &top, "none").err().unwrap(), Error::Io { .. }));
        let gate = TreeGate::new(&top, [root.join("other")]);
        assert!(open(&gate, &top, "../other/base").is_ok());
        assert!(open(&gate, &top, "link").is_ok());
        assert!(open(&NoGate, &top, "sub/base").is_err());
    }
}
