//! Random access to gzipped bytes: checkpoints of the decoder's whole state are kept while it passes over the data, and
//! a read starts at the nearest one before it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use imgcore::{Error, Result};
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use crate::XVA;
use crate::bytes::Bytes;

/// Unpacked bytes between checkpoints at first; doubled whenever there would be too many of them.
const SPACING: u64 = 4 << 20;
/// Decoders kept where they stopped, for readers that go on from there.
const CURSORS: usize = 8;
const INPUT: usize = 64 << 10;
/// The longest file name, comment or extra field in a gzip header.
const MAX_HEADER: usize = 64 << 10;

/// The unpacked bytes of one gzip (of one or more members), which lies in a range of other bytes.
pub(crate) struct Gunzip {
    packed: Arc<dyn Bytes>,
    range: Range<u64>,
    name: String,
    max_points: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Ascending by position.
    points: Vec<Cursor>,
    spacing: u64,
    idle: Vec<Cursor>,
}

/// A decoder at one place. Cloning it is what makes a checkpoint.
#[derive(Clone)]
struct Cursor {
    state: Box<InflateState>,
    /// Next packed byte.
    packed_at: u64,
    /// Next unpacked byte.
    at: u64,
    stage: Stage,
    crc: crc32fast::Hasher,
    /// Unpacked bytes of this member, modulo 2^32.
    member: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before a member's header; the first is not optional.
    Header,
    Body,
    Trailer,
    End,
}

impl Gunzip {
    /// `range` of `packed` holds a gzip. At most `max_points` checkpoints (45 KB each) are kept. `name` is for messages.
    pub fn new(packed: Arc<dyn Bytes>, range: Range<u64>, name: &str, max_points: usize) -> Self {
        let start = Cursor {
            state: InflateState::new_boxed(DataFormat::Raw),
            packed_at: range.start,
            at: 0,
            stage: Stage::Header,
            crc: crc32fast::Hasher::new(),
            member: 0,
        };
        let inner = Inner { points: vec![start], spacing: SPACING, idle: Vec::new() };
        Gunzip { packed, range, name: name.into(), max_points: max_points.max(2), inner: Mutex::new(inner) }
    }

    /// Unpacks to the end without keeping the bytes, which verifies the checksums of gzip, and gives their number.
    pub fn unpacked_len(&self) -> Result<u64> {
        let mut scratch = vec![0; 256 << 10];
        // Goes on from the farthest place known.
        let mut at = self.lock().points.last().map_or(0, |p| p.at);
        loop {
            match self.read_some(&mut scratch, at)? {
                0 => return Ok(at),
                n => at += n as u64,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Cursors are taken out while they work: a panic leaves none half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_from(&self, inner: &mut Inner, buf: &mut [u8], offset: u64) -> Result<usize> {
        let idle = (0..inner.idle.len()).filter(|i| inner.idle[*i].at <= offset).max_by_key(|i| inner.idle[*i].at);
        let point = inner.points.partition_point(|p| p.at <= offset).saturating_sub(1);
        let mut cursor = match idle {
            Some(i) if inner.idle[i].at >= inner.points[point].at => inner.idle.remove(i),
            _ => inner.points[point].clone(),
        };
        let mut input = Packed { bytes: &*self.packed, end: self.range.end, buf: Vec::new(), start: 0 };
        let mut scratch = Vec::new();
        while cursor.at < offset && cursor.stage != Stage::End {
            scratch.resize(256 << 10, 0);
            let want = usize::try_from(offset - cursor.at).unwrap_or(usize::MAX).min(scratch.len());
            self.advance(inner, &mut cursor, &mut input, &mut scratch[..want])?;
        }
        let mut done = 0;
        while done < buf.len() && cursor.stage != Stage::End {
            done += self.advance(inner, &mut cursor, &mut input, &mut buf[done..])?;
        }
        if inner.idle.len() >= CURSORS {
            inner.idle.remove(0);
        }
        inner.idle.push(cursor);
        Ok(done)
    }

    /// One step of the decoder, and a checkpoint when one is due.
    fn advance(&self, inner: &mut Inner, cursor: &mut Cursor, input: &mut Packed<'_>, out: &mut [u8]) -> Result<usize> {
        let last = inner.points.last().map_or(0, |p| p.at);
        let due = last.saturating_add(inner.spacing);
        // Stops at the place of the next checkpoint.
        let want = if cursor.at < due { usize::try_from(due - cursor.at).unwrap_or(usize::MAX).min(out.len()) } else { out.len() };
        let n = self.step(cursor, input, &mut out[..want])?;
        if cursor.at >= due && cursor.stage == Stage::Body {
            inner.points.push(cursor.clone());
            if inner.points.len() > self.max_points {
                let mut index = 0;
                inner.points.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                inner.spacing = inner.spacing.saturating_mul(2);
            }
        }
        Ok(n)
    }

    fn step(&self, cursor: &mut Cursor, input: &mut Packed<'_>, out: &mut [u8]) -> Result<usize> {
        match cursor.stage {
            Stage::Header => self.member_header(cursor, input)?,
            Stage::Trailer => {
                let mut trailer = [0; 8];
                for byte in &mut trailer {
                    *byte = self.need(cursor, input)?;
                }
                let [a, b, c, d, size @ ..] = trailer;
                if u32::from_le_bytes([a, b, c, d]) != cursor.crc.clone().finalize() || u32::from_le_bytes(size) != cursor.member {
                    return Err(self.damaged(cursor, "the checksum at its end does not match the data"));
                }
                cursor.stage = Stage::Header;
            }
            Stage::Body => {
                let packed = input.at(cursor.packed_at)?;
                if packed.is_empty() {
                    return Err(self.truncated(cursor));
                }
                let result = inflate(&mut cursor.state, packed, out, MZFlush::None);
                cursor.packed_at += result.bytes_consumed as u64;
                cursor.at += result.bytes_written as u64;
                cursor.member = cursor.member.wrapping_add(result.bytes_written as u32);
                cursor.crc.update(&out[..result.bytes_written]);
                match result.status {
                    Ok(MZStatus::StreamEnd) => cursor.stage = Stage::Trailer,
                    Ok(_) | Err(MZError::Buf) if result.bytes_consumed + result.bytes_written > 0 => {}
                    Err(MZError::Buf) | Ok(_) => return Err(self.truncated(cursor)),
                    Err(_) => return Err(self.damaged(cursor, "it cannot be unpacked")),
                }
                return Ok(result.bytes_written);
            }
            Stage::End => {}
        }
        Ok(0)
    }

    /// Reads a member's header (RFC 1952, section 2.3), or finds that the last member has passed.
    fn member_header(&self, cursor: &mut Cursor, input: &mut Packed<'_>) -> Result<()> {
        let first = cursor.packed_at == self.range.start;
        if !first {
            // Padding of zeroes may follow, as tapes have it.
            while let [0, ..] = input.at(cursor.packed_at)? {
                cursor.packed_at += 1;
            }
            if input.at(cursor.packed_at)?.is_empty() {
                cursor.stage = Stage::End;
                return Ok(());
            }
        }
        let mut head = [0; 10];
        for byte in &mut head {
            *byte = self.need(cursor, input)?;
        }
        let [0x1f, 0x8b, 8, flags, ..] = head else { return Err(self.damaged(cursor, "what should be a gzip header is none")) };
        if flags & 4 != 0 {
            let len = u16::from_le_bytes([self.need(cursor, input)?, self.need(cursor, input)?]);
            for _ in 0..len {
                self.need(cursor, input)?;
            }
        }
        for bit in [8, 16] {
            let mut len = 0;
            while flags & bit != 0 && self.need(cursor, input)? != 0 {
                len += 1;
                if len > MAX_HEADER {
                    return Err(self.damaged(cursor, "its gzip header has no end"));
                }
            }
        }
        if flags & 2 != 0 {
            self.need(cursor, input)?;
            self.need(cursor, input)?;
        }
        cursor.state = InflateState::new_boxed(DataFormat::Raw);
        cursor.crc = crc32fast::Hasher::new();
        cursor.member = 0;
        cursor.stage = Stage::Body;
        Ok(())
    }

    fn need(&self, cursor: &mut Cursor, input: &mut Packed<'_>) -> Result<u8> {
        let Some(byte) = input.at(cursor.packed_at)?.first().copied() else { return Err(self.truncated(cursor)) };
        cursor.packed_at += 1;
        Ok(byte)
    }

    fn truncated(&self, cursor: &Cursor) -> Error {
        self.damaged(cursor, "truncated: it ends in the middle. The export or the copy was interrupted: export it again")
    }

    fn damaged(&self, cursor: &Cursor, what: &str) -> Error {
        let at = cursor.packed_at.saturating_sub(if self.packed.is_plain() { 0 } else { self.range.start });
        Error::corrupt(&self.name, XVA, at, format!("gzip: {what}"))
    }
}

impl Bytes for Gunzip {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_some(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        // One at a time: readers that go forward side by side share one decoder instead of each unpacking everything.
        let mut inner = self.lock();
        self.read_from(&mut inner, buf, offset)
    }

    fn is_plain(&self) -> bool {
        false
    }
}

/// Buffered packed bytes.
struct Packed<'a> {
    bytes: &'a dyn Bytes,
    end: u64,
    buf: Vec<u8>,
    start: u64,
}

impl Packed<'_> {
    /// Some bytes from `offset` on; none at the end.
    fn at(&mut self, offset: u64) -> Result<&[u8]> {
        let inside = |s: &Self| offset.checked_sub(s.start).and_then(|n| usize::try_from(n).ok()).filter(|n| *n < s.buf.len());
        if inside(self).is_none() {
            let left = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
            self.buf.resize(INPUT.min(left), 0);
            let got = self.bytes.read_some(&mut self.buf, offset)?;
            self.buf.truncate(got);
            self.start = offset;
        }
        Ok(inside(self).map_or(&[], |n| &self.buf[n..]))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Mem(Vec<u8>);

    impl Bytes for Mem {
        fn name(&self) -> &str {
            "mem"
        }
        fn read_some(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
        fn is_plain(&self) -> bool {
            true
        }
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 88172645463325252u64;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        (0..len).map(|i| if i / 5000 % 3 == 0 { (next() >> 32) as u8 } else { (i / 700) as u8 }).collect()
    }

    fn pack(data: &[u8]) -> Vec<u8> {
        let mut e =
            flate2::GzBuilder::new().filename("name").comment("words").extra(vec![1; 300]).write(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    fn open(raw: Vec<u8>, max_points: usize) -> Gunzip {
        let len = raw.len() as u64;
        Gunzip::new(Arc::new(Mem(raw)), 0..len, "mem", max_points)
    }

    #[test]
    fn any_offset_reads_right_however_few_checkpoints() {
        let data = noise(30 << 20);
        let raw = [pack(&data[..10 << 20]), pack(&data[10 << 20..]), vec![0; 100]].concat();
        for max_points in [2, 5, 100] {
            let gz = open(raw.clone(), max_points);
            let mut buf = vec![0; 70_000];
            for i in 0..40u64 {
                let at = (i * 7_919_000_333) % (data.len() as u64 + 10_000);
                let n = gz.read_some(&mut buf, at).unwrap();
                let rest = data.get(at as usize..).unwrap_or_default();
                assert_eq!(buf[..n], rest[..rest.len().min(buf.len())], "{at}");
            }
            assert_eq!(gz.unpacked_len().unwrap(), data.len() as u64);
            let points = gz.lock().points.len();
            assert!(points <= max_points, "{points}");
            assert!(max_points > 10 || gz.lock().spacing > SPACING);
        }
    }

    #[test]
    fn damage_and_cuts_are_errors() {
        let raw = pack(&noise(200_000));
        assert_eq!(open(raw.clone(), 9).unpacked_len().unwrap(), 200_000);
        for cut in (0..raw.len()).step_by(97).chain(raw.len() - 12..raw.len()) {
            let e = open(raw[..cut].to_vec(), 9).unpacked_len().unwrap_err().to_string();
            assert!(e.contains("truncated"), "{cut}: {e}");
        }
        for at in (raw.len() - 8..raw.len()).chain([0, 1, 2, 5000, 60_000]) {
            let mut bad = raw.clone();
            bad[at] ^= 0x10;
            assert!(open(bad, 9).unpacked_len().is_err(), "{at}");
        }
        let mut garbage = raw;
        garbage.extend(b"garbage");
        assert!(open(garbage, 9).unpacked_len().is_err());
    }
}
