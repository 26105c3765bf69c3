//! Creating an image: its options, and the metadata at the start of the file.

use std::ops::Range;
use std::sync::Arc;

use super::bat::{PRESENT, ZERO};
use super::header::{self, Header, Region, Regions};
use super::metadata::{BLOCK_SIZES, MAX_DISK_SIZE, Metadata};
use super::{CHUNK_SECTORS, MIB, Vhdx, bat_entries};
use crate::derived::derived_id;
use crate::formats::{CreateOptions, FormatOption};
use crate::partition::Guid;
use crate::{Error, Result, Storage, size};

pub(super) const OPTIONS: &[FormatOption] = &[
    FormatOption {
        name: "block_size",
        value: "<size>",
        help: "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
    },
    FormatOption { name: "block_state_zero", value: "<bool (on/off)>", help: "Force use of payload blocks of type 'ZERO' (default: on)" },
    FormatOption { name: "log_size", value: "<size>", help: "Log size; min 1MB." },
    FormatOption { name: "subformat", value: "<str>", help: "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'." },
];

/// Written at once when the BAT is filled.
const BAT_PIECE: u64 = 1 << 17;

/// The options, checked.
struct Settings {
    metadata: Metadata,
    log_size: u32,
    block_state_zero: bool,
}

fn settings(bytes: u64, options: &CreateOptions) -> Result<Settings> {
    let fixed = match options.get("subformat") {
        None | Some("dynamic") => false,
        Some("fixed") => true,
        Some(other) => return Err(Error::Invalid(format!("Parameter 'subformat' does not accept value '{other}'"))),
    };
    if bytes > MAX_DISK_SIZE {
        return Err(Error::Invalid("Image size too large; max of 64TB.".into()));
    }
    let whole_mib = |name: &str| -> Result<u64> {
        let value = size::parse(options.get(name).unwrap_or("0"))?;
        value.checked_next_multiple_of(MIB).ok_or_else(|| Error::Invalid(format!("Parameter '{name}' is too large")))
    };
    let block_size = match whole_mib("block_size")? {
        0 => match bytes {
            b if b > 32 << 40 => 64 * MIB,
            b if b > 100 << 30 => 32 * MIB,
            b if b > 1 << 30 => 16 * MIB,
            _ => 8 * MIB,
        },
        given if given > *BLOCK_SIZES.end() => *BLOCK_SIZES.end(),
        given if given.is_power_of_two() => given,
        _ => return Err(Error::Invalid("Block size must be a power of two".into())),
    };
    let log_size =
        u32::try_from(whole_mib("log_size")?.max(MIB)).map_err(|_| Error::Invalid("Log size must be smaller than 4 GB".into()))?;
    let metadata =
        Metadata { block_size, leave_blocks_allocated: fixed, size: bytes.next_multiple_of(512), logical_sector_size: 512, parent: None };
    Ok(Settings { metadata, log_size, block_state_zero: options.get("block_state_zero").is_none() || options.flag("block_state_zero")? })
}

pub(super) fn effective_options(bytes: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
    settings(bytes, options)?;
    let given = |name: &'static str| options.get(name).map(|value| (name, value.to_owned()));
    let sized = |name: &'static str, default: u64| -> Result<Option<(&'static str, String)>> {
        Ok(Some((name, options.get(name).map_or(Ok(default), size::parse)?.to_string())))
    };
    let shown = [
        Some(("size", bytes.to_string())),
        sized("log_size", MIB)?,
        sized("block_size", 0)?,
        given("subformat"),
        options.get("block_state_zero").map(|value| ("block_state_zero", value.to_owned())),
    ];
    Ok(shown.into_iter().flatten().collect())
}

impl Vhdx {
    /// Makes an empty image of `bytes` bytes (rounded up to sectors), replacing all that is in `storage`. The file type
    /// identifier comes last, so that an interrupted creation leaves no image.
    pub fn create(storage: Arc<dyn Storage>, bytes: u64, options: &CreateOptions) -> Result<Self> {
        let Settings { metadata, log_size, block_state_zero } = settings(bytes, options)?;
        let entries = bat_entries(&metadata);
        let bat = Region { offset: MIB + u64::from(log_size), len: (entries * 8).next_multiple_of(MIB).max(MIB) };
        let items = Region { offset: bat.range().end, len: MIB };
        let payload = items.range().end;
        let blocks = metadata.size.div_ceil(metadata.block_size);
        let end = payload + if metadata.leave_blocks_allocated { blocks * metadata.block_size } else { 0 };

        let given: Vec<&[u8]> = options.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]).collect();
        let guid = |what: &[u8]| Guid::from_random(derived_id(&[&[b"vhdx", what, &bytes.to_le_bytes()], &given[..]].concat()));

        storage.set_size(0)?;
        storage.set_size(end)?;
        // A block device keeps what was on it.
        storage.zero_at(0, end)?;
        metadata.write(&*storage, items, guid(b"virtual disk id"))?;
        Regions::write(&*storage, bat, items)?;
        let place = |block: u64| payload + block * metadata.block_size;
        match (metadata.leave_blocks_allocated, block_state_zero) {
            (true, _) => fill_bat(&*storage, bat, &metadata, 0..entries, |block| place(block) | PRESENT)?,
            (false, true) => fill_bat(&*storage, bat, &metadata, 0..entries, |_| ZERO)?,
            (false, false) => {}
        }
        let mut header = Header::new(MIB, log_size, guid(b"file write"), guid(b"data write"));
        header.update(&*storage)?;
        header::write_identifier(&*storage)?;
        Ok(Self::with_header(storage, &header)?.into_writable(header, true))
    }
}

/// Fills the BAT with what `entry` gives for each payload block; entries of sector bitmaps stay zero.
fn fill_bat(storage: &dyn Storage, bat: Region, metadata: &Metadata, indices: Range<u64>, entry: impl Fn(u64) -> u64) -> Result<()> {
    let ratio = CHUNK_SECTORS * metadata.logical_sector_size / metadata.block_size;
    for start in indices.clone().step_by(BAT_PIECE as usize) {
        let piece = start..(start + BAT_PIECE).min(indices.end);
        let bytes = piece.flat_map(|index| {
            let (chunk, within) = (index / (ratio + 1), index % (ratio + 1));
            if within == ratio { 0 } else { entry(chunk * ratio + within) }.to_le_bytes()
        });
        storage.write_at(&bytes.collect::<Vec<u8>>(), bat.offset + start * 8)?;
    }
    Ok(())
}
