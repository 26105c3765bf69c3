//! rpm's header: an index of tags and the data that they point into. (rpm's manual, "Package format", "Header")

use super::super::{Application, TEXT_LIMIT};
use super::RpmFile;
use crate::bytes::be32;

const ENTRY: usize = 16;

const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const SUMMARY: u32 = 1004;
const DESCRIPTION: u32 = 1005;
const URL: u32 = 1020;
const ARCH: u32 = 1022;
const OLD_FILE_NAMES: u32 = 1027;
const SOURCE_RPM: u32 = 1044;
const PROVIDE_NAME: u32 = 1047;
const REQUIRE_FLAGS: u32 = 1048;
const REQUIRE_NAME: u32 = 1049;
const DIR_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIR_NAMES: u32 = 1118;

const TYPE_INT32: u32 = 4;
const TYPE_STRING: u32 = 6;
const TYPE_STRING_ARRAY: u32 = 8;
const TYPE_I18NSTRING: u32 = 9;

/// `RPMSENSE_RPMLIB`: a feature of rpm itself.
const RPMLIB: u32 = 1 << 24;
/// `RPMSENSE_MISSINGOK`: a wish.
const MISSING_OK: u32 = 1 << 19;
/// A kernel has some ten thousand.
const ARRAY_LIMIT: usize = 1 << 20;

/// A package of a database's header; `None` when it has no name.
pub(super) fn application(blob: &[u8]) -> Option<Application> {
    Header::new(blob)?.application()
}

/// A package file's header, and where it ends; `None` when it has no name.
pub(super) fn file(blob: &[u8]) -> Option<RpmFile> {
    let header = Header::new(blob)?;
    let flags = header.numbers(REQUIRE_FLAGS);
    let needs = header.texts(REQUIRE_NAME).into_iter().enumerate();
    let requires = needs.filter(|(i, _)| flags.get(*i).is_none_or(|f| f & (RPMLIB | MISSING_OK) == 0)).map(|(_, name)| name).collect();
    let dirs = header.texts(DIR_NAMES);
    let dir = |i: u32| usize::try_from(i).ok().and_then(|i| dirs.get(i)).map_or("", String::as_str);
    let indexes = header.numbers(DIR_INDEXES).into_iter();
    let joined = header.texts(BASE_NAMES).into_iter().zip(indexes).map(|(name, i)| format!("{}{name}", dir(i)));
    let files = header.texts(OLD_FILE_NAMES).into_iter().chain(joined).collect();
    Some(RpmFile { application: header.application()?, requires, files })
}

/// The bytes of a header that begins with its index's size; what follows is not looked at.
pub(super) fn size(blob: &[u8]) -> Option<usize> {
    let entries = usize::try_from(be32(blob.get(..8)?, 0)).ok()?;
    entries.checked_mul(ENTRY)?.checked_add(usize::try_from(be32(blob, 4)).ok()?)?.checked_add(8)
}

struct Header<'a> {
    index: &'a [u8],
    data: &'a [u8],
}

impl<'a> Header<'a> {
    fn new(blob: &'a [u8]) -> Option<Self> {
        let entries = usize::try_from(be32(blob, 0)).ok()?;
        let index = blob.get(8..)?;
        let (index, data) = index.split_at_checked(entries.checked_mul(ENTRY)?)?;
        Some(Header { index, data: data.get(..usize::try_from(be32(blob, 4)).ok()?)? })
    }

    fn application(&self) -> Option<Application> {
        let app = Application {
            name: self.text(NAME),
            epoch: self.number(EPOCH),
            version: self.text(VERSION),
            release: self.text(RELEASE),
            arch: self.text(ARCH),
            url: self.text(URL),
            source_package: self.text(SOURCE_RPM),
            summary: self.text(SUMMARY),
            description: self.text(DESCRIPTION),
            provides: self.texts(PROVIDE_NAME),
            ..Application::default()
        };
        (!app.name.is_empty()).then_some(app)
    }

    fn entry(&self, tag: u32, types: &[u32]) -> Option<&'a [u8]> {
        self.index.chunks_exact(ENTRY).find(|e| be32(e, 0) == tag && types.contains(&be32(e, 4)))
    }

    /// A tag's data from its first byte to the header's end, if it is of one of these types.
    fn find(&self, tag: u32, types: &[u32]) -> Option<&'a [u8]> {
        let entry = self.entry(tag, types)?;
        self.data.get(usize::try_from(be32(entry, 8)).ok()?..)
    }

    /// A string, or the first of a translated one: the untranslated.
    fn text(&self, tag: u32) -> String {
        let bytes = self.find(tag, &[TYPE_STRING, TYPE_I18NSTRING]).unwrap_or_default();
        let end = bytes.iter().take(TEXT_LIMIT).position(|b| *b == 0);
        String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len().min(TEXT_LIMIT))]).into_owned()
    }

    /// How many values a tag has.
    fn count(&self, tag: u32, types: &[u32]) -> usize {
        self.entry(tag, types).map_or(0, |e| usize::try_from(be32(e, 12)).unwrap_or(usize::MAX).min(ARRAY_LIMIT))
    }

    /// All strings of an array.
    fn texts(&self, tag: u32) -> Vec<String> {
        let bytes = self.find(tag, &[TYPE_STRING_ARRAY]).unwrap_or_default();
        // What follows the last zero is no string.
        let whole = bytes.iter().rposition(|b| *b == 0).map_or(&[][..], |end| &bytes[..end]);
        let texts = whole.split(|b| *b == 0).take(self.count(tag, &[TYPE_STRING_ARRAY]));
        texts.map(|t| String::from_utf8_lossy(&t[..t.len().min(TEXT_LIMIT)]).into_owned()).collect()
    }

    fn numbers(&self, tag: u32) -> Vec<u32> {
        let bytes = self.find(tag, &[TYPE_INT32]).unwrap_or_default();
        bytes.chunks_exact(4).take(self.count(tag, &[TYPE_INT32])).map(|n| be32(n, 0)).collect()
    }

    fn number(&self, tag: u32) -> u32 {
        self.find(tag, &[TYPE_INT32]).map_or(0, |bytes| be32(bytes, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(entries: &[(u32, u32, u32)], data: &[u8]) -> Vec<u8> {
        let counted: Vec<_> = entries.iter().map(|(tag, kind, offset)| (*tag, *kind, *offset, 1)).collect();
        counted_blob(&counted, data)
    }

    fn counted_blob(entries: &[(u32, u32, u32, u32)], data: &[u8]) -> Vec<u8> {
        let mut out = (entries.len() as u32).to_be_bytes().to_vec();
        out.extend((data.len() as u32).to_be_bytes());
        for (tag, kind, offset, count) in entries {
            for field in [*tag, *kind, *offset, *count] {
                out.extend(field.to_be_bytes());
            }
        }
        out.extend(data);
        out
    }

    #[test]
    fn tags_are_found_by_number_and_type() {
        let data = b"bash\x005.1\0\0\0\0\0\x07shell\0concha\0";
        let app = application(&blob(&[(NAME, 6, 0), (VERSION, 6, 5), (EPOCH, 4, 10), (SUMMARY, 9, 14)], data)).unwrap();
        assert_eq!((app.name.as_str(), app.version.as_str(), app.epoch, app.summary.as_str()), ("bash", "5.1", 7, "shell"));
    }

    #[test]
    fn what_points_outside_is_empty_or_no_package() {
        let app = application(&blob(&[(NAME, 6, 0), (VERSION, 6, 900), (EPOCH, 4, 4), (SUMMARY, 6, u32::MAX)], b"bash")).unwrap();
        assert_eq!((app.name.as_str(), app.version.as_str(), app.epoch, app.summary.as_str()), ("bash", "", 0, ""));
        assert!(application(&blob(&[(NAME, 4, 0)], b"bash\0")).is_none());
        for length in 0..24 {
            assert!(application(&blob(&[(NAME, 6, 0)], b"")[..length]).is_none());
        }
        let mut endless = blob(&[(NAME, 6, 0)], b"bash\0");
        endless[..8].fill(0xff);
        assert!(application(&endless).is_none());
    }

    #[test]
    fn arrays_end_where_they_say_or_where_the_data_does() {
        let mut data = b"kernel\0a\0b\0".to_vec();
        data.extend([0, 0, 0, 0, 1, 0, 0, 0]);
        let entries =
            [(NAME, 6, 0, 1), (REQUIRE_NAME, 8, 7, 2), (REQUIRE_FLAGS, 4, 11, 2), (PROVIDE_NAME, 8, 0, 1), (BASE_NAMES, 8, 7, u32::MAX)];
        let file = file(&counted_blob(&entries, &data)).unwrap();
        assert_eq!((file.requires, file.application.provides), (vec!["a".to_string()], vec!["kernel".to_string()]), "b is rpmlib's");
        assert!(file.files.is_empty(), "names without folders are no files");
    }
}
