//! Names of guests that are safe in file names, XML, shell scripts and QEMU's options.

use crate::{Error, Result};

/// File names end at 255 bytes, and something is put behind the name.
const MAX_LEN: usize = 200;

/// Whether a name can be used as it is: letters, digits, `.`, `_`, `+`, `-`, and neither `.` nor `-` first.
pub fn is_safe(name: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || "._+-".contains(c);
    !name.is_empty() && name.len() <= MAX_LEN && name.chars().all(letter) && !name.starts_with(['.', '-'])
}

/// A name that can be used, made of any.
pub fn safe(name: &str) -> String {
    let letter = |c: char| if c.is_alphanumeric() || "._+-".contains(c) { c } else { '-' };
    let mut safe: String = name.trim().chars().map(letter).collect();
    while safe.len() > MAX_LEN {
        safe.pop();
    }
    let safe = safe.trim_start_matches(['.', '-']).trim_end_matches('-');
    if safe.is_empty() { "guest".into() } else { safe.into() }
}

/// A name that the user chose (`-on`): used as it is, or an error.
pub fn chosen(name: &str) -> Result<String> {
    if is_safe(name) {
        return Ok(name.into());
    }
    Err(Error::Invalid(format!("-on '{}': names are letters, digits, '.', '_', '+' and '-'; try -on {}", name.escape_debug(), safe(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("web", "web"),
            ("web.example.com", "web.example.com"),
            ("Büro 2", "Büro-2"),
            ("../../etc/passwd", "etc-passwd"),
            ("-rf", "rf"),
            ("a\n<b>&\"'$(x)`", "a--b------x"),
            ("", "guest"),
            ("///", "guest"),
        ] {
            assert_eq!(safe(name), expected, "{name:?}");
            assert!(is_safe(&safe(name)), "{name:?}");
        }
        assert!(is_safe(&safe(&"ü".repeat(500))));
        assert!(chosen("web").is_ok());
        for name in ["", ".", "..", "a/b", "a b", "-x", "a,b"] {
            assert!(chosen(name).is_err(), "{name:?}");
        }
    }
}
