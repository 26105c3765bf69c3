//! Identifiers that formats want to be unique, derived from what they identify: the same input gives the same image.

/// 16 bytes that depend on all of `parts` and on where each ends (FNV-1a, 128 bits).
pub(crate) fn derived_id(parts: &[&[u8]]) -> [u8; 16] {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut hash = BASIS;
    for part in parts {
        for byte in part.iter().copied().chain((part.len() as u64).to_le_bytes()) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    // The low bytes of FNV mix well, the high ones little after few bytes: one more round spreads them.
    (hash ^ (hash >> 67)).wrapping_mul(BASIS | 1).to_be_bytes()
}

/// The time that outputs are to bear, in seconds since 1970: SOURCE_DATE_EPOCH, where the environment sets it.
pub(crate) fn source_date() -> Option<u64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::derived_id;

    #[test]
    fn every_part_counts() {
        let ids = [derived_id(&[]), derived_id(&[b"ab"]), derived_id(&[b"a", b"b"]), derived_id(&[b"a", b"c"]), derived_id(&[b"b", b"a"])];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id));
        }
        assert_eq!(ids[1], derived_id(&[b"ab"]));
    }
}
