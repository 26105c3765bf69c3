//! Writing a streamOptimized image: from its first byte to its last, grains in ascending order.
//!
//! Each grain table follows the grains it tells of, the directory and a footer come last. The footer's place and size are
//! known only then; in a file, a flush writes this tail behind what is there, and more grains replace it.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};

use super::create::{DESCRIPTOR, Settings, tables};
use super::header::{AT_END, ENTRIES_PER_TABLE, Marker, NewHeader};
use super::{FORMAT, GRAIN_SIZE, SECTOR, Vmdk};
use crate::image::check_range;
use crate::{Compression, Compressor, Error, Extent, Image, ImageInfo, ImageMut, Result, Storage};

/// Where VMware's streams have their first grain, in sectors.
const OVERHEAD: u64 = 128;
/// The name that the descriptor has for the extent: a stream has no name, and the bytes shall not depend on it.
const EXTENT_NAME: &str = "stream.vmdk";
const LEVEL: i32 = 6;

/// Where the bytes go.
pub(super) enum Sink {
    Storage(Arc<dyn Storage>),
    Channel(SyncSender<Vec<u8>>),
}

impl Sink {
    fn name(&self) -> &str {
        match self {
            Sink::Storage(storage) => storage.name(),
            Sink::Channel(_) => "the stream",
        }
    }

    fn put(&self, bytes: Vec<u8>, at: u64) -> Result<()> {
        match self {
            Sink::Storage(storage) => storage.write_at(&bytes, at),
            // The other end knows why it went away.
            Sink::Channel(channel) => channel.send(bytes).map_err(|_| Error::Cancelled),
        }
    }
}

/// What is written so far.
#[derive(Clone)]
struct Layout {
    /// Bytes written.
    len: u64,
    /// The table being filled: its number and its entries.
    table: u64,
    entries: Vec<u32>,
    /// The directory: a sector for each table.
    directory: Vec<u32>,
    /// The first grain that may come next.
    next_grain: u64,
}

/// An image being written as a stream.
pub(super) struct StreamImage {
    sink: Sink,
    file: Arc<str>,
    footer: NewHeader,
    state: Mutex<State>,
}

struct State {
    layout: Layout,
    /// A grain that is not whole yet.
    open: Option<(u64, Vec<u8>)>,
    compressor: GrainCompressor,
    /// The image as far as it is written, for reading.
    reader: Option<Arc<Vmdk>>,
    is_broken: bool,
}

/// Compresses grains for one thread.
struct GrainCompressor(libdeflater::Compressor);

impl GrainCompressor {
    fn new() -> Self {
        let level = libdeflater::CompressionLvl::new(LEVEL).unwrap_or_default();
        GrainCompressor(libdeflater::Compressor::new(level))
    }

    fn pack(&mut self, grain: &[u8]) -> Vec<u8> {
        let mut packed = vec![0; self.0.zlib_compress_bound(grain.len())];
        // It has room for the worst case.
        let len = self.0.zlib_compress(grain, &mut packed).unwrap_or(0);
        packed.truncate(len);
        packed
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    bytes
}

/// Numbers behind their marker.
fn marked(marker: Marker, entries: &[u32]) -> Vec<u8> {
    let numbers = padded(entries.iter().flat_map(|entry| entry.to_le_bytes()).collect());
    [marker_sector(marker, (numbers.len() as u64) / SECTOR), numbers].concat()
}

fn marker_sector(marker: Marker, sectors: u64) -> Vec<u8> {
    padded([&sectors.to_le_bytes()[..], &[0; 4], &(marker as u32).to_le_bytes()].concat())
}

impl Layout {
    fn sector(&self) -> Result<u32> {
        let too_large = || Error::Invalid(format!("a stream of {} bytes is too large for this format: 2 TiB are the most", self.len));
        u32::try_from(self.len / SECTOR).map_err(|_| too_large())
    }

    /// The bytes that add a grain, with the table before it where that is full.
    fn add_grain(&mut self, grain: u64, packed: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = self.turn_to(grain / ENTRIES_PER_TABLE)?;
        let sector = self.sector()?;
        if let Some(entry) = self.entries.get_mut((grain % ENTRIES_PER_TABLE) as usize) {
            *entry = sector;
        }
        let marker = [&(grain * (GRAIN_SIZE / SECTOR)).to_le_bytes()[..], &(packed.len() as u32).to_le_bytes()].concat();
        let start = bytes.len();
        bytes.extend_from_slice(&padded([&marker, packed].concat()));
        self.len += (bytes.len() - start) as u64;
        self.next_grain = grain + 1;
        Ok(bytes)
    }

    /// The bytes of the table that was filled, if the next grain belongs to another.
    fn turn_to(&mut self, table: u64) -> Result<Vec<u8>> {
        if table == self.table {
            return Ok(Vec::new());
        }
        let bytes = self.end_table()?;
        self.table = table;
        Ok(bytes)
    }

    fn end_table(&mut self) -> Result<Vec<u8>> {
        if self.entries.iter().all(|entry| *entry == 0) {
            return Ok(Vec::new());
        }
        let bytes = marked(Marker::GrainTable, &self.entries);
        let sector = self.sector()?.saturating_add(1);
        if let Some(place) = self.directory.get_mut(self.table as usize) {
            *place = sector;
        }
        self.entries.fill(0);
        self.len += bytes.len() as u64;
        Ok(bytes)
    }

    /// The bytes that end the stream.
    fn tail(mut self, footer: &NewHeader) -> Result<Vec<u8>> {
        let mut bytes = self.end_table()?;
        let directory = u64::from(self.sector()?) + 1;
        bytes.extend(marked(Marker::GrainDirectory, &self.directory));
        bytes.extend(marker_sector(Marker::Footer, 1));
        bytes.extend(NewHeader { directory, ..*footer }.serialize());
        bytes.extend(marker_sector(Marker::EndOfStream, 0));
        Ok(bytes)
    }
}

impl StreamImage {
    /// Begins an image: writes header and descriptor.
    pub fn begin(sink: Sink, settings: &Settings) -> Result<Self> {
        let mut head = settings.header(0, AT_END, OVERHEAD).serialize().to_vec();
        head.resize((DESCRIPTOR.0 * SECTOR) as usize, 0);
        head.extend(settings.descriptor(EXTENT_NAME)?);
        head.resize((OVERHEAD * SECTOR) as usize, 0);
        let layout = Layout {
            len: head.len() as u64,
            table: 0,
            entries: vec![0; ENTRIES_PER_TABLE as usize],
            directory: vec![0; tables(settings.capacity) as usize],
            next_grain: 0,
        };
        sink.put(head, 0)?;
        let state = Mutex::new(State { layout, open: None, compressor: GrainCompressor::new(), reader: None, is_broken: false });
        Ok(StreamImage { file: sink.name().into(), sink, footer: settings.header(0, 0, OVERHEAD), state })
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if state.is_broken {
            return Err(Error::Invalid(format!("{}: writing it has failed before", self.file)));
        }
        Ok(state)
    }

    /// Adds a compressed grain.
    fn add(&self, state: &mut State, grain: u64, packed: &[u8]) -> Result<()> {
        if grain < state.layout.next_grain {
            return Err(self.out_of_order(grain * GRAIN_SIZE));
        }
        state.reader = None;
        let at = state.layout.len;
        // Without these bytes the stream has a gap: nothing may come behind it.
        state.is_broken = true;
        let bytes = state.layout.add_grain(grain, packed)?;
        self.sink.put(bytes, at)?;
        state.is_broken = false;
        Ok(())
    }

    fn out_of_order(&self, at: u64) -> Error {
        Error::unsupported(&self.file, FORMAT, format!("writing {at:#x} of a streamOptimized image again: it is written once, in order"))
    }

    /// Adds the grain that is not whole.
    fn close_grain(&self, state: &mut State) -> Result<()> {
        let Some((grain, bytes)) = state.open.take() else { return Ok(()) };
        let packed = state.compressor.pack(&bytes);
        self.add(state, grain, &packed)
    }

    fn write_part(&self, state: &mut State, data: &[u8], grain: u64, within: usize) -> Result<()> {
        if data.len() == GRAIN_SIZE as usize {
            self.close_grain(state)?;
            let packed = state.compressor.pack(data);
            return self.add(state, grain, &packed);
        }
        if state.open.as_ref().is_some_and(|(open, _)| *open != grain) {
            self.close_grain(state)?;
        }
        if grain < state.layout.next_grain {
            return Err(self.out_of_order(grain * GRAIN_SIZE));
        }
        state.reader = None;
        let (_, bytes) = state.open.get_or_insert_with(|| (grain, vec![0; GRAIN_SIZE as usize]));
        bytes[within..within + data.len()].copy_from_slice(data);
        Ok(())
    }

    /// Writes what ends the stream; in a file, more grains may replace it.
    fn write_tail(&self, state: &mut State) -> Result<()> {
        let at = state.layout.len;
        let mut layout = state.layout.clone();
        let mut bytes = Vec::new();
        if let Some((grain, open)) = &state.open {
            let packed = state.compressor.pack(open);
            bytes = layout.add_grain(*grain, &packed)?;
        }
        bytes.extend(layout.tail(&self.footer)?);
        let end = at + bytes.len() as u64;
        self.sink.put(bytes, at)?;
        match &self.sink {
            Sink::Storage(storage) => storage.set_size(end),
            Sink::Channel(_) => Ok(()),
        }
    }

    /// The image as far as it is written.
    fn reader(&self) -> Result<Arc<Vmdk>> {
        let mut state = self.state()?;
        if let Some(reader) = &state.reader {
            return Ok(reader.clone());
        }
        let Sink::Storage(storage) = &self.sink else {
            return Err(Error::unsupported(&self.file, FORMAT, "reading back what goes into a pipe"));
        };
        self.write_tail(&mut state)?;
        let reader = Arc::new(Vmdk::open_alone(storage.clone())?);
        state.reader = Some(reader.clone());
        Ok(reader)
    }
}

impl Image for StreamImage {
    fn size(&self) -> u64 {
        self.footer.capacity * SECTOR
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.reader()?.read_at(buf, offset)
    }

    fn extents(&self, range: std::ops::Range<u64>, visit: &mut dyn FnMut(Extent) -> std::ops::ControlFlow<()>) -> Result<()> {
        self.reader()?.extents(range, visit)
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: FORMAT,
            file: self.file.to_string(),
            virtual_size: self.size(),
            cluster_size: Some(GRAIN_SIZE),
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

impl ImageMut for StreamImage {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, data.len() as u64)?;
        let mut state = self.state()?;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % GRAIN_SIZE) as usize;
            let len = (GRAIN_SIZE as usize - within).min(data.len() - done);
            self.write_part(&mut state, &data[done..done + len], at / GRAIN_SIZE, within)?;
            done += len;
        }
        Ok(())
    }

    /// What is not written yet is zeroes.
    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, len)?;
        let mut state = self.state()?;
        let end = offset + len;
        if len > 0 && offset < state.layout.next_grain * GRAIN_SIZE {
            return Err(self.out_of_order(offset));
        }
        if let Some((grain, bytes)) = &mut state.open {
            let start = *grain * GRAIN_SIZE;
            let part = |at: u64| at.clamp(start, start + GRAIN_SIZE) - start;
            bytes[part(offset) as usize..part(end) as usize].fill(0);
            state.reader = None;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.state()?;
        self.write_tail(&mut state)?;
        match &self.sink {
            Sink::Storage(storage) => storage.sync(),
            Sink::Channel(_) => Ok(()),
        }
    }

    fn compression(&self) -> Option<&dyn Compression> {
        Some(self)
    }
}

impl Compression for StreamImage {
    fn cluster_size(&self) -> u64 {
        GRAIN_SIZE
    }

    fn compressor(&self) -> Compressor {
        let mut compressor = GrainCompressor::new();
        Box::new(move |grain| Some(compressor.pack(grain)))
    }

    fn write_packed(&self, packed: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, 1)?;
        let mut state = self.state()?;
        self.close_grain(&mut state)?;
        self.add(&mut state, offset / GRAIN_SIZE, packed)
    }

    fn place_packed(&self, _: u64, _: u64) -> Result<Option<u64>> {
        Ok(None)
    }

    fn is_needed(&self) -> bool {
        true
    }
}
