//! Writing: new blocks behind the last one, and the order in which metadata reaches the file.
//!
//! Data goes to its place at once. What tells of it (BAT entries of new blocks, bits of sector bitmaps) waits in memory
//! until a flush has the data on disk; the footer moves behind the blocks before that. A crash in between leaves blocks
//! that nothing points at, which the next writer clears and uses, and a footer that may be missing at the end of the file: its
//! copy at the start is as good.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Mapping, SECTOR, UNUSED, Vhd};
use crate::formats::OpenContext;
use crate::image::check_range;
use crate::layers::extents_below;
use crate::{Error, Image, ImageMut, Place, Placing, Result, Storage};

/// Data of blocks begins at multiples of it, as blktap has it.
const ALIGNMENT: u64 = 4096;
/// Zeroes that are written at once.
const ZEROES: [u8; SECTOR as usize] = [0; SECTOR as usize];

/// What an image open for writing has besides.
#[derive(Default)]
pub(super) struct Writer(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    /// Where the next block goes, once that was needed.
    pub end: Option<u64>,
    /// Whether blocks lie where the footer was.
    pub footer_is_gone: bool,
}

impl Vhd {
    /// Opens the image in `storage` for reading and writing.
    pub fn open_mut(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        Ok(Self::open(storage, context)?.into_writable())
    }

    pub(super) fn into_writable(mut self) -> Self {
        self.writer = Some(Writer::default());
        self
    }

    pub(super) fn state(&self) -> Result<MutexGuard<'_, State>> {
        let Writer(state) = self.writer.as_ref().ok_or_else(|| Error::Invalid(format!("{}: not open for writing", self.file)))?;
        Ok(state.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Where the last block or other structure ends. A header may claim room anywhere; only what a BAT's entry can tell
    /// of can be added to.
    pub(super) fn end(&self, state: &mut State) -> Result<u64> {
        if let Some(end) = state.end {
            return Ok(end);
        }
        let mut end = self.reserved.iter().map(|r| r.end).fold(0, u64::max);
        let mut block = 0;
        while block < self.bat.len() {
            let (entry, same) = self.bat.run(&*self.storage, block, self.bat.len() - block)?;
            if entry != UNUSED {
                end = end.max(self.block_start(block, entry)? + self.header.bitmap_size() + self.block_size());
            }
            block += same;
        }
        state.end = Some(self.reachable(end)?);
        Ok(end)
    }

    /// An offset, if a BAT's entry can tell of it.
    fn reachable(&self, offset: u64) -> Result<u64> {
        if offset / SECTOR < UNUSED {
            return Ok(offset);
        }
        Err(Error::io(&self.file, "grow", Some(offset), std::io::ErrorKind::FileTooLarge.into()))
    }

    /// Takes room for `len` bytes at the end whose byte `within` is aligned. It reads as zeroes.
    pub(super) fn take_room(&self, state: &mut State, len: u64, within: u64) -> Result<u64> {
        let alignment = ALIGNMENT.min(self.block_size());
        let start = self.reachable((self.end(state)? + within).next_multiple_of(alignment) - within)?;
        let end = start + len;
        state.footer_is_gone = true;
        // The old footer, and what a crash has left behind.
        let there = self.storage.size()?;
        if there > start {
            self.storage.zero_at(start, there.min(end) - start)?;
        }
        if there < end {
            self.storage.set_size(end)?;
        }
        state.end = Some(end);
        Ok(start)
    }

    /// The place of block `block`, new if it has none. The BAT does not tell of a new one yet.
    fn block_place(&self, state: &mut State, block: u64) -> Result<(u64, bool)> {
        let entry = self.bat.get(&*self.storage, block)?;
        if entry != UNUSED {
            return Ok((self.block_start(block, entry)?, false));
        }
        let bitmap_size = self.header.bitmap_size();
        let start = self.take_room(state, bitmap_size + self.block_size(), bitmap_size)?;
        if self.bitmaps.is_none() {
            self.storage.write_at(&vec![0xff; bitmap_size as usize], start)?;
        }
        Ok((start, true))
    }

    /// Stores bytes where the image holds none: `len` bytes at `guest`, within one block, are `data` or zeroes. Does
    /// nothing if another thread was faster; the caller then looks again.
    fn fill_absent(&self, data: Option<&[u8]>, guest: u64, len: u64) -> Result<()> {
        let mut state = self.state()?;
        if !matches!(self.lookup(guest, len)?, (Mapping::Absent, run) if run == len) {
            return Ok(());
        }
        let (block, within) = (guest / self.block_size(), guest % self.block_size());
        // Where sectors count, the rest of the first and the last comes from below.
        let sectors = within / SECTOR..(within + len).div_ceil(SECTOR);
        let edges = self.bitmaps.as_ref().map(|_| self.edges(guest, len)).transpose()?;
        let (start, is_new) = self.block_place(&mut state, block)?;
        let place = start + self.header.bitmap_size();
        match data {
            Some(data) => self.storage.write_at(data, place + within)?,
            None if is_new => {}
            None => self.storage.zero_at(place + within, len)?,
        }
        if let Some((before, after)) = edges {
            self.storage.write_at(&before, place + within - before.len() as u64)?;
            self.storage.write_at(&after, place + within + len)?;
        }
        let mut crowded = false;
        if let Some(bitmaps) = &self.bitmaps {
            crowded = bitmaps.set(&*self.storage, block, start, sectors)?;
        }
        if is_new {
            crowded |= self.bat.set(block, start / SECTOR);
        }
        if crowded { self.write_back(&mut state) } else { Ok(()) }
    }

    /// What stands before and after `len` bytes at `guest` in their first and last sector.
    fn edges(&self, guest: u64, len: u64) -> Result<(Vec<u8>, Vec<u8>)> {
        let end = guest + len;
        let mut before = vec![0; (guest % SECTOR) as usize];
        let mut after = vec![0; (end.next_multiple_of(SECTOR) - end) as usize];
        self.read_at(&mut before, guest - guest % SECTOR)?;
        self.read_at(&mut after, end)?;
        Ok((before, after))
    }

    /// Writes all that waits, each kind once what it relies on is on disk.
    pub(super) fn write_back(&self, state: &mut State) -> Result<()> {
        if state.footer_is_gone {
            let end = self.end(state)?;
            self.storage.set_size(end + SECTOR)?;
            // A volume does not get shorter; there, the footer is looked for at its end.
            let at = end.max(self.storage.size()?.saturating_sub(SECTOR));
            self.storage.write_at(self.footer.bytes(), at)?;
        }
        self.storage.sync()?;
        state.footer_is_gone = false;
        let mut waiting = self.bitmaps.as_ref().map(|bitmaps| bitmaps.dirty()).unwrap_or_default();
        waiting.extend(self.bat.changes().pending());
        if waiting.is_empty() {
            return Ok(());
        }
        waiting.iter().try_for_each(|(offset, bytes)| self.storage.write_at(bytes, *offset))?;
        self.storage.sync()?;
        self.bat.changes().set_written();
        if let Some(bitmaps) = &self.bitmaps {
            bitmaps.set_clean();
        }
        Ok(())
    }

    /// Stores zeroes where the image holds nothing, unless what is below reads as zeroes.
    fn zero_absent(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let in_block = self.block_size() - at % self.block_size();
            let to_sector = SECTOR - at % SECTOR;
            let left = range.end - at;
            // Whole sectors need no data; the parts at both ends do.
            let len = if to_sector < SECTOR || left < SECTOR { to_sector.min(left) } else { in_block.min(left / SECTOR * SECTOR) };
            if !self.is_zero_below(at..at + len)? {
                if len < SECTOR {
                    self.write_at(&ZEROES[..len as usize], at)?;
                } else {
                    self.fill_absent(None, at, len)?;
                }
            }
            at += len;
        }
        Ok(())
    }

    fn is_zero_below(&self, range: Range<u64>) -> Result<bool> {
        let is_zero = extents_below(self.backing(), range, &mut |extent| {
            if extent.kind.reads_zero() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        Ok(is_zero?.is_continue())
    }
}

impl ImageMut for Vhd {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, data.len() as u64)?;
        let mut done = 0;
        while done < data.len() {
            let guest = offset + done as u64;
            let in_block = self.block_size() - guest % self.block_size();
            let (mapping, run) = self.lookup(guest, in_block.min((data.len() - done) as u64))?;
            let part = &data[done..done + run as usize];
            match mapping {
                Mapping::Data(host) => {
                    self.storage.write_at(part, host)?;
                    done += part.len();
                }
                Mapping::Absent => self.fill_absent(Some(part), guest, run)?,
            }
        }
        Ok(())
    }

    /// Blocks keep their place; the host is given the space back.
    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, len)?;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (mapping, run) = self.lookup(at, end - at)?;
            match mapping {
                Mapping::Data(host) => self.storage.zero_at(host, run)?,
                Mapping::Absent => self.zero_absent(at..at + run)?,
            }
            at += run;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.write_back(&mut *self.state()?)
    }

    /// What of a block is never written stays a hole of the file.
    fn hole_unit(&self) -> u64 {
        if self.bitmaps.is_none() { ALIGNMENT } else { SECTOR }
    }

    /// For dynamic disks: where sectors count, writing has more to do.
    fn placing(&self) -> Option<&dyn Placing> {
        if self.bitmaps.is_none() { Some(self) } else { None }
    }
}

impl Placing for Vhd {
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>> {
        check_range(&self.file, self.size(), offset, len)?;
        let in_block = (self.block_size() - offset % self.block_size()).min(len);
        if self.lookup(offset, in_block)?.0 == Mapping::Absent {
            let mut state = self.state()?;
            let block = offset / self.block_size();
            if let (start, true) = self.block_place(&mut state, block)?
                && self.bat.set(block, start / SECTOR)
            {
                self.write_back(&mut state)?;
            }
        }
        match self.lookup(offset, in_block)? {
            (Mapping::Data(host), len) => Ok(Some(Place { host, len })),
            (Mapping::Absent, _) => Ok(None),
        }
    }

    fn store(&self, data: &[u8], host: u64) -> Result<()> {
        self.storage.write_at(data, host)
    }
}
