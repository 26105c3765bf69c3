//! What a format offers to the table, and what it is given to work with.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Formats, OpenOptions};
use crate::storage::Lock;
use crate::{Error, Image, ImageEdit, ImageMut, Progress, Reference, Result, Storage};

/// How many images a chain may have.
const MAX_CHAIN: usize = 200;

/// What a format can be told by.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The first [`Probe::HEAD`] bytes, or less.
    pub head: &'a [u8],
    /// The last [`Probe::TAIL`] bytes, or less.
    pub tail: &'a [u8],
    /// Size in bytes.
    pub size: u64,
}

impl Probe<'_> {
    /// Bytes read from the start for probing.
    pub const HEAD: u64 = 4096;
    /// Bytes read from the end for probing.
    pub const TAIL: u64 = 1024;
}

/// One image format.
pub trait FormatDriver: Send + Sync {
    /// The format's name: `qcow2`.
    fn name(&self) -> &'static str;

    /// Other names for it.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether this is an image of the format.
    fn probe(&self, probe: &Probe<'_>) -> bool;

    /// Whether images have metadata in the file, which must not change while they are read.
    fn has_metadata(&self) -> bool {
        true
    }

    /// Opens an image for reading. `context` has already entered `storage`.
    fn open(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn Image>>;

    /// Opens an image for reading and writing.
    fn open_mut(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn ImageMut>>;

    /// Opens an image for changes to its structure.
    fn open_edit(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>) -> Result<Box<dyn ImageEdit>> {
        Err(Error::unsupported(storage.name(), self.name(), "changing such an image's structure"))
    }

    /// Whether images of this format can hold internal snapshots.
    fn has_snapshots(&self) -> bool {
        false
    }

    /// What [`create`](FormatDriver::create) can be told.
    fn options(&self) -> &'static [FormatOption];

    /// What [`ImageEdit::amend`] can be told; nothing where it cannot be done.
    fn amend_options(&self) -> &'static [FormatOption] {
        &[]
    }

    /// Every option as [`create`](FormatDriver::create) would use it, defaults included, in the order in which qemu-img shows them.
    fn effective_options(&self, size: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>>;

    /// Makes an image of `size` bytes, replacing all that is in `storage`.
    fn create(&self, storage: Arc<dyn Storage>, size: u64, options: &CreateOptions) -> Result<Arc<dyn ImageMut>>;

    /// The name of a second file that [`create`](FormatDriver::create) with these options would keep the guest's data in.
    fn data_file<'o>(&self, options: &'o CreateOptions) -> Option<&'o str> {
        let _ = options;
        None
    }

    /// Makes an image whose guest data lies in `data`, replacing all that is in both.
    fn create_with_data_file(
        &self,
        storage: Arc<dyn Storage>,
        data: Arc<dyn Storage>,
        size: u64,
        options: &CreateOptions,
    ) -> Result<Arc<dyn ImageMut>> {
        let _ = (data, size, options);
        Err(Error::unsupported(storage.name(), self.name(), "an external data file"))
    }

    /// How large the file of an image of `size` bytes with these options gets: empty, or with the data of `source`.
    fn measure(&self, size: u64, source: Option<&dyn Image>, options: &CreateOptions) -> Result<Measured> {
        let _ = (size, source, options);
        Err(Error::unsupported("measure", self.name(), "measuring this format"))
    }

    /// Writes an image with the content of `source` to `out` from its first byte to its last, without going back.
    fn write_stream(
        &self,
        source: &dyn Image,
        options: &CreateOptions,
        out: &mut dyn std::io::Write,
        progress: &dyn Progress,
    ) -> Result<()> {
        let _ = (options, out, progress);
        Err(Error::unsupported(&source.info().file, self.name(), "writing this format to a pipe: use raw or qcow2"))
    }

    /// Checks an image's metadata.
    fn check(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>, repair: Repair) -> Result<CheckReport>;
}

/// How large a file gets, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// With the data that there is.
    pub required: u64,
    /// Once everything is written.
    pub fully_allocated: u64,
    /// Of these, for persistent bitmaps, where the source has them and the format keeps them.
    pub bitmaps: Option<u64>,
}

/// What a check may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    #[default]
    None,
    /// Give leaked clusters back: never loses data.
    Leaks,
    /// Set reference counts right as well.
    All,
}

/// One creation option, for parsing and help.
#[derive(Clone, Copy, Debug)]
pub struct FormatOption {
    /// Its name: `cluster_size`.
    pub name: &'static str,
    /// The kind of its value, as qemu-img writes it: `<size>`.
    pub value: &'static str,
    /// One line for people.
    pub help: &'static str,
}

/// Options for creating an image, by name.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions(BTreeMap<String, String>);

impl CreateOptions {
    /// None set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `name` to `value`, replacing an earlier value.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// The same without `name`.
    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether `name` is on; off when it is not set.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None | Some("off") => Ok(false),
            Some("on") => Ok(true),
            Some(other) => Err(Error::Invalid(format!("Parameter '{name}' expects 'on' or 'off', not '{other}'"))),
        }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Refuses names that `driver` does not have.
    pub fn check(&self, driver: &dyn FormatDriver) -> Result<()> {
        self.check_names(driver.options())
    }

    /// Refuses names that are not among `known`.
    pub fn check_names(&self, known: &[FormatOption]) -> Result<()> {
        match self.iter().find(|(name, _)| known.iter().all(|o| o.name != *name)) {
            None => Ok(()),
            Some((name, _)) => Err(Error::Invalid(format!("Invalid parameter '{name}'"))),
        }
    }
}

/// What a check found; the numbers that qemu-img gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Places where metadata points at what is not there or is used twice: data may be lost.
    pub corruptions: u64,
    /// Clusters counted as used that nothing uses: space is lost, data is not.
    pub leaks: u64,
    /// Parts that could not be checked.
    pub check_errors: u64,
    /// Corruptions repaired.
    pub corruptions_fixed: u64,
    /// Leaks repaired.
    pub leaks_fixed: u64,
    /// Where the last used cluster ends in the file.
    pub image_end_offset: u64,
    /// Guest-visible clusters.
    pub total_clusters: u64,
    /// Of these, allocated.
    pub allocated_clusters: u64,
    /// Of these, not where the one before them ends.
    pub fragmented_clusters: u64,
    /// Of these, compressed.
    pub compressed_clusters: u64,
    /// One line for each finding, up to a bound.
    pub messages: Vec<String>,
}

/// What an image is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
    Edit,
}

/// What a driver is given to open an image and what that image names.
#[derive(Clone)]
pub struct OpenContext<'a> {
    /// The table, for the formats of other files.
    pub formats: &'a Formats,
    /// How this image was asked for.
    pub options: &'a OpenOptions<'a>,
    /// Whether the format was probed rather than said.
    pub guessed: bool,
    chain: Vec<Option<(u64, u64)>>,
}

impl<'a> OpenContext<'a> {
    /// The context of the first image of a chain.
    pub fn new(formats: &'a Formats, options: &'a OpenOptions<'a>, guessed: bool) -> Self {
        OpenContext { formats, options, guessed, chain: Vec::new() }
    }

    /// The same, with one more file in the chain.
    pub(super) fn entered(mut self, storage: &dyn Storage) -> Result<Self> {
        let identity = storage.identity();
        if identity.is_some() && self.chain.contains(&identity) {
            return Err(Error::Invalid(format!("{}: the chain of backing files comes back to this file", storage.name())));
        }
        if self.chain.len() >= MAX_CHAIN {
            return Err(Error::Invalid(format!("{}: the chain of backing files is longer than {MAX_CHAIN}", storage.name())));
        }
        self.chain.push(identity);
        Ok(self)
    }

    /// Locks the file of an image of `driver`'s format as its use and the options want it.
    pub(super) fn lock(&self, storage: &dyn Storage, driver: &dyn FormatDriver, purpose: Purpose) -> Result<()> {
        let shared = !driver.has_metadata() && !self.options.exclusive;
        match purpose {
            Purpose::Read if self.options.force_share => storage.lock(&Lock::NONE),
            Purpose::Read if shared => storage.lock(&Lock::READ_SHARED),
            Purpose::Read => storage.lock(&Lock::READ),
            _ if self.options.force_share => {
                Err(Error::Invalid(format!("{}: an image that others may write can only be read", storage.name())))
            }
            Purpose::Write if shared => storage.lock(&Lock::WRITE_SHARED),
            Purpose::Write | Purpose::Edit => storage.lock(&Lock::WRITE),
        }
    }

    /// Opens the file that `reference` names for reading, as a part of this image without metadata of its own: a data file, a flat extent.
    pub fn open_part(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        let storage = self.options.gate.open(reference)?;
        storage.lock(match self.options {
            OpenOptions { force_share: true, .. } => &Lock::NONE,
            OpenOptions { exclusive: true, .. } => &Lock::READ,
            _ => &Lock::READ_PART,
        })?;
        Ok(storage)
    }

    /// The same for reading and writing.
    pub fn open_part_mut(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        let storage = self.options.kept(self.options.gate.open_writable(reference)?);
        storage.lock(if self.options.exclusive { &Lock::WRITE } else { &Lock::WRITE_PART })?;
        Ok(storage)
    }

    /// Opens the image that `reference` names, of format `format` or probed, for reading.
    pub fn open_reference(&self, reference: &Reference<'_>, format: Option<&str>) -> Result<Arc<dyn Image>> {
        let storage = self.options.gate.open(reference)?;
        let (driver, guessed) = match format {
            Some(name) => (self.formats.driver(name)?, false),
            None => (self.formats.probe_storage(&*storage)?, true),
        };
        // A snapshot is asked for of the first image alone.
        let options = OpenOptions { snapshot: None, ..self.options.clone() };
        let context = OpenContext { options: &options, guessed, ..self.clone() }.entered(&*storage)?;
        context.lock(&*storage, driver, Purpose::Read)?;
        driver.open(storage, &context)
    }
}
