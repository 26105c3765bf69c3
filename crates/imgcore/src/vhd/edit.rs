//! Changes to a disk's structure: its size, its parent, and forgetting all that it holds.

use super::bat::Bat;
use super::create::fill_table;
use super::footer::DiskType;
use super::header::{self, Header};
use super::parent::{Parent, RAW};
use super::write::State;
use super::{FORMAT, Mapping, SECTOR, UNUSED, Vhd, checked_size};
use crate::{Error, ImageEdit, ImageMut, Preallocation, Result};

impl Vhd {
    /// Makes the footer durable in both places. The copy at the start counts, and is written in one piece.
    pub(super) fn rewrite_footers(&self) -> Result<()> {
        let mut state = self.state()?;
        self.end(&mut state)?;
        self.storage.sync()?;
        self.storage.write_at(self.footer.bytes(), 0)?;
        self.storage.sync()?;
        state.footer_is_gone = true;
        self.write_back(&mut state)
    }

    /// Goes over to another header and footer: the new header lies elsewhere, and the footer leads to it.
    fn switch(&mut self, header: Header, disk_type: DiskType) -> Result<()> {
        let at = {
            let mut state = self.state()?;
            let at = self.take_room(&mut state, header::LEN as u64, 0)?;
            self.storage.write_at(header.bytes(), at)?;
            self.write_back(&mut state)?;
            at
        };
        self.footer.set_type(disk_type, at);
        self.header = header;
        self.reserved.push(at..at + header::LEN as u64);
        self.rewrite_footers()
    }

    /// Makes sure that a BAT with `entries` entries is there: a longer one goes behind the last block.
    fn extend_table(&mut self, entries: u64) -> Result<()> {
        if entries <= self.header.entries() {
            return Ok(());
        }
        let count = u32::try_from(entries)
            .map_err(|_| Error::Invalid(format!("{}: blocks of this size are too small for that size", self.file)))?;
        let mut header = self.header.clone();
        let offset = {
            let mut state = self.state()?;
            let offset = self.take_room(&mut state, (entries * 4).next_multiple_of(SECTOR), 0)?;
            header.set_table(offset, count);
            fill_table(&*self.storage, offset, entries)?;
            self.copy_table(offset)?;
            self.write_back(&mut state)?;
            offset
        };
        // Where the BAT lies stands in the first sector of the header, which is written in one piece.
        self.storage.write_at(&header.bytes()[..SECTOR as usize], self.footer.data_offset())?;
        self.storage.sync()?;
        self.reserved.push(offset..offset + header.table_len());
        self.header = header;
        Ok(())
    }

    fn copy_table(&self, offset: u64) -> Result<()> {
        let len = self.bat.len() * 4;
        let mut piece = vec![0; len.min(1 << 20) as usize];
        (0..len).step_by(1 << 20).try_for_each(|at| {
            let now = &mut piece[..(len - at).min(1 << 20) as usize];
            self.storage.read_at(now, self.header.table_offset() + at)?;
            self.storage.write_at(now, offset + at)
        })
    }

    /// Forgets the blocks from byte `size` on, and clears what the last one before holds behind it.
    fn clear_behind(&self, size: u64) -> Result<()> {
        let mut block = size / self.block_size();
        let mut state = self.state()?;
        while block < self.bat.len() {
            let (entry, same) = self.bat.run(&*self.storage, block, self.bat.len() - block)?;
            for block in (block..block + same).filter(|_| entry != UNUSED) {
                let kept = size.saturating_sub(block * self.block_size());
                if kept > 0 {
                    let data = self.block_start(block, entry)? + self.header.bitmap_size();
                    self.storage.zero_at(data + kept, self.block_size() - kept)?;
                } else if self.bat.set(block, UNUSED) {
                    self.write_back(&mut state)?;
                }
            }
            block += same;
        }
        self.write_back(&mut state)
    }

    fn set_size(&mut self, size: u64) -> Result<()> {
        self.footer.resize(size);
        self.rewrite_footers()
    }

    /// Makes every block hold all of its sectors: those that it did not hold are zeroes.
    fn own_sectors(&self) -> Result<()> {
        let mut at = 0;
        while at < self.footer.size() {
            let block_size = self.block_size();
            let (block, within) = (at / block_size, at % block_size);
            let (entry, same) = self.bat.run(&*self.storage, block, self.bat.len() - block)?;
            if entry == UNUSED {
                at = (block + same) * block_size;
                continue;
            }
            let start = self.block_start(block, entry)?;
            let (mapping, run) = self.lookup(at, (block_size - within).min(self.footer.size() - at))?;
            if mapping == Mapping::Absent {
                self.storage.zero_at(start + self.header.bitmap_size() + within, run)?;
            }
            at += run;
            if at.is_multiple_of(block_size) || at == self.footer.size() {
                self.storage.sync()?;
                self.storage.write_at(&vec![0xff; self.header.bitmap_size() as usize], start)?;
            }
        }
        self.storage.sync()
    }
}

impl ImageEdit for Vhd {
    fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        if preallocation != Preallocation::Off {
            return Err(Error::unsupported(&self.file, FORMAT, "preallocation when the size changes"));
        }
        self.flush()?;
        let (old, new) = (self.footer.size(), checked_size(size)?);
        if new < old {
            self.set_size(new)?;
            return self.clear_behind(new);
        }
        let blocks = new.div_ceil(self.block_size());
        // Entries behind the last block may be left from when the disk was larger.
        self.bat = Bat::new(self.header.table_offset(), blocks.min(self.header.entries()));
        self.clear_behind(old)?;
        self.extend_table(blocks)?;
        self.bat = Bat::new(self.header.table_offset(), blocks);
        self.set_size(new)?;
        // A larger parent must not show through.
        let below = self.parent.as_ref().map_or(0, |parent| parent.size()).min(new);
        if below > old {
            self.zero_at(old, below - old)?;
        }
        self.flush()
    }

    fn set_backing(&mut self, file: Option<&str>, format: Option<&str>) -> Result<()> {
        self.flush()?;
        let mut header = self.header.clone();
        let Some(path) = file else {
            self.own_sectors()?;
            header.set_parent(RAW, 0, "", &[]);
            return self.switch(header, DiskType::Dynamic);
        };
        let parent = Parent::find(&self.file, path, format)?;
        if self.footer.disk_type() == DiskType::Dynamic {
            self.own_sectors()?;
        }
        let locator = {
            let mut state = self.state()?;
            let space = 4 * SECTOR;
            let at = self.take_room(&mut state, space, 0)?;
            let (locator, bytes) = parent.locator(at, space)?;
            self.storage.write_at(&bytes, at)?;
            locator
        };
        self.reserved.push(locator.range());
        header.set_parent(parent.uuid, parent.timestamp, parent.name(), &[locator]);
        self.switch(header, DiskType::Differencing)
    }

    fn make_empty(&mut self) -> Result<()> {
        self.flush()?;
        // Not all that the header claims: who knows what lies there.
        fill_table(&*self.storage, self.header.table_offset(), self.bat.len())?;
        self.storage.sync()?;
        self.bat = Bat::new(self.header.table_offset(), self.bat.len());
        if let Some(bitmaps) = &self.bitmaps {
            bitmaps.clear();
        }
        *self.state()? = State::default();
        self.rewrite_footers()
    }
}
