//! A modern archive: `ova.xml`, then every disk's chunks with their checksums.
//!
//! XenServer's importer sets rules that a tar alone would not (`recv_all_vdi` in xen-api's `stream_vdi.ml`):
//!
//! * disks come in the order of their ids as strings;
//! * a disk's names rise as strings: there are no more than 10^8 chunks;
//! * what a gap in the numbers stands for is the length of the *first chunk of the whole archive*. So a disk of at least
//!   one full chunk comes first where there is one.

use std::sync::{Mutex, PoisonError};

use imgcore::copy::is_zero;
use imgcore::formats::SourceDisk;
use imgcore::{Error, Image, Progress, Result};

use super::envelope::{Envelope, Packed, Trailer};
use super::machine::Machine;
use super::ordered::{Give, ordered};
use super::output::Output;
use super::pieces::{self, CHUNK};
use super::{ova, tar};
use crate::sums::SumKind;
use crate::tar::BLOCK;

/// Names have eight digits.
const MAX_CHUNKS: u64 = 100_000_000;

/// How an archive is made.
pub(super) struct Modern {
    pub sums: SumKind,
    pub envelope: Envelope,
    pub threads: usize,
}

/// A disk with its id in the archive.
pub(super) struct Placed<'a> {
    pub id: String,
    /// Its position in the machine.
    pub position: usize,
    pub name: &'a str,
    pub size: u64,
    image: &'a dyn Image,
}

/// One piece of the archive.
enum Job<'a> {
    Description(&'a str),
    Chunk(Chunk<'a>),
    End,
}

struct Chunk<'a> {
    disk: &'a Placed<'a>,
    number: u64,
    /// Bytes of the disk from the end of the chunk before to the end of this one.
    advance: u64,
}

/// A piece, ready; none for a chunk of zeroes. And the bytes of the disk that are done with it.
type Piece = (Option<Packed>, u64);

/// Buffers of chunks that were written, to be used again.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Gives ids to disks, and puts them into the order in which they are stored.
pub(super) fn place(disks: &[SourceDisk]) -> Result<Vec<Placed<'_>>> {
    let mut placed = Vec::new();
    for (position, disk) in disks.iter().enumerate() {
        let size = pieces::virtual_size(&*disk.image)?;
        if size.div_ceil(CHUNK) > MAX_CHUNKS {
            let what = format!("a disk of {size} bytes: chunks are numbered with eight digits");
            return Err(Error::unsupported(&disk.image.info().file, crate::XVA, what));
        }
        placed.push(Placed { id: String::new(), position, name: &disk.name, size, image: &*disk.image });
    }
    if let Some(full) = placed.iter().position(|d| d.size >= CHUNK) {
        placed[..=full].rotate_right(1);
    }
    let mut ids: Vec<_> = (ova::FIRST_DISK..ova::FIRST_DISK + placed.len()).map(ova::reference).collect();
    ids.sort();
    for (disk, id) in placed.iter_mut().zip(ids) {
        disk.id = id;
    }
    Ok(placed)
}

/// Writes the archive.
pub(super) fn write(machine: &Machine, disks: &[SourceDisk], how: &Modern, out: &mut Output<'_>, progress: &dyn Progress) -> Result<()> {
    let placed = place(disks)?;
    let description = ova::modern(machine, &placed);
    let spare = Spare::default();
    progress.total(placed.iter().map(|d| d.size).fold(0, u64::saturating_add));
    let mut trailer = Trailer::default();
    out.write(how.envelope.head())?;
    ordered(
        how.threads,
        |give| feed(&description, &placed, give),
        |job| how.piece(job, &spare),
        |(piece, advance): Piece| {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            if let Some(piece) = piece {
                trailer.add(&piece);
                out.write(&piece.bytes)?;
                spare.give(piece.bytes);
            }
            progress.advance(advance);
            Ok(())
        },
    )?;
    out.write(&how.envelope.tail(trailer))
}

fn feed<'a>(description: &'a str, disks: &'a [Placed<'a>], give: Give<'_, Job<'a>>) -> Result<()> {
    let mut flow = give(Job::Description(description));
    for disk in disks {
        let mut done = 0;
        if flow.is_continue() {
            pieces::chunks(disk.image, &mut |number| {
                let end = disk.size.min((number + 1).saturating_mul(CHUNK));
                flow = give(Job::Chunk(Chunk { disk, number, advance: end - done }));
                done = end;
                flow
            })?;
        }
    }
    if flow.is_continue() {
        let _ = give(Job::End);
    }
    Ok(())
}

impl Modern {
    fn piece(&self, job: Job<'_>, spare: &Spare) -> Result<Piece> {
        let (bytes, advance) = match job {
            Job::Description(xml) => {
                let mut bytes = Vec::new();
                tar::member(&mut bytes, "ova.xml", xml.as_bytes());
                (bytes, 0)
            }
            Job::End => (tar::END.to_vec(), 0),
            Job::Chunk(chunk) => {
                let mut bytes = spare.take();
                if !self.chunk(&chunk, &mut bytes)? {
                    spare.give(bytes);
                    return Ok((None, chunk.advance));
                }
                (bytes, chunk.advance)
            }
        };
        Ok((Some(self.envelope.pack(bytes)?), advance))
    }

    /// Puts a chunk and its checksum into `out`; false for zeroes that need not be stored.
    fn chunk(&self, chunk: &Chunk<'_>, out: &mut Vec<u8>) -> Result<bool> {
        const HEADER: usize = BLOCK as usize;
        let Placed { id, size, image, .. } = chunk.disk;
        let len = pieces::chunk_len(*size, chunk.number);
        // The data is read into its place. What the buffer held before is not cleared first, for it is overwritten.
        out.resize(HEADER + len + tar::padding(len as u64), 0);
        let (header, rest) = out.split_at_mut(HEADER);
        let (data, padding) = rest.split_at_mut(len);
        pieces::read(*image, chunk.number.saturating_mul(CHUNK), data)?;
        let is_last = chunk.number >= (size - 1) / CHUNK;
        if chunk.number != 0 && !is_last && is_zero(data) {
            return Ok(false);
        }
        let name = format!("{id}/{:08}", chunk.number);
        header.copy_from_slice(&tar::header(&name, len as u64));
        padding.fill(0);
        let sum = self.sums.compute(data).to_string();
        tar::member(out, &format!("{name}.{}", self.sums.extension()), sum.as_bytes());
        Ok(true)
    }
}
