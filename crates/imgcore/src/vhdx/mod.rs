//! VHDX, the format of Hyper-V, after [MS-VHDX] 2.
//!
//! A file has a section of headers, then in any order the log, the metadata, the block allocation table (BAT) and payload
//! blocks, all at whole MiB. What the log holds but is not in its place yet is laid over the file by readers
//! ([`patches`]) and put in its place by writers.
//!
//! Writing: a new block is zeroed space at the end of the file. Its BAT entry is written at the next flush, once
//! file size and data are on disk: entries are 8 bytes in a sector and are written whole, so that without use of the log
//! each is the old or the new one after a crash, and both are valid.
//!
//! Differencing disks are read, not written.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};

use crate::formats::OpenContext;
use crate::image::check_range;
use crate::layers::{extents_below, read_below, read_stored, stored_extents, unstored};
use crate::partition::Guid;
use crate::storage::read_padded;
use crate::{Error, Extent, ExtentKind, Image, ImageInfo, Result, Storage};

mod bat;
mod check;
mod create;
mod driver;
mod header;
mod log;
mod metadata;
mod parent;
mod patches;
mod write;

pub use driver::VhdxDriver;

use bat::{Bat, State};
use header::{Header, Regions};
use metadata::Metadata;

const FORMAT: &str = "vhdx";
const MIB: u64 = 1 << 20;
/// Sectors whose bits one sector bitmap block holds.
const CHUNK_SECTORS: u64 = 1 << 23;

fn guid_at(bytes: &[u8], at: usize) -> Guid {
    Guid(crate::le::bytes16_at(bytes, at))
}

/// An open VHDX image.
pub struct Vhdx {
    storage: Arc<dyn Storage>,
    file: Arc<str>,
    regions: Regions,
    metadata: Metadata,
    bat: Bat,
    /// Payload blocks before each sector bitmap's entry of the BAT.
    chunk_ratio: u64,
    parent: Option<Arc<dyn Image>>,
    /// The last part of a sector bitmap that was looked at: its place, its bytes.
    bitmap: Mutex<(u64, Arc<[u8]>)>,
    dirty: bool,
    writer: Option<write::Writer>,
}

/// Where a run of bytes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// The parent, or nothing.
    Absent,
    /// Zeroes of this image's own.
    Zero,
    /// This offset of the file.
    Data(u64),
}

impl Mapping {
    /// Whether `next`, `distance` bytes on, continues this.
    fn is_continued_by(self, next: Mapping, distance: u64) -> bool {
        match (self, next) {
            (Mapping::Data(a), Mapping::Data(b)) => a + distance == b,
            (a, b) => a == b,
        }
    }
}

impl Vhdx {
    /// Opens the image in `storage` for reading. The log, if there is one, is replayed in memory.
    pub fn open(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        let header = Header::read(&*storage)?;
        let file_size = storage.size()?;
        let mut readable = storage.clone();
        if header.is_dirty() {
            let log::Replay { patches, file_size: size } = log::read(&*storage, &header)?;
            readable = Arc::new(patches::Replayed { storage, patches, size: size.max(file_size) });
        }
        let mut image = Self::with_header(readable, &header)?;
        if let Some(locator) = image.metadata.parent.as_ref().filter(|_| context.options.backing) {
            image.parent = Some(parent::open(&image.file, locator, context)?);
        }
        Ok(image)
    }

    fn with_header(storage: Arc<dyn Storage>, header: &Header) -> Result<Self> {
        let regions = Regions::read(&*storage, header)?;
        let metadata = Metadata::read(&*storage, regions.metadata)?;
        let file: Arc<str> = storage.name().into();
        let chunk_ratio = CHUNK_SECTORS * metadata.logical_sector_size / metadata.block_size;
        let entries = bat_entries(&metadata);
        if entries * 8 > regions.bat.len {
            let what = format!("the BAT region has {} bytes, and {entries} entries of 8 bytes are needed", regions.bat.len);
            return Err(Error::corrupt(&file, FORMAT, regions.bat.offset, what));
        }
        let bat = Bat::new(regions.bat.offset);
        let bitmap = Mutex::new((0, Arc::default()));
        let dirty = header.is_dirty();
        Ok(Vhdx { storage, file, regions, metadata, bat, chunk_ratio, parent: None, bitmap, dirty, writer: None })
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.metadata.block_size
    }

    /// The number of payload blocks.
    fn blocks(&self) -> u64 {
        self.metadata.size.div_ceil(self.block_size())
    }

    /// The index in the BAT of a payload block's entry.
    fn bat_index(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio
    }

    /// Visits the entry of every payload block.
    fn for_each_entry(&self, mut visit: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let mut page = self.bat.page(&*self.storage, 0)?;
        for block in 0..self.blocks() {
            let index = self.bat_index(block);
            let at = self.bat.entry_offset(index);
            if page.get(at).is_none() {
                page = self.bat.page(&*self.storage, index)?;
            }
            visit(block, page.get(at).unwrap_or(0))?;
        }
        Ok(())
    }

    /// Where the byte `guest` lies, and how many bytes (at most `len`) follow it in the same way.
    fn lookup(&self, guest: u64, len: u64) -> Result<(Mapping, u64)> {
        let block_size = self.block_size();
        let mut block = guest / block_size;
        let mut page = self.bat.page(&*self.storage, self.bat_index(block))?;
        let mut found: Option<Mapping> = None;
        let mut run = 0;
        while run < len {
            let index = self.bat_index(block);
            let at = self.bat.entry_offset(index);
            let entry = match page.get(at) {
                Some(entry) => entry,
                None => {
                    page = self.bat.page(&*self.storage, index)?;
                    page.get(at).unwrap_or(0)
                }
            };
            let within = (guest + run) % block_size;
            let (mapping, there) = self.map_block(block, within, entry, len - run)?;
            match found {
                Some(first) if !first.is_continued_by(mapping, run) => break,
                Some(_) => {}
                None => found = Some(mapping),
            }
            run += there;
            // A part of a block that is partly here ends where the next part begins.
            if within + there < block_size {
                break;
            }
            block += 1;
        }
        Ok((found.unwrap_or(Mapping::Absent), run))
    }

    /// Where the byte `within` of a block lies, and how many follow it in the block.
    fn map_block(&self, block: u64, within: u64, entry: u64, len: u64) -> Result<(Mapping, u64)> {
        let there = (self.block_size() - within).min(len);
        Ok(match State::of(entry) {
            State::NotPresent => (Mapping::Absent, there),
            State::Zero => (Mapping::Zero, there),
            State::FullyPresent(offset) => (Mapping::Data(self.payload(block, offset)? + within), there),
            State::PartiallyPresent(offset) if self.metadata.parent.is_some() => {
                let offset = self.payload(block, offset)?;
                let (is_here, run) = self.bitmap_run(block, within, there)?;
                (if is_here { Mapping::Data(offset + within) } else { Mapping::Absent }, run)
            }
            State::PartiallyPresent(_) => return Err(self.bad_entry(block, "is partly present, and there is no parent for the rest")),
            State::Unknown(state) => return Err(self.bad_entry(block, &format!("has the reserved state {state}"))),
        })
    }

    fn bad_entry(&self, block: u64, what: &str) -> Error {
        let at = self.bat.entry_offset(self.bat_index(block));
        Error::corrupt(&self.file, FORMAT, at, format!("block {block} {what}"))
    }

    /// `offset` of a payload block, if the block may lie there.
    fn payload(&self, block: u64, offset: u64) -> Result<u64> {
        let Some(end) = offset.checked_add(self.block_size()).filter(|end| *end <= i64::MAX as u64) else {
            return Err(self.bad_entry(block, &format!("lies at {offset:#x}, beyond any file")));
        };
        if self.regions.reserved.iter().any(|r| r.start < end && offset < r.end) {
            return Err(self.bad_entry(block, &format!("lies at {offset:#x}, over metadata")));
        }
        Ok(offset)
    }

    /// Whether the sector at byte `within` of a block is in this file, and for how many bytes that holds.
    fn bitmap_run(&self, block: u64, within: u64, len: u64) -> Result<(bool, u64)> {
        let sector_size = self.metadata.logical_sector_size;
        let chunk = block / self.chunk_ratio;
        let index = chunk * (self.chunk_ratio + 1) + self.chunk_ratio;
        let entry = self.bat.get(&*self.storage, index)?;
        if entry & 7 != bat::PRESENT {
            return Err(self.bad_entry(block, "is partly present, and has no sector bitmap"));
        }
        let first = (block % self.chunk_ratio * self.block_size() + within) / sector_size;
        let last = first + (within % sector_size + len).div_ceil(sector_size);
        let base = bat::offset_of(entry);
        let bit = |sector: u64| -> Result<bool> {
            let byte = sector / 8;
            let page = self.bitmap_page(base + byte / BITMAP_PAGE * BITMAP_PAGE)?;
            Ok(page.get((byte % BITMAP_PAGE) as usize).is_some_and(|byte| byte >> (sector % 8) & 1 == 1))
        };
        let is_here = bit(first)?;
        let mut sector = first + 1;
        while sector < last && bit(sector)? == is_here {
            sector += 1;
        }
        Ok((is_here, ((sector - first) * sector_size - within % sector_size).min(len)))
    }

    fn bitmap_page(&self, offset: u64) -> Result<Arc<[u8]>> {
        let held = self.bitmap.lock().unwrap_or_else(|e| e.into_inner()).clone();
        if held.0 == offset && !held.1.is_empty() {
            return Ok(held.1);
        }
        let mut bytes = vec![0; BITMAP_PAGE as usize];
        read_padded(&*self.storage, &mut bytes, offset)?;
        let page: Arc<[u8]> = bytes.into();
        *self.bitmap.lock().unwrap_or_else(|e| e.into_inner()) = (offset, page.clone());
        Ok(page)
    }
}

/// Bytes of a sector bitmap that are read at once.
const BITMAP_PAGE: u64 = 4096;

/// How many entries the BAT of a disk has.
fn bat_entries(metadata: &Metadata) -> u64 {
    let ratio = CHUNK_SECTORS * metadata.logical_sector_size / metadata.block_size;
    let blocks = metadata.size.div_ceil(metadata.block_size);
    match metadata.parent {
        Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
        None => blocks + blocks.saturating_sub(1) / ratio,
    }
}

impl Image for Vhdx {
    fn size(&self) -> u64 {
        self.metadata.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let guest = offset + done as u64;
            let (mapping, run) = self.lookup(guest, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + run as usize];
            match mapping {
                Mapping::Absent => read_below(self.backing(), part, guest)?,
                Mapping::Zero => part.fill(0),
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
                Mapping::Data(host) => stored_extents(&*self.storage, &self.file, part, host, visit)?,
                Mapping::Zero => visit(unstored(part, ExtentKind::Zero)),
                Mapping::Absent => extents_below(self.backing(), part, visit)?,
            };
            if flow.is_break() {
                break;
            }
            at += run;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        let parent = self.metadata.parent.as_ref();
        ImageInfo {
            format: FORMAT,
            file: self.file.to_string(),
            virtual_size: self.size(),
            actual_size: self.storage.allocated(),
            cluster_size: Some(self.block_size()),
            backing_file: parent.and_then(|locator| locator.paths().into_iter().next()),
            backing_format: parent.map(|_| FORMAT.to_owned()),
            dirty: self.dirty,
            file_size: self.storage.size().ok(),
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        self.parent.as_deref()
    }
}
