//! Creating an image: its options, and the metadata at the start of a monolithicSparse file.

use std::path::Path;
use std::sync::Arc;

use super::descriptor::NewDescriptor;
use super::header::{ENTRIES_PER_TABLE, NewHeader};
use super::stream::{Sink, StreamImage};
use super::{FORMAT, GRAIN_SIZE, SECTOR, Vmdk, extent, read_descriptor};
use crate::derived::derived_id;
use crate::formats::{CreateOptions, FormatOption};
use crate::{Error, ImageMut, Result, Storage};

pub(super) const OPTIONS: &[FormatOption] = &[
    FormatOption {
        name: "adapter_type",
        value: "<str>",
        help: "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
    },
    FormatOption { name: "compat6", value: "<bool (on/off)>", help: "VMDK version 6 image" },
    FormatOption { name: "hwversion", value: "<str>", help: "VMDK hardware version" },
    FormatOption { name: "subformat", value: "<str>", help: "One of monolithicSparse (default) and streamOptimized" },
    FormatOption { name: "toolsversion", value: "<str>", help: "VMware guest tools version" },
    FormatOption {
        name: "zeroed_grain",
        value: "<bool (on/off)>",
        help: "Enable efficient zero writes using the zeroed-grain GTE feature",
    },
];

const MONOLITHIC_SPARSE: &str = "monolithicSparse";
pub(super) const STREAM_OPTIMIZED: &str = "streamOptimized";
/// Sectors 1 to 20 hold the descriptor.
pub(super) const DESCRIPTOR: (u64, u64) = (1, 20);
const TABLE_SECTORS: u64 = ENTRIES_PER_TABLE * 4 / SECTOR;

/// The options, checked.
pub(super) struct Settings {
    pub is_stream: bool,
    pub has_zero_grains: bool,
    /// In sectors.
    pub capacity: u64,
    create_type: &'static str,
    cid: u32,
    hardware_version: String,
    adapter_type: String,
    tools_version: String,
}

impl Settings {
    pub fn new(bytes: u64, options: &CreateOptions) -> Result<Self> {
        let bad = |value: &str| Err(Error::Invalid(format!("invalid parameter value: {value}")));
        let create_type = match options.get("subformat") {
            None | Some(MONOLITHIC_SPARSE) => MONOLITHIC_SPARSE,
            Some(STREAM_OPTIMIZED) => STREAM_OPTIMIZED,
            Some(other @ ("monolithicFlat" | "twoGbMaxExtentSparse" | "twoGbMaxExtentFlat")) => {
                let what =
                    format!("writing disks of several files such as {other}: use -o subformat={STREAM_OPTIMIZED} or {MONOLITHIC_SPARSE}");
                return Err(Error::unsupported("new image", FORMAT, what));
            }
            Some(other) => return bad(other),
        };
        let adapter_type = match options.get("adapter_type").unwrap_or("ide") {
            known @ ("ide" | "buslogic" | "lsilogic" | "legacyESX") => known,
            other => return bad(other),
        };
        let given_version = options.get("hwversion").filter(|version| *version != "undefined");
        let hardware_version = match (options.flag("compat6")?, given_version) {
            (true, Some(_)) => return Err(Error::Invalid("compat6 cannot be enabled with hwversion set".into())),
            (true, None) => "6",
            (false, given) => given.unwrap_or("4"),
        };
        let capacity = bytes.div_ceil(SECTOR);
        if u32::try_from(tables(capacity)).is_err() {
            return Err(Error::Invalid(format!("{bytes} bytes are too large for this format")));
        }
        let given: Vec<&[u8]> = options.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]).collect();
        let id = derived_id(&[&[&b"vmdk"[..], &bytes.to_le_bytes()], &given[..]].concat());
        // The highest numbers have meanings of their own.
        let cid = u32::from_be_bytes([id[0], id[1], id[2], id[3]]) & 0x7fff_ffff;
        Ok(Settings {
            is_stream: create_type == STREAM_OPTIMIZED,
            has_zero_grains: options.flag("zeroed_grain")?,
            capacity,
            create_type,
            cid,
            hardware_version: hardware_version.into(),
            adapter_type: adapter_type.into(),
            tools_version: options.get("toolsversion").unwrap_or("2147483647").into(),
        })
    }

    /// The descriptor's sectors; `extent` is the name of the file.
    pub fn descriptor(&self, extent: &str) -> Result<Vec<u8>> {
        let text = NewDescriptor {
            cid: self.cid,
            create_type: self.create_type,
            sectors: self.capacity,
            extent,
            hardware_version: &self.hardware_version,
            adapter_type: &self.adapter_type,
            tools_version: &self.tools_version,
        };
        let mut bytes = text.text().into_bytes();
        let room = (DESCRIPTOR.1 * SECTOR) as usize;
        if bytes.len() > room {
            return Err(Error::Invalid(format!("the options give a descriptor of {} bytes, and it has room for {room}", bytes.len())));
        }
        bytes.resize(room, 0);
        Ok(bytes)
    }

    pub fn header(&self, redundant_directory: u64, directory: u64, overhead: u64) -> NewHeader {
        NewHeader {
            version: if self.is_stream { 3 } else { 1 + u32::from(self.has_zero_grains) },
            is_stream: self.is_stream,
            has_zero_grains: self.has_zero_grains,
            capacity: self.capacity,
            descriptor: DESCRIPTOR,
            redundant_directory,
            directory,
            overhead,
        }
    }
}

/// How many grain tables a disk of so many sectors has.
pub(super) fn tables(capacity: u64) -> u64 {
    capacity.div_ceil(ENTRIES_PER_TABLE * GRAIN_SIZE / SECTOR)
}

pub(super) fn effective_options(bytes: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
    Settings::new(bytes, options)?;
    let given = |name: &'static str| options.get(name).map(|value| (name, value.to_owned()));
    let or = |name: &'static str, default: &str| Some((name, options.get(name).unwrap_or(default).to_owned()));
    let shown = [
        Some(("size", bytes.to_string())),
        given("adapter_type"),
        or("compat6", "off"),
        or("hwversion", "undefined"),
        given("toolsversion"),
        given("subformat"),
        given("zeroed_grain"),
    ];
    Ok(shown.into_iter().flatten().collect())
}

/// Makes an empty image of `bytes` bytes (rounded up to sectors), replacing all that is in `storage`.
pub(super) fn create(storage: Arc<dyn Storage>, bytes: u64, options: &CreateOptions) -> Result<Arc<dyn ImageMut>> {
    let settings = Settings::new(bytes, options)?;
    storage.set_size(0)?;
    if settings.is_stream {
        return Ok(Arc::new(StreamImage::begin(Sink::Storage(storage), &settings)?));
    }
    Ok(Arc::new(create_sparse(storage, &settings)?))
}

/// A monolithicSparse file: header, descriptor, and the directory with all its tables, twice. The header comes last, so that
/// an interrupted creation leaves no image.
fn create_sparse(storage: Arc<dyn Storage>, settings: &Settings) -> Result<Vmdk> {
    let tables = tables(settings.capacity);
    let directory_sectors = (tables * 4).div_ceil(SECTOR);
    let redundant = DESCRIPTOR.0 + DESCRIPTOR.1;
    let directory = redundant + directory_sectors + tables * TABLE_SECTORS;
    let end = directory + directory_sectors + tables * TABLE_SECTORS;
    let overhead = end.next_multiple_of(GRAIN_SIZE / SECTOR);
    storage.set_size(overhead * SECTOR)?;
    // A block device keeps what was on it.
    storage.zero_at(0, overhead * SECTOR)?;
    for start in [redundant, directory] {
        let first = start + directory_sectors;
        let entry = |table: u64| u32::try_from(first + table * TABLE_SECTORS).map(u32::to_le_bytes);
        let entries = (0..tables).map(entry).collect::<Result<Vec<_>, _>>();
        let entries = entries.map_err(|_| Error::Invalid(format!("{} sectors are too many for this format", settings.capacity)))?;
        storage.write_at(&entries.concat(), start * SECTOR)?;
    }
    let name = Path::new(storage.name()).file_name().unwrap_or_default().to_string_lossy();
    storage.write_at(&settings.descriptor(&name)?, DESCRIPTOR.0 * SECTOR)?;
    storage.write_at(&settings.header(redundant, directory, overhead).serialize(), 0)?;
    Vmdk::open_alone(storage)?.into_writable(true)
}

impl Vmdk {
    /// Opens a file that holds a whole disk without a parent.
    pub(super) fn open_alone(storage: Arc<dyn Storage>) -> Result<Self> {
        let (header, descriptor) = read_descriptor(&*storage)?;
        let file: Arc<str> = storage.name().into();
        match header {
            Some(header) if descriptor.parent().is_none() => {
                let extents = extent::own(storage.clone(), header)?;
                Ok(Vmdk { storage, file, descriptor, extents, parent: None, writer: None })
            }
            _ => Err(Error::unsupported(&file, FORMAT, "writing to disks of several files: convert it, and write to the result")),
        }
    }
}
