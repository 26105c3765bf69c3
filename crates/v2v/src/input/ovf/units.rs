//! Amounts with units as DSP0004's annex C writes them, and as producers do: `byte * 2^20`, `MegaBytes`, `GB`.

/// Bytes of one unit; `None` for one that is unknown.
pub(super) fn bytes(unit: &str) -> Option<u64> {
    let unit: String = unit.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
    if let Some(power) = unit.strip_prefix("byte*") {
        let (base, exponent) = power.split_once('^')?;
        return base.parse::<u64>().ok()?.checked_pow(exponent.parse().ok()?);
    }
    Some(match unit.as_str() {
        "" | "byte" | "bytes" => 1,
        "kb" | "kib" | "kilobytes" => 1 << 10,
        "mb" | "mib" | "megabytes" => 1 << 20,
        "gb" | "gib" | "gigabytes" => 1 << 30,
        "tb" | "tib" | "terabytes" => 1 << 40,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_all_producers() {
        for (unit, expected) in [
            ("byte * 2^20", Some(1 << 20)),
            ("byte*2^30", Some(1 << 30)),
            ("MegaBytes", Some(1 << 20)),
            ("GB", Some(1 << 30)),
            ("", Some(1)),
            ("byte * 2^99", None),
            ("byte * 2", None),
            ("hertz * 10^6", None),
        ] {
            assert_eq!(bytes(unit), expected, "{unit}");
        }
    }
}
