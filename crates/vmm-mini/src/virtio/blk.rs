//! The block device (VIRTIO 1.2, section 5.2): a disk image behind one queue. One thread does its requests in their order, with one
//! buffer between image and guest.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use imgcore::{Image, ImageMut};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::{Reader, Writer};

use super::ring::{self, take};
use super::worker::{self, Wakes};
use super::{Running, VirtioDevice, config_bytes};

/// The unit of all addresses, in bytes.
const SECTOR: u64 = 512;

/// Chains that a queue holds.
const QUEUE_SIZE: u16 = 256;

/// Buffers of data in a request: with header and status, a chain fills the queue.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes that are copied at once; a larger request goes in pieces.
const BUFFER: usize = 512 << 10;

/// Segments in a request to discard or to write zeroes.
const MAX_SEGMENTS: u32 = 16;

/// Sectors in such a segment: 2 GiB less one sector.
const MAX_SEGMENT_SECTORS: u32 = (1 << 22) - 1;

/// Bytes of such a segment: sector, count of sectors, flags.
const SEGMENT: usize = 16;

/// The first error of a disk's image, which the guest knows only as a status byte.
pub type FirstError = Arc<OnceLock<imgcore::Error>>;

/// A disk.
pub struct Block {
    disk: Arc<Disk>,
    config: [u8; 60],
}

struct Disk {
    image: Arc<dyn Image>,
    /// The same image, where the guest may write.
    writable: Option<Arc<dyn ImageMut>>,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    first_error: FirstError,
}

impl Block {
    /// A disk that the guest may write. `id` is its serial number, cut to 20 bytes.
    pub fn new(image: Arc<dyn ImageMut>, id: &str) -> Self {
        Self::with(image.clone(), Some(image), id)
    }

    /// A disk that the guest may only read.
    pub fn read_only(image: Arc<dyn Image>, id: &str) -> Self {
        Self::with(image, None, id)
    }

    fn with(image: Arc<dyn Image>, writable: Option<Arc<dyn ImageMut>>, id: &str) -> Self {
        // struct virtio_blk_config, section 5.2.4. Fields whose feature is not offered stay zero.
        let mut config = [0; 60];
        let mut put = |offset: usize, field: &[u8]| config[offset..offset + field.len()].copy_from_slice(field);
        put(0, &(image.size() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(36, &MAX_SEGMENT_SECTORS.to_le_bytes());
        put(40, &MAX_SEGMENTS.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &MAX_SEGMENT_SECTORS.to_le_bytes());
        put(52, &MAX_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        let mut padded = [0; VIRTIO_BLK_ID_BYTES as usize];
        padded.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        Block { disk: Arc::new(Disk { image, writable, id: padded, first_error: FirstError::default() }), config }
    }

    /// Where the first error of the image will be found.
    pub fn first_error(&self) -> FirstError {
        self.disk.first_error.clone()
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        if self.disk.writable.is_some() { always } else { always | 1 << VIRTIO_BLK_F_RO }
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        config_bytes(&self.config, offset, data);
    }

    fn start(&self, running: Running) -> io::Result<Box<dyn Send + Sync>> {
        let disk = self.disk.clone();
        worker::spawn("disk", running, move |running, wakes| {
            // A driver that cannot flush relies on writes that last (section 5.2.6.2).
            let write_through = running.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
            let mut requests = Requests { disk: &disk, wakes, write_through, buffer: Vec::new() };
            ring::serve(running, wakes, |reader, writer| requests.handle(reader, writer))
        })
    }
}

/// Why a request was not done.
enum Failure {
    /// It makes no sense, or is not allowed.
    Refused,
    /// The device does not know it.
    Unsupported,
    /// The image's.
    Image(imgcore::Error),
    /// The device is being stopped.
    Stopped,
}

impl From<imgcore::Error> for Failure {
    fn from(error: imgcore::Error) -> Self {
        Failure::Image(error)
    }
}

/// A chain that is shorter than it must be, or whose buffers lie outside of the memory.
impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Failure::Refused
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// What the thread of a disk has.
struct Requests<'a> {
    disk: &'a Disk,
    wakes: &'a Wakes,
    write_through: bool,
    buffer: Vec<u8>,
}

impl Requests<'_> {
    /// Does one request; how many bytes the guest got, or `None` when it was stopped before its end.
    fn handle(&mut self, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> Option<u32> {
        // Without a byte for the status there is nothing to say, and nothing is done.
        let status = writer.available_bytes().checked_sub(1).and_then(|end| writer.split_at(end).ok());
        let Some(mut status) = status else { return Some(0) };
        let code = match self.execute(reader, writer) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Failure::Refused) => VIRTIO_BLK_S_IOERR,
            Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(Failure::Image(error)) => {
                let _ = self.disk.first_error.set(error);
                VIRTIO_BLK_S_IOERR
            }
            Err(Failure::Stopped) => return None,
        };
        let told = status.write(&[code as u8]).unwrap_or(0);
        // A chain has less than 4 GiB.
        Some(u32::try_from(writer.bytes_written().saturating_add(told)).unwrap_or(u32::MAX))
    }

    /// struct virtio_blk_req, section 5.2.6.
    fn execute(&mut self, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> Result<()> {
        let kind = u32::from_le_bytes(take(reader)?);
        let _reserved: [u8; 4] = take(reader)?;
        let sector = u64::from_le_bytes(take(reader)?);
        match kind {
            VIRTIO_BLK_T_IN => self.read(sector, writer),
            VIRTIO_BLK_T_OUT => self.write(sector, reader),
            VIRTIO_BLK_T_FLUSH => Ok(self.disk.writable.as_ref().map_or(Ok(()), |image| image.flush())?),
            VIRTIO_BLK_T_GET_ID => Ok(writer.write_all(&self.disk.id)?),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear(kind, reader),
            _ => Err(Failure::Unsupported),
        }
    }

    fn read(&mut self, sector: u64, writer: &mut Writer<'_>) -> Result<()> {
        let disk = self.disk;
        self.pieces(sector, writer.available_bytes(), |offset, piece| {
            disk.image.read_at(piece, offset)?;
            Ok(writer.write_all(piece)?)
        })
    }

    fn write(&mut self, sector: u64, reader: &mut Reader<'_>) -> Result<()> {
        let image = self.disk.writable.as_ref().ok_or(Failure::Refused)?;
        self.pieces(sector, reader.available_bytes(), |offset, piece| {
            reader.read_exact(piece)?;
            Ok(image.write_at(piece, offset)?)
        })?;
        self.write_through(image.as_ref())
    }

    /// Discards, or writes zeroes to, a list of segments (struct virtio_blk_discard_write_zeroes).
    fn clear(&mut self, kind: u32, reader: &mut Reader<'_>) -> Result<()> {
        let image = self.disk.writable.as_ref().ok_or(Failure::Refused)?;
        let len = reader.available_bytes();
        if len == 0 || !len.is_multiple_of(SEGMENT) || len / SEGMENT > MAX_SEGMENTS as usize {
            return Err(Failure::Refused);
        }
        // All of a discard's flags are reserved.
        let known = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        for _ in 0..len / SEGMENT {
            let sector = u64::from_le_bytes(take(reader)?);
            let sectors = u32::from_le_bytes(take(reader)?);
            let flags = u32::from_le_bytes(take(reader)?);
            if flags & !known != 0 {
                return Err(Failure::Unsupported);
            }
            if sectors > MAX_SEGMENT_SECTORS {
                return Err(Failure::Refused);
            }
            if self.wakes.stopped() {
                return Err(Failure::Stopped);
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = self.range(sector, len)?;
            if kind == VIRTIO_BLK_T_DISCARD { image.discard(offset, len)? } else { image.zero_at(offset, len)? }
        }
        self.write_through(image.as_ref())
    }

    fn write_through(&self, image: &dyn ImageMut) -> Result<()> {
        if self.write_through { Ok(image.flush()?) } else { Ok(()) }
    }

    /// Calls `each` with the offset in the image of each piece of a request, and a buffer of the piece's length.
    fn pieces(&mut self, sector: u64, len: usize, mut each: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        let start = self.range(sector, len as u64)?;
        if self.buffer.len() < len.min(BUFFER) {
            self.buffer.resize(len.min(BUFFER), 0);
        }
        for done in (0..len).step_by(BUFFER) {
            if self.wakes.stopped() {
                return Err(Failure::Stopped);
            }
            each(start + done as u64, &mut self.buffer[..BUFFER.min(len - done)])?;
        }
        Ok(())
    }

    /// The offset of `sector` in an image that has `len` bytes from there.
    fn range(&self, sector: u64, len: u64) -> Result<u64> {
        let offset = sector.checked_mul(SECTOR).ok_or(Failure::Refused)?;
        let end = offset.checked_add(len).ok_or(Failure::Refused)?;
        if len.is_multiple_of(SECTOR) && end <= self.disk.image.size() { Ok(offset) } else { Err(Failure::Refused) }
    }
}
