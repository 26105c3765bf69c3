//! Huffman codes of limited length, in deflate's canonical form (RFC 1951, 3.2.2).

/// Symbols of the largest alphabet.
pub(super) const MAX_SYMBOLS: usize = 288;
/// The longest code that deflate has.
pub(super) const MAX_LENGTH: usize = 15;

/// A symbol's code: its bits in the order in which they are sent, and how many.
#[derive(Clone, Copy, Default)]
pub(super) struct Code {
    pub(super) bits: u16,
    pub(super) len: u8,
}

/// The code for symbols of these frequencies, none longer than `limit`; an unused symbol has length 0.
///
/// At least two symbols get a code, since not all decoders take one that is incomplete.
pub(super) fn build(frequencies: &[u32], limit: usize, codes: &mut [Code]) {
    // Least frequent first, with the symbol in the low nine bits.
    let mut symbols = [0u64; MAX_SYMBOLS];
    let mut used = 0;
    for (symbol, &frequency) in frequencies.iter().enumerate() {
        if frequency > 0 {
            symbols[used] = u64::from(frequency) << 9 | symbol as u64;
            used += 1;
        }
    }
    let unused = (0u64..).zip(frequencies).filter(|(_, frequency)| **frequency == 0);
    for (symbol, _) in unused.take(2usize.saturating_sub(used)) {
        symbols[used] = symbol;
        used += 1;
    }
    let symbols = &mut symbols[..used];
    symbols.sort_unstable();

    let counts = limited(leaves(symbols), limit);
    let mut lengths = [0u8; MAX_SYMBOLS];
    let mut rarest_first = symbols.iter();
    for length in (1..=limit).rev() {
        for symbol in rarest_first.by_ref().take(counts[length] as usize) {
            lengths[(symbol & 511) as usize] = length as u8;
        }
    }
    assign(&lengths[..frequencies.len()], codes);
}

/// The canonical code for these lengths.
pub(super) fn assign(lengths: &[u8], codes: &mut [Code]) {
    let mut counts = [0u16; MAX_LENGTH + 1];
    for &length in lengths {
        counts[length as usize] += 1;
    }
    counts[0] = 0;
    let mut next = [0u16; MAX_LENGTH + 1];
    for length in 1..=MAX_LENGTH {
        next[length] = (next[length - 1] + counts[length - 1]) << 1;
    }
    for (code, &len) in codes.iter_mut().zip(lengths) {
        let bits = next[len as usize];
        next[len as usize] += 1;
        *code = if len == 0 { Code::default() } else { Code { bits: bits.reverse_bits() >> (16 - len), len } };
    }
}

/// How many leaves the Huffman tree over symbols (sorted by frequency, at least two) has at each depth; those deeper than
/// [`MAX_LENGTH`] are counted there. Moffat and Katajainen's algorithm, "In-place calculation of minimum-redundancy codes".
fn leaves(symbols: &[u64]) -> [u32; MAX_LENGTH + 1] {
    let n = symbols.len();
    // Of each inner node, in the order in which they come to be, which is also by weight: first its weight, then its
    // parent, at last its depth.
    let mut nodes = [0u64; MAX_SYMBOLS];
    let (mut leaf, mut inner) = (0, 0);
    for made in 0..n - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            if leaf < n && (inner >= made || symbols[leaf] >> 9 <= nodes[inner]) {
                weight += symbols[leaf] >> 9;
                leaf += 1;
            } else {
                weight += nodes[inner];
                nodes[inner] = made as u64;
                inner += 1;
            }
        }
        nodes[made] = weight;
    }

    let mut counts = [0; MAX_LENGTH + 1];
    let count = |counts: &mut [u32; MAX_LENGTH + 1], depth: u64, by: i32| {
        let depth = (depth as usize).min(MAX_LENGTH);
        counts[depth] = counts[depth].wrapping_add_signed(by);
    };
    // From the root down: an inner node takes a leaf's place and has two below it.
    nodes[n - 2] = 0;
    counts[1] = 2;
    for node in (0..n - 2).rev() {
        let depth = nodes[nodes[node] as usize] + 1;
        nodes[node] = depth;
        count(&mut counts, depth, -1);
        count(&mut counts, depth + 1, 2);
    }
    counts
}

/// The same with none deeper than `limit`, by lengthening the codes of shorter ones until they fit.
fn limited(mut counts: [u32; MAX_LENGTH + 1], limit: usize) -> [u32; MAX_LENGTH + 1] {
    for length in limit + 1..=MAX_LENGTH {
        counts[limit] += std::mem::take(&mut counts[length]);
    }
    // In units of the longest code, of which there are 1 << limit.
    let mut taken: u32 = (1..=limit).map(|length| counts[length] << (limit - length)).sum();
    while taken > 1 << limit {
        // The longest one that can grow becomes an inner node, over itself and one of the longest.
        let length = (1..limit).rev().find(|&length| counts[length] > 0).expect("fewer symbols than codes");
        counts[length] -= 1;
        counts[length + 1] += 2;
        counts[limit] -= 1;
        taken -= 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    fn codes(frequencies: &[u32], limit: usize) -> Vec<Code> {
        let mut codes = vec![Code { bits: 7, len: 7 }; frequencies.len()];
        build(frequencies, limit, &mut codes);
        codes
    }

    /// Every string of bits means something, and one thing only.
    fn complete(codes: &[Code]) {
        let mut taken = vec![false; 1 << MAX_LENGTH];
        for code in codes.iter().filter(|code| code.len > 0) {
            for rest in 0..1 << (MAX_LENGTH - code.len as usize) {
                let slot = &mut taken[usize::from(code.bits) | rest << code.len];
                assert!(!*slot, "two codes begin alike");
                *slot = true;
            }
        }
        assert!(taken.iter().all(|taken| *taken), "an unused code");
    }

    fn cost(frequencies: &[u32], codes: &[Code]) -> u64 {
        frequencies.iter().zip(codes).map(|(n, code)| u64::from(*n) * u64::from(code.len)).sum()
    }

    /// The textbook's cost: the sum of all inner nodes' weights.
    fn least_cost(frequencies: &[u32]) -> u64 {
        let mut heap: BinaryHeap<_> = frequencies.iter().filter(|n| **n > 0).map(|n| Reverse(u64::from(*n))).collect();
        let mut sum = 0;
        while let (Some(Reverse(a)), Some(Reverse(b))) = (heap.pop(), heap.pop()) {
            sum += a + b;
            heap.push(Reverse(a + b));
        }
        sum
    }

    #[test]
    fn the_depth_is_limited() {
        let mut fibonacci = vec![1u32, 1];
        while fibonacci.len() < 30 {
            fibonacci.push(fibonacci[fibonacci.len() - 1] + fibonacci[fibonacci.len() - 2]);
        }
        for limit in [7, 15] {
            for used in 2..=30 {
                let codes = codes(&fibonacci[..used], limit);
                complete(&codes);
                assert_eq!(codes.iter().map(|code| code.len as usize).max(), Some((used - 1).min(limit)));
                if used <= limit {
                    assert_eq!(cost(&fibonacci[..used], &codes), least_cost(&fibonacci[..used]));
                }
            }
        }
        // As many symbols as there are codes.
        complete(&codes(&std::array::from_fn::<u32, 128, _>(|i| 1 << (i / 6)), 7));
    }

    #[test]
    fn few_symbols_still_make_a_whole_code() {
        let lens = |frequencies: &[u32]| codes(frequencies, 15).iter().map(|code| code.len).collect::<Vec<_>>();
        assert_eq!(lens(&[0, 0, 0, 0]), [1, 1, 0, 0]);
        assert_eq!(lens(&[5, 0, 0, 0]), [1, 1, 0, 0]);
        assert_eq!(lens(&[0, 0, 0, 9]), [1, 0, 0, 1]);
        assert_eq!(lens(&[0, 1, 0, 9]), [0, 1, 0, 1]);
        assert_eq!(lens(&[4, 1, 0, 9]), [2, 2, 0, 1]);
    }

    #[test]
    fn codes_are_the_shortest() {
        // Frequencies near enough to each other for the limit not to matter.
        let mut state = 3u64;
        for round in 0..300 {
            let mut frequencies = [0; 286];
            for frequency in &mut frequencies {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *frequency = ((state >> 40) % (2 + round / 6)) as u32;
            }
            let codes = codes(&frequencies, 15);
            complete(&codes);
            assert_eq!(cost(&frequencies, &codes), least_cost(&frequencies));
        }
    }
}
