//! Creating a disk: its options, and the first sectors of the file.

use std::sync::Arc;

use super::fixed::FixedVhd;
use super::footer::{DiskType, Footer};
use super::geometry::Geometry;
use super::header::{self, Header};
use super::parent::Parent;
use super::{SECTOR, Vhd, checked_size};
use crate::derived::derived_id;
use crate::formats::{CreateOptions, FormatOption, Formats, OpenContext, OpenOptions};
use crate::{Error, ImageMut, LocalGate, Preallocation, Result, Storage, size};

pub(super) const OPTIONS: &[FormatOption] = &[
    FormatOption { name: "backing_file", value: "<str>", help: "File name of the parent, which makes this a differencing disk" },
    FormatOption { name: "backing_fmt", value: "<str>", help: "Format of the parent (vpc or raw)" },
    FormatOption { name: "block_size", value: "<size>", help: "Size of a dynamic disk's blocks (default: 2M)" },
    FormatOption {
        name: "force_size",
        value: "<bool (on/off)>",
        help: "Give the disk exactly the size asked for (default: on), rather than the nearest one that has a CHS geometry",
    },
    FormatOption { name: "preallocation", value: "<str>", help: "Preallocation mode of fixed disks (allowed values: off, falloc, full)" },
    FormatOption {
        name: "subformat",
        value: "<str>",
        help: "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed}",
    },
];

/// Written at once when the BAT is filled.
const BAT_PIECE: u64 = 1 << 20;

/// The options, checked.
struct Settings {
    size: u64,
    geometry: Geometry,
    creator: &'static [u8; 4],
    fixed: bool,
    block_size: u32,
    preallocation: Preallocation,
}

fn settings(bytes: u64, options: &CreateOptions) -> Result<Settings> {
    let size = checked_size(bytes)?;
    let fixed = match options.get("subformat") {
        None | Some("dynamic") => false,
        Some("fixed") => true,
        Some(other) => return Err(Error::Invalid(format!("Parameter 'subformat' does not accept value '{other}'"))),
    };
    if fixed && options.get("backing_file").is_some() {
        return Err(Error::Invalid("a fixed disk has no parent: leave subformat=fixed or the backing file out".into()));
    }
    let block_size = size::parse(options.get("block_size").unwrap_or("2M"))?;
    // QEMU takes smaller blocks to have no bitmap.
    if !block_size.is_power_of_two() || !(4096..=256 << 20).contains(&block_size) {
        return Err(Error::Invalid("Block size must be a power of two between 4k and 256M".into()));
    }
    // In qemu-img's images, the creator 'qemu' stands for a size that the geometry tells, 'qem2' for one that it does not.
    let exact = options.get("force_size").is_none() || options.flag("force_size")?;
    let sectors = size / SECTOR;
    let geometry = if exact { Geometry::of(sectors) } else { Geometry::holding(sectors) };
    let by_geometry = !exact && geometry != Geometry::MAX;
    Ok(Settings {
        size: if by_geometry { geometry.sectors() * SECTOR } else { size },
        geometry,
        creator: if exact { b"qem2" } else { b"qemu" },
        fixed,
        block_size: block_size as u32,
        preallocation: options.get("preallocation").unwrap_or("off").parse()?,
    })
}

pub(super) fn effective_options(bytes: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
    settings(bytes, options)?;
    let given = |name: &'static str| options.get(name).map(|value| (name, value.to_owned()));
    let names = ["backing_file", "backing_fmt", "subformat", "force_size", "block_size", "preallocation"];
    Ok([("size", bytes.to_string())].into_iter().chain(names.into_iter().filter_map(given)).collect())
}

/// Makes an empty disk of `bytes` bytes, replacing all that is in `storage`. The footers come last, so that an
/// interrupted creation leaves no image.
pub(super) fn create(storage: Arc<dyn Storage>, bytes: u64, options: &CreateOptions) -> Result<Arc<dyn ImageMut>> {
    let settings = settings(bytes, options)?;
    let parent = match options.get("backing_file") {
        Some(path) => Some(Parent::find(storage.name(), path, options.get("backing_fmt"))?),
        None => None,
    };
    let given = options.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
    let size = settings.size.to_be_bytes();
    let below = parent.as_ref().map(|parent| parent.uuid).unwrap_or_default();
    let uuid = derived_id(&[&b"vhd"[..], &size, &below].into_iter().chain(given).collect::<Vec<_>>());
    let disk_type = match &parent {
        _ if settings.fixed => DiskType::Fixed,
        Some(_) => DiskType::Differencing,
        None => DiskType::Dynamic,
    };
    let footer = Footer::new(disk_type, settings.size, settings.geometry, settings.creator, uuid);
    if settings.fixed {
        return Ok(Arc::new(FixedVhd::create(storage, footer, settings.preallocation)?));
    }

    let table_offset = SECTOR + header::LEN as u64;
    // At most 2040 GiB of 4 KiB each.
    let entries = settings.size.div_ceil(settings.block_size.into()) as u32;
    let mut header = Header::new(table_offset, entries, settings.block_size);
    let mut end = table_offset + header.table_len();
    storage.set_size(0)?;
    fill_table(&*storage, header.table_offset(), header.entries())?;
    if let Some(parent) = &parent {
        let (locator, bytes) = parent.locator(end, 4 * SECTOR)?;
        storage.zero_at(end, locator.space)?;
        storage.write_at(&bytes, end)?;
        end += locator.space;
        header.set_parent(parent.uuid, parent.timestamp, parent.name(), &[locator]);
    }
    storage.write_at(header.bytes(), SECTOR)?;
    storage.write_at(footer.bytes(), end)?;
    storage.write_at(footer.bytes(), 0)?;
    if parent.is_none() {
        return Ok(Arc::new(Vhd::with_footer(storage, footer)?.into_writable()));
    }
    let (formats, open) = (Formats::new(), OpenOptions::new(&LocalGate));
    Ok(Arc::new(Vhd::open_mut(storage, &OpenContext::new(&formats, &open, false))?))
}

/// Writes `entries` entries of blocks that are not there, and of what is behind them in their last sector.
pub(super) fn fill_table(storage: &dyn Storage, offset: u64, entries: u64) -> Result<()> {
    let len = (entries * 4).next_multiple_of(SECTOR);
    let unused = vec![0xff; len.min(BAT_PIECE) as usize];
    (0..len).step_by(BAT_PIECE as usize).try_for_each(|at| {
        let now = (len - at).min(BAT_PIECE) as usize;
        storage.write_at(&unused[..now], offset + at)
    })
}
