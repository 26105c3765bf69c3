//! Deflate's alphabets: lengths and distances as symbols with extra bits (RFC 1951, 3.2.5).

/// Literals, the end of the block and 29 lengths, and two that are never sent.
pub(super) const LITLENS: usize = 288;
/// The first symbol past those that are sent.
pub(super) const LITLENS_SENT: usize = 286;
pub(super) const END_OF_BLOCK: usize = 256;
pub(super) const FIRST_LENGTH: usize = 257;
pub(super) const DISTANCES: usize = 32;
pub(super) const DISTANCES_SENT: usize = 30;

pub(super) const MIN_MATCH: usize = 3;
pub(super) const MAX_MATCH: usize = 258;
/// The farthest a match reaches back: readers of qcow2 inflate with a window of this size.
pub(super) const WINDOW: usize = 4096;

/// How a length is sent: which symbol after [`FIRST_LENGTH`], how many bits more and what they are.
#[derive(Clone, Copy)]
pub(super) struct LengthSlot {
    pub(super) slot: u8,
    pub(super) extra_count: u8,
    pub(super) extra: u8,
}

/// By length less [`MIN_MATCH`].
pub(super) static LENGTHS: [LengthSlot; 256] = {
    let mut table = [LengthSlot { slot: 0, extra_count: 0, extra: 0 }; 256];
    let mut length = 0;
    let mut slot = 0;
    while slot < 28 {
        let extra_count = if slot < 8 { 0 } else { slot / 4 - 1 };
        let mut extra = 0;
        while extra < 1 << extra_count {
            table[length] = LengthSlot { slot, extra_count, extra: extra as u8 };
            length += 1;
            extra += 1;
        }
        slot += 1;
    }
    // The longest has a symbol of its own.
    table[255] = LengthSlot { slot: 28, extra_count: 0, extra: 0 };
    table
};

/// The symbol for a distance (1 to [`WINDOW`]) and how many bits follow it: the low ones of the distance less one.
#[inline(always)]
pub(super) fn distance_slot(distance: u16) -> (usize, u32) {
    let from_zero = u32::from(distance) - 1;
    if from_zero < 2 {
        return (from_zero as usize, 0);
    }
    let extra = 30 - from_zero.leading_zeros();
    ((2 * extra + (from_zero >> extra)) as usize, extra)
}

/// A run of literals and the match after it; one with `length` 0 has none.
#[derive(Clone, Copy)]
pub(super) struct Sequence {
    pub(super) literals: u32,
    pub(super) length: u16,
    pub(super) distance: u16,
}

/// How often each symbol occurs in a piece of the stream; the end of the block is not counted.
#[derive(Clone)]
pub(super) struct Histogram {
    pub(super) litlens: [u32; LITLENS],
    pub(super) distances: [u32; DISTANCES],
}

impl Histogram {
    pub(super) const EMPTY: Self = Histogram { litlens: [0; LITLENS], distances: [0; DISTANCES] };

    pub(super) fn add(&mut self, other: &Self) {
        for (a, b) in self.litlens.iter_mut().zip(&other.litlens) {
            *a += b;
        }
        for (a, b) in self.distances.iter_mut().zip(&other.distances) {
            *a += b;
        }
    }
}
