//! The table of formats, as a value: what an image is, and how to open and create it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::qcow2::Qcow2Driver;
use crate::raw::RawDriver;
use crate::storage::{FileStorage, Undo, read_padded};
use crate::vdi::VdiDriver;
use crate::vhd::VhdDriver;
use crate::vhdx::VhdxDriver;
use crate::vmdk::VmdkDriver;
use crate::{Error, Gate, Image, ImageEdit, ImageMut, Result, Storage};

mod container;
mod driver;
mod new_image;

pub use container::{Container, ContainerProbe, ContainerWriter, DiskSet, NamedDisk, SourceDisk};
use driver::Purpose;
pub use driver::{CheckReport, CreateOptions, FormatDriver, FormatOption, Measured, OpenContext, Probe, Repair};
pub use new_image::NewImage;

/// Bytes of metadata that an image may keep in memory; a format's default where `None`. The names are QEMU's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    /// L2 tables: `l2-cache-size`.
    pub l2: Option<u64>,
    /// Refcount blocks: `refcount-cache-size`.
    pub refcount: Option<u64>,
    /// Both together: `cache-size`.
    pub total: Option<u64>,
}

/// How to open an image.
#[derive(Clone)]
pub struct OpenOptions<'a> {
    /// The format's name; probed when `None`.
    pub format: Option<&'a str>,
    /// Which files the image may name.
    pub gate: &'a dyn Gate,
    /// Whether to open backing images as well. Without them, unallocated ranges read as zeroes.
    pub backing: bool,
    /// Reads an internal snapshot, by id or name, instead of the disk as it is now. For reading only.
    pub snapshot: Option<&'a str>,
    /// Bounds on cached metadata.
    pub caches: Caches,
    /// Whether to read an image that another program has locked for writing.
    pub force_share: bool,
    /// Whether nobody else may write the image meanwhile, even if it is raw. Other formats never let that happen.
    pub exclusive: bool,
    /// What the files are changed in, if they can be put back; see [`Undo`].
    pub undo: Option<&'a Undo>,
}

impl<'a> OpenOptions<'a> {
    /// Format probed, backing images opened through `gate`.
    pub fn new(gate: &'a dyn Gate) -> Self {
        OpenOptions {
            format: None,
            gate,
            backing: true,
            snapshot: None,
            caches: Caches::default(),
            force_share: false,
            exclusive: false,
            undo: None,
        }
    }

    /// Says the format instead of probing it.
    pub fn format(self, format: impl Into<Option<&'a str>>) -> Self {
        OpenOptions { format: format.into(), ..self }
    }

    /// Reads the internal snapshot with this id or name.
    pub fn snapshot(self, snapshot: impl Into<Option<&'a str>>) -> Self {
        OpenOptions { snapshot: snapshot.into(), ..self }
    }

    /// Bounds the metadata kept in memory.
    pub fn caches(self, caches: Caches) -> Self {
        OpenOptions { caches, ..self }
    }

    /// Reads an image even while another program writes it.
    pub fn force_share(self, force_share: bool) -> Self {
        OpenOptions { force_share, ..self }
    }

    /// Has nobody else write the image meanwhile, even if it is raw: for copies, and where a change would do harm.
    pub fn exclusive(self) -> Self {
        OpenOptions { exclusive: true, ..self }
    }

    /// Makes what is written a part of this change.
    pub fn undo(self, undo: &'a Undo) -> Self {
        OpenOptions { undo: Some(undo), ..self }
    }

    /// Has what is written to `storage` be a part of the change, if there is one.
    fn kept(&self, storage: Arc<dyn Storage>) -> Arc<dyn Storage> {
        self.undo.map_or(storage.clone(), |undo| undo.storage(storage))
    }

    /// Leaves backing images closed: for looking at this image's own metadata.
    pub fn without_backing(self) -> Self {
        OpenOptions { backing: false, ..self }
    }
}

/// What a name on the command line stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// An image of its own.
    File(PathBuf),
    /// A disk of a container, written `FILE#DISK`.
    Disk(PathBuf, String),
}

/// The formats and containers that a program knows. Cheap to clone.
#[derive(Clone)]
pub struct Formats {
    /// Raw comes first and is what remains when no other claims the bytes.
    drivers: Arc<[Arc<dyn FormatDriver>]>,
    containers: Arc<[Arc<dyn Container>]>,
}

impl Default for Formats {
    fn default() -> Self {
        Formats::new()
    }
}

impl Formats {
    /// The formats of this crate.
    pub fn new() -> Self {
        // VHD is the last to be asked: it may be known by the file's end alone, others by their start.
        let drivers: [Arc<dyn FormatDriver>; 6] = [
            Arc::new(RawDriver),
            Arc::new(Qcow2Driver),
            Arc::new(VhdxDriver),
            Arc::new(VmdkDriver),
            Arc::new(VdiDriver),
            Arc::new(VhdDriver),
        ];
        Formats { drivers: Arc::new(drivers), containers: Arc::new([]) }
    }

    /// The same and one more kind of container.
    pub fn with_container(self, container: Arc<dyn Container>) -> Self {
        Formats { containers: self.containers.iter().cloned().chain([container]).collect(), ..self }
    }

    /// All formats, raw first.
    pub fn drivers(&self) -> impl Iterator<Item = &dyn FormatDriver> {
        self.drivers.iter().map(|d| &**d)
    }

    /// The format called `name`.
    pub fn driver(&self, name: &str) -> Result<&dyn FormatDriver> {
        self.drivers().find(|d| d.name() == name || d.aliases().contains(&name)).ok_or_else(|| {
            let known: Vec<_> = self.drivers().map(|d| d.name()).collect();
            Error::Invalid(format!("unknown format '{name}': use one of {}", known.join(", ")))
        })
    }

    /// What makes containers of the kind called `name`.
    pub fn container_writer(&self, name: &str) -> Option<&dyn ContainerWriter> {
        self.containers.iter().find(|c| c.name() == name).and_then(|c| c.writer())
    }

    /// The format that claims these bytes, else raw.
    pub fn probe(&self, probe: &Probe<'_>) -> &dyn FormatDriver {
        self.drivers().find(|d| d.probe(probe)).unwrap_or(&RawDriver)
    }

    /// The format of what lies in `storage`.
    pub fn probe_storage(&self, storage: &dyn Storage) -> Result<&dyn FormatDriver> {
        let size = storage.size()?;
        let head = read_part(storage, 0, size.min(Probe::HEAD))?;
        let tail_len = size.min(Probe::TAIL);
        let tail = read_part(storage, size - tail_len, tail_len)?;
        Ok(self.probe(&Probe { head: &head, tail: &tail, size }))
    }

    /// Opens `path` for reading: an image, or a disk of a container as `FILE#DISK`.
    pub fn open(&self, path: impl AsRef<Path>, options: &OpenOptions<'_>) -> Result<Arc<dyn Image>> {
        match self.locate(path.as_ref()) {
            Located::File(path) => {
                if let Some(container) = self.container(&path)? {
                    return self.only_disk(&path, &*container.open(&path)?);
                }
                self.open_storage(Arc::new(FileStorage::open(path)?), options)
            }
            Located::Disk(path, disk) => {
                let Some(container) = self.container(&path)? else {
                    return Err(Error::Invalid(format!("{}: holds no named disks, so '#{disk}' cannot be one of it", path.display())));
                };
                container.open(&path)?.open_disk(&disk)
            }
        }
    }

    fn only_disk(&self, path: &Path, disks: &dyn DiskSet) -> Result<Arc<dyn Image>> {
        match &disks.disks()[..] {
            [only] => disks.open_disk(&only.name),
            [] => Err(Error::Invalid(format!("{}: holds no disk", path.display()))),
            several => {
                let names: Vec<_> = several.iter().map(|d| format!("{}#{}", path.display(), d.name)).collect();
                Err(Error::Invalid(format!("{}: holds several disks: name one of {}", path.display(), names.join(", "))))
            }
        }
    }

    /// Opens the image file `path` for reading and writing.
    pub fn open_mut(&self, path: impl AsRef<Path>, options: &OpenOptions<'_>) -> Result<Arc<dyn ImageMut>> {
        let path = match self.locate(path.as_ref()) {
            Located::File(path) => path,
            Located::Disk(path, _) => return Err(Error::Invalid(format!("{}: disks in it can only be read", path.display()))),
        };
        self.open_storage_mut(options.kept(Arc::new(FileStorage::open_writable(path)?)), options)
    }

    /// Opens the image in `storage` for reading.
    pub fn open_storage(&self, storage: Arc<dyn Storage>, options: &OpenOptions<'_>) -> Result<Arc<dyn Image>> {
        let (driver, guessed) = self.choose(&*storage, options)?;
        let context = OpenContext::new(self, options, guessed).entered(&*storage)?;
        context.lock(&*storage, driver, Purpose::Read)?;
        driver.open(storage, &context)
    }

    /// Opens the image in `storage` for reading and writing.
    pub fn open_storage_mut(&self, storage: Arc<dyn Storage>, options: &OpenOptions<'_>) -> Result<Arc<dyn ImageMut>> {
        let (driver, guessed) = self.choose(&*storage, options)?;
        let context = OpenContext::new(self, options, guessed).entered(&*storage)?;
        context.lock(&*storage, driver, Purpose::Write)?;
        driver.open_mut(storage, &context)
    }

    /// Opens the image in `storage` for changes to its structure.
    pub fn open_edit(&self, storage: Arc<dyn Storage>, options: &OpenOptions<'_>) -> Result<Box<dyn ImageEdit>> {
        let (driver, guessed) = self.choose(&*storage, options)?;
        let context = OpenContext::new(self, options, guessed).entered(&*storage)?;
        context.lock(&*storage, driver, Purpose::Edit)?;
        driver.open_edit(storage, &context)
    }

    /// Checks the metadata of the image in `storage`, repairing it if asked (then `storage` must be writable).
    pub fn check(&self, storage: Arc<dyn Storage>, options: &OpenOptions<'_>, repair: Repair) -> Result<CheckReport> {
        let (driver, guessed) = self.choose(&*storage, options)?;
        let context = OpenContext::new(self, options, guessed);
        context.lock(&*storage, driver, if repair == Repair::None { Purpose::Read } else { Purpose::Edit })?;
        driver.check(storage, &context, repair)
    }

    fn choose(&self, storage: &dyn Storage, options: &OpenOptions<'_>) -> Result<(&dyn FormatDriver, bool)> {
        let (driver, guessed) = match options.format {
            Some(name) => (self.driver(name)?, false),
            None => (self.probe_storage(storage)?, true),
        };
        if options.snapshot.is_some() && !driver.has_snapshots() {
            return Err(Error::unsupported(storage.name(), driver.name(), "internal snapshots"));
        }
        Ok((driver, guessed))
    }

    /// Splits `FILE#DISK`, but only where no file of the whole name exists and one of the shorter name does.
    pub fn locate(&self, path: &Path) -> Located {
        if let Some(text) = path.to_str()
            && !path.exists()
        {
            for (at, _) in text.rmatch_indices('#') {
                if Path::new(&text[..at]).exists() {
                    return Located::Disk(text[..at].into(), text[at + 1..].into());
                }
            }
        }
        Located::File(path.into())
    }

    /// The kind of container that `path` is, if it is one.
    pub fn container(&self, path: &Path) -> Result<Option<&dyn Container>> {
        if self.containers.is_empty() {
            return Ok(None);
        }
        let is_folder = path.is_dir();
        let head = if is_folder {
            Vec::new()
        } else {
            let storage = FileStorage::open(path)?;
            read_part(&storage, 0, storage.size()?.min(Probe::HEAD))?
        };
        let probe = ContainerProbe { path, is_folder, head: &head };
        Ok(self.containers.iter().map(|c| &**c).find(|c| c.probe(&probe)))
    }
}

fn read_part(storage: &dyn Storage, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut buf = vec![0; len as usize];
    read_padded(storage, &mut buf, offset)?;
    Ok(buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoGate;
    use crate::raw::Raw;
    use crate::storage::MemStorage;

    struct Box2;

    impl Container for Box2 {
        fn name(&self) -> &'static str {
            "box"
        }

        fn probe(&self, probe: &ContainerProbe<'_>) -> bool {
            probe.head.starts_with(b"BOX")
        }

        fn open(&self, _: &Path) -> Result<Arc<dyn DiskSet>> {
            Ok(Arc::new(Box2))
        }
    }

    impl DiskSet for Box2 {
        fn disks(&self) -> Vec<NamedDisk> {
            ["Ref:2", "Ref:10"].map(|name| NamedDisk { name: name.into(), size: 512 }).into()
        }

        fn open_disk(&self, name: &str) -> Result<Arc<dyn Image>> {
            Ok(Arc::new(Raw::open(Arc::new(MemStorage::from_bytes(name, name.as_bytes())))?))
        }

        fn details(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }

    #[test]
    fn disks_of_containers_are_named_behind_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a.box"), "BOX").unwrap();
        std::fs::write(path("b#1"), "raw").unwrap();
        let formats = Formats::new().with_container(Arc::new(Box2));
        let options = OpenOptions::new(&NoGate);
        assert_eq!(formats.open(path("a.box#Ref:10"), &options).unwrap().info().file, "Ref:10");
        assert!(formats.open(path("b#1"), &options).is_ok());
        let error = formats.open(path("a.box"), &options).err().unwrap().to_string();
        assert!(error.ends_with("a.box#Ref:10"), "{error}");
        let error = formats.open(path("b#1#2"), &options).err().unwrap().to_string();
        assert!(error.contains("holds no named disks"), "{error}");
        assert!(formats.open_mut(path("a.box#Ref:10"), &options).is_err());
    }

    #[test]
    fn unknown_formats_are_named() {
        let error = Formats::new().driver("vdx").err().unwrap().to_string();
        assert_eq!(error, "unknown format 'vdx': use one of raw, qcow2, vhdx, vmdk, vdi, vpc");
    }
}
