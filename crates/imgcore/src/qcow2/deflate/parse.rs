//! From bytes to literals and matches.

use super::level::Level;
use super::matchfinder::{BEFORE, Match, MatchFinder};
use super::symbols::{FIRST_LENGTH, Histogram, LENGTHS, MAX_MATCH, MIN_MATCH, Sequence, distance_slot};

/// What is being compressed, and how far it has come.
pub(super) struct Input<'a> {
    /// The bytes, with the finder's padding around them.
    pub(super) data: &'a [u8],
    /// How many bytes there are.
    pub(super) len: usize,
    pub(super) at: usize,
}

/// Goes on for about `symbols` symbols, adds them to `sequences` and makes `histogram` that of just these.
pub(super) fn parse(
    level: &Level,
    finder: &mut MatchFinder,
    input: &mut Input<'_>,
    symbols: usize,
    sequences: &mut Vec<Sequence>,
    histogram: &mut Histogram,
) {
    *histogram = Histogram::EMPTY;
    match (level.lazy, level.twice) {
        (0, _) => parse_as::<false, false>(level, finder, input, symbols, sequences, histogram),
        (_, false) => parse_as::<true, false>(level, finder, input, symbols, sequences, histogram),
        (_, true) => parse_as::<true, true>(level, finder, input, symbols, sequences, histogram),
    }
}

fn parse_as<const LAZY: bool, const TWICE: bool>(
    level: &Level,
    finder: &mut MatchFinder,
    input: &mut Input<'_>,
    symbols: usize,
    sequences: &mut Vec<Sequence>,
    histogram: &mut Histogram,
) {
    let Input { data, len, mut at } = *input;
    let Level { tries, nice, lazy, .. } = *level;
    let literal = |histogram: &mut Histogram, at: usize| histogram.litlens[data[BEFORE + at] as usize] += 1;
    // Where the run of literals began, and where it must end for want of symbols.
    let mut run = at;
    let mut stop = len.min(at + symbols);
    while at < stop {
        let mut found = finder.find(data, at, MIN_MATCH - 1, nice, tries);
        if found.length < MIN_MATCH || !worth(found) {
            literal(histogram, at);
            at += 1;
            continue;
        }
        let mut entered = 1;
        // A better match just after this one is worth a literal before it.
        while LAZY && found.length < lazy && at + 2 < len {
            let next = finder.find(data, at + 1, found.length - 1, nice, tries / 2);
            if gain(found, next) > 2 {
                literal(histogram, at);
                at += 1;
                found = next;
                continue;
            }
            entered = 2;
            if !TWICE || at + 3 >= len {
                break;
            }
            let next = finder.find(data, at + 2, found.length - 1, nice, tries / 4);
            entered = 3;
            if gain(found, next) <= 6 {
                break;
            }
            literal(histogram, at);
            literal(histogram, at + 1);
            at += 2;
            entered = 1;
            found = next;
        }
        if found.length > MAX_MATCH.min(len - at) {
            found.length = MAX_MATCH.min(len - at);
            if found.length < MIN_MATCH {
                literal(histogram, at);
                at += 1;
                continue;
            }
        }
        let slot = LENGTHS[(found.length - MIN_MATCH) & 255].slot as usize;
        histogram.litlens[FIRST_LENGTH + slot] += 1;
        histogram.distances[distance_slot(found.distance).0 & 31] += 1;
        sequences.push(Sequence { literals: (at - run) as u32, length: found.length as u16, distance: found.distance });
        finder.skip(data, at + entered, found.length.saturating_sub(entered));
        at += found.length;
        stop = len.min(stop + found.length - 1);
        run = at;
    }
    if at > run {
        sequences.push(Sequence { literals: (at - run) as u32, length: 0, distance: 0 });
    }
    input.at = at;
}

/// Whether a match is likely to be shorter than the literals it stands for.
#[inline(always)]
fn worth(found: Match) -> bool {
    found.length > MIN_MATCH || found.distance <= 2048
}

/// By how many bits, about, `next` does better than `found`.
#[inline(always)]
fn gain(found: Match, next: Match) -> i32 {
    let bits = |distance: u16| (u32::from(distance) | 1).ilog2() as i32;
    4 * (next.length as i32 - found.length as i32) + bits(found.distance) - bits(next.distance)
}
