//! The checksums that follow chunks: SHA-1 (`.checksum`) and XXH64 (`.xxhash`).

use sha1::{Digest, Sha1};

/// A chunk's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    /// `.checksum`: 40 hexadecimal digits.
    Sha1([u8; 20]),
    /// `.xxhash`: 16 hexadecimal digits, seed 0.
    Xxh64(u64),
}

/// Which checksum an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SumKind {
    Sha1,
    Xxh64,
}

/// Checksum entries are shorter than this.
pub(crate) const MAX_TEXT: u64 = 128;

impl SumKind {
    /// By the extension of an entry's name.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "checksum" => Some(SumKind::Sha1),
            "xxhash" => Some(SumKind::Xxh64),
            _ => None,
        }
    }

    /// The extension of an entry's name.
    pub fn extension(self) -> &'static str {
        match self {
            SumKind::Sha1 => "checksum",
            SumKind::Xxh64 => "xxhash",
        }
    }

    /// The checksum of `data`.
    pub fn compute(self, data: &[u8]) -> Sum {
        match self {
            SumKind::Sha1 => Sum::Sha1(Sha1::digest(data).into()),
            SumKind::Xxh64 => Sum::Xxh64(twox_hash::XxHash64::oneshot(0, data)),
        }
    }

    /// Reads an entry's text: digits of either case, blanks and newlines around them.
    pub fn parse(self, text: &[u8]) -> Option<Sum> {
        let text = std::str::from_utf8(text.trim_ascii()).ok().filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?;
        match self {
            SumKind::Sha1 if text.len() == 40 => {
                let mut sum = [0; 20];
                for (byte, digits) in sum.iter_mut().zip(text.as_bytes().chunks(2)) {
                    *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
                }
                Some(Sum::Sha1(sum))
            }
            SumKind::Xxh64 if text.len() == 16 => Some(Sum::Xxh64(u64::from_str_radix(text, 16).ok()?)),
            _ => None,
        }
    }
}

impl Sum {
    /// Its kind.
    pub fn kind(self) -> SumKind {
        match self {
            Sum::Sha1(_) => SumKind::Sha1,
            Sum::Xxh64(_) => SumKind::Xxh64,
        }
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sum::Sha1(sum) => sum.iter().try_for_each(|b| write!(f, "{b:02x}")),
            Sum::Xxh64(sum) => write!(f, "{sum:016X}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        assert_eq!(SumKind::Sha1.compute(b"").to_string(), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(SumKind::Xxh64.compute(b"").to_string(), "EF46DB3751D8E999");
        let text = b" ef46db3751d8e999\n";
        assert_eq!(SumKind::Xxh64.parse(text), Some(SumKind::Xxh64.compute(b"")));
        for bad in [&b"EF46DB3751D8E99"[..], b"EF46DB3751D8E99G", b"+F46DB3751D8E999", b"", b"da39a3ee5e6b4b0d3255bfef95601890afd80709"] {
            assert_eq!(SumKind::Xxh64.parse(bad), None);
        }
    }
}
