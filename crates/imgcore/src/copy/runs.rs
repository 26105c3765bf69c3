//! Splitting a buffer into runs of data, zeroes and compressed clusters.

use std::ops::Range;

use crate::{Compression, Compressor};

/// A part of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub range: Range<usize>,
    pub content: Content,
}

/// What a part of a buffer is written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Data,
    Zero,
    Packed(Vec<u8>),
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
        return vec![Run { range: 0..buf.len(), content: Content::Data }];
    }
    let mut runs: Vec<Run> = Vec::new();
    for range in blocks(buf.len(), offset, granule) {
        let content = if is_zero(&buf[range.clone()]) { Content::Zero } else { Content::Data };
        match runs.last_mut() {
            Some(run) if run.content == content => run.range.end = range.end,
            _ => runs.push(Run { range, content }),
        }
    }
    runs
}

/// The parts of a buffer at `offset` of the target that lie in one block of `granule` bytes each.
fn blocks(len: usize, offset: u64, granule: u64) -> impl Iterator<Item = Range<usize>> {
    let mut start: usize = 0;
    std::iter::from_fn(move || {
        let to_boundary = granule - (offset + start as u64) % granule;
        let end = usize::try_from(to_boundary).map_or(len, |n| len.min(start.saturating_add(n)));
        let range = start..end;
        start = end;
        (!range.is_empty()).then_some(range)
    })
}

/// Packs clusters, in one of the workers.
pub(super) struct Packer {
    compressor: Compressor,
    cluster_size: u64,
    /// Where the target ends: its last cluster is filled up with zeroes.
    end: u64,
    /// The last cluster, filled up.
    filled: Vec<u8>,
}

impl Packer {
    pub fn new(compression: &dyn Compression, end: u64) -> Self {
        Packer { compressor: compression.compressor(), cluster_size: compression.cluster_size(), end, filled: Vec::new() }
    }

    /// As [`split`], with clusters packed that get smaller by it.
    pub fn split(&mut self, buf: &[u8], offset: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for range in blocks(buf.len(), offset, self.cluster_size) {
            let (start, len) = (offset + range.start as u64, range.len() as u64);
            let bytes = &buf[range.clone()];
            let is_whole = start.is_multiple_of(self.cluster_size) && (len == self.cluster_size || start + len == self.end);
            let content = if is_zero(bytes) {
                Content::Zero
            } else if !is_whole {
                Content::Data
            } else if len == self.cluster_size {
                (self.compressor)(bytes).map_or(Content::Data, Content::Packed)
            } else {
                self.filled.clear();
                self.filled.extend_from_slice(bytes);
                // A cluster is no larger than a piece.
                self.filled.resize(self.cluster_size as usize, 0);
                (self.compressor)(&self.filled).map_or(Content::Data, Content::Packed)
            };
            match runs.last_mut() {
                Some(run) if run.content == content && !matches!(content, Content::Packed(_)) => run.range.end = range.end,
                _ => runs.push(Run { range, content }),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_aligned_on_the_target() {
        let mut buf = vec![0; 10 * 4096];
        buf[4096 * 3 + 5] = 1;
        let zero = |range| Run { range, content: Content::Zero };
        let data = |range| Run { range, content: Content::Data };
        assert_eq!(split(&buf, 0, 4096), [zero(0..12288), data(12288..16384), zero(16384..40960)]);
        // 512 bytes off: the block around the byte starts 512 bytes earlier in the buffer.
        assert_eq!(split(&buf, 512, 4096), [zero(0..11776), data(11776..15872), zero(15872..40960)]);
        assert_eq!(split(&buf, 0, 0), [data(0..40960)]);
        assert_eq!(split(&buf, u64::MAX - 40960, 1 << 63), [data(0..40960)]);
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
