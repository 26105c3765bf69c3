//! LZNT1, NTFS's compression. (MS-XCA, 2.5)

/// What one chunk unpacks to.
const CHUNK: usize = 4096;

/// Unpacks to `limit` bytes at most; `None` when it is damaged.
pub(crate) fn unpack(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(limit);
    let mut rest = packed;
    while out.len() < limit {
        let [low, high, after @ ..] = rest else { break };
        let header = u16::from_le_bytes([*low, *high]);
        if header == 0 {
            break;
        }
        let (chunk, behind) = after.split_at_checked(usize::from(header & 0xfff) + 1)?;
        let begin = out.len();
        if header & 0x8000 == 0 {
            out.extend(&chunk[..chunk.len().min(CHUNK)]);
        } else {
            unpack_chunk(chunk, &mut out)?;
        }
        rest = behind;
        // A chunk that ends early goes on with zeroes.
        if !rest.is_empty() {
            out.resize(begin + CHUNK, 0);
        }
    }
    out.truncate(limit);
    Some(out)
}

fn unpack_chunk(chunk: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let begin = out.len();
    let mut bytes = chunk.iter().copied();
    while let Some(flags) = bytes.next() {
        for bit in 0..8 {
            let Some(byte) = bytes.next() else { return Some(()) };
            if out.len() - begin >= CHUNK {
                return None;
            }
            if flags & (1 << bit) == 0 {
                out.push(byte);
                continue;
            }
            let pair = usize::from(byte) | usize::from(bytes.next()?) << 8;
            // The farther into the chunk, the more bits the distance has, and the length fewer.
            let done = (out.len() - begin).checked_sub(1)?;
            let distance_bits = (usize::BITS - done.leading_zeros()).max(4);
            let length_bits = 16 - distance_bits;
            let (distance, len) = ((pair >> length_bits) + 1, (pair & ((1 << length_bits) - 1)) + 3);
            let from = out.len().checked_sub(distance).filter(|f| *f >= begin)?;
            if out.len() - begin + len > CHUNK {
                return None;
            }
            for i in from..from + len {
                out.push(out[i]);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_example() {
        // MS-XCA, 3.3: "F# F# G A A G F# E D F# F# E …", with copies from near and far.
        let packed = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2, 0x47, 0x01, 0xa0, 0x45, 0x20, 0x44, 0x00,
            0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0, 0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58,
            0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01, 0x18, 0x90, 0x00,
        ];
        let text = unpack(&packed, 4096).unwrap();
        let expected = "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        assert_eq!(String::from_utf8_lossy(&text[..expected.len()]), expected);
    }

    #[test]
    fn damage_is_told() {
        assert!(unpack(&[0x05, 0xb0, 1, 0xff, 0xff], 4096).is_none());
        assert!(unpack(&[0x02, 0xb0, 1, 0xff, 0xff], 4096).is_none(), "a copy from before the beginning");
    }
}
