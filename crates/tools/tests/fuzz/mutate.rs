//! Changes to images that keep most of their structure: numbers, flags and references in their metadata.

/// Makes inputs of seeds, the same ones in every run.
pub struct Mutator {
    random: u64,
    seeds: Vec<Seed>,
}

struct Seed {
    bytes: Vec<u8>,
    /// Offsets, multiples of 8, at which metadata seems to lie.
    places: Vec<usize>,
}

impl Seed {
    /// Guest data in seeds is one byte repeated, and most of metadata is not.
    fn new(bytes: Vec<u8>) -> Self {
        let telling = |block: &[u8]| block.iter().any(|b| *b != 0) && block.iter().any(|b| *b != block[0]);
        let places = bytes.chunks(8).enumerate().filter(|(_, block)| telling(block)).map(|(i, _)| i * 8).collect();
        Seed { bytes, places }
    }
}

impl Mutator {
    /// `seeds` must not be empty.
    pub fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty());
        Mutator { random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seeds: seeds.into_iter().map(Seed::new).collect() }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 24) % limit.max(1) as u64) as usize
    }

    /// Input number `number`: a seed as it is, or changed, and mended then nine times of ten.
    pub fn input(&mut self, number: u64, mend: fn(&mut [u8])) -> Vec<u8> {
        if let Some(seed) = usize::try_from(number).ok().and_then(|n| self.seeds.get(n)) {
            return seed.bytes.clone();
        }
        let chosen = self.below(self.seeds.len());
        let mut bytes = self.seeds[chosen].bytes.clone();
        for _ in 0..1 + self.below(4) * self.below(3) {
            self.change(chosen, &mut bytes);
        }
        if self.below(10) > 0 {
            mend(&mut bytes);
        }
        bytes
    }

    /// Mostly in metadata, sometimes anywhere.
    fn place(&mut self, chosen: usize, len: usize) -> usize {
        let known = self.seeds[chosen].places.len();
        if known > 0 && self.below(8) > 0 {
            // The first of them are headers, which have the most to break.
            let among = if self.below(2) == 0 { known.min(64) } else { known };
            let index = self.below(among);
            return self.seeds[chosen].places[index].min(len.saturating_sub(1)) + self.below(8);
        }
        self.below(len)
    }

    fn number(&mut self, len: usize) -> u64 {
        const EDGES: [u64; 20] = [
            0,
            1,
            2,
            3,
            0x7f,
            0xff,
            0x100,
            0x1ff,
            0x200,
            0x7fff,
            0xffff,
            0x1_0000,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 32,
            1 << 62,
            1 << 63,
            i64::MAX as u64,
            u64::MAX,
        ];
        let len = len as u64;
        match self.below(6) {
            0 | 1 => EDGES[self.below(EDGES.len())],
            2 => 1 << self.below(64),
            3 => len,
            4 => len / 512,
            // A place in the file, as references name them.
            _ => {
                let unit = [1, 512, 4096, 65536][self.below(4)];
                let flags = [0, 0, 1 << 63, 1 << 62, 1][self.below(5)];
                (self.below(len as usize + 1) as u64 / unit * unit) | flags
            }
        }
    }

    fn change(&mut self, chosen: usize, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        let at = self.place(chosen, len).min(len - 1);
        let width = [1, 2, 4, 8][self.below(4)];
        let aligned = at / width * width;
        match self.below(12) {
            0 | 1 => bytes[at] ^= 1 << self.below(8),
            2 => bytes[at] = self.below(256) as u8,
            3..=5 => {
                let number = self.number(len);
                put(bytes, aligned, width, number, self.below(2) == 0);
            }
            6 => {
                // A little more or less.
                let big_endian = self.below(2) == 0;
                let old = get(bytes, aligned, width, big_endian);
                let number = old.wrapping_add(self.below(9) as u64).wrapping_sub(4);
                put(bytes, aligned, width, number, big_endian);
            }
            7 => {
                // The same entry in two places.
                let from = self.place(chosen, len).min(len - 1) / 8 * 8;
                let n = (8 << self.below(4)).min(len - from.max(aligned));
                bytes.copy_within(from..from + n, aligned);
            }
            8 => {
                let end = (at + (1 << self.below(10))).min(len);
                bytes[at..end].fill([0, 0xff, b' ', b'9'][self.below(4)]);
            }
            9 => {
                let cut = if self.below(2) == 0 { at } else { self.below(len) / 512 * 512 };
                bytes.truncate(cut);
            }
            10 => bytes.resize(len + (1 << self.below(18)), [0, 0xff][self.below(2)]),
            // Texts: a part moves.
            _ => {
                let part = bytes[at..(at + 1 + self.below(20)).min(len)].to_vec();
                let to = self.place(chosen, len).min(len - 1);
                bytes.splice(to..(to + self.below(20)).min(len), part);
            }
        }
    }
}

fn get(bytes: &[u8], at: usize, width: usize, big_endian: bool) -> u64 {
    let part = &bytes[at..(at + width).min(bytes.len())];
    let shift = |number: u64, b: &u8| number << 8 | u64::from(*b);
    if big_endian { part.iter().fold(0, shift) } else { part.iter().rev().fold(0, shift) }
}

fn put(bytes: &mut [u8], at: usize, width: usize, number: u64, big_endian: bool) {
    let end = (at + width).min(bytes.len());
    for (i, byte) in bytes[at..end].iter_mut().enumerate() {
        let shift = if big_endian { width - 1 - i } else { i } * 8;
        *byte = (number >> shift) as u8;
    }
}
