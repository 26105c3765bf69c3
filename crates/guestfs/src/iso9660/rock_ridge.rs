//! Rock Ridge: POSIX names, modes and links in the records' system use areas. (IEEE P1281, P1282)

use super::record::{Record, SECTOR, short_date};
use crate::bytes::{cut, le32};
use crate::fs::days_since_1970;
use crate::{Result, Time, Window};

/// Areas that one record may lead to.
const CONTINUATIONS: usize = 32;
/// The longest target of a symbolic link, and the longest name.
const SYMLINK_LIMIT: usize = 4096;
const NAME_LIMIT: usize = 255;

/// What the fields of one record say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    /// Mode, links, owner, group.
    pub posix: Option<(u32, u32, u32, u32)>,
    pub device: Option<(u32, u32)>,
    pub name: Option<Vec<u8>>,
    pub target: Option<Vec<u8>>,
    /// The directory lies elsewhere, at this sector, since it was too deep.
    pub child: Option<u32>,
    /// Nothing but the true place of a directory that shows elsewhere.
    pub relocated: bool,
    /// Access, modification, change.
    pub times: [Option<Time>; 3],
    /// The content is compressed.
    pub compressed: bool,
}

/// Whether the root's own record announces these fields, and how many bytes to skip in every record.
pub(crate) fn announced(root: &Record) -> Option<usize> {
    let area = &root.system_use;
    (cut(area, 0, 2) == b"SP" && cut(area, 4, 2) == [0xbe, 0xef]).then(|| usize::from(area.get(6).copied().unwrap_or_default()))
}

/// All fields of a record; the root's own is read without skipping anything.
pub(crate) fn fields(window: &Window, record: &Record, skip: usize) -> Result<Fields> {
    let mut fields = Fields::default();
    let mut link = Link::default();
    let is_root = cut(&record.system_use, 0, 2) == b"SP";
    let mut area = record.system_use.get(if is_root { 0 } else { skip }..).unwrap_or_default().to_vec();
    for _ in 0..CONTINUATIONS {
        let mut next = None;
        let mut rest = area.as_slice();
        while let [a, b, len, _version, ..] = *rest {
            let Some(field) = rest.get(..usize::from(len)).filter(|f| f.len() >= 4) else { break };
            match &[a, b] {
                b"PX" => fields.posix = Some((le32(field, 4), le32(field, 12), le32(field, 20), le32(field, 28))),
                b"PN" => {
                    let (high, low) = (le32(field, 4), le32(field, 12));
                    // Some write the whole number into the lower half.
                    let old = high == 0 && low > 0xff;
                    fields.device = Some(if old { (low >> 8, low & 0xff) } else { (high, low) });
                }
                b"NM" => {
                    let name = fields.name.get_or_insert_default();
                    if field.get(4).is_some_and(|flags| flags & 6 == 0) && name.len() + field.len() <= NAME_LIMIT + 5 {
                        name.extend(&field[5..]);
                    }
                }
                b"SL" => link.add(field),
                b"CL" => fields.child = Some(le32(field, 4)),
                b"RE" => fields.relocated = true,
                b"TF" => times(field, &mut fields.times),
                b"ZF" => fields.compressed = true,
                b"CE" => next = Some((le32(field, 4), le32(field, 12), le32(field, 20))),
                b"ST" => break,
                _ => {}
            }
            rest = &rest[usize::from(len)..];
        }
        let Some((sector, offset, len)) = next else { break };
        if u64::from(offset) + u64::from(len) > SECTOR {
            return Err(window.corrupt(format!("record at {:#x}: it goes on for {len} bytes at {offset}", record.place)));
        }
        let whole = window.cached(u64::from(sector) * SECTOR, SECTOR as usize)?;
        area = cut(&whole, offset as usize, len as usize).to_vec();
    }
    fields.target = link.finish();
    Ok(fields)
}

/// A link's target, whose components stand one by one.
#[derive(Default)]
struct Link {
    target: Option<Vec<u8>>,
    /// The component before goes on.
    goes_on: bool,
}

impl Link {
    fn add(&mut self, field: &[u8]) {
        let target = self.target.get_or_insert_default();
        let mut rest = field.get(5..).unwrap_or_default();
        while let [flags, len, ..] = *rest {
            let Some(text) = rest.get(2..2 + usize::from(len)).filter(|t| target.len() + t.len() < SYMLINK_LIMIT) else { break };
            if !self.goes_on && !target.is_empty() && !target.ends_with(b"/") {
                target.push(b'/');
            }
            match flags & 0xe {
                2 => target.push(b'.'),
                4 => target.extend(b".."),
                8 => target.push(b'/'),
                _ => target.extend(text),
            }
            self.goes_on = flags & 1 != 0;
            rest = &rest[2 + usize::from(len)..];
        }
    }

    fn finish(self) -> Option<Vec<u8>> {
        self.target
    }
}

fn times(field: &[u8], times: &mut [Option<Time>; 3]) {
    let flags = field.get(4).copied().unwrap_or_default();
    let long = flags & 0x80 != 0;
    let len = if long { 17 } else { 7 };
    let mut rest = field.get(5..).unwrap_or_default();
    // Creation, modification, access, change of the inode.
    for (bit, slot) in [(0, None), (1, Some(1)), (2, Some(0)), (3, Some(2))] {
        if flags & (1 << bit) == 0 {
            continue;
        }
        let Some(stamp) = rest.get(..len) else { return };
        if let Some(slot) = slot {
            times[slot] = Some(if long { long_date(stamp) } else { short_date(stamp) });
        }
        rest = &rest[len..];
    }
}

/// Sixteen digits down to hundredths of a second, and quarters of an hour from UTC.
fn long_date(b: &[u8]) -> Time {
    let number = |range: std::ops::Range<usize>| {
        let digits = b.get(range).and_then(|d| std::str::from_utf8(d).ok());
        digits.and_then(|d| d.parse::<u32>().ok()).map_or(0, i64::from)
    };
    let days = days_since_1970(number(0..4), number(4..6), number(6..8));
    let zone = b.get(16).map_or(0, |z| i64::from(z.cast_signed()));
    let sec = days * 86_400 + number(8..10) * 3600 + number(10..12) * 60 + number(12..14) - zone * 900;
    Time { sec, nsec: (number(14..16) * 10_000_000) as u32 }
}
