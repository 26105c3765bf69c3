//! An image as the user named it: opening it in each of the ways, and saying in qemu-img's words why that failed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::formats::{FormatDriver, Located};
use imgcore::storage::FileStorage;
use imgcore::{Caches, Error, Formats, Image, ImageEdit, ImageMut, LocalGate, OpenOptions, Slice, Storage};

use super::host_words;
use super::keys::{self, Described};
use crate::common::Failure;

/// Bytes of L2 tables for a single way through an image: a part of each layer's, with room for several workers.
const PASSING_TABLES: u64 = 1 << 20;

/// An image as it stands on the command line.
#[derive(Clone, Debug)]
pub(crate) struct ImageSpec {
    /// As the user wrote it; messages repeat it.
    pub name: String,
    /// The file, or disk of a container.
    pub path: PathBuf,
    /// The format, if the user said one.
    pub format: Option<String>,
    /// Whether to read it while another program writes it.
    pub force_share: bool,
    /// Reads this internal snapshot.
    pub snapshot: Option<String>,
    /// Whether nobody may write it meanwhile, even if it is raw.
    exclusive: bool,
    /// Whether the images below are opened as well.
    backing: bool,
    caches: Caches,
    window: Option<(u64, Option<u64>)>,
}

impl ImageSpec {
    /// What `name` means: a file, `json:{…}`, or keys if `image_opts` is set.
    pub(crate) fn parse(name: &OsStr, format: Option<&str>, image_opts: bool) -> Result<Self, Failure> {
        let path = PathBuf::from(name);
        let name = name.to_string_lossy();
        let described = match name.strip_prefix("json:") {
            _ if image_opts => keys::from_options(&name),
            Some(json) => keys::from_json(json),
            // A name that is no text cannot mean more than a file.
            None if path.to_str().is_none() => Ok(Described { path, ..Described::default() }),
            None => plain(&name),
        };
        let Described { path, format: said, caches, force_share, window } =
            described.map_err(|e| Failure::new(format!("Could not open '{name}': {}", e.message())))?;
        let format = format.map(str::to_owned).or(said);
        Ok(ImageSpec { name: name.into(), path, format, force_share, snapshot: None, exclusive: false, backing: true, caches, window })
    }

    /// The file `path`, of this format or probed.
    pub(crate) fn file(path: PathBuf, format: Option<String>) -> Self {
        let name = path.display().to_string();
        ImageSpec {
            name,
            path,
            format,
            force_share: false,
            snapshot: None,
            exclusive: false,
            backing: true,
            caches: Caches::default(),
            window: None,
        }
    }

    /// The same, read while another program writes it.
    pub(crate) fn force_share(self, force_share: bool) -> Self {
        ImageSpec { force_share: self.force_share || force_share, ..self }
    }

    /// The same, as it was at an internal snapshot.
    pub(crate) fn snapshot(self, snapshot: Option<String>) -> Self {
        ImageSpec { snapshot, ..self }
    }

    /// The same, with the images below left closed.
    pub(crate) fn without_backing(self) -> Self {
        ImageSpec { backing: false, ..self }
    }

    /// The same, with nobody writing it meanwhile, even if it is raw.
    pub(crate) fn exclusive(self) -> Self {
        ImageSpec { exclusive: true, ..self }
    }

    /// The same, for going through it once from start to end: what was passed of its tables is not kept.
    pub(crate) fn in_order(self) -> Self {
        let caches = if self.caches == Caches::default() { Caches { l2: Some(PASSING_TABLES), ..self.caches } } else { self.caches };
        ImageSpec { caches, ..self }
    }

    /// How the library is to open it.
    pub(crate) fn options(&self) -> OpenOptions<'_> {
        let options = OpenOptions::new(&LocalGate);
        let options = if self.exclusive { options.exclusive() } else { options };
        let options = if self.backing { options } else { options.without_backing() };
        options.format(self.format.as_deref()).snapshot(self.snapshot.as_deref()).caches(self.caches).force_share(self.force_share)
    }

    /// Opens it for reading.
    pub(crate) fn open(&self, formats: &Formats) -> Result<Arc<dyn Image>, Failure> {
        self.check_driver(formats)?;
        let image = formats.open(&self.path, &self.options()).map_err(|e| self.failure(formats, e))?;
        match self.window {
            None => Ok(image),
            Some((offset, len)) => {
                let len = len.unwrap_or(image.size().saturating_sub(offset));
                Ok(Arc::new(Slice::new(image, offset, len)?))
            }
        }
    }

    /// Opens it for reading; says in qemu-img's words that it has no such snapshot.
    pub(crate) fn open_snapshot(&self, formats: &Formats) -> Result<Arc<dyn Image>, Failure> {
        let Some(wanted) = &self.snapshot else { return self.open(formats) };
        let info = self.clone().snapshot(None).without_backing().open(formats)?.info();
        let fail = |why: String| Err(Failure::new(format!("Failed to load snapshot: {why}")));
        if !formats.driver(info.format).is_ok_and(FormatDriver::has_snapshots) {
            let what = "does not support temporarily loading internal snapshots";
            return fail(format!("Block format '{}' used by device '' {what}", info.format));
        }
        if info.snapshots.iter().all(|s| s.id != *wanted && s.name != *wanted) {
            return fail("Can't find snapshot".into());
        }
        self.open(formats)
    }

    /// Opens it for reading and writing.
    pub(crate) fn open_mut(&self, formats: &Formats) -> Result<Arc<dyn ImageMut>, Failure> {
        let storage = self.writable(formats)?;
        formats.open_storage_mut(storage, &self.options()).map_err(|e| self.failure(formats, e))
    }

    /// Opens it for changes to its structure.
    pub(crate) fn open_edit(&self, formats: &Formats) -> Result<Box<dyn ImageEdit>, Failure> {
        let storage = self.writable(formats)?;
        formats.open_edit(storage, &self.options()).map_err(|e| self.failure(formats, e))
    }

    /// The file opened for reading.
    pub(crate) fn readable(&self, formats: &Formats) -> Result<Arc<FileStorage>, Failure> {
        self.check_driver(formats)?;
        Ok(Arc::new(FileStorage::open(&self.path).map_err(|e| self.failure(formats, e))?))
    }

    /// The file opened for writing, after a warning where writing to it is restricted.
    pub(crate) fn writable(&self, formats: &Formats) -> Result<Arc<FileStorage>, Failure> {
        self.check_driver(formats)?;
        if self.window.is_some() {
            return Err(Failure::new(format!("Could not open '{}': a part of a file can only be read", self.name)));
        }
        if let Located::Disk(..) = formats.locate(&self.path) {
            return Err(Failure::new(format!("Could not open '{}': disks of a container can only be read", self.name)));
        }
        let storage = FileStorage::open_writable(&self.path).map_err(|e| self.failure(formats, e))?;
        if self.format.is_none() && formats.probe_storage(&storage)?.name() == "raw" {
            eprintln!(
                "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         Automatically detecting the format is \
                 dangerous for raw images, write operations on block 0 will be restricted.\n         Specify the 'raw' format explicitly to \
                 remove the restrictions.",
                self.name
            );
        }
        Ok(Arc::new(storage))
    }

    /// Turns an error of opening this image into qemu-img's words.
    pub(crate) fn failure(&self, formats: &Formats, error: Error) -> Failure {
        let failure = why_not_open(&self.path, self.format.as_deref(), formats, error);
        let message = format!("Could not open '{}': {}", self.name, failure.message());
        failure.reworded(message)
    }

    fn check_driver(&self, formats: &Formats) -> Result<(), Failure> {
        match &self.format {
            Some(format) if formats.driver(format).is_err() => {
                Err(Failure::new(format!("Could not open '{}': Unknown driver '{format}'", self.name)))
            }
            _ => Ok(()),
        }
    }
}

/// A file's name. `file:` is taken off; what looks like another protocol is one unless such a file exists.
fn plain(name: &str) -> Result<Described, Failure> {
    let path = name.strip_prefix("file:").unwrap_or(name);
    if let Some((protocol, _)) = path.split_once(':')
        && !protocol.contains('/')
        && !Path::new(path).exists()
        && !Path::new(path.split('#').next().unwrap_or_default()).exists()
    {
        return Err(Failure::new(format!("Unknown protocol '{protocol}'")));
    }
    Ok(Described { path: path.into(), ..Described::default() })
}

/// Why an image could not be opened, in qemu-img's words.
pub(crate) fn why_not_open(path: &Path, format: Option<&str>, formats: &Formats, error: Error) -> Failure {
    let own = path.display().to_string();
    let failure = Failure::from_ref(&error);
    let below = |file: &String| if *file == own { "" } else { "Could not open backing file: " };
    let reason = match &error {
        Error::Io { file, action: "open", source, .. } => {
            format!("{}Could not open '{file}': {}", below(file), host_words(source))
        }
        Error::Unsupported { file, format, what } => format!("{}Unsupported {format} {what}", below(file)),
        Error::Locked { file, why } => format!("{}{why}\nIs another process using the image [{file}]?", below(file)),
        _ if format.is_some_and(|format| !claims(formats, format, path)) => {
            return Failure::new(format!("Image is not in {} format", format.unwrap_or_default()));
        }
        _ => failure.message().strip_prefix(&format!("{own}: ")).unwrap_or(failure.message()).to_owned(),
    };
    failure.reworded(reason)
}

/// Whether the format called `name` would be probed in the file.
fn claims(formats: &Formats, name: &str, path: &Path) -> bool {
    let probed = FileStorage::open(path).and_then(|storage| {
        let storage: &dyn Storage = &storage;
        Ok(formats.probe_storage(storage)?.name() == name)
    });
    probed.unwrap_or(true)
}

/// qemu-img's message for an output that could not be created.
pub(crate) fn could_not_create(name: &OsStr, error: Error) -> Failure {
    let name = name.to_string_lossy();
    let hinted = Failure::from_ref(&error);
    let reason = match &error {
        Error::Io { file, action: "create" | "open", source, .. } => format!("Could not create '{file}': {}", host_words(source)),
        _ => hinted.message().to_owned(),
    };
    hinted.reworded(format!("{name}: error while creating output image: {reason}"))
}

/// The snapshot that `-l` means: `snapshot.id=…`, `snapshot.name=…`, or either of them as it is.
pub(crate) fn snapshot_name(text: &str) -> Result<String, Failure> {
    if !text.starts_with("snapshot.") {
        return Ok(text.to_owned());
    }
    let keyed = text.strip_prefix("snapshot.id=").or_else(|| text.strip_prefix("snapshot.name="));
    keyed.map(str::to_owned).ok_or_else(|| {
        let name = text.split('=').next().unwrap_or_default();
        Failure::new(format!("Invalid parameter '{name}'\n{}: Failed in parsing snapshot param '{text}'", crate::img::name()))
    })
}
