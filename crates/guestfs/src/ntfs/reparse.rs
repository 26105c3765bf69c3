//! Reparse points: symbolic links, junctions, and others that only Windows' drivers understand. (MS-FSCC, 2.1.2)

use super::text;
use crate::bytes::{cut, le16, le32};

const MOUNT_POINT: u32 = 0xa000_0003;
const SYMLINK: u32 = 0xa000_000c;

/// Whether the tag says that it is a link.
pub(crate) fn is_link(tag: u32) -> bool {
    matches!(tag, MOUNT_POINT | SYMLINK)
}

/// A link's target, with slashes; `None` if the data is no link.
pub(crate) fn target(data: &[u8]) -> Option<Vec<u8>> {
    let names = match le32(data, 0) {
        MOUNT_POINT => 16,
        SYMLINK => 20,
        _ => return None,
    };
    // The name for programs, behind two pairs of offset and length.
    let (offset, len) = (usize::from(le16(data, 8)), usize::from(le16(data, 10)));
    let name = text(cut(data, names + offset, len));
    let name = name.strip_prefix(r"\??\").unwrap_or(&name);
    Some(name.replace('\\', "/").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let name: Vec<u8> = r"\??\C:\Users".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let head = |tag: u32| [&tag.to_le_bytes()[..], &[0; 4], &0u16.to_le_bytes(), &(name.len() as u16).to_le_bytes(), &[0; 4]].concat();
        assert_eq!(target(&[head(MOUNT_POINT), name.clone()].concat()).unwrap(), b"C:/Users");
        assert_eq!(target(&[head(SYMLINK), vec![0; 4], name.clone()].concat()).unwrap(), b"C:/Users");
        assert!(target(&[head(0x8000_0017), name].concat()).is_none());
    }
}
