//! A physical volume: its label, and the metadata of its group that lies in it (LVM2's `lib/format_text/layout.h`).

use imgcore::Image;

use crate::bytes::{cut, le32, le64, text};

const SECTOR: usize = 512;
const MDA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// What LVM begins its CRC-32 with.
const CRC_START: u32 = 0xf597_a6cf;
/// Metadata of a group with thousands of volumes has a few MiB.
const MAX_TEXT: u64 = 64 << 20;

/// What a label tells.
pub(super) struct Label {
    /// 32 characters, without the dashes that LVM shows.
    pub id: String,
    /// The newest whole metadata in it; `None` where the group keeps it on other volumes.
    pub text: Option<Vec<u8>>,
}

impl Label {
    /// Reads the label and the metadata. What is wrong is told in words.
    pub fn read(image: &dyn Image) -> Result<Self, String> {
        let label =
            (0..4).find_map(|sector| read(image, sector * SECTOR as u64, SECTOR as u64).ok().filter(|b| b.starts_with(b"LABELONE")));
        let label = label.ok_or("there is no label in its first sectors")?;
        if le32(&label, 16) != crc(cut(&label, 20, SECTOR - 20)) {
            return Err("its label's checksum is wrong".into());
        }
        let header = label.get(le32(&label, 20) as usize..).unwrap_or_default();
        let id = text(cut(header, 0, 32));
        // Two lists of places, each with an end of zeroes: data, then metadata.
        let places: Vec<(u64, u64)> = header.get(40..).unwrap_or_default().chunks_exact(16).map(|e| (le64(e, 0), le64(e, 8))).collect();
        let metadata = places.iter().skip_while(|p| p.0 != 0).skip(1).take_while(|p| p.0 != 0);
        let mut failure = None;
        let mut newest: Option<Vec<u8>> = None;
        for (start, size) in metadata {
            match area(image, *start, *size) {
                Ok(Some(text)) => newest = newest.or(Some(text)),
                Ok(None) => {}
                Err(e) => failure = Some(e),
            }
        }
        match (newest, failure) {
            (None, Some(failure)) => Err(failure),
            (text, _) => Ok(Label { id, text }),
        }
    }
}

/// The text in a metadata area: a ring behind its header's sector.
fn area(image: &dyn Image, start: u64, size: u64) -> Result<Option<Vec<u8>>, String> {
    let header = read(image, start, SECTOR as u64)?;
    if cut(&header, 4, 16) != MDA_MAGIC || le32(&header, 0) != crc(cut(&header, 4, SECTOR - 4)) {
        return Err(format!("its metadata area at {start:#x} is damaged"));
    }
    let (offset, len) = (le64(&header, 40), le64(&header, 48));
    let (checksum, ignored) = (le32(&header, 56), le32(&header, 60) & 1 == 1);
    if offset == 0 || ignored {
        return Ok(None);
    }
    let ring = SECTOR as u64..size;
    if !ring.contains(&offset) || len > size - ring.start || len > MAX_TEXT {
        return Err(format!("its metadata at {start:#x} lies at {offset:#x}, {len} bytes, outside of its {size} bytes"));
    }
    let at = start.checked_add(offset).ok_or("its metadata lies past the end of all")?;
    let mut text = read(image, at, len.min(size - offset))?;
    text.extend(read(image, start + ring.start, len - text.len() as u64)?);
    if crc(&text) != checksum {
        return Err(format!("the checksum of its metadata at {at:#x} is wrong"));
    }
    while text.last() == Some(&0) {
        text.pop();
    }
    Ok(Some(text))
}

fn read(image: &dyn Image, at: u64, len: u64) -> Result<Vec<u8>, String> {
    if at.checked_add(len).is_none_or(|end| end > image.size()) {
        return Err(format!("{len} bytes at {at:#x} lie past its end"));
    }
    let mut bytes = vec![0; len as usize];
    image.read_at(&mut bytes, at).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// A CRC-32 with LVM's start and without the inversion at its end.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!CRC_START);
    hasher.update(bytes);
    !hasher.finalize()
}
