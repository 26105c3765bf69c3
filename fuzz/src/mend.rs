//! Sets checksums right after an input was changed. Written for speed of writing: what cannot be mended stays as it is.

use std::ops::Range;

fn be32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn le32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn le64(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// CRC-32 by a table over `range`, with the four bytes at `sum` taken as zeroes.
fn crc(data: &[u8], range: Range<usize>, sum: usize, table: &[u32; 256]) -> Option<u32> {
    let bytes = data.get(range.clone())?.iter().enumerate();
    let of_sum = |i: usize| (sum..sum + 4).contains(&(range.start + i));
    let crc = bytes.fold(u32::MAX, |crc, (i, byte)| (crc >> 8) ^ table[usize::from(crc as u8 ^ if of_sum(i) { 0 } else { *byte })]);
    Some(!crc)
}

/// CRC-32C of all these bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc(bytes, 0..bytes.len(), bytes.len(), &CRC32C).unwrap_or_default()
}

/// Of a reflected polynomial.
const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { polynomial } else { 0 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

static CRC32: [u32; 256] = table(0xedb8_8320);
static CRC32C: [u32; 256] = table(0x82f6_3b78);

fn put(data: &mut [u8], at: usize, bytes: [u8; 4]) {
    if let Some(place) = data.get_mut(at..at.saturating_add(4)) {
        place.copy_from_slice(&bytes);
    }
}

/// The footer, its copy at the front, and the dynamic header that the copy leads to.
pub fn vhd(data: &mut [u8]) {
    let mut structures = vec![(0, 512, 64), (data.len().saturating_sub(512), 512, 64)];
    if let Some(header) = be32(data, 20).map(|low| low as usize) {
        structures.push((header, 1024, 36));
    }
    for (start, len, at) in structures {
        let Some(bytes) = data.get(start..start + len) else { continue };
        if bytes.starts_with(b"conectix") || bytes.starts_with(b"cxsparse") {
            let others = bytes.iter().enumerate().filter(|(i, _)| !(at..at + 4).contains(i));
            let sum = others.fold(0u32, |sum, (_, b)| sum.wrapping_add(u32::from(*b)));
            put(data, start + at, (!sum).to_be_bytes());
        }
    }
}

/// Both headers, both region tables, and the entries of the log.
pub fn vhdx(data: &mut [u8]) {
    let mut structures = vec![(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)];
    for at in (1 << 20..data.len().min(3 << 20)).step_by(4096) {
        if data.get(at..at + 4) == Some(b"loge") {
            structures.push((at, le32(data, at + 8).unwrap_or(0).min(1 << 20) as usize));
        }
    }
    for (start, len) in structures {
        if let Some(sum) = crc(data, start..start + len, start + 4, &CRC32C) {
            put(data, start + 4, sum.to_le_bytes());
        }
    }
}

/// Both headers of a GPT and their entries.
pub fn gpt(data: &mut [u8]) {
    for header in [512, data.len().saturating_sub(512)] {
        if data.get(header..header + 8) != Some(b"EFI PART") {
            continue;
        }
        let place = le64(data, header + 72).and_then(|lba| usize::try_from(lba.checked_mul(512)?).ok());
        let len = le32(data, header + 80).zip(le32(data, header + 84)).and_then(|(n, size)| n.checked_mul(size));
        if let (Some(start), Some(len)) = (place, len.filter(|l| *l < 1 << 20))
            && let Some(end) = start.checked_add(len as usize)
            && let Some(sum) = crc(data, start..end, usize::MAX - 4, &CRC32)
        {
            put(data, header + 88, sum.to_le_bytes());
        }
        let size = le32(data, header + 12).unwrap_or(0).min(512) as usize;
        if let Some(sum) = crc(data, header..header + size, header + 16, &CRC32) {
            put(data, header + 16, sum.to_le_bytes());
        }
    }
}

/// Every header of a tar.
pub fn tar(data: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = data.get_mut(at..at + 512) {
        if header[0] == 0 {
            return;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = header[124..135].iter().take_while(|b| b.is_ascii_digit());
        let size = digits.fold(0usize, |n, b| n.saturating_mul(8).saturating_add(usize::from(b - b'0')));
        at = at.saturating_add(512).saturating_add(size.min(1 << 40).next_multiple_of(512));
    }
}
