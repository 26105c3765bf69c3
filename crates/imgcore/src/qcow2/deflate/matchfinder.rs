//! Where bytes occurred before, within the window: hash chains small enough for the first-level cache.

use super::symbols::{MAX_MATCH, WINDOW};

const HASH_BITS: u32 = 13;
const HASH3_BITS: u32 = 11;

/// What a position sees: the window before it and a longest match after it, in whole words.
const AHEAD: usize = MAX_MATCH.next_multiple_of(8);
type View = [u8; WINDOW + AHEAD];
/// Bytes that the data has before and behind it, so that there is a view from everywhere.
pub(super) const BEFORE: usize = WINDOW;
pub(super) const BEHIND: usize = AHEAD;

/// Positions are kept modulo 2^16; one too old to be told from a recent one costs a comparison, no more.
pub(super) struct MatchFinder {
    /// The last position with this hash of four bytes.
    heads: [u16; 1 << HASH_BITS],
    /// The last position with this hash of three bytes.
    heads3: [u16; 1 << HASH3_BITS],
    /// The position before this one with the same hash of four.
    previous: [u16; WINDOW],
}

/// An earlier occurrence.
#[derive(Clone, Copy)]
pub(super) struct Match {
    pub(super) length: usize,
    pub(super) distance: u16,
}

#[inline(always)]
fn word(view: &View, at: usize) -> u32 {
    u32::from_le_bytes(*view[at..].first_chunk().expect("it is before the end"))
}

#[inline(always)]
fn hash4(word: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize
}

#[inline(always)]
fn hash3(word: u32) -> usize {
    ((word << 8).wrapping_mul(0x9e37_79b1) >> (32 - HASH3_BITS)) as usize
}

/// How many bytes are equal.
#[inline(always)]
fn common(a: &[u8; AHEAD], b: &[u8; AHEAD]) -> usize {
    let mut length = 0;
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differ != 0 {
            return length + (differ.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    length
}

/// The place that `candidate` means for the position, as an index into its view; `None` for one out of the window.
#[inline(always)]
fn place(position: u16, candidate: u16) -> Option<usize> {
    let back = position.wrapping_sub(candidate).wrapping_sub(1) as usize;
    (back < WINDOW).then_some(!back % WINDOW)
}

impl MatchFinder {
    pub(super) const fn new() -> Self {
        MatchFinder { heads: [0; 1 << HASH_BITS], heads3: [0; 1 << HASH3_BITS], previous: [0; WINDOW] }
    }

    /// Forgets everything: what comes out must not depend on what was compressed before.
    pub(super) fn reset(&mut self) {
        // Farther than the window from any position that is nearer than the window to the start.
        const NEVER: u16 = (WINDOW as u16 + 1).wrapping_neg();
        self.heads.fill(NEVER);
        self.heads3.fill(NEVER);
        self.previous.fill(NEVER);
    }

    /// Enters positions without looking for a match.
    #[inline(always)]
    pub(super) fn skip(&mut self, data: &[u8], at: usize, count: usize) {
        for (i, word) in data[BEFORE + at..][..count + 3].windows(4).enumerate() {
            self.enter(u32::from_le_bytes(*word.first_chunk().expect("four")), (at + i) as u16);
        }
    }

    #[inline(always)]
    fn enter(&mut self, word: u32, position: u16) -> (u16, u16) {
        let candidate3 = std::mem::replace(&mut self.heads3[hash3(word)], position);
        let candidate = std::mem::replace(&mut self.heads[hash4(word)], position);
        self.previous[position as usize % WINDOW] = candidate;
        (candidate, candidate3)
    }

    /// Enters the position and looks for a match longer than `at_least`; without one, that is the length of what it returns.
    /// The search ends with a match of `nice` bytes or after `tries` places.
    #[inline(always)]
    pub(super) fn find(&mut self, data: &[u8], at: usize, at_least: usize, nice: usize, tries: u32) -> Match {
        let view: &View = data[at..].first_chunk().expect("the data is padded");
        let ahead: &[u8; AHEAD] = view.last_chunk().expect("it is the end of the view");
        let position = at as u16;
        let here = word(view, WINDOW);
        let (mut candidate, candidate3) = self.enter(here, position);
        let mut length = at_least;
        let mut found = 0;
        if at_least < 3
            && let Some(place) = place(position, candidate3)
            && (here ^ word(view, place)) << 8 == 0
        {
            length = 3;
            found = place;
        }
        let mut tail_at = length.saturating_sub(3) % 256;
        let mut tail = word(view, WINDOW + tail_at);
        for _ in 0..tries {
            let Some(place) = place(position, candidate) else { break };
            // The last bytes tell most candidates apart.
            if word(view, place + tail_at) == tail && word(view, place) == here {
                let equal = common(ahead, view[place..].first_chunk().expect("it is before the end"));
                if equal > length {
                    length = equal;
                    found = place;
                    if equal >= nice {
                        break;
                    }
                    tail_at = (equal - 3) % 256;
                    tail = word(view, WINDOW + tail_at);
                }
            }
            candidate = self.previous[candidate as usize % WINDOW];
        }
        Match { length, distance: (WINDOW - found) as u16 }
    }
}
