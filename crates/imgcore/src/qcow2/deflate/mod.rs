//! A deflate encoder for clusters: raw deflate whose matches reach back no more than 4 KiB, as QEMU's zlib clusters need.
//!
//! A small window makes for small tables: everything that the search touches fits the first-level cache.

mod bits;
mod block;
mod huffman;
mod level;
mod matchfinder;
mod parse;
mod split;
mod symbols;
#[cfg(test)]
mod tests;

use bits::BitWriter;
use block::BlockWriter;
use level::{LEVELS, Level};
use matchfinder::{BEFORE, BEHIND, MatchFinder};
use parse::{Input, parse};
use split::Estimate;
use symbols::{Histogram, Sequence};

/// Symbols between two looks at whether a block should end.
const PIECE: usize = 1024;
/// Sequences after which a block ends in any case.
const MAX_SEQUENCES: usize = 1 << 16;

/// Compresses one cluster after another; the same bytes for a cluster whatever came before.
pub(super) struct Encoder {
    level: &'static Level,
    finder: MatchFinder,
    writer: BlockWriter,
    /// The cluster, with the finder's padding around it.
    data: Vec<u8>,
    sequences: Vec<Sequence>,
}

impl Encoder {
    /// An encoder for a level from 1, fast, to 9, small; others are taken to the nearest.
    pub(super) fn new(level: u32) -> Self {
        let level = &LEVELS[level.clamp(1, LEVELS.len() as u32) as usize - 1];
        Encoder { level, finder: MatchFinder::new(), writer: BlockWriter::new(), data: Vec::new(), sequences: Vec::new() }
    }

    /// Compresses `cluster` into the start of `out` and says how long it became; `None` if it does not fit.
    pub(super) fn compress(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        self.data.resize(BEFORE, 0);
        self.data.extend_from_slice(cluster);
        self.data.resize(BEFORE + cluster.len() + BEHIND, 0);
        self.finder.reset();
        self.sequences.clear();

        let mut writer = BitWriter::new(out);
        let mut input = Input { data: &self.data, len: cluster.len(), at: 0 };
        let (mut block, mut piece) = (Histogram::EMPTY, Histogram::EMPTY);
        parse(self.level, &mut self.finder, &mut input, PIECE, &mut self.sequences, &mut block);
        let mut block_start = 0;
        let mut block_estimate = Estimate::of(&block);
        while input.at < input.len {
            let (piece_start, block_sequences) = (input.at, self.sequences.len());
            parse(self.level, &mut self.finder, &mut input, PIECE, &mut self.sequences, &mut piece);
            let piece_estimate = Estimate::of(&piece);
            let mut both = block.clone();
            both.add(&piece);
            let both_estimate = Estimate::of(&both);
            if block_sequences > MAX_SEQUENCES || Estimate::split(block_estimate, piece_estimate, both_estimate) {
                let bytes = &cluster[block_start..piece_start];
                self.writer.write(&mut writer, &self.sequences[..block_sequences], &mut block, bytes, false)?;
                self.sequences.drain(..block_sequences);
                block_start = piece_start;
                block = piece.clone();
                block_estimate = piece_estimate;
            } else {
                block = both;
                block_estimate = both_estimate;
            }
        }
        self.writer.write(&mut writer, &self.sequences, &mut block, &cluster[block_start..], true)?;
        Some(writer.finish())
    }
}
