//! The header: 512 bytes at the start of the file.

use super::FORMAT;
use crate::le::{bytes16_at, u32_at, u64_at};
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

/// Bytes of the header.
pub(super) const LEN: usize = 512;
/// Bytes of a block; no other size is written by anyone.
pub(super) const BLOCK_SIZE: u64 = 1 << 20;
/// The most blocks that QEMU takes.
pub(super) const MAX_BLOCKS: u64 = 0x1fff_ff80;
/// The magic number, and where it stands: before it there is room for a line of text.
pub(super) const SIGNATURE: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
pub(super) const SIGNATURE_AT: usize = 64;
/// Where the number of stored blocks stands.
pub(super) const ALLOCATED_AT: u64 = 388;

/// The kind of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageType {
    Dynamic,
    Static,
}

/// A header that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub image_type: ImageType,
    /// Where the block map lies.
    pub map_offset: u64,
    /// Where the first stored block lies.
    pub data_offset: u64,
    /// Size that the guest sees, in bytes.
    pub size: u64,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Of these, stored.
    pub allocated: u64,
}

impl Header {
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let mut bytes = [0; LEN];
        read_padded(storage, &mut bytes, 0)?;
        let corrupt = |at: u64, what: String| Err(Error::corrupt(storage.name(), FORMAT, at, what));
        let unsupported = |what: String| Err(Error::unsupported(storage.name(), FORMAT, what));
        if !bytes[SIGNATURE_AT..].starts_with(&SIGNATURE) {
            return corrupt(64, format!("no VDI signature: {:#010x}, not 0xbeda107f", u32_at(&bytes, 64)));
        }
        if u32_at(&bytes, 68) != 0x0001_0001 {
            return unsupported(format!("version {}.{}, only 1.1", u32_at(&bytes, 68) >> 16, u32_at(&bytes, 68) & 0xffff));
        }
        let image_type = match u32_at(&bytes, 76) {
            1 => ImageType::Dynamic,
            2 => ImageType::Static,
            other => return unsupported(format!("image type {other}: only dynamic (1) and static (2) images stand alone")),
        };
        if bytes16_at(&bytes, 424) != [0; 16] || bytes16_at(&bytes, 440) != [0; 16] {
            return unsupported("an image with a parent: merge it with VirtualBox first".into());
        }
        if u32_at(&bytes, 360) != 512 || u64::from(u32_at(&bytes, 376)) != BLOCK_SIZE || u32_at(&bytes, 380) != 0 {
            let sizes = (u32_at(&bytes, 360), u32_at(&bytes, 376), u32_at(&bytes, 380));
            return unsupported(format!(
                "sectors of {} bytes, blocks of {} bytes and {} more; only of 512, 1048576 and 0",
                sizes.0, sizes.1, sizes.2
            ));
        }
        let header = Header {
            image_type,
            map_offset: u32_at(&bytes, 340).into(),
            data_offset: u32_at(&bytes, 344).into(),
            // VirtualBox and older QEMU: an odd end belongs to the sector it begins.
            size: u64_at(&bytes, 368).checked_next_multiple_of(512).unwrap_or(u64::MAX),
            blocks: u32_at(&bytes, 384).into(),
            allocated: u32_at(&bytes, ALLOCATED_AT as usize).into(),
        };
        let map_end = header.map_offset + header.blocks * 4;
        if header.blocks > MAX_BLOCKS || header.size > header.blocks * BLOCK_SIZE {
            return corrupt(368, format!("{} bytes in {} blocks", header.size, header.blocks));
        }
        if !header.map_offset.is_multiple_of(512) || !header.data_offset.is_multiple_of(512) || header.map_offset < LEN as u64 {
            return corrupt(340, format!("the map lies at {:#x} and the blocks at {:#x}", header.map_offset, header.data_offset));
        }
        if map_end > header.data_offset || map_end > storage.size()? {
            return corrupt(
                340,
                format!("the map ends at {map_end:#x}, past the start of the blocks at {:#x} or the end of the file", header.data_offset),
            );
        }
        Ok(header)
    }

    /// The header's bytes in the file of a new image with these ids: its own, and the one of its last change.
    pub fn bytes(&self, id: [u8; 16], change_id: [u8; 16]) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"<<< QEMU VM Virtual Disk Image >>>\n");
        put(SIGNATURE_AT, &SIGNATURE);
        put(68, &0x0001_0001u32.to_le_bytes());
        put(72, &0x180u32.to_le_bytes());
        put(76, &if self.image_type == ImageType::Dynamic { 1u32 } else { 2 }.to_le_bytes());
        put(340, &(self.map_offset as u32).to_le_bytes());
        put(344, &(self.data_offset as u32).to_le_bytes());
        put(360, &512u32.to_le_bytes());
        put(368, &self.size.to_le_bytes());
        put(376, &(BLOCK_SIZE as u32).to_le_bytes());
        put(384, &(self.blocks as u32).to_le_bytes());
        put(ALLOCATED_AT as usize, &(self.allocated as u32).to_le_bytes());
        put(392, &id);
        put(408, &change_id);
        bytes
    }
}
