//! Extended attributes, and among them those with which Linux's owners and modes are kept. (MS-FSCC, 2.4.16)

use crate::bytes::{le16, le32};

/// The attribute that holds them, and how large it may be, as Windows has it.
pub(crate) const EA: u32 = 0xe0;
pub(crate) const LIMIT: u64 = 64 << 10;

/// Names and values; what is cut ends the list.
pub(crate) fn parse(bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let [_, _, _, _, _, name_len, ..] = *rest {
        let name_len = usize::from(name_len);
        let value = 8 + name_len + 1;
        let (Some(name), Some(value)) = (rest.get(8..8 + name_len), rest.get(value..value + usize::from(le16(rest, 6)))) else { break };
        found.push((name.to_vec(), value.to_vec()));
        match le32(rest, 0) as usize {
            0 => break,
            next => rest = rest.get(next..).unwrap_or_default(),
        }
    }
    found
}

/// Owner, group, whole mode and device's number, as Linux keeps them here.
pub(crate) fn posix(all: &[(Vec<u8>, Vec<u8>)]) -> Option<(u32, u32, u32, u32)> {
    let number = |wanted: &[u8]| all.iter().find(|(name, value)| name == wanted && value.len() == 4).map(|(_, value)| le32(value, 0));
    Some((number(b"$LXUID")?, number(b"$LXGID")?, number(b"$LXMOD")?, number(b"$LXDEV").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_end() {
        let one = [20u8, 0, 0, 0, 0, 6, 4, 0, b'$', b'L', b'X', b'U', b'I', b'D', 0, 7, 0, 0, 0, 0];
        assert_eq!(parse(&one), [(b"$LXUID".to_vec(), vec![7, 0, 0, 0])]);
        assert_eq!(parse(&[one, one].concat()).len(), 2);
        assert_eq!(parse(&one[..18]), []);
        assert!(posix(&parse(&one)).is_none());
    }
}
