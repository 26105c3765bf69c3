//! Sizes as people write and read them: `10G`, `1.5 GiB`. The one place that parses or formats them.

use crate::{Error, Result};

const UNITS: [(char, u64); 7] = [('B', 1), ('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40), ('P', 1 << 50), ('E', 1 << 60)];

/// Parses a size as qemu-img does: a number, possibly with a fraction, and a suffix `b K M G T P E` (powers of
/// 1024, either case); bytes without one.
pub fn parse(text: &str) -> Result<u64> {
    let bad = || Error::Invalid(format!("'{text}' is not a size: write a number of bytes, or one with K, M, G, T, P or E behind it"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].chars().collect::<Vec<_>>()[..] {
        [] => 1,
        [c] => UNITS.iter().find(|(u, _)| *u == c.to_ascii_uppercase()).ok_or_else(bad)?.1,
        _ => return Err(bad()),
    };
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(bad);
    }
    let fraction: f64 = digits.parse().map_err(|_| bad())?;
    let bytes = fraction * unit as f64;
    if !(digits.starts_with(|c: char| c.is_ascii_digit()) && bytes.is_finite() && bytes < u64::MAX as f64) {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// Formats a size as qemu-img does: three significant digits and a binary unit, `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    let power = (0..UNITS.len() - 1).rev().find(|p| bytes as f64 / UNITS[*p].1 as f64 >= if *p == 0 { 0.0 } else { 1000.0 / 1024.0 });
    let power = power.unwrap_or(0);
    let scaled = bytes as f64 / UNITS[power].1 as f64;
    let digits = match scaled {
        s if s >= 99.95 => 0,
        s if s >= 9.995 => 1,
        s if s >= 0.9995 || power == 0 => 2,
        _ => 3,
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if power == 0 { format!("{text} B") } else { format!("{text} {}iB", UNITS[power].0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_in_qemu_img() {
        for (text, bytes) in [("0", 0), ("512", 512), ("1k", 1024), ("1.5G", 3 << 29), ("2T", 2 << 40), ("7b", 7)] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "-1", "1GB", "1x", "nan", "inf", "99999999999E", "1..2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_as_in_qemu_img() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (196_608, "192 KiB"),
            (1 << 30, "1 GiB"),
            (3 << 29, "1.5 GiB"),
            (1000 << 20, "0.977 GiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
