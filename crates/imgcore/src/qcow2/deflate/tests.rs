//! What the encoder makes, inflated by two libraries. `tests/deflate_cross.rs` has the C library do so with a window of
//! 4 KiB: these two do not mind distances past it.

use flate2::{Decompress, FlushDecompress, Status};

use super::Encoder;
use super::symbols::{LENGTHS, WINDOW, distance_slot};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }
}

/// Inflates in small pieces, as a reader of a stream does.
fn inflate_in_pieces(mut packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut inflater = Decompress::new_with_window_bits(false, 12);
    let (mut all, mut piece) = (Vec::new(), [0; 97]);
    loop {
        let (before_in, before_out) = (inflater.total_in(), inflater.total_out());
        let some = &packed[..packed.len().min(61)];
        let status = inflater.decompress(some, &mut piece, FlushDecompress::None).map_err(|e| e.to_string())?;
        let (read, written) = (inflater.total_in() - before_in, inflater.total_out() - before_out);
        packed = &packed[read as usize..];
        all.extend_from_slice(&piece[..written as usize]);
        match status {
            Status::StreamEnd if packed.is_empty() => return Ok(all),
            Status::StreamEnd => return Err("bytes are left".into()),
            _ if read + written == 0 => return Err("it is cut off".into()),
            _ => {}
        }
    }
}

fn check(encoder: &mut Encoder, bytes: &[u8]) -> usize {
    let mut packed = vec![0xee; bytes.len() + bytes.len() / 1000 + 64];
    let len = encoder.compress(bytes, &mut packed).expect("there is room");
    let packed = &packed[..len];
    let mut whole = vec![0; bytes.len()];
    assert_eq!(libdeflater::Decompressor::new().deflate_decompress(packed, &mut whole), Ok(bytes.len()));
    assert!(whole == bytes, "{} bytes", bytes.len());
    assert!(inflate_in_pieces(packed).as_deref() == Ok(bytes), "{} bytes", bytes.len());

    // It fits to the byte, and is refused in less.
    let mut exact = vec![0; len];
    assert_eq!(encoder.compress(bytes, &mut exact), Some(len));
    assert!(exact == packed);
    assert_eq!(encoder.compress(bytes, &mut exact[..len - 1]), None);
    len
}

/// Text of sorts, code of sorts, runs, copies from afar and noise.
fn mixed(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        let some = 1 + random.below(3000);
        match random.below(6) {
            0 => bytes.extend(std::iter::repeat_n(random.next() as u8, some)),
            1 => bytes.extend((0..some).map(|_| random.next() as u8)),
            2 => bytes.extend((0..some).map(|_| b"etaoin shrdlu"[random.below(13).min(random.below(13))])),
            3 => bytes.extend((0..some as u32 / 4).flat_map(|i| (0x4010_0000 + i * 24).to_le_bytes())),
            _ if bytes.is_empty() => {}
            _ => {
                // On both sides of the window's edge, too.
                let back = (*[1, 2, 3, 7, 300, WINDOW - 1, WINDOW, WINDOW + 1, 40_000].get(random.below(9)).unwrap()).min(bytes.len());
                for _ in 0..some.min(600) {
                    bytes.push(bytes[bytes.len() - back]);
                }
            }
        }
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn every_level_survives_every_kind() {
    let mut random = Random(1);
    for level in 1..=9 {
        let mut encoder = Encoder::new(level);
        for len in [0usize, 1, 2, 3, 4, 5, 7, 257, 258, 259, 260, 511, 512, 4095, 4096, 4097, 4354, 4355, 65535, 65536, 65537, 200_000] {
            let noise: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            assert!(check(&mut encoder, &noise) <= len + 5 * len.div_ceil(65535).max(1));
            check(&mut encoder, &vec![0; len]);
            check(&mut encoder, &vec![0xa5; len]);
            check(&mut encoder, &(0..len).map(|i| (i / 3) as u8).collect::<Vec<_>>());
            check(&mut encoder, &mixed(&mut random, len));
        }
    }
}

#[test]
fn random_sizes_and_contents() {
    let mut random = Random(2);
    for round in 0..400 {
        let mut encoder = Encoder::new(1 + round % 9);
        let largest = if round % 10 == 0 { 150_000 } else { 9000 };
        let len = random.below(largest);
        check(&mut encoder, &mixed(&mut random, len));
    }
}

#[test]
fn programs_and_the_largest_cluster() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let program = &program[..program.len().min(2 << 20)];
    for level in [1, 6, 9] {
        let packed = check(&mut Encoder::new(level), program);
        assert!(packed < program.len() / 2, "{packed} of {}", program.len());
    }
    assert!(check(&mut Encoder::new(6), &vec![0; 2 << 20]) < 3000);
}

#[test]
fn higher_levels_are_smaller() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let program = &program[..program.len().min(1 << 20)];
    let mut out = vec![0; 65535];
    let mut total = |level| {
        let mut encoder = Encoder::new(level);
        program.chunks(65536).map(|cluster| encoder.compress(cluster, &mut out).unwrap_or(cluster.len())).sum::<usize>()
    };
    let [low, middle, high] = [1, 6, 9].map(&mut total);
    assert!(high < middle && middle < low, "{low} {middle} {high}");
}

#[test]
fn what_came_before_does_not_show() {
    let mut random = Random(3);
    let mut used = Encoder::new(6);
    for len in [70_000, 512, 65_536, 3000] {
        let bytes = mixed(&mut random, len);
        let (mut one, mut other) = (vec![0; len + 100], vec![0; len + 100]);
        assert_eq!(used.compress(&bytes, &mut one), Encoder::new(6).compress(&bytes, &mut other));
        assert!(one == other);
    }
}

#[test]
fn the_window_is_used_to_its_edge_and_not_past_it() {
    let mut random = Random(4);
    let noise: Vec<u8> = (0..WINDOW + 1).map(|_| random.next() as u8).collect();
    let twice = |period: usize| [&noise[..period], &noise[..period]].concat();
    assert!(check(&mut Encoder::new(6), &twice(WINDOW)) < WINDOW + 200);
    assert!(check(&mut Encoder::new(6), &twice(WINDOW + 1)) > 2 * WINDOW);
}

#[test]
fn lengths_and_distances_have_the_standards_symbols() {
    // RFC 1951's tables: the first value of each symbol.
    let lengths = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
    for (slot, &first) in lengths.iter().enumerate() {
        let entry = LENGTHS[first - 3];
        assert_eq!((entry.slot as usize, entry.extra), (slot, 0));
    }
    assert_eq!((LENGTHS[254].slot, LENGTHS[254].extra, LENGTHS[255].extra_count), (27, 30, 0));
    let distances = [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097];
    for (slot, pair) in distances.windows(2).enumerate() {
        let extra = (slot as u32 / 2).saturating_sub(1);
        assert_eq!(distance_slot(pair[0]), (slot, extra));
        assert_eq!(distance_slot(pair[1] - 1), (slot, extra));
    }
}
