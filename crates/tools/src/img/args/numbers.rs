//! Numbers on the command line, checked and complained about as qemu-img does.

use std::ops::RangeInclusive;

use imgcore::size;

use crate::common::Failure;

/// The largest size or offset.
pub(crate) const MAX: u64 = i64::MAX as u64;

/// A size with an optional suffix that must lie in `range`; `what` is what messages call it.
pub(crate) fn size(what: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    checked(what, text, range, parse)
}

/// As [`size`], for plain counts: no suffix.
pub(crate) fn count(what: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    checked(what, text, range, |text| if text.is_empty() || text.contains(|c: char| !c.is_ascii_digit()) { None } else { parse(text) })
}

fn checked(what: &str, text: &str, range: RangeInclusive<u64>, parse: impl Fn(&str) -> Option<u128>) -> Result<u64, Failure> {
    let magnitude =
        parse(text.strip_prefix('-').unwrap_or(text)).ok_or_else(|| Failure::new(format!("Invalid {what} specified: '{text}'.")))?;
    match u64::try_from(magnitude) {
        Ok(number) if range.contains(&number) && (number == 0 || !text.starts_with('-')) => Ok(number),
        _ => Err(Failure::new(format!("Invalid {what} specified. Must be between {} and {}.", range.start(), range.end()))),
    }
}

/// Wider than what fits, so that "too large" can be told from "no number".
fn parse(text: &str) -> Option<u128> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u128::from_str_radix(hex, 16).ok();
    }
    match size::parse(text) {
        Ok(bytes) => Some(bytes.into()),
        // All digits but too many, with or without a suffix.
        Err(_) => {
            let digits = text.trim_end_matches(|c: char| "bkKmMgGtTpPeE".contains(c));
            let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && text.len() - digits.len() <= 1;
            number.then_some(u128::MAX)
        }
    }
}

/// A size as QEMU's option parser takes it, which has words of its own.
pub(crate) fn option_size(name: &str, text: &str) -> Result<u64, Failure> {
    match parse(text).map(u64::try_from) {
        Some(Ok(bytes)) => Ok(bytes),
        Some(Err(_)) => Err(Failure::new(format!("Value '{text}' is out of range for parameter '{name}'"))),
        None => Err(Failure::new(format!(
            "Parameter '{name}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_bounds() {
        let message = |result: Result<u64, Failure>| result.unwrap_err().message().to_owned();
        assert_eq!(size("bs", "1.5k", 1..=MAX).unwrap(), 1536);
        assert_eq!(size("bs", "0x10", 1..=MAX).unwrap(), 16);
        assert_eq!(message(size("bs", "x", 1..=MAX)), "Invalid bs specified: 'x'.");
        for text in ["0", "-1", "9E", "99999999999E"] {
            assert_eq!(message(size("bs", text, 1..=MAX)), "Invalid bs specified. Must be between 1 and 9223372036854775807.", "{text}");
        }
        assert_eq!(message(count("count", "1k", 0..=MAX)), "Invalid count specified: '1k'.");
        assert_eq!(message(option_size("size", "16777216T")), "Value '16777216T' is out of range for parameter 'size'");
    }
}
