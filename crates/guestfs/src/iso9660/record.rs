//! Directory records and their dates. (ECMA-119, 9.1)

use crate::bytes::{cut, le16, le32};
use crate::fs::days_since_1970;
use crate::{Result, Time, Window};

pub(crate) const SECTOR: u64 = 2048;
/// Bytes of a record before its name.
const HEADER: usize = 33;
const FLAG_DIRECTORY: u8 = 0x2;
const FLAG_MORE: u8 = 0x80;

/// One record: a file, or a part of a large one.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// The byte of the volume where it lies.
    pub place: u64,
    /// The byte where its content begins.
    pub start: u64,
    pub size: u32,
    pub is_directory: bool,
    /// The next record goes on with this file.
    pub more: bool,
    /// It is interleaved with others, which nobody does.
    pub interleaved: bool,
    pub time: Time,
    pub name: Vec<u8>,
    /// What stands behind the name: Rock Ridge's fields.
    pub system_use: Vec<u8>,
}

impl Record {
    /// The record at a byte of the volume; `None` where a sector has no more of them.
    pub(crate) fn read(window: &Window, place: u64) -> Result<Option<(Self, usize)>> {
        let sector = window.cached(place / SECTOR * SECTOR, SECTOR as usize)?;
        let raw = sector.get((place % SECTOR) as usize..).unwrap_or_default();
        let len = usize::from(raw.first().copied().unwrap_or_default());
        if len == 0 {
            return Ok(None);
        }
        let bad = || window.corrupt(format!("a directory's record of {len} bytes at {place:#x}"));
        let raw = raw.get(..len).filter(|r| r.len() > HEADER).ok_or_else(bad)?;
        let name_len = usize::from(raw[32]);
        let name = raw.get(HEADER..HEADER + name_len).ok_or_else(bad)?.to_vec();
        let behind = HEADER + name_len + usize::from(name_len % 2 == 0);
        let start = (u64::from(le32(raw, 2)) + u64::from(raw[1])) * SECTOR;
        let record = Record {
            place,
            start,
            size: le32(raw, 10),
            is_directory: raw[25] & FLAG_DIRECTORY != 0,
            more: raw[25] & FLAG_MORE != 0,
            interleaved: le16(raw, 26) != 0,
            time: short_date(cut(raw, 18, 7)),
            name,
            system_use: raw.get(behind..).unwrap_or_default().to_vec(),
        };
        Ok(Some((record, len)))
    }

    /// Whether it stands for the directory itself or its parent.
    pub(crate) fn is_dot(&self) -> bool {
        matches!(&self.name[..], [0 | 1])
    }
}

/// Seven bytes: the year since 1900, month, day, hour, minute, second, and quarters of an hour from UTC.
pub(crate) fn short_date(b: &[u8]) -> Time {
    let [year, month, day, hour, minute, second, zone] = *b else { return Time::default() };
    let days = days_since_1970(1900 + i64::from(year), month.into(), day.into());
    let seconds = days * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    let zone = i64::from(zone.cast_signed());
    // Beyond half a day it is no zone.
    let zone = if (-52..=52).contains(&zone) { zone } else { 0 };
    if year == 0 && month == 0 { Time::default() } else { Time { sec: seconds - zone * 900, nsec: 0 } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(short_date(&[126, 11, 21, 19, 0, 1, 4]).sec, 1_795_284_001);
        assert_eq!(short_date(&[0; 7]), Time::default());
    }
}
