//! How much work to put in.

/// A level's limits on the search for matches.
pub(super) struct Level {
    /// Places tried for each position.
    pub(super) tries: u32,
    /// A match this long is good enough.
    pub(super) nice: usize,
    /// A match shorter than this waits for a better one at the next position; 0 for none.
    pub(super) lazy: usize,
    /// Looks at the position after the next, too.
    pub(super) twice: bool,
}

const fn level(tries: u32, nice: usize, lazy: usize, twice: bool) -> Level {
    Level { tries, nice, lazy, twice }
}

/// Levels 1 to 9. Level 6 makes clusters smaller than C zlib's level 6 does, in a third of its time.
pub(super) static LEVELS: [Level; 9] = [
    level(1, 16, 0, false),
    level(2, 16, 0, false),
    level(4, 16, 0, false),
    level(8, 24, 0, false),
    level(6, 24, 8, false),
    level(8, 32, 16, false),
    level(14, 48, 32, false),
    level(32, 96, 96, false),
    level(256, 258, 258, true),
];
