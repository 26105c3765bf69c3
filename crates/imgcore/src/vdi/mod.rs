//! VDI: VirtualBox's disk images, dynamic and static.
//!
//! Source: the header that VirtualBox and QEMU write; little-endian. After the header comes the block map, one 32-bit number a
//! block: where among the stored blocks it lies. Blocks have 1 MiB. Undo and differencing images name their parent by an id
//! that only VirtualBox's registry resolves; they are refused.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::image::check_range;
use crate::layers::{read_stored, stored_extents, unstored};
use crate::tables::Tables;
use crate::{Error, Extent, ExtentKind, Image, ImageInfo, Result, Storage};

mod check;
mod create;
mod driver;
mod header;
mod write;

pub use driver::VdiDriver;

use header::{BLOCK_SIZE, Header, ImageType};

const FORMAT: &str = "vdi";
/// The entry of a block that was given back; the one of a block that was never written is 0xffffffff. Less than that are places.
const DISCARDED: u64 = 0xffff_fffe;
/// Bytes of the map that are read at once, and how many of these parts are kept.
const PAGE_SIZE: u64 = 32 << 10;
const MAX_PAGES: usize = 256;

/// An open VDI image.
pub struct Vdi {
    storage: Arc<dyn Storage>,
    file: Arc<str>,
    header: Header,
    map: Tables,
    writer: Option<write::Writer>,
}

/// Where a run of bytes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// Nowhere: zeroes.
    Absent,
    /// This offset of the file.
    Data(u64),
}

impl Vdi {
    /// Opens the image in `storage` for reading.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let header = Header::read(&*storage)?;
        Ok(Self::with_header(storage, header))
    }

    fn with_header(storage: Arc<dyn Storage>, header: Header) -> Self {
        let file = storage.name().into();
        Vdi { storage, file, header, map: Tables::new(4, PAGE_SIZE, MAX_PAGES), writer: None }
    }

    /// The offset in the file of a block's entry of the map.
    fn entry_offset(&self, block: u64) -> u64 {
        self.header.map_offset + block * 4
    }

    /// Where a block lies, if it does; blocks past the end of the file are found when they are read.
    fn block(&self, block: u64) -> Result<Mapping> {
        let entry = self.map.get(&*self.storage, self.entry_offset(block))?;
        if entry >= DISCARDED {
            return Ok(Mapping::Absent);
        }
        if entry >= self.header.blocks {
            let what = format!("block {block} is said to be the {entry}th of {} blocks", self.header.blocks);
            return Err(Error::corrupt(&self.file, FORMAT, self.entry_offset(block), what));
        }
        Ok(Mapping::Data(self.header.data_offset + entry * BLOCK_SIZE))
    }

    /// Where the byte `guest` lies, and how many bytes (at most `len`) follow it in the same way.
    fn lookup(&self, guest: u64, len: u64) -> Result<(Mapping, u64)> {
        let (block, within) = (guest / BLOCK_SIZE, guest % BLOCK_SIZE);
        let first = self.block(block)?;
        let mut run = BLOCK_SIZE - within;
        while run < len {
            let follows = match (first, self.block((guest + run) / BLOCK_SIZE)?) {
                (Mapping::Data(a), Mapping::Data(b)) => a + within + run == b,
                (a, b) => a == b,
            };
            if !follows {
                break;
            }
            run += BLOCK_SIZE;
        }
        let mapping = match first {
            Mapping::Data(host) => Mapping::Data(host + within),
            Mapping::Absent => Mapping::Absent,
        };
        Ok((mapping, run.min(len)))
    }
}

impl Image for Vdi {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let (mapping, run) = self.lookup(offset + done as u64, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + run as usize];
            match mapping {
                Mapping::Absent => part.fill(0),
                Mapping::Data(host) => read_stored(&*self.storage, FORMAT, part, host)?,
            }
            done += run as usize;
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.file, self.size(), range.start, range.end.saturating_sub(range.start))?;
        let mut at = range.start;
        while at < range.end {
            let (mapping, run) = self.lookup(at, range.end - at)?;
            let part = at..at + run;
            let flow = match mapping {
                Mapping::Absent => visit(unstored(part, ExtentKind::Zero)),
                // As in QEMU: a static image is looked into, a block of a dynamic one is data.
                Mapping::Data(host) if self.header.image_type == ImageType::Static => {
                    stored_extents(&*self.storage, &self.file, part, host, visit)?
                }
                Mapping::Data(host) => {
                    let (host_offset, file) = (Some(host), Some(self.file.clone()));
                    visit(Extent { start: at, len: run, kind: ExtentKind::Data, depth: 0, host_offset, file })
                }
            };
            if flow.is_break() {
                break;
            }
            at += run;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: FORMAT,
            file: self.file.to_string(),
            virtual_size: self.size(),
            actual_size: self.storage.allocated(),
            cluster_size: Some(BLOCK_SIZE),
            file_size: self.storage.size().ok(),
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}
