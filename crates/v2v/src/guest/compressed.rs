//! Compressed streams inside guests: initrds and packages, told by their first bytes.

use std::io::{self, BufRead, Read};

/// A block of lz4's legacy format decompresses to no more than this.
const LZ4_BLOCK: usize = 8 << 20;

/// A reader of what `source` holds, which afterwards stands behind the compressed data. `None` when it is not compressed in a known way.
pub fn decoder<'a>(source: &'a mut &[u8]) -> io::Result<Option<Box<dyn Read + 'a>>> {
    let head = source.get(..6).unwrap_or(source);
    Ok(Some(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::GzDecoder::new(source)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::bufread::XzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(source)?.single_frame()),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::BzDecoder::new(source)),
        [0x5d, 0, 0, ..] => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(256 << 20).map_err(io::Error::other)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            source.consume(4);
            Box::new(Lz4Legacy { source, block: Vec::new(), at: 0 })
        }
        _ => return Ok(None),
    }))
}

/// lz4's legacy format, as `lz4 -l` writes it for the kernel: blocks with their compressed length before them, until the end.
struct Lz4Legacy<'a, 'b> {
    source: &'a mut &'b [u8],
    block: Vec<u8>,
    at: usize,
}

impl Read for Lz4Legacy<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            let Some((len, rest)) = self.source.split_first_chunk::<4>() else { return Ok(0) };
            let len = u32::from_le_bytes(*len) as usize;
            let Some(data) = rest.get(..len).filter(|d| !d.is_empty()) else { return Ok(0) };
            let mut block = vec![0; LZ4_BLOCK];
            let n = lz4_flex::block::decompress_into(data, &mut block).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            block.truncate(n);
            (self.block, self.at) = (block, 0);
            *self.source = &rest[len..];
        }
        let n = buf.len().min(self.block.len() - self.at);
        buf[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
