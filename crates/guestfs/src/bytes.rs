//! Fields of on-disk structures: little- and big-endian numbers at an offset.
//!
//! Bytes past the end of a buffer read as 0: that is what shorter, older versions of a structure mean.

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N).and_then(|end| bytes.get(at..end)).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// A slice that is cut where the buffer ends.
pub(crate) fn cut(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    let end = at.saturating_add(len).min(bytes.len());
    bytes.get(at..end).unwrap_or_default()
}

/// Text that ends at its first NUL, as UTF-8 as far as it is.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_string()
}

/// A UUID's 16 bytes as `01234567-89ab-…`.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().filter_map(|r| hex.get(r)).collect::<Vec<_>>().join("-")
}

/// By how many bytes follow, so that eight are taken in one step.
const CRC32C: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut i = 0;
    while i < 256 {
        let mut n = 1;
        while n < 8 {
            let before = tables[n - 1][i];
            tables[n][i] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            n += 1;
        }
        i += 1;
    }
    tables
};

/// CRC-32C as ext4 and JBD2 chain it: no inversion before or after.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let (eights, rest) = bytes.as_chunks::<8>();
    let crc = eights.iter().fold(seed, |crc, eight| {
        let word = u64::from_le_bytes(*eight) ^ u64::from(crc);
        let byte = |n: usize| (word >> (8 * n) & 0xff) as usize;
        (0..8).fold(0, |sum, n| sum ^ CRC32C[7 - n][byte(n)])
    });
    rest.iter().fold(crc, |crc, b| (crc >> 8) ^ CRC32C[0][((crc ^ u32::from(*b)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        let bytes: Vec<u8> = (0..=255).collect();
        let one_by_one = bytes.iter().fold(7, |crc, b| crc32c(crc, &[*b]));
        assert_eq!(crc32c(7, &bytes), one_by_one);
    }

    #[test]
    fn fields_past_the_end_are_zero() {
        assert_eq!(le32(&[1, 2, 3], 0), 0);
        assert_eq!(le16(&[1, 2, 3], usize::MAX), 0);
        assert_eq!(cut(&[1, 2, 3], 2, 9), [3]);
        assert!(cut(&[1], 5, 9).is_empty());
    }

    #[test]
    fn uuids() {
        let bytes: Vec<u8> = (0..16).collect();
        assert_eq!(uuid(&bytes), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
