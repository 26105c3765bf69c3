//! Decompression into no more bytes than the caller allows.

use std::io::Read;

/// The largest window that a zstd frame may ask for, as a power of two: squashfs has blocks of 1 MiB.
const ZSTD_WINDOW_LOG: u32 = 21;
/// Memory that liblzma may take: its dictionary is at most one block of squashfs.
const XZ_MEMORY: u64 = 16 << 20;

/// All that a reader yields, but no more than `limit` bytes; what stands behind a stream's end is not looked at.
fn collect(reader: impl Read, limit: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(limit as u64).read_to_end(&mut out).ok()?;
    Some(out)
}

/// A zlib stream.
pub(crate) fn zlib(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    collect(flate2::read::ZlibDecoder::new(packed), limit)
}

/// One zstd frame.
pub(crate) fn zstd(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).ok()?.single_frame();
    decoder.window_log_max(ZSTD_WINDOW_LOG).ok()?;
    collect(decoder, limit)
}

/// An xz stream.
pub(crate) fn xz(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).ok()?;
    collect(liblzma::read::XzDecoder::new_stream(packed, stream), limit)
}

/// One LZ4 block.
pub(crate) fn lz4(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; limit];
    let len = lz4_flex::block::decompress_into(packed, &mut out).ok()?;
    out.truncate(len);
    Some(out)
}

/// LZO1X, as it is described in the kernel's documentation ("LZO stream format").
pub(crate) fn lzo(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut input = Input { bytes: packed, at: 0 };
    let mut out = Vec::with_capacity(limit);
    // Literals that the last instruction brought: 0, 1 to 3, or 4 for more.
    let mut state = 0;
    let first = usize::from(*packed.first()?);
    if first > 17 {
        input.at = 1;
        let len = first - 17;
        literals(&mut input, &mut out, len, limit)?;
        state = len.min(4);
    }
    loop {
        let instruction = usize::from(input.byte()?);
        let (len, distance, tail) = match instruction {
            0..=15 if state == 0 => {
                let len = 3 + if instruction == 0 { 15 + input.length()? } else { instruction };
                literals(&mut input, &mut out, len, limit)?;
                state = 4;
                continue;
            }
            0..=15 => {
                let far = usize::from(input.byte()?) << 2 | instruction >> 2;
                if state == 4 { (3, far + 2049, instruction) } else { (2, far + 1, instruction) }
            }
            16..=31 => {
                let len = 2 + if instruction & 7 == 0 { 7 + input.length()? } else { instruction & 7 };
                let low = input.pair()?;
                let distance = 16384 + ((instruction & 8) << 11) + (low >> 2);
                if distance == 16384 {
                    return Some(out);
                }
                (len, distance, low)
            }
            32..=63 => {
                let len = 2 + if instruction & 31 == 0 { 31 + input.length()? } else { instruction & 31 };
                let low = input.pair()?;
                (len, (low >> 2) + 1, low)
            }
            _ => {
                let len = if instruction < 128 { 3 + (instruction >> 5 & 1) } else { 5 + (instruction >> 5 & 3) };
                (len, (usize::from(input.byte()?) << 3) + (instruction >> 2 & 7) + 1, instruction)
            }
        };
        let from = out.len().checked_sub(distance)?;
        if len > limit - out.len() {
            return None;
        }
        // What is copied may be what this very copy writes.
        for i in from..from + len {
            out.push(out[i]);
        }
        state = tail & 3;
        literals(&mut input, &mut out, state, limit)?;
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at)?;
        self.at += 1;
        Some(*byte)
    }

    fn pair(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) | usize::from(self.byte()?) << 8)
    }

    /// A length that goes on for as long as bytes are 0.
    fn length(&mut self) -> Option<usize> {
        let mut len = 0;
        loop {
            match self.byte()? {
                0 => len += 255,
                last => return Some(len + usize::from(last)),
            }
        }
    }
}

fn literals(input: &mut Input<'_>, out: &mut Vec<u8>, len: usize, limit: usize) -> Option<()> {
    let part = input.bytes.get(input.at..input.at.checked_add(len)?)?;
    if len > limit - out.len() {
        return None;
    }
    out.extend(part);
    input.at += len;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lzo_of_the_shortest_streams() {
        // Literals and the end; then a copy that overlaps itself.
        assert_eq!(lzo(&[21, b'a', b'b', b'c', b'd', 17, 0, 0], 10).unwrap(), b"abcd");
        assert_eq!(lzo(&[21, b'a', b'b', b'c', b'd', 32 + 4, 12, 0, 17, 0, 0], 10).unwrap(), b"abcdabcdab");
        assert!(lzo(&[21, b'a', b'b', b'c', b'd', 17, 0, 0], 3).is_none());
        assert!(lzo(&[21, b'a', b'b', b'c', b'd', 32 + 4, 16, 0, 17, 0, 0], 10).is_none());
        assert!(lzo(&[21, b'a'], 10).is_none() && lzo(&[], 10).is_none());
    }

    #[test]
    fn nothing_grows_beyond_its_limit() {
        let plain = vec![7; 1 << 20];
        let packed = zstd::stream::encode_all(&plain[..], 1).unwrap();
        assert_eq!(zstd(&packed, 1000).unwrap().len(), 1000);
        assert_eq!(zstd(&[packed, vec![0; 100]].concat(), 1 << 20).unwrap(), plain);
        assert!(zlib(b"no stream", 100).is_none() && xz(b"no stream", 100).is_none() && lz4(&[0xf0, 0xff], 100).is_none());
    }
}
