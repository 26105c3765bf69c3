//! The compression around what is written, made piece by piece so that many threads can share the work.
//!
//! A gzip is one member: every piece is deflated on its own and ends at a byte, and the checksums of the pieces are
//! joined. A zstd has a frame for every piece.

use flate2::{Compress, Compression, FlushCompress};
use imgcore::{Error, Result};

/// What pieces are packed into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Envelope {
    /// Nothing.
    Plain,
    /// Gzip of this level.
    Gzip(u32),
    /// Zstandard of this level.
    Zstd(i32),
}

/// A piece, packed.
#[derive(Clone)]
pub(super) struct Packed {
    pub bytes: Vec<u8>,
    /// Of what was packed.
    sum: crc32fast::Hasher,
    len: u64,
}

/// What the end of an envelope must know of its pieces.
#[derive(Clone, Default)]
pub(super) struct Trailer {
    sum: crc32fast::Hasher,
    len: u64,
}

impl Envelope {
    /// Packs a piece.
    pub fn pack(self, piece: Vec<u8>) -> Result<Packed> {
        let len = piece.len() as u64;
        let mut sum = crc32fast::Hasher::new();
        let bytes = match self {
            Envelope::Plain => piece,
            Envelope::Zstd(level) => zstd::bulk::compress(&piece, level).map_err(|e| Error::io("zstd", "compress", None, e))?,
            Envelope::Gzip(level) => {
                sum.update(&piece);
                deflate(&piece, level)?
            }
        };
        Ok(Packed { bytes, sum, len })
    }

    /// What comes before the first piece.
    pub fn head(self) -> &'static [u8] {
        match self {
            // No name, no time, written on Unix.
            Envelope::Gzip(_) => &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
            Envelope::Plain | Envelope::Zstd(_) => &[],
        }
    }

    /// What comes behind the last piece.
    pub fn tail(self, trailer: Trailer) -> Vec<u8> {
        match self {
            Envelope::Plain | Envelope::Zstd(_) => Vec::new(),
            Envelope::Gzip(_) => {
                // An empty last block, then the checksum and the length modulo 2^32.
                let mut tail = vec![3, 0];
                tail.extend(trailer.sum.finalize().to_le_bytes());
                tail.extend_from_slice(&trailer.len.to_le_bytes()[..4]);
                tail
            }
        }
    }
}

impl Trailer {
    /// Counts the next piece in.
    pub fn add(&mut self, piece: &Packed) {
        self.sum.combine(&piece.sum);
        self.len = self.len.wrapping_add(piece.len);
    }
}

/// Raw deflate that ends with an empty block at a byte, so that more can follow.
fn deflate(piece: &[u8], level: u32) -> Result<Vec<u8>> {
    let mut coder = Compress::new(Compression::new(level), false);
    let mut out = Vec::with_capacity(piece.len() / 2 + 1024);
    loop {
        let consumed = usize::try_from(coder.total_in()).unwrap_or(usize::MAX);
        let rest = piece.get(consumed..).unwrap_or_default();
        coder.compress_vec(rest, &mut out, FlushCompress::Sync).map_err(|e| Error::io("gzip", "compress", None, e.into()))?;
        // Room that is left over means that all has come out.
        if out.len() < out.capacity() {
            return Ok(out);
        }
        out.reserve(out.len() / 2);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn whole(envelope: Envelope, pieces: &[&[u8]]) -> Vec<u8> {
        let mut trailer = Trailer::default();
        let mut out = envelope.head().to_vec();
        for piece in pieces {
            let packed = envelope.pack(piece.to_vec()).unwrap();
            trailer.add(&packed);
            out.extend(packed.bytes);
        }
        out.extend(envelope.tail(trailer));
        out
    }

    #[test]
    fn pieces_are_one_gzip_and_a_row_of_zstd_frames() {
        let noise: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let pieces: [&[u8]; 5] = [b"one", &[], &[0; 1 << 20], &noise, b"end"];
        let plain = pieces.concat();
        assert!(whole(Envelope::Plain, &pieces) == plain);
        // A reader of a single member: it must take all.
        let gzip = whole(Envelope::Gzip(6), &pieces);
        let mut back = Vec::new();
        let mut reader = flate2::bufread::GzDecoder::new(&gzip[..]);
        reader.read_to_end(&mut back).unwrap();
        assert!(back == plain && reader.into_inner().is_empty());
        assert!(zstd::decode_all(&whole(Envelope::Zstd(3), &pieces)[..]).unwrap() == plain);
    }
}
