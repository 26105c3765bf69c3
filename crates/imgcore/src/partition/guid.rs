//! GUIDs as GPT stores them: the first three groups little-endian.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A GUID in the byte order of a GPT on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

/// For each byte as printed, its place on disk.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// The GUID whose text form spells these 16 bytes in order.
    pub const fn from_printed(printed: u128) -> Self {
        let bytes = printed.to_be_bytes();
        let mut stored = [0; 16];
        let mut i = 0;
        while i < 16 {
            stored[ORDER[i]] = bytes[i];
            i += 1;
        }
        Guid(stored)
    }

    /// A random-form (version 4) GUID of these bytes: the bits that tell version and variant are set.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        Guid::from_printed(bits & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, place) in ORDER.into_iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[place])?;
        }
        Ok(())
    }
}

impl FromStr for Guid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let groups: Vec<&str> = text.split('-').collect();
        let digits = groups.concat();
        let shaped = groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12]) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(&digits, 16) {
            Ok(printed) if shaped => Ok(Guid::from_printed(printed)),
            _ => Err(Error::Invalid(format!("'{text}' is not a UUID"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        let text = "21686148-6449-6e6f-744e-656564454649";
        let guid: Guid = text.parse().unwrap();
        assert_eq!(&guid.0, b"Hah!IdontNeedEFI");
        assert_eq!(guid.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Guid>().unwrap(), guid);
        for bad in [
            "",
            "21686148",
            "21686148-6449-6e6f-744e-65656445464",
            "+1686148-6449-6e6f-744e-656564454649",
            "2168614864496e6f744e656564454649",
        ] {
            assert!(bad.parse::<Guid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn random_guids_say_that_they_are() {
        assert_eq!(Guid::from_random([0xff; 16]).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(Guid::from_random([0; 16]).to_string(), "00000000-0000-4000-8000-000000000000");
    }
}
