//! Where a block ends: codes of its own cost a header, and save more where the statistics change.

use super::symbols::Histogram;

/// What a block of these symbols takes, about, in bits and without the extra ones.
#[derive(Clone, Copy)]
pub(super) struct Estimate(f32);

impl Estimate {
    pub(super) fn of(histogram: &Histogram) -> Self {
        let (litlens, used) = entropy(&histogram.litlens);
        let (distances, used_distances) = entropy(&histogram.distances);
        Estimate(litlens + distances + HEADER + HEADER_SYMBOL * (used + used_distances))
    }

    /// Whether two blocks take less than one of both.
    pub(super) fn split(first: Self, second: Self, both: Self) -> bool {
        first.0 + second.0 < both.0
    }
}

/// A header's bits, and those for each symbol that is used.
const HEADER: f32 = 80.0;
const HEADER_SYMBOL: f32 = 3.0;

/// The bits of symbols in an ideal code, and how many of them are in use.
fn entropy(counts: &[u32]) -> (f32, f32) {
    let (mut total, mut own, mut used) = ([0f32; 8], [0f32; 8], [0f32; 8]);
    for eight in counts.as_chunks::<8>().0 {
        for i in 0..8 {
            let count = eight[i] as f32;
            total[i] += count;
            own[i] += count * log2(count);
            used[i] += if eight[i] > 0 { 1.0 } else { 0.0 };
        }
    }
    let total: f32 = total.iter().sum();
    (total * log2(total) - own.iter().sum::<f32>(), used.iter().sum())
}

/// The binary logarithm to three digits, and anything finite for zero; the same on every machine.
#[inline(always)]
fn log2(x: f32) -> f32 {
    let bits = x.to_bits();
    let mantissa = f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000);
    let exponent = (bits >> 23) as i32 as f32 - 128.0;
    exponent + ((mantissa * (1.0 / 3.0) - 2.0) * -mantissa - 2.0 / 3.0)
}
