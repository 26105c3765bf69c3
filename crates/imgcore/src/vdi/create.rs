//! Creating an image: its options, the header and the block map.

use std::sync::Arc;

use super::Vdi;
use super::header::{BLOCK_SIZE, Header, ImageType, LEN, MAX_BLOCKS};
use crate::derived::derived_id;
use crate::formats::{CreateOptions, FormatOption};
use crate::{Error, Result, Storage};

pub(super) const OPTIONS: &[FormatOption] =
    &[FormatOption { name: "static", value: "<bool (on/off)>", help: "VDI static (pre-allocated) image" }];

/// Entries of the map that are written at once.
const PIECE: u64 = 1 << 18;

fn new_header(bytes: u64, options: &CreateOptions) -> Result<Header> {
    let size = bytes.checked_next_multiple_of(512).filter(|size| *size <= MAX_BLOCKS * BLOCK_SIZE).ok_or_else(|| {
        let most = MAX_BLOCKS * BLOCK_SIZE;
        Error::Invalid(format!("Unsupported VDI image size (size is {bytes:#x}, max supported is {most:#x})"))
    })?;
    let blocks = size.div_ceil(BLOCK_SIZE);
    let is_static = options.flag("static")?;
    Ok(Header {
        image_type: if is_static { ImageType::Static } else { ImageType::Dynamic },
        map_offset: LEN as u64,
        data_offset: LEN as u64 + (blocks * 4).next_multiple_of(512),
        size,
        blocks,
        allocated: if is_static { blocks } else { 0 },
    })
}

pub(super) fn effective_options(bytes: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
    let header = new_header(bytes, options)?;
    let is_static = if header.image_type == ImageType::Static { "on" } else { "off" };
    Ok(vec![("size", bytes.to_string()), ("static", is_static.into())])
}

impl Vdi {
    /// Makes an empty image of `bytes` bytes (rounded up to sectors), replacing all that is in `storage`. The header comes
    /// last, so that an interrupted creation leaves no image.
    pub fn create(storage: Arc<dyn Storage>, bytes: u64, options: &CreateOptions) -> Result<Self> {
        let header = new_header(bytes, options)?;
        let is_static = header.image_type == ImageType::Static;
        storage.set_size(0)?;
        storage.set_size(header.data_offset + header.allocated * BLOCK_SIZE)?;
        // A block device keeps what was on it.
        storage.zero_at(0, header.data_offset + header.allocated * BLOCK_SIZE)?;
        for first in (0..header.blocks).step_by(PIECE as usize) {
            let blocks = first..(first + PIECE).min(header.blocks);
            let entries = blocks.flat_map(|block| if is_static { block as u32 } else { u32::MAX }.to_le_bytes());
            storage.write_at(&entries.collect::<Vec<u8>>(), header.map_offset + first * 4)?;
        }
        let id = |what: &[u8]| derived_id(&[b"vdi", what, &header.size.to_le_bytes(), &[u8::from(is_static)]]);
        storage.write_at(&header.bytes(id(b"image"), id(b"change")), 0)?;
        Ok(Self::with_header(storage, header).into_writable())
    }
}
