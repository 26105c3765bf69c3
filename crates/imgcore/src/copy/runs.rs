//! Splitting a buffer into runs of data and runs of zeroes, and writing them.

use std::ops::Range;

use super::{Copied, Options, PIECE};
use crate::{ImageMut, Result};

/// A part of a buffer: data, or zeroes only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub range: Range<usize>,
    pub zero: bool,
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Compared by the C library's memcmp, which is the fastest test that is safe code.
    static ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|block| block == &ZEROES[..block.len()])
}

/// What of `buf`, which belongs at `offset` of the target, is data and what is zeroes.
///
/// Blocks are aligned to `granule` on the target. With granule 0 everything is data.
pub(super) fn split(buf: &[u8], offset: u64, granule: u64) -> Vec<Run> {
    if granule == 0 || buf.is_empty() {
        return vec![Run { range: 0..buf.len(), zero: false }];
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    while start < buf.len() {
        let to_boundary = granule - (offset + start as u64) % granule;
        let end = usize::try_from(to_boundary).map_or(buf.len(), |n| buf.len().min(start.saturating_add(n)));
        let zero = is_zero(&buf[start..end]);
        match runs.last_mut() {
            Some(run) if run.zero == zero => run.range.end = end,
            _ => runs.push(Run { range: start..end, zero }),
        }
        start = end;
    }
    runs
}

/// The writing end of a copy.
pub(super) struct Target<'a> {
    pub image: &'a dyn ImageMut,
    pub granule: u64,
    pub is_zero: bool,
    pub copied: Copied,
}

impl<'a> Target<'a> {
    pub fn new(image: &'a dyn ImageMut, options: &Options) -> Self {
        let cluster = image.info().cluster_size.unwrap_or(0);
        let granule = if options.sparse == 0 { 0 } else { options.sparse.max(cluster).min(PIECE as u64) };
        Target { image, granule, is_zero: options.target_is_zero, copied: Copied::default() }
    }

    pub fn write(&mut self, buf: &[u8], runs: &[Run], offset: u64) -> Result<()> {
        for run in runs {
            let (at, len) = (offset + run.range.start as u64, run.range.len() as u64);
            if run.zero {
                self.zero(at, len)?;
            } else if len > 0 {
                self.image.write_at(&buf[run.range.clone()], at)?;
                self.copied.data += len;
            }
        }
        Ok(())
    }

    pub fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        if !self.is_zero {
            self.image.zero_at(offset, len)?;
        }
        self.copied.zero += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_aligned_on_the_target() {
        let mut buf = vec![0; 10 * 4096];
        buf[4096 * 3 + 5] = 1;
        let run = |range, zero| Run { range, zero };
        assert_eq!(split(&buf, 0, 4096), [run(0..12288, true), run(12288..16384, false), run(16384..40960, true)]);
        // 512 bytes off: the block around the byte starts 512 bytes earlier in the buffer.
        assert_eq!(split(&buf, 512, 4096), [run(0..11776, true), run(11776..15872, false), run(15872..40960, true)]);
        assert_eq!(split(&buf, 0, 0), [run(0..40960, false)]);
        assert_eq!(split(&buf, u64::MAX - 40960, 1 << 63), [run(0..40960, false)]);
    }

    #[test]
    fn the_zero_test_sees_every_byte() {
        for len in [1, 7, 4095, 4096, 4097, 12000] {
            let mut buf = vec![0; len];
            assert!(is_zero(&buf), "{len}");
            for at in [0, len / 2, len - 1] {
                buf[at] = 128;
                assert!(!is_zero(&buf), "{len} {at}");
                buf[at] = 0;
            }
        }
    }
}
