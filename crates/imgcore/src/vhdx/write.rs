//! Writing: new blocks at the end of the file, and BAT entries that are written once the blocks are on disk.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::header::Header;
use super::{FORMAT, MIB, Mapping, Vhdx, bat, log};
use crate::derived::derived_id;
use crate::image::check_range;
use crate::partition::Guid;
use crate::{Error, ImageMut, Place, Placing, Result, Storage};

/// What an image open for writing has besides.
pub(super) struct Writer(Mutex<State>);

struct State {
    header: Header,
    /// Whether the headers tell of this session: they must before anything else is changed.
    announced: bool,
    /// Where the next block goes, once that was needed.
    end: Option<u64>,
}

/// The GUID that follows `old` once what it identifies changes.
fn next_guid(old: Guid, header: &Header) -> Guid {
    Guid::from_random(derived_id(&[b"vhdx write", &old.0, &header.sequence_number.to_le_bytes()]))
}

impl State {
    fn announce(&mut self, storage: &dyn Storage) -> Result<()> {
        if !self.announced {
            let old = self.header.clone();
            self.header.file_write_guid = next_guid(old.file_write_guid, &old);
            self.header.data_write_guid = next_guid(old.data_write_guid, &old);
            self.header.update(storage)?;
            self.announced = true;
        }
        Ok(())
    }
}

/// Puts what the log holds in its place, and empties the log.
pub(super) fn replay(storage: &dyn Storage, header: &mut Header) -> Result<()> {
    let replay = log::read(storage, header)?;
    header.file_write_guid = next_guid(header.file_write_guid, header);
    header.update(storage)?;
    replay.patches.apply(storage)?;
    if storage.size()? < replay.file_size {
        storage.set_size(replay.file_size)?;
    }
    storage.sync()?;
    header.log_guid = super::header::NO_GUID;
    header.update(storage)
}

impl Vhdx {
    /// Opens the image in `storage` for reading and writing; a log is replayed first.
    pub fn open_mut(storage: Arc<dyn Storage>) -> Result<Self> {
        let mut header = Header::read(&*storage)?;
        if header.is_dirty() {
            replay(&*storage, &mut header)?;
        }
        let image = Self::with_header(storage, &header)?;
        if image.metadata.parent.is_some() {
            return Err(Error::unsupported(&image.file, FORMAT, "writing to a differencing disk: convert it, and write to the result"));
        }
        Ok(image.into_writable(header, false))
    }

    /// Lets the image be written. `announced` when nobody has seen the file before.
    pub(super) fn into_writable(mut self, header: Header, announced: bool) -> Self {
        self.writer = Some(Writer(Mutex::new(State { header, announced, end: None })));
        self
    }

    /// The first whole MiB behind the file and all that it may grow by: a block can reach past the end of the file.
    fn first_free(&self) -> Result<u64> {
        let mut end = self.regions.reserved.iter().map(|r| r.end).fold(self.storage.size()?, u64::max);
        self.for_each_entry(|block, entry| {
            if let bat::State::FullyPresent(offset) = bat::State::of(entry) {
                end = end.max(self.payload(block, offset)? + self.block_size());
            }
            Ok(())
        })?;
        Ok(end.checked_next_multiple_of(MIB).unwrap_or(u64::MAX))
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let Writer(state) = self.writer.as_ref().ok_or_else(|| Error::Invalid(format!("{}: not open for writing", self.file)))?;
        Ok(state.lock().unwrap_or_else(|e| e.into_inner()))
    }

    fn announce(&self) -> Result<()> {
        self.state()?.announce(&*self.storage)
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

    /// Gives the block of byte `guest` a place, if no other thread did meanwhile.
    fn allocate(&self, guest: u64) -> Result<()> {
        let mut state = self.state()?;
        if let (Mapping::Data(_), _) = self.lookup(guest, 1)? {
            return Ok(());
        }
        let host = match state.end {
            Some(end) => end,
            None => self.first_free()?,
        };
        let end = host.checked_add(self.block_size()).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or_else(|| Error::io(&self.file, "grow", Some(host), std::io::ErrorKind::FileTooLarge.into()))?;
        self.storage.zero_at(host, self.block_size())?;
        state.end = Some(end);
        let index = self.bat_index(guest / self.block_size());
        if self.bat.set(index, host | bat::PRESENT) {
            self.write_back()?;
        }
        Ok(())
    }

    /// Writes changed BAT entries, after all that they point at. Called with the state locked.
    fn write_back(&self) -> Result<()> {
        let pending = self.bat.changes().pending();
        self.storage.sync()?;
        if pending.is_empty() {
            return Ok(());
        }
        for (offset, bytes) in pending {
            self.storage.write_at(&bytes, offset)?;
        }
        self.storage.sync()?;
        self.bat.changes().set_written();
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (mapping, run) = self.lookup(at, range.end - at)?;
            if let Mapping::Data(host) = mapping {
                self.announce()?;
                self.storage.zero_at(host, run)?;
            }
            at += run;
        }
        Ok(())
    }
}

impl ImageMut for Vhdx {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.metadata.size, offset, data.len() as u64)?;
        self.announce()?;
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
        check_range(&self.file, self.metadata.size, offset, len)?;
        self.zero_range(offset..offset + len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        let _state = self.state()?;
        self.write_back()
    }

    fn placing(&self) -> Option<&dyn Placing> {
        Some(self)
    }
}

impl Placing for Vhdx {
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>> {
        check_range(&self.file, self.metadata.size, offset, len)?;
        self.announce()?;
        let (host, len) = self.place_of(offset, len)?;
        Ok(Some(Place { host, len }))
    }

    fn store(&self, data: &[u8], host: u64) -> Result<()> {
        self.storage.write_at(data, host)
    }
}
