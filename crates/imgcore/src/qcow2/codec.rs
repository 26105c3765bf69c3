//! Compression of single clusters.
//!
//! zlib clusters are raw deflate with a window of 4 KiB, since older readers inflate with no larger one.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;

use super::deflate::Encoder;
use super::header::CompressionType;

const ZSTD_LEVEL: u32 = 3;
const ZLIB_LEVEL: u32 = 6;

/// What a thread keeps for decompression: making it costs more than a small cluster.
struct Contexts {
    zlib: Decompressor,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::new(Contexts { zlib: Decompressor::new(), zstd: None });
}

/// Decompresses `data`, which may have padding behind it, so that it fills `out`; says what is wrong otherwise.
pub(super) fn decompress(kind: CompressionType, data: &[u8], out: &mut [u8]) -> Result<(), String> {
    CONTEXTS.with_borrow_mut(|contexts| match kind {
        CompressionType::Zlib => match contexts.zlib.deflate_decompress(data, out) {
            Ok(len) if len == out.len() => Ok(()),
            // A stream without a final block, or with too much in it, is still good as far as the cluster goes.
            _ => inflate(data, out),
        },
        CompressionType::Zstd => {
            let frame = zstd::zstd_safe::find_frame_compressed_size(data).map_err(zstd::zstd_safe::get_error_name)?;
            let frame = data.get(..frame).ok_or("the frame is cut off")?;
            let zstd = match &mut contexts.zstd {
                Some(zstd) => zstd,
                none => none.insert(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?),
            };
            match zstd.decompress_to_buffer(frame, out).map_err(|e| e.to_string())? {
                len if len == out.len() => Ok(()),
                len => Err(format!("the frame holds {len} bytes, a cluster has {}", out.len())),
            }
        }
    })
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
    method: Method,
    out: Vec<u8>,
}

enum Method {
    Zlib(Box<Encoder>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl ClusterCompressor {
    /// A compressor for clusters of an image with this compression type.
    pub fn new(kind: CompressionType) -> Self {
        Self::with_level(kind, None)
    }

    /// The same at one of the type's [`levels`](CompressionType::levels), taken to the nearest; the default one is a
    /// compromise between time and size.
    pub fn with_level(kind: CompressionType, level: Option<u32>) -> Self {
        let level = level.map(|level| level.clamp(*kind.levels().start(), *kind.levels().end()));
        let method = match kind {
            CompressionType::Zlib => Method::Zlib(Box::new(Encoder::new(level.unwrap_or(ZLIB_LEVEL)))),
            CompressionType::Zstd => {
                let mut zstd = zstd::bulk::Compressor::default();
                // Every level that it is given here is known to it.
                let _ = zstd.set_compression_level(level.unwrap_or(ZSTD_LEVEL) as i32);
                Method::Zstd(zstd)
            }
        };
        ClusterCompressor { method, out: Vec::new() }
    }

    /// Compresses one cluster's bytes; `None` when they do not get smaller.
    pub fn compress(&mut self, cluster: &[u8]) -> Option<&[u8]> {
        // One byte short of the cluster: what does not fit is not worth it.
        self.out.resize(cluster.len().checked_sub(1)?, 0);
        let len = match &mut self.method {
            Method::Zlib(zlib) => zlib.compress(cluster, &mut self.out)?,
            Method::Zstd(zstd) => zstd.compress_to_buffer(cluster, &mut self.out).ok()?,
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
