//! Containers: files or folders that hold several named disks, such as an XVA.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::{CreateOptions, FormatOption};
use crate::{Image, Progress, Result};

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

    /// How one is made of disks, for kinds that can be.
    fn writer(&self) -> Option<&dyn ContainerWriter> {
        None
    }
}

/// A disk that goes into a container.
#[derive(Clone)]
pub struct SourceDisk {
    /// What the container calls it, for containers that keep names.
    pub name: String,
    /// Its content.
    pub image: Arc<dyn Image>,
}

/// Makes containers: each source becomes a disk of its own, where an image format puts them behind each other.
pub trait ContainerWriter: Send + Sync {
    /// What [`write`](ContainerWriter::write) can be told.
    fn options(&self) -> &'static [FormatOption];

    /// Writes a container of `disks`, in this order, to `out` from its first byte to its last. The bytes do not depend
    /// on the number of `threads`.
    fn write(
        &self,
        disks: &[SourceDisk],
        options: &CreateOptions,
        threads: usize,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<()>;
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
