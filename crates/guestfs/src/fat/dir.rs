//! Directory entries: short names, and the long ones before them. (FAT32 File System Specification, 6 and 7)

use crate::bytes::{cut, le16, le32};
use crate::fs::days_since_1970;
use crate::{FileType, Time};

pub(crate) const ENTRY: usize = 32;
const ATTRIBUTE_READ_ONLY: u8 = 0x1;
const ATTRIBUTE_LABEL: u8 = 0x8;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_LONG: u8 = 0xf;
/// Windows NT's: the base name or the extension is to be shown in lower case.
const LOWER_BASE: u8 = 0x8;
const LOWER_EXTENSION: u8 = 0x10;
/// Units of UTF-16 in one entry of a long name, and entries of one name.
const UNITS: usize = 13;
const LONG_ENTRIES: u8 = 20;

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: Vec<u8>,
    pub kind: FileType,
    pub read_only: bool,
    pub cluster: u32,
    pub size: u32,
    pub mtime: Time,
    pub ctime: Time,
    pub atime: Time,
}

/// The part of a long name that was seen so far.
#[derive(Default)]
pub(crate) struct Long {
    units: Vec<u16>,
    /// The next entry's number; 0 when the name is whole.
    expected: u8,
    checksum: u8,
}

/// What one entry of a directory is.
pub(crate) enum Seen {
    /// No more entries.
    End,
    /// Free, a label, a piece of a long name, or the directory itself.
    Nothing,
    File(Entry),
}

/// Takes the next entry of a directory.
pub(crate) fn take(raw: &[u8], long: &mut Long) -> Seen {
    let (first, attributes) = (raw[0], raw[11]);
    if first == 0 {
        return Seen::End;
    }
    if first == 0xe5 {
        *long = Long::default();
        return Seen::Nothing;
    }
    if attributes & ATTRIBUTE_LONG == ATTRIBUTE_LONG {
        long.add(raw);
        return Seen::Nothing;
    }
    let name = std::mem::take(long).finish(raw);
    if attributes & ATTRIBUTE_LABEL != 0 {
        return Seen::Nothing;
    }
    let entry = file(raw, name.unwrap_or_else(|| short_name(raw)));
    if matches!(&entry.name[..], b"." | b"..") { Seen::Nothing } else { Seen::File(entry) }
}

/// A file by its short entry alone.
pub(crate) fn file(raw: &[u8], name: Vec<u8>) -> Entry {
    let attributes = raw[11];
    let mut ctime = time(le16(raw, 16), le16(raw, 14));
    ctime.sec += i64::from(raw[13] / 100);
    ctime.nsec = u32::from(raw[13] % 100) * 10_000_000;
    Entry {
        name,
        kind: if attributes & ATTRIBUTE_DIRECTORY != 0 { FileType::Directory } else { FileType::Regular },
        read_only: attributes & ATTRIBUTE_READ_ONLY != 0,
        cluster: u32::from(le16(raw, 26)) | u32::from(le16(raw, 20)) << 16,
        size: le32(raw, 28),
        mtime: time(le16(raw, 24), le16(raw, 22)),
        ctime,
        atime: time(le16(raw, 18), 0),
    }
}

impl Long {
    fn add(&mut self, raw: &[u8]) {
        let number = raw[0] & 0x3f;
        if raw[0] & 0x40 != 0 {
            *self = Long { units: vec![0xffff; UNITS * usize::from(number)], expected: number, checksum: raw[13] };
        }
        if number == 0 || number > LONG_ENTRIES || number != self.expected || raw[13] != self.checksum {
            *self = Long::default();
            return;
        }
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        let begin = UNITS * usize::from(number - 1);
        for (unit, at) in self.units.iter_mut().skip(begin).zip(places) {
            *unit = le16(raw, at);
        }
        self.expected = number - 1;
    }

    /// The name, if it is whole and belongs to this short entry.
    fn finish(self, short: &[u8]) -> Option<Vec<u8>> {
        let sum = short[..11].iter().fold(0u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
        if self.units.is_empty() || self.expected != 0 || sum != self.checksum {
            return None;
        }
        let units = self.units.into_iter().take_while(|u| *u != 0 && *u != 0xffff);
        let name: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        Some(name.into_bytes())
    }
}

fn short_name(raw: &[u8]) -> Vec<u8> {
    let part = |bytes: &[u8], lower: bool| -> String {
        let end = bytes.iter().rposition(|b| *b != b' ').map_or(0, |last| last + 1);
        bytes[..end].iter().map(|b| character(*b)).map(|c| if lower { c.to_ascii_lowercase() } else { c }).collect()
    };
    let mut base = cut(raw, 0, 8).to_vec();
    // 0xE5 would mark it as deleted.
    if base[0] == 5 {
        base[0] = 0xe5;
    }
    let (base, extension) = (part(&base, raw[12] & LOWER_BASE != 0), part(cut(raw, 8, 3), raw[12] & LOWER_EXTENSION != 0));
    if extension.is_empty() { base.into_bytes() } else { format!("{base}.{extension}").into_bytes() }
}

/// The upper half of code page 437.
const CODE_PAGE: &str =
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

fn character(byte: u8) -> char {
    if byte < 0x80 { char::from(byte) } else { CODE_PAGE.chars().nth(usize::from(byte - 0x80)).unwrap_or(char::REPLACEMENT_CHARACTER) }
}

/// A date and a time, which FAT keeps without a zone: they are taken for UTC.
fn time(date: u16, time: u16) -> Time {
    let (year, month, day) = (1980 + i64::from(date >> 9), i64::from(date >> 5 & 0xf).max(1), i64::from(date & 0x1f).max(1));
    let seconds = i64::from(time >> 11) * 3600 + i64::from(time >> 5 & 0x3f) * 60 + i64::from(time & 0x1f) * 2;
    Time { sec: days_since_1970(year, month, day) * 86_400 + seconds, nsec: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_page_is_whole() {
        assert_eq!(CODE_PAGE.chars().count(), 128);
        assert_eq!((character(0x80), character(0xe1), character(0xff)), ('Ç', 'ß', '\u{a0}'));
    }
}
