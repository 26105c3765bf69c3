//! Containers: files or folders that hold several named disks, such as an XVA.

use std::path::Path;
use std::sync::Arc;

use crate::{Image, Result};

/// What a container can be told by.
#[derive(Clone, Copy, Debug)]
pub struct ContainerProbe<'a> {
    /// The file or folder.
    pub path: &'a Path,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// The first [`Probe::HEAD`](super::Probe::HEAD) bytes, or less; empty for a folder.
    pub head: &'a [u8],
}

/// A kind of container.
pub trait Container: Send + Sync {
    /// The kind's name: `xva`.
    fn name(&self) -> &'static str;

    /// Whether this is one.
    fn probe(&self, probe: &ContainerProbe<'_>) -> bool;

    /// Opens it for reading.
    fn open(&self, path: &Path) -> Result<Arc<dyn DiskSet>>;
}

/// One disk of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedDisk {
    /// As it is written behind the `#`.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

/// An open container.
pub trait DiskSet: Send + Sync {
    /// Its disks, in the container's order.
    fn disks(&self) -> Vec<NamedDisk>;

    /// Opens the disk called `name`.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) with the known names when there is none of that name.
    fn open_disk(&self, name: &str) -> Result<Arc<dyn Image>>;

    /// What else a person wants to know, in the order in which it is shown.
    fn details(&self) -> Vec<(String, String)>;
}
