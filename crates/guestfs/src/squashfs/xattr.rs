//! Extended attributes: lists of names and values, each list shared by the files that have it.

use super::metadata::Metadata;
use crate::Result;
use crate::bytes::{le16, le32, le64};

/// The value stands elsewhere.
const ELSEWHERE: u16 = 0x100;
/// Of a value, as the kernel has it.
const VALUE_LIMIT: usize = 64 << 10;
/// Of all values of one file.
const TOTAL_LIMIT: usize = 16 << 20;
const COUNT_LIMIT: u32 = 65536;

/// Where all attributes begin, and the entry of one list: its place, its length, its bytes.
fn list(metadata: &Metadata, index: u32) -> Result<(u64, Vec<u8>)> {
    let table = metadata.superblock.xattr_table;
    let header = metadata.window.bytes(table, 16)?;
    let (start, count) = (le64(&header, 0), le32(&header, 8));
    if index >= count {
        return Err(metadata.window.corrupt(format!("extended attributes {index} of {count}")));
    }
    Ok((start, metadata.entry(table.saturating_add(16), index.into(), 16)?))
}

/// How many bytes a list takes.
pub(crate) fn size(metadata: &Metadata, index: u32) -> Result<u64> {
    Ok(le32(&list(metadata, index)?.1, 12).into())
}

pub(crate) fn all(metadata: &Metadata, index: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let bad = |what: String| metadata.window.corrupt(format!("extended attributes {index}: {what}"));
    let (start, list) = list(metadata, index)?;
    let (reference, count) = (le64(&list, 0), le32(&list, 8));
    let at = |reference: u64| {
        let place = start.checked_add(reference >> 16).ok_or_else(|| bad("their place".into()))?;
        Ok::<_, crate::Error>(metadata.at(place, (reference & 0xffff) as usize))
    };
    let mut cursor = at(reference)?;
    let (mut found, mut total) = (Vec::new(), 0);
    for _ in 0..count.min(COUNT_LIMIT) {
        let head = cursor.take(4)?;
        let name = cursor.take(le16(&head, 2).into())?;
        let len = le32(&cursor.take(4)?, 0) as usize;
        if len > VALUE_LIMIT {
            return Err(bad(format!("a value of {len} bytes")));
        }
        let mut value = cursor.take(len)?;
        if le16(&head, 0) & ELSEWHERE != 0 {
            let mut elsewhere = at(le64(&value, 0))?;
            let len = le32(&elsewhere.take(4)?, 0) as usize;
            if len > VALUE_LIMIT {
                return Err(bad(format!("a value of {len} bytes")));
            }
            value = elsewhere.take(len)?;
        }
        total += name.len() + value.len();
        if total > TOTAL_LIMIT {
            return Err(bad(format!("{total} bytes")));
        }
        let prefix: &[u8] = match le16(&head, 0) & 0xff {
            0 => b"user.",
            1 => b"trusted.",
            2 => b"security.",
            _ => continue,
        };
        found.push(([prefix, &name].concat(), value));
    }
    Ok(found)
}
