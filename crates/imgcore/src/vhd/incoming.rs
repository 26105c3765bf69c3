//! A VHD that comes as a stream, put onto a disk: the whole of one, or what has changed since another.
//!
//! XenServers send such streams (`export_raw_vdi?format=vhd`): the BAT before all blocks, and these in the order in which they lie. A
//! differencing one changes the sectors that its bitmaps have, and nothing else.

use std::io::Read;

use super::bat::UNUSED;
use super::footer::{DiskType, Footer};
use super::header::{self, Header};
use super::{FORMAT, SECTOR};
use crate::storage::MemStorage;
use crate::{Error, ImageMut, Progress, Result, be, copy};

/// Before the first block lies no more than this: the BAT of the largest disk in blocks of 512 KiB.
const MAX_HEAD: u64 = 32 << 20;
/// Real blocks have 2 MiB.
const MAX_BLOCK: u64 = 64 << 20;
/// Blocks need not adjoin, but no file has more than this between them.
const MAX_GAP: u64 = 64 << 20;

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A disk of its own: what it does not have is zeroes, which the target reads as already.
    Whole,
    /// What has changed of a disk.
    Difference,
}

/// Reads the stream to its end and writes what it holds to `target`; gives the bytes that it held. `name` is for messages.
///
/// What it holds goes there whatever is there: a stream that was cut off can be put there again.
///
/// # Errors
/// Another content than `expected`, another size than the target's, blocks out of order, and an end before the footer.
pub fn receive(input: &mut dyn Read, name: &str, expected: Content, target: &dyn ImageMut, progress: &dyn Progress) -> Result<u64> {
    let mut stream = Incoming { input, name, position: 0 };
    let mut head = Vec::new();
    stream.extend(&mut head, SECTOR)?;
    let Some(footer) = head.first_chunk().and_then(Footer::parse) else {
        return Err(stream.corrupt("no VHD begins here"));
    };
    let footer = footer.map_err(|what| stream.corrupt(what))?;
    let is_difference = match footer.disk_type() {
        DiskType::Fixed => return Err(Error::unsupported(name, FORMAT, "a stream of a fixed disk")),
        kind => kind == DiskType::Differencing,
    };
    if is_difference != (expected == Content::Difference) {
        let (is, wanted) = if is_difference { ("a difference", "a whole disk") } else { ("a whole disk", "a difference") };
        return Err(stream.corrupt(format!("this is {is}, and {wanted} was asked for")));
    }
    let at = footer.data_offset();
    stream.extend(&mut head, at.saturating_add(header::LEN as u64))?;
    let fields = usize::try_from(at).ok().and_then(|at| head.get(at..)).unwrap_or_default();
    let (table, entries) = (be::u64_at(fields, 16), u64::from(be::u32_at(fields, 28)));
    stream.extend(&mut head, table.saturating_add(entries * 4))?;
    let header = Header::read(&MemStorage::from_bytes(name, &head), &footer)?;
    let (block_size, size) = (header.block_size(), target.size());
    // Some writers make a disk as long as its blocks.
    if footer.size() < size || footer.size() - size >= block_size {
        return Err(stream.corrupt(format!("it is of a disk of {} bytes, and this one has {size}", footer.size())));
    }
    if block_size > MAX_BLOCK {
        return Err(Error::unsupported(name, FORMAT, format!("a stream in blocks of {block_size} bytes")));
    }
    let table = usize::try_from(table).ok().and_then(|at| head.get(at..)).unwrap_or_default();
    let blocks = (0..size.div_ceil(block_size)).map(|block| (block, u64::from(be::u32_at(table, block as usize * 4))));
    let mut blocks: Vec<_> = blocks.filter(|(_, sector)| *sector != UNUSED).collect();
    blocks.sort_by_key(|(_, sector)| *sector);

    let mut bitmap = vec![0; header.bitmap_size() as usize];
    let mut data = vec![0; block_size as usize];
    let mut held = 0;
    for (block, sector) in blocks {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        stream.skip_to(sector * SECTOR)?;
        stream.fill(&mut bitmap)?;
        stream.fill(&mut data)?;
        let start = block * block_size;
        for (from, to) in runs(&bitmap, size.saturating_sub(start).min(block_size)) {
            let Some(part) = data.get(from as usize..to as usize) else { continue };
            if copy::is_zero(part) {
                target.zero_at(start + from, to - from)?
            } else {
                target.write_at(part, start + from)?
            }
            held += to - from;
            progress.advance(to - from);
        }
    }
    stream.finish()?;
    Ok(held)
}

/// The runs of sectors with their bit set, in bytes of a block of which the disk has `len`.
fn runs(bitmap: &[u8], len: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for sector in 0..len.div_ceil(SECTOR) {
        let is_set = bitmap.get((sector / 8) as usize).is_some_and(|byte| byte >> (7 - sector % 8) & 1 == 1);
        let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(len));
        match runs.last_mut() {
            _ if !is_set => {}
            Some(last) if last.1 == from => last.1 = to,
            _ => runs.push((from, to)),
        }
    }
    runs
}

struct Incoming<'a> {
    input: &'a mut dyn Read,
    name: &'a str,
    position: u64,
}

impl Incoming<'_> {
    fn corrupt(&self, what: impl Into<String>) -> Error {
        Error::corrupt(self.name, FORMAT, self.position, what)
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        let at = self.position;
        self.input.read_exact(buf).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.corrupt("the stream ends in the middle"),
            _ => Error::io(self.name, "read", Some(at), e),
        })?;
        self.position += buf.len() as u64;
        Ok(())
    }

    /// Reads on until `head` has so many bytes.
    fn extend(&mut self, head: &mut Vec<u8>, len: u64) -> Result<()> {
        if len > MAX_HEAD {
            return Err(self.corrupt(format!("its tables would end at byte {len}")));
        }
        let (old, len) = (head.len(), len as usize);
        if len > old {
            head.resize(len, 0);
            self.fill(&mut head[old..])?;
        }
        Ok(())
    }

    fn skip_to(&mut self, offset: u64) -> Result<()> {
        let gap = offset.checked_sub(self.position).filter(|gap| *gap <= MAX_GAP);
        let mut gap = gap.ok_or_else(|| self.corrupt(format!("the next block lies at byte {offset}, out of order or too far")))?;
        let mut buf = [0; 4096];
        while gap > 0 {
            let part = gap.min(buf.len() as u64);
            self.fill(&mut buf[..part as usize])?;
            gap -= part;
        }
        Ok(())
    }

    /// Reads the rest, which ends with the footer.
    fn finish(&mut self) -> Result<()> {
        let mut tail = Vec::new();
        let mut buf = vec![0; 64 << 10];
        let end = self.position.saturating_add(MAX_GAP);
        loop {
            let n = match self.input.read(&mut buf) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(self.name, "read", Some(self.position), e)),
            };
            tail.extend_from_slice(&buf[..n]);
            let excess = tail.len().saturating_sub(SECTOR as usize);
            tail.drain(..excess);
            self.position += n as u64;
            if n == 0 {
                break;
            }
            if self.position > end {
                return Err(self.corrupt("there is no end behind the last block"));
            }
        }
        match tail.first_chunk().and_then(Footer::parse) {
            Some(Ok(_)) => Ok(()),
            _ => Err(self.corrupt("the stream ends without a footer: it was cut off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::geometry::Geometry;
    use super::*;
    use crate::raw::Raw;
    use crate::{Image, NoProgress};

    const BLOCK: usize = 4096;
    /// The last block has a sector and a half.
    const SIZE: usize = 3 * BLOCK + 512;

    /// A differencing stream that changes sector 1 of block 2 and all of block 3, in this order in the file.
    fn stream(kind: DiskType, size: usize) -> Vec<u8> {
        let mut footer = Footer::new(DiskType::Dynamic, size as u64, Geometry::of(size as u64 / 512), b"caml", [7; 16]);
        footer.set_type(kind, 512);
        let mut bytes = footer.bytes().to_vec();
        bytes.extend(Header::new(2048, 4, BLOCK as u32).bytes());
        bytes.resize(2048, 0);
        let place = |n: u32| (2560 / 512 + n * (1 + BLOCK as u32 / 512)).to_be_bytes();
        bytes.extend([[0xff; 4], [0xff; 4], place(1), place(0)].concat());
        bytes.resize(2560, 0);
        for (bits, byte) in [(0xffu8, 3u8), (0x40, 2)] {
            bytes.extend([bits]);
            bytes.resize(bytes.len() + 511, 0);
            bytes.extend([byte; BLOCK]);
        }
        bytes.extend(footer.bytes());
        bytes
    }

    fn put(stream: &[u8], expected: Content) -> Result<Vec<u8>> {
        let storage = Arc::new(MemStorage::from_bytes("disk", &[1; SIZE]));
        let target = Raw::open(storage.clone())?;
        receive(&mut &*stream, "delta", expected, &target, &NoProgress)?;
        assert_eq!(target.size(), SIZE as u64);
        Ok(storage.to_vec())
    }

    #[test]
    fn a_difference_changes_its_own_sectors_and_no_others() {
        let changed = put(&stream(DiskType::Differencing, SIZE), Content::Difference).unwrap();
        let mut expected = vec![1; SIZE];
        expected[2 * BLOCK + 512..2 * BLOCK + 1024].fill(2);
        expected[3 * BLOCK..].fill(3);
        assert_eq!(changed, expected);
        // As long as its blocks.
        assert_eq!(put(&stream(DiskType::Differencing, 4 * BLOCK), Content::Difference).unwrap(), expected);
    }

    #[test]
    fn what_is_cut_or_something_else_is_an_error() {
        let whole = stream(DiskType::Differencing, SIZE);
        for end in [0, 511, 512, 600, 2047, 2050, 2560, 3000, whole.len() - 512, whole.len() - 1] {
            let error = put(&whole[..end], Content::Difference).unwrap_err().to_string();
            assert!(error.contains("ends") || error.contains("no VHD"), "{end}: {error}");
        }
        let error = |stream: &[u8], expected| put(stream, expected).unwrap_err().to_string();
        assert!(error(&whole, Content::Whole).contains("this is a difference, and a whole disk was asked for"));
        assert!(error(&stream(DiskType::Dynamic, SIZE), Content::Difference).contains("this is a whole disk"));
        assert!(error(&stream(DiskType::Differencing, SIZE - 512), Content::Difference).contains("it is of a disk of"));
        let mut far = whole.clone();
        far[2048 + 8..2048 + 12].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        assert!(error(&far, Content::Difference).contains("out of order or too far"));
        let mut twice = whole.clone();
        let place: [u8; 4] = whole[2048 + 12..2048 + 16].try_into().unwrap();
        twice[2048 + 8..2048 + 12].copy_from_slice(&place);
        assert!(error(&twice, Content::Difference).contains("out of order or too far"));
        let mut many = whole;
        many[512 + 28..512 + 32].fill(0xff);
        assert!(error(&many, Content::Difference).contains("its tables would end"));
    }
}
