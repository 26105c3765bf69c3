//! Writing to a monolithicSparse image: new grains at the end of the file, and table entries that are written once the grains
//! are on disk, in both copies of the tables.

use std::sync::{Arc, Mutex, MutexGuard};

use super::descriptor::MAX_LEN;
use super::extent::Body;
use super::sparse::{Mapping, Sparse};
use super::{FORMAT, SECTOR, Vmdk};
use crate::derived::derived_id;
use crate::image::check_range;
use crate::storage::read_padded;
use crate::{Error, Image, ImageMut, Place, Placing, Result, Storage};

/// What an image open for writing has besides.
pub(super) struct Writer(Mutex<State>);

struct State {
    /// Whether the CID tells that the content is another one than before.
    has_new_cid: bool,
    /// Where the next grain goes.
    end: u64,
}

impl Vmdk {
    /// Opens the image in `storage` for reading and writing.
    pub fn open_mut(storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_alone(storage)?.into_writable(false)
    }

    /// Lets the image be written. `is_new` when nobody has seen the file before.
    pub(super) fn into_writable(mut self, is_new: bool) -> Result<Self> {
        let header = &self.sparse()?.header;
        let what = match header {
            header if header.is_compressed => "writing to a streamOptimized image: convert it, and write to the result",
            header if header.is_cowd => "writing to an ESX sparse extent: convert it, and write to the result",
            header if header.descriptor.is_none() => "writing to one part of a split disk",
            _ => "",
        };
        if !what.is_empty() {
            return Err(Error::unsupported(&self.file, FORMAT, what));
        }
        let size = self.storage.size()?;
        let end = size.checked_next_multiple_of(header.grain_size).unwrap_or(u64::MAX);
        self.writer = Some(Writer(Mutex::new(State { has_new_cid: is_new, end })));
        Ok(self)
    }

    /// The one extent of an image that can be written.
    fn sparse(&self) -> Result<&Sparse> {
        match self.extents.first().map(|extent| &extent.body) {
            Some(Body::Sparse(sparse)) => Ok(sparse),
            _ => Err(Error::unsupported(&self.file, FORMAT, "writing to disks of several files")),
        }
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let Writer(state) = self.writer.as_ref().ok_or_else(|| Error::Invalid(format!("{}: not open for writing", self.file)))?;
        Ok(state.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Gives the image a new CID before its content changes for the first time.
    fn announce(&self) -> Result<()> {
        let mut state = self.state()?;
        if state.has_new_cid {
            return Ok(());
        }
        let (offset, len) = self.sparse()?.header.descriptor.unwrap_or((0, 0));
        let mut text = vec![0; len.min(MAX_LEN) as usize];
        read_padded(&*self.storage, &mut text, offset)?;
        let id = derived_id(&[b"vmdk write", &text]);
        let cid = format!("{:08x}", u32::from_be_bytes([id[0], id[1], id[2], id[3]]) & 0x7fff_ffff);
        // The digits are replaced where they stand; if they are fewer than eight, so are the new ones.
        let line = text.windows(5).position(|w| w[0] == b'\n' && w[1..].eq_ignore_ascii_case(b"CID="));
        let digits = line.map(|at| at + 5..at + 5 + text[at + 5..].iter().take(8).take_while(|b| b.is_ascii_hexdigit()).count());
        if let Some(digits) = digits {
            self.storage.write_at(&cid.as_bytes()[..digits.len()], offset + digits.start as u64)?;
            self.storage.sync()?;
        }
        state.has_new_cid = true;
        Ok(())
    }

    /// Where byte `guest` is to be stored, and how many of `len` bytes belong there together.
    fn place_of(&self, guest: u64, len: u64) -> Result<(u64, u64)> {
        let sparse = self.sparse()?;
        loop {
            match sparse.lookup(guest, len)? {
                (Mapping::Data(host), run) => {
                    self.check_place(sparse, guest, host)?;
                    return Ok((host, run));
                }
                _ => self.allocate(sparse, guest, len)?,
            }
        }
    }

    /// A damaged table's entry must not have metadata overwritten.
    fn check_place(&self, sparse: &Sparse, guest: u64, host: u64) -> Result<()> {
        if host >= sparse.header.overhead {
            return Ok(());
        }
        Err(Error::corrupt(&self.file, FORMAT, host, format!("the grain of byte {guest:#x} lies over metadata")))
    }

    /// Gives the grains of `len` bytes at `guest` a place, as far as they are alike and no other thread did meanwhile.
    fn allocate(&self, sparse: &Sparse, guest: u64, len: u64) -> Result<()> {
        let mut state = self.state()?;
        let (mapping, run) = sparse.lookup(guest, len)?;
        if let Mapping::Data(_) = mapping {
            return Ok(());
        }
        let grain_size = sparse.header.grain_size;
        let grains = guest / grain_size..(guest + run).div_ceil(grain_size);
        let (start, end) = (state.end, state.end.saturating_add((grains.end - grains.start) * grain_size));
        if end / SECTOR > u64::from(u32::MAX) {
            return Err(Error::io(&self.file, "grow", Some(start), std::io::ErrorKind::FileTooLarge.into()));
        }
        self.storage.zero_at(start, end - start)?;
        let mut are_many = false;
        for (grain, host) in grains.zip((start..end).step_by(grain_size as usize)) {
            are_many |= sparse.set_entry(grain * grain_size, (host / SECTOR) as u32)?;
        }
        state.end = end;
        if are_many { self.write_back(sparse) } else { Ok(()) }
    }

    /// Writes changed table entries, after all that they point at. Called with the state locked.
    fn write_back(&self, sparse: &Sparse) -> Result<()> {
        let pending = sparse.tables.pending();
        self.storage.sync()?;
        if pending.is_empty() {
            return Ok(());
        }
        for (offset, bytes) in pending {
            self.storage.write_at(&bytes, offset)?;
        }
        self.storage.sync()?;
        sparse.tables.set_written();
        Ok(())
    }
}

impl ImageMut for Vmdk {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, data.len() as u64)?;
        self.announce()?;
        let mut done = 0;
        while done < data.len() {
            let (host, run) = self.place_of(offset + done as u64, (data.len() - done) as u64)?;
            self.storage.write_at(&data[done..done + run as usize], host)?;
            done += run as usize;
        }
        Ok(())
    }

    /// Grains keep their place; the host is given the space back.
    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, len)?;
        let sparse = self.sparse()?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (mapping, run) = sparse.lookup(at, end - at)?;
            if let Mapping::Data(host) = mapping {
                self.check_place(sparse, at, host)?;
                self.announce()?;
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
        let sparse = self.sparse()?;
        let _state = self.state()?;
        self.write_back(sparse)
    }

    fn placing(&self) -> Option<&dyn Placing> {
        Some(self)
    }
}

impl Placing for Vmdk {
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>> {
        check_range(&self.file, self.size(), offset, len)?;
        self.announce()?;
        let (host, len) = self.place_of(offset, len)?;
        Ok(Some(Place { host, len }))
    }

    fn store(&self, data: &[u8], host: u64) -> Result<()> {
        self.storage.write_at(data, host)
    }
}
