//! Compression of single clusters.
//!
//! zlib clusters are raw deflate with a window of 4 KiB, since older readers inflate with no larger one.

use std::io::Read;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::header::CompressionType;

const ZSTD_LEVEL: i32 = 3;
const ZLIB_LEVEL: u32 = 6;
/// log2 of the deflate window.
const WINDOW: u8 = 12;

/// Decompresses `data`, which may have padding behind it, so that it fills `out`; says what is wrong otherwise.
pub(super) fn decompress(kind: CompressionType, data: &[u8], out: &mut [u8]) -> Result<(), String> {
    match kind {
        CompressionType::Zlib => match libdeflater::Decompressor::new().deflate_decompress(data, out) {
            Ok(len) if len == out.len() => Ok(()),
            // A stream without a final block, or with too much in it, is still good as far as the cluster goes.
            _ => inflate(data, out),
        },
        CompressionType::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(data).map_err(|e| e.to_string())?.single_frame();
            decoder.read_exact(out).map_err(|e| e.to_string())
        }
    }
}

fn inflate(data: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut inflater = Decompress::new(false);
    loop {
        let (read, written) = (inflater.total_in() as usize, inflater.total_out() as usize);
        let (Some(from), Some(to)) = (data.get(read..), out.get_mut(written..)) else { return Err("the stream overruns".into()) };
        if to.is_empty() {
            return Ok(());
        }
        let status = inflater.decompress(from, to, FlushDecompress::None).map_err(|e| e.to_string())?;
        let stuck = inflater.total_in() as usize == read && inflater.total_out() as usize == written;
        if inflater.total_out() as usize == out.len() {
            return Ok(());
        }
        if stuck || status == Status::StreamEnd {
            return Err(format!("the stream holds {} bytes, a cluster has {}", inflater.total_out(), out.len()));
        }
    }
}

/// Compresses clusters; one for each thread.
pub struct ClusterCompressor {
    kind: CompressionType,
    zlib: Compress,
    out: Vec<u8>,
}

impl ClusterCompressor {
    /// A compressor for clusters of an image with this compression type.
    pub fn new(kind: CompressionType) -> Self {
        ClusterCompressor { kind, zlib: Compress::new_with_window_bits(Compression::new(ZLIB_LEVEL), false, WINDOW), out: Vec::new() }
    }

    /// Compresses one cluster's bytes; `None` when they do not get smaller.
    pub fn compress(&mut self, cluster: &[u8]) -> Option<&[u8]> {
        // One byte short of the cluster: what does not fit is not worth it.
        self.out.resize(cluster.len().checked_sub(1)?, 0);
        let len = match self.kind {
            CompressionType::Zlib => {
                self.zlib.reset();
                match self.zlib.compress(cluster, &mut self.out, FlushCompress::Finish) {
                    Ok(Status::StreamEnd) => self.zlib.total_out() as usize,
                    _ => return None,
                }
            }
            CompressionType::Zstd => zstd::bulk::compress_to_buffer(cluster, &mut self.out, ZSTD_LEVEL).ok()?,
        };
        self.out.get(..len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_survive_with_padding_behind_them() {
        let cluster: Vec<u8> = (0..65536u32).map(|i| ((i * i) >> 9) as u8).collect();
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            let mut compressor = ClusterCompressor::new(kind);
            for _ in 0..2 {
                let mut packed = compressor.compress(&cluster).unwrap().to_vec();
                packed.resize(packed.len().next_multiple_of(512), 0xee);
                let mut out = vec![0; cluster.len()];
                decompress(kind, &packed, &mut out).unwrap();
                assert!(out == cluster);
                assert!(decompress(kind, &packed[..packed.len() / 2], &mut out).is_err(), "{kind:?}");
                assert!(decompress(kind, &[], &mut out).is_err());
            }
        }
    }

    #[test]
    fn noise_is_not_compressed() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(4096)
        .collect();
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            assert!(ClusterCompressor::new(kind).compress(&noise).is_none());
        }
    }
}
