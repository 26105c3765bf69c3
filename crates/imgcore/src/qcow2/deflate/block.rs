//! One block: its cheapest form is chosen and written (RFC 1951, 3.2.3 to 3.2.7).

use super::bits::BitWriter;
use super::huffman::{self, Code, MAX_LENGTH};
use super::symbols::*;

/// The order in which the lengths of the code-length code are sent.
const LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// Its symbols for repeats: extra bits, smallest count.
const REPEAT_LAST: usize = 16;
const REPEAT_ZERO: usize = 17;
const REPEAT_ZERO_LONG: usize = 18;
const LENGTH_LIMIT: usize = 7;

/// The most bytes in a stored block.
const STORED_MAX: usize = 65535;

/// The codes of a block.
struct Codes {
    litlens: [Code; LITLENS],
    distances: [Code; DISTANCES],
}

impl Codes {
    const NONE: Self = Codes { litlens: [Code { bits: 0, len: 0 }; LITLENS], distances: [Code { bits: 0, len: 0 }; DISTANCES] };

    /// Bits for all of the symbols.
    fn cost(&self, histogram: &Histogram) -> u64 {
        let sum = |codes: &[Code], counts: &[u32]| codes.iter().zip(counts).map(|(c, n)| u64::from(*n) * u64::from(c.len)).sum::<u64>();
        sum(&self.litlens, &histogram.litlens) + sum(&self.distances, &histogram.distances)
    }
}

/// Bits that follow the symbols.
fn extra_bits(histogram: &Histogram) -> u64 {
    let lengths = (8..28).map(|slot| u64::from(histogram.litlens[FIRST_LENGTH + slot]) * (slot as u64 / 4 - 1));
    let distances = (4..DISTANCES).map(|slot| u64::from(histogram.distances[slot]) * (slot as u64 / 2 - 1));
    lengths.sum::<u64>() + distances.sum::<u64>()
}

/// A length's code and what follows it, ready to be sent.
#[derive(Clone, Copy, Default)]
struct LengthBits {
    bits: u32,
    count: u8,
}

/// Writes blocks; what it keeps is only room to work in.
pub(super) struct BlockWriter {
    fixed: Codes,
    dynamic: Codes,
    header: Header,
    lengths: [LengthBits; 256],
}

impl BlockWriter {
    pub(super) fn new() -> Self {
        let mut fixed = Codes::NONE;
        let mut lengths = [8; LITLENS];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        huffman::assign(&lengths, &mut fixed.litlens);
        huffman::assign(&[5; DISTANCES], &mut fixed.distances);
        BlockWriter { fixed, dynamic: Codes::NONE, header: Header::EMPTY, lengths: [LengthBits::default(); 256] }
    }

    /// Writes the block of these symbols, which stand for `bytes`; `None` when it does not fit. Counts the end of the block
    /// in `histogram`.
    pub(super) fn write(
        &mut self,
        writer: &mut BitWriter<'_>,
        sequences: &[Sequence],
        histogram: &mut Histogram,
        bytes: &[u8],
        last: bool,
    ) -> Option<()> {
        histogram.litlens[END_OF_BLOCK] = 1;
        huffman::build(&histogram.litlens[..LITLENS_SENT], MAX_LENGTH, &mut self.dynamic.litlens);
        huffman::build(&histogram.distances[..DISTANCES_SENT], MAX_LENGTH, &mut self.dynamic.distances);
        self.header.fill(&self.dynamic);

        let extra = extra_bits(histogram);
        let fixed = 3 + self.fixed.cost(histogram) + extra;
        let dynamic = 3 + self.header.cost() + self.dynamic.cost(histogram) + extra;
        let stored = stored_cost(writer.to_boundary(), bytes.len());
        if stored.min(fixed).min(dynamic) > writer.room() {
            return None;
        }
        if stored <= fixed.min(dynamic) {
            write_stored(writer, bytes, last);
            return Some(());
        }
        let (kind, codes) = if fixed <= dynamic { (1, &self.fixed) } else { (2, &self.dynamic) };
        writer.put(u64::from(last) | kind << 1, 3);
        writer.flush();
        if kind == 2 {
            self.header.write(writer);
        }
        for (bits, length) in self.lengths.iter_mut().zip(&LENGTHS) {
            let code = codes.litlens[FIRST_LENGTH + length.slot as usize];
            *bits = LengthBits { bits: u32::from(code.bits) | u32::from(length.extra) << code.len, count: code.len + length.extra_count };
        }
        write_symbols(writer, codes, &self.lengths, sequences, bytes);
        Some(())
    }
}

fn write_symbols(writer: &mut BitWriter<'_>, codes: &Codes, lengths: &[LengthBits; 256], sequences: &[Sequence], bytes: &[u8]) {
    let mut rest = bytes;
    for sequence in sequences {
        let (literals, after) = rest.split_at(sequence.literals as usize);
        for byte in literals {
            let code = codes.litlens[*byte as usize];
            writer.put(u64::from(code.bits), u32::from(code.len));
            writer.make_room();
        }
        rest = after;
        if sequence.length > 0 {
            writer.flush();
            let length = lengths[(sequence.length as usize - MIN_MATCH) & 255];
            writer.put(u64::from(length.bits), u32::from(length.count));
            let (slot, extra) = distance_slot(sequence.distance);
            let code = codes.distances[slot & 31];
            writer.put(u64::from(code.bits), u32::from(code.len));
            writer.put(u64::from(sequence.distance - 1) & ((1 << extra) - 1), extra);
            writer.make_room();
            rest = &rest[sequence.length as usize..];
        }
    }
    let end = codes.litlens[END_OF_BLOCK];
    writer.flush();
    writer.put(u64::from(end.bits), u32::from(end.len));
    writer.flush();
}

/// Bits for stored blocks of `len` bytes in all.
fn stored_cost(to_boundary: u32, len: usize) -> u64 {
    let blocks = len.div_ceil(STORED_MAX).max(1) as u64;
    // Three bits make the first block pass a boundary when fewer are left; later ones begin on one.
    let first = if to_boundary >= 3 { u64::from(to_boundary) } else { u64::from(to_boundary) + 8 };
    first + (blocks - 1) * 8 + blocks * 32 + len as u64 * 8
}

fn write_stored(writer: &mut BitWriter<'_>, bytes: &[u8], last: bool) {
    let mut pieces = bytes.chunks(STORED_MAX).peekable();
    while let Some(piece) = pieces.next() {
        writer.put(u64::from(last && pieces.peek().is_none()), 3);
        writer.put(0, writer.to_boundary());
        let len = piece.len() as u64;
        writer.put(len | (!len & 0xffff) << 16, 32);
        writer.bytes(piece);
    }
}

/// The description of a dynamic block's codes: their lengths, run-length coded with a code of their own.
struct Header {
    litlens: usize,
    distances: usize,
    /// Symbol, and the value of its extra bits.
    runs: [(u8, u8); LITLENS + DISTANCES],
    run_count: usize,
    counts: [u32; 19],
    codes: [Code; 19],
    /// How many lengths of `codes` are sent.
    sent: usize,
}

impl Header {
    const EMPTY: Self = Header {
        litlens: 0,
        distances: 0,
        runs: [(0, 0); LITLENS + DISTANCES],
        run_count: 0,
        counts: [0; 19],
        codes: [Code { bits: 0, len: 0 }; 19],
        sent: 0,
    };

    fn fill(&mut self, codes: &Codes) {
        let used = |codes: &[Code]| codes.iter().rposition(|code| code.len > 0).map_or(0, |last| last + 1);
        self.litlens = used(&codes.litlens[..LITLENS_SENT]).max(FIRST_LENGTH);
        self.distances = used(&codes.distances[..DISTANCES_SENT]).max(1);
        let mut lengths = [0u8; LITLENS + DISTANCES];
        let all = codes.litlens[..self.litlens].iter().chain(&codes.distances[..self.distances]);
        for (length, code) in lengths.iter_mut().zip(all) {
            *length = code.len;
        }
        self.counts = [0; 19];
        self.run_count = 0;
        for run in lengths[..self.litlens + self.distances].chunk_by(|a, b| a == b) {
            self.add_run(run[0], run.len());
        }
        huffman::build(&self.counts, LENGTH_LIMIT, &mut self.codes);
        self.sent = LENGTH_ORDER.iter().rposition(|&symbol| self.codes[symbol].len > 0).map_or(0, |last| last + 1).max(4);
    }

    fn add_run(&mut self, length: u8, mut count: usize) {
        if length == 0 {
            while count >= 11 {
                let some = count.min(138);
                self.add(REPEAT_ZERO_LONG, some - 11);
                count -= some;
            }
            if count >= 3 {
                self.add(REPEAT_ZERO, count - 3);
                count = 0;
            }
        } else {
            self.add(length as usize, 0);
            count -= 1;
            while count >= 3 {
                let some = count.min(6);
                self.add(REPEAT_LAST, some - 3);
                count -= some;
            }
        }
        for _ in 0..count {
            self.add(length as usize, 0);
        }
    }

    fn add(&mut self, symbol: usize, extra: usize) {
        self.runs[self.run_count] = (symbol as u8, extra as u8);
        self.run_count += 1;
        self.counts[symbol] += 1;
    }

    fn cost(&self) -> u64 {
        let symbols = self.counts.iter().zip(&self.codes).enumerate();
        let runs = symbols.map(|(symbol, (n, code))| u64::from(*n) * u64::from(u32::from(code.len) + extra_count(symbol)));
        5 + 5 + 4 + 3 * self.sent as u64 + runs.sum::<u64>()
    }

    fn write(&self, writer: &mut BitWriter<'_>) {
        writer.put((self.litlens - 257) as u64, 5);
        writer.put((self.distances - 1) as u64, 5);
        writer.put((self.sent - 4) as u64, 4);
        writer.flush();
        for &symbol in &LENGTH_ORDER[..self.sent] {
            writer.put(u64::from(self.codes[symbol].len), 3);
            writer.flush();
        }
        for &(symbol, extra) in &self.runs[..self.run_count] {
            let code = self.codes[symbol as usize];
            writer.put(u64::from(code.bits), u32::from(code.len));
            writer.put(u64::from(extra), extra_count(symbol as usize));
            writer.flush();
        }
    }
}

fn extra_count(symbol: usize) -> u32 {
    match symbol {
        REPEAT_LAST => 2,
        REPEAT_ZERO => 3,
        REPEAT_ZERO_LONG => 7,
        _ => 0,
    }
}
