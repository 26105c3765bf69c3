//! Fixed disks: the raw bytes, and a footer behind them.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::footer::{Footer, Footers};
use super::{FORMAT, SECTOR, details};
use crate::image::check_range;
use crate::layers::stored_extents;
use crate::{Error, Extent, Image, ImageEdit, ImageInfo, ImageMut, Place, Placing, Preallocation, Result, Storage};

/// An open fixed disk.
pub struct FixedVhd {
    storage: Arc<dyn Storage>,
    file: Arc<str>,
    footer: Footer,
}

impl FixedVhd {
    /// Opens the disk in `storage`, for reading or, where that can be written, for writing.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let footers = Footers::read(&*storage)?;
        let footer = footers.choose(storage.name())?.clone();
        if footer.size() > footers.end_offset {
            let what = format!("the disk has {} bytes, and {} are there: the file was cut off", footer.size(), footers.end_offset);
            return Err(Error::corrupt(storage.name(), FORMAT, footers.end_offset, what));
        }
        Ok(FixedVhd { file: storage.name().into(), storage, footer })
    }

    /// Makes a disk of zeroes with this footer, replacing all that is in `storage`.
    pub(super) fn create(storage: Arc<dyn Storage>, footer: Footer, preallocation: Preallocation) -> Result<Self> {
        storage.set_size(0)?;
        let disk = FixedVhd { file: storage.name().into(), storage, footer };
        disk.fill(0..disk.size(), preallocation)?;
        disk.write_footer()?;
        Ok(disk)
    }

    /// Makes new room for data.
    fn fill(&self, range: Range<u64>, preallocation: Preallocation) -> Result<()> {
        let len = range.end - range.start;
        match preallocation {
            Preallocation::Off | Preallocation::Metadata => self.storage.zero_at(range.start, len),
            Preallocation::Falloc => self.storage.zero_at(range.start, len).and_then(|()| self.storage.reserve(range.start, len)),
            Preallocation::Full => {
                let zeroes = vec![0; len.min(1 << 20) as usize];
                range.clone().step_by(zeroes.len().max(1)).try_for_each(|at| {
                    let now = (range.end - at).min(zeroes.len() as u64) as usize;
                    self.storage.write_at(&zeroes[..now], at)
                })
            }
        }
    }

    fn write_footer(&self) -> Result<()> {
        self.storage.write_at(self.footer.bytes(), self.size())
    }
}

impl Image for FixedVhd {
    fn size(&self) -> u64 {
        self.footer.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, buf.len() as u64)?;
        self.storage.read_at(buf, offset)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.file, self.size(), range.start, range.end.saturating_sub(range.start))?;
        let start = range.start;
        stored_extents(&*self.storage, &self.file, range, start, visit).map(drop)
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: FORMAT,
            file: self.file.to_string(),
            virtual_size: self.size(),
            actual_size: self.storage.allocated(),
            file_size: self.storage.size().ok(),
            details: details(&self.footer),
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

impl ImageMut for FixedVhd {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, data.len() as u64)?;
        self.storage.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, len)?;
        self.storage.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.storage.sync()
    }

    fn placing(&self) -> Option<&dyn Placing> {
        Some(self)
    }
}

impl Placing for FixedVhd {
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>> {
        check_range(&self.file, self.size(), offset, len)?;
        Ok(Some(Place { host: offset, len }))
    }

    fn store(&self, data: &[u8], host: u64) -> Result<()> {
        self.storage.write_at(data, host)
    }
}

impl ImageEdit for FixedVhd {
    /// The new footer is on disk before the old one is overwritten or cut off.
    fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        let (old, new) = (self.size(), super::checked_size(size)?);
        self.footer.resize(new);
        self.write_footer()?;
        self.storage.sync()?;
        if new > old {
            self.fill(old..new, preallocation)?;
        }
        self.storage.set_size(new + SECTOR)?;
        self.storage.sync()
    }
}
