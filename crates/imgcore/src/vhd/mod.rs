//! VHD, which QEMU calls vpc: the format of Virtual PC, Hyper-V before VHDX, Azure and XenServer.
//!
//! Source: Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0, and what its writers do. All numbers
//! are big-endian, sectors have 512 bytes, and a disk has at most 2040 GiB.
//!
//! A *fixed* disk is the raw bytes and a footer behind them. *Dynamic* and *differencing* disks begin with a copy of the
//! footer, which leads to the dynamic disk header, which leads to the block allocation table (BAT). An entry of it is
//! the sector where the block's *sector bitmap* lies; the block's data follows. Blocks need not adjoin: blktap and we
//! leave gaps, so that data begins at multiples of a page.
//!
//! In a differencing disk, the bitmap tells which sectors are the disk's own. In a dynamic one it tells which were ever
//! written; QEMU does not look at it and writers are careless, so the whole block counts. But blktap keeps it with care
//! and does not clear blocks on volumes: in its images (creator `tap`) a sector without its bit is zeroes.
//!
//! blktap's images may have a `tdbatmap` behind the BAT, which tells what blocks have all bits set: a hint, of no use to
//! readers. Bits are only ever set here, so it stays true.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::formats::OpenContext;
use crate::image::check_range;
use crate::layers::{extents_below, read_below, read_stored, unstored};
use crate::storage::read_padded;
use crate::{Error, Extent, ExtentKind, Image, ImageInfo, Reference, Result, Storage, be};

mod bat;
mod bitmap;
mod check;
mod create;
mod driver;
mod edit;
mod fixed;
mod footer;
mod geometry;
mod header;
pub mod incoming;
mod parent;
mod write;

pub use driver::VhdDriver;
pub use fixed::FixedVhd;

use bat::{Bat, UNUSED};
use bitmap::Bitmaps;
use footer::{DiskType, Footer, Footers};
use header::Header;

const FORMAT: &str = "vpc";
const SECTOR: u64 = 512;
/// What the specification allows: 2040 GiB.
const MAX_SIZE: u64 = 2040 << 30;

/// An open dynamic or differencing disk.
pub struct Vhd {
    storage: Arc<dyn Storage>,
    file: Arc<str>,
    footer: Footer,
    header: Header,
    bat: Bat,
    /// Only where they say what is in the file.
    bitmaps: Option<Bitmaps>,
    /// Where no block may lie.
    reserved: Vec<Range<u64>>,
    parent: Option<Arc<dyn Image>>,
    /// The parent as it was found, or as it is called.
    parent_file: Option<String>,
    writer: Option<write::Writer>,
}

/// Where a run of bytes comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// The parent, or nothing.
    Absent,
    /// This offset of the file.
    Data(u64),
}

impl Vhd {
    /// Opens the image in `storage` for reading.
    ///
    /// # Errors
    /// A differencing disk needs its parent unless `context` leaves it closed: found by the names in the file, known by
    /// its unique id.
    pub fn open(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        let footer = Footers::read(&*storage)?.choose(storage.name())?.clone();
        let mut image = Self::with_footer(storage, footer)?;
        if image.footer.disk_type() == DiskType::Differencing {
            let found = parent::find(&*image.storage, &image.header, context);
            if context.options.backing {
                let reference = Reference { from: &image.file, target: &found?, role: "parent" };
                image.parent = Some(context.open_reference(&reference, Some(image.parent_format()))?);
                image.parent_file = Some(reference.target.to_owned());
            } else {
                let called = || parent::candidates(&*image.storage, &image.header).into_iter().next();
                image.parent_file = found.ok().or_else(called);
            }
        }
        Ok(image)
    }

    fn with_footer(storage: Arc<dyn Storage>, footer: Footer) -> Result<Self> {
        let file: Arc<str> = storage.name().into();
        let header = Header::read(&*storage, &footer)?;
        let at = footer.data_offset();
        let bat_end = header.table_offset() + header.table_len();
        let mut reserved = vec![0..SECTOR, at..at + header::LEN as u64, header.table_offset()..bat_end];
        reserved.extend(header.locators().iter().map(|locator| locator.range()));
        if footer.creator() == b"tap\0" {
            reserved.extend(batmap(&*storage, bat_end)?);
        }
        let blocks = footer.size().div_ceil(header.block_size());
        let bat = Bat::new(header.table_offset(), blocks);
        let by_sector = footer.disk_type() == DiskType::Differencing || footer.creator() == b"tap\0";
        let bitmaps = by_sector.then(|| Bitmaps::new(header.bitmap_size()));
        Ok(Vhd { storage, file, footer, header, bat, bitmaps, reserved, parent: None, parent_file: None, writer: None })
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.header.block_size()
    }

    /// The format of the parent: one without an id is a raw image.
    fn parent_format(&self) -> &'static str {
        if self.header.parent_uuid() == parent::RAW { "raw" } else { FORMAT }
    }

    /// Where the byte `guest` lies, and how many bytes (at most `len`) follow it in the same way.
    fn lookup(&self, guest: u64, len: u64) -> Result<(Mapping, u64)> {
        let block_size = self.block_size();
        let (block, within) = (guest / block_size, guest % block_size);
        let (entry, same) = self.bat.run(&*self.storage, block, (within + len).div_ceil(block_size))?;
        if entry == UNUSED {
            return Ok((Mapping::Absent, (same * block_size - within).min(len)));
        }
        let start = self.block_start(block, entry)?;
        let host = start + self.header.bitmap_size() + within;
        let there = (block_size - within).min(len);
        let Some(bitmaps) = &self.bitmaps else { return Ok((Mapping::Data(host), there)) };
        let sectors = within / SECTOR..(within + there).div_ceil(SECTOR);
        let (is_here, run) = bitmaps.run(&*self.storage, block, start, sectors)?;
        let run = (run * SECTOR - within % SECTOR).min(there);
        Ok((if is_here { Mapping::Data(host) } else { Mapping::Absent }, run))
    }

    /// Where a block lies, its bitmap first, if it may lie there.
    fn block_start(&self, block: u64, entry: u64) -> Result<u64> {
        let start = entry * SECTOR;
        let end = start + self.header.bitmap_size() + self.block_size();
        match self.reserved.iter().find(|r| r.start < end && start < r.end) {
            None => Ok(start),
            Some(r) => {
                let what = format!("block {block} lies at {start:#x}..{end:#x}, over metadata at {:#x}..{:#x}", r.start, r.end);
                Err(Error::corrupt(&self.file, FORMAT, self.bat.entry_offset(block), what))
            }
        }
    }
}

/// The header of blktap's batmap behind the BAT, and the batmap, if there is one.
fn batmap(storage: &dyn Storage, at: u64) -> Result<Vec<Range<u64>>> {
    let mut header = [0; SECTOR as usize];
    read_padded(storage, &mut header, at)?;
    if !header.starts_with(b"tdbatmap") {
        return Ok(Vec::new());
    }
    // After cookie, offset, size, version, checksum and a marker: the key's hash, whose first byte is a flag.
    if header[29] != 0 {
        return Err(Error::unsupported(storage.name(), FORMAT, "encryption (a key hash is set): decrypt it on the XenServer host"));
    }
    let (offset, sectors) = (be::u64_at(&header, 8), u64::from(be::u32_at(&header, 16)));
    Ok(vec![at..at.saturating_add(SECTOR), offset..offset.saturating_add(sectors * SECTOR)])
}

impl Image for Vhd {
    fn size(&self) -> u64 {
        self.footer.size()
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
            let flow = match mapping {
                // Nothing can show through: zeroes of the disk's own, as QEMU has it.
                Mapping::Absent if self.footer.disk_type() == DiskType::Dynamic => visit(unstored(at..at + run, ExtentKind::Zero)),
                Mapping::Absent => extents_below(self.backing(), at..at + run, visit)?,
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
            cluster_size: Some(self.block_size()),
            backing_file: self.parent_file.clone(),
            backing_format: self.parent_file.as_ref().map(|_| self.parent_format().to_owned()),
            file_size: self.storage.size().ok(),
            details: details(&self.footer),
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        self.parent.as_deref()
    }
}

/// What is out of the ordinary; qemu-img shows no details of this format.
fn details(footer: &Footer) -> Vec<(String, String)> {
    if footer.hidden() { vec![("hidden".into(), "true".into())] } else { Vec::new() }
}

/// A new disk's size in whole sectors, if a disk may be so large.
fn checked_size(size: u64) -> Result<u64> {
    match size.checked_next_multiple_of(SECTOR) {
        Some(size) if size <= MAX_SIZE => Ok(size),
        _ => Err(Error::Invalid(format!("The image size is too large for file format 'vpc': {MAX_SIZE} bytes (2040 GiB) are the most"))),
    }
}
