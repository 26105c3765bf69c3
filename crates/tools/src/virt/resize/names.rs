//! What the user says of partitions: their names, and the sizes that they are to have.

use imgcore::size;

use crate::common::Failure;

/// A partition's number in `/dev/sda2`, `vda2` or `nvme0n1p2`; 0 for the whole disk. There is one disk: how it is called does not matter.
pub(super) fn number(text: &str) -> Result<u32, Failure> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let rest = ["sd", "vd", "hd", "xvd"].iter().find_map(|prefix| name.strip_prefix(prefix));
    let digits = match rest {
        Some(rest) => Some(rest.trim_start_matches(|c: char| c.is_ascii_lowercase())).filter(|digits| digits.len() < rest.len()),
        None => name.strip_prefix("nvme0n1").map(|rest| rest.strip_prefix('p').unwrap_or(rest)),
    };
    match digits {
        Some("") => Some(0),
        Some(digits) => digits.parse().ok().filter(|number| *number > 0 && digits.bytes().all(|b| b.is_ascii_digit())),
        None => None,
    }
    .ok_or_else(|| Failure::new(format!("'{text}' is not the name of a partition")).hint("'virt-filesystems --parts -a DISK' lists them"))
}

/// `PART=SIZE`, the size still in the user's words.
pub(super) fn assignment(text: &str) -> Result<(u32, &str), Failure> {
    let (partition, size) = text.split_once('=').ok_or_else(|| Failure::new(format!("'{text}': write PARTITION=SIZE")))?;
    Ok((number(partition)?, size))
}

/// A size in bytes: absolute, as a part of the old one (`90%`), or relative to it (`+1G`, `-10%`).
pub(super) fn new_size(text: &str, old: u64) -> Result<u64, Failure> {
    let (sign, amount) = match text.split_at_checked(1) {
        Some((sign @ ("+" | "-"), amount)) => (sign, amount),
        _ => ("", text),
    };
    let bytes = match amount.strip_suffix('%') {
        None => Some(size::parse(amount)?),
        Some(percent) => {
            let part: f64 =
                percent.parse().ok().filter(|p| (0.0..=1e6).contains(p)).ok_or_else(|| Failure::new(format!("'{text}' is not a size")))?;
            // Hundredths of a percent, so that whole numbers stay exact.
            let scaled = u128::from(old) * (part * 100.0).round() as u128 / 10_000;
            u64::try_from(scaled).ok()
        }
    };
    let new = bytes.and_then(|bytes| match sign {
        "+" => old.checked_add(bytes),
        "-" => old.checked_sub(bytes),
        _ => Some(bytes),
    });
    new.filter(|new| *new > 0)
        .ok_or_else(|| Failure::new(format!("'{text}' of {} leaves no size that a partition can have", size::human(old))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_many_names() {
        for (text, expected) in
            [("/dev/sda2", 2), ("sda12", 12), ("/dev/vdb1", 1), ("xvda5", 5), ("/dev/sda", 0), ("/dev/nvme0n1p3", 3), ("nvme0n1", 0)]
        {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        for text in ["", "sd", "/dev/sd2", "sda0", "sda+1", "sda-1", "/dev/mapper/x", "sda2x", "/dev/VG/LV", "sda99999999999"] {
            assert!(number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_absolute_parts_or_relative() {
        const G: u64 = 1 << 30;
        for (text, expected) in
            [("3G", 3 * G), ("50%", G), ("+1G", 3 * G), ("-512M", 3 * G / 2), ("+10%", 2 * G + G / 5), ("-10%", 2 * G - G / 5)]
        {
            assert_eq!(new_size(text, 2 * G).unwrap(), expected, "{text}");
        }
        for text in ["", "+", "%", "-3G", "-100%", "0", "nan%", "-5%%", "1X", "99999999999999E", "é"] {
            assert!(new_size(text, 2 * G).is_err(), "{text}");
        }
    }
}
