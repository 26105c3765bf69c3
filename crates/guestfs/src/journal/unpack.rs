//! The packed fields of journals: xz, LZ4 and zstd.

use crate::bytes::le64;
use crate::compression;

/// An LZ4 block says its length itself; a field is no longer.
const LZ4_LIMIT: usize = 16 << 20;

/// The first `limit` bytes of a field that is packed as its object's flags say.
pub(super) fn unpacked(flags: u8, packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    match flags & 7 {
        1 => compression::xz(packed, limit),
        2 => {
            let len = usize::try_from(le64(packed, 0)).ok().filter(|len| *len <= LZ4_LIMIT)?;
            let mut out = compression::lz4(packed.get(8..)?, len)?;
            out.truncate(limit);
            Some(out)
        }
        4 => compression::zstd(packed, limit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn packed_fields() {
        let text = b"MESSAGE=".iter().chain([b'x'; 2000].iter()).copied().collect::<Vec<u8>>();
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        let lz4 = [&(text.len() as u64).to_le_bytes()[..], &lz4_flex::block::compress(&text)].concat();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&text[..], 0).read_to_end(&mut xz).unwrap();
        for (flags, packed) in [(1, xz), (2, lz4), (4, zstd)] {
            assert_eq!(unpacked(flags, &packed, 1 << 20).unwrap(), text, "{flags}");
            assert_eq!(unpacked(flags, &packed, 8).unwrap(), b"MESSAGE=", "{flags}");
            assert!(unpacked(flags, &packed[..packed.len() / 2], 1 << 20).is_none(), "{flags}");
        }
        assert!(unpacked(2, &[0xff; 20], 8).is_none());
    }
}
