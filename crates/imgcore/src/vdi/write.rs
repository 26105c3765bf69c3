//! Writing: new blocks behind the last one, and entries of the map that are written once the blocks are on disk.
//!
//! The number of stored blocks, where the next writer goes on, is written before the entries. So a crash leaves blocks that
//! nothing points at, at worst.

use std::sync::{Arc, Mutex, MutexGuard};

use super::header::{ALLOCATED_AT, BLOCK_SIZE};
use super::{DISCARDED, FORMAT, Mapping, Vdi};
use crate::image::check_range;
use crate::{Error, ImageMut, Place, Placing, Result, Storage};

/// What an image open for writing has besides: how many blocks are stored, once that was needed.
#[derive(Default)]
pub(super) struct Writer(Mutex<Option<u64>>);

impl Vdi {
    /// Opens the image in `storage` for reading and writing.
    pub fn open_mut(storage: Arc<dyn Storage>) -> Result<Self> {
        Ok(Self::open(storage)?.into_writable())
    }

    pub(super) fn into_writable(mut self) -> Self {
        self.writer = Some(Writer::default());
        self
    }

    fn state(&self) -> Result<MutexGuard<'_, Option<u64>>> {
        let Writer(state) = self.writer.as_ref().ok_or_else(|| Error::Invalid(format!("{}: not open for writing", self.file)))?;
        Ok(state.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// The number of the first block that no entry points at, nor one behind it.
    fn first_free(&self) -> Result<u64> {
        let mut free = 0;
        for block in 0..self.header.blocks {
            let entry = self.map.get(&*self.storage, self.entry_offset(block))?;
            if entry < DISCARDED {
                self.block(block)?;
                free = free.max(entry + 1);
            }
        }
        Ok(free)
    }

    /// Gives the block of byte `guest` a place, if no other thread did meanwhile.
    fn allocate(&self, guest: u64) -> Result<()> {
        let mut state = self.state()?;
        if let (Mapping::Data(_), _) = self.lookup(guest, 1)? {
            return Ok(());
        }
        let free = match *state {
            Some(free) => free,
            None => self.first_free()?,
        };
        if free >= self.header.blocks {
            let what = format!("all {} blocks are in use, and one is still to be stored: two must share a place", self.header.blocks);
            return Err(Error::corrupt(&self.file, FORMAT, self.header.map_offset, what));
        }
        // What a crash has left behind.
        self.storage.zero_at(self.header.data_offset + free * BLOCK_SIZE, BLOCK_SIZE)?;
        *state = Some(free + 1);
        if self.map.set(self.entry_offset(guest / BLOCK_SIZE), free) {
            self.write_back(&mut state)?;
        }
        Ok(())
    }

    /// Writes what waits, after the blocks that it tells of.
    fn write_back(&self, state: &mut Option<u64>) -> Result<()> {
        let pending = self.map.pending();
        if !pending.is_empty() {
            let allocated = state.unwrap_or(self.header.allocated) as u32;
            self.storage.write_at(&allocated.to_le_bytes(), ALLOCATED_AT)?;
        }
        self.storage.sync()?;
        if pending.is_empty() {
            return Ok(());
        }
        pending.iter().try_for_each(|(offset, bytes)| self.storage.write_at(bytes, *offset))?;
        self.storage.sync()?;
        self.map.set_written();
        Ok(())
    }

    /// Where byte `guest` is to be stored, and how many of `len` bytes belong there together.
    fn place_of(&self, guest: u64, len: u64) -> Result<(u64, u64)> {
        loop {
            match self.lookup(guest, len)? {
                (Mapping::Data(host), run) => return Ok((host, run)),
                _ => self.allocate(guest)?,
            }
        }
    }
}

impl ImageMut for Vdi {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.header.size, offset, data.len() as u64)?;
        let mut done = 0;
        while done < data.len() {
            let (host, run) = self.place_of(offset + done as u64, (data.len() - done) as u64)?;
            self.storage.write_at(&data[done..done + run as usize], host)?;
            done += run as usize;
        }
        Ok(())
    }

    /// Blocks keep their place; the host is given the space back.
    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.header.size, offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (mapping, run) = self.lookup(at, end - at)?;
            if let Mapping::Data(host) = mapping {
                self.storage.zero_at(host, run)?;
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
        4096
    }

    fn placing(&self) -> Option<&dyn Placing> {
        Some(self)
    }
}

impl Placing for Vdi {
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>> {
        check_range(&self.file, self.header.size, offset, len)?;
        let (host, len) = self.place_of(offset, len)?;
        Ok(Some(Place { host, len }))
    }

    fn store(&self, data: &[u8], host: u64) -> Result<()> {
        self.storage.write_at(data, host)
    }
}
