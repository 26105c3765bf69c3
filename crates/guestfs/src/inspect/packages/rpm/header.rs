//! rpm's header: an index of tags and the data that they point into. (rpm's manual, "Package format", "Header")

use super::super::{Application, TEXT_LIMIT};
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
const SOURCE_RPM: u32 = 1044;

const TYPE_INT32: u32 = 4;
const TYPE_STRING: u32 = 6;
const TYPE_I18NSTRING: u32 = 9;

/// A package of a database's header; `None` when it has no name.
pub(super) fn application(blob: &[u8]) -> Option<Application> {
    let entries = usize::try_from(be32(blob, 0)).ok()?;
    let index = blob.get(8..)?;
    let (index, data) = index.split_at_checked(entries.checked_mul(ENTRY)?)?;
    let header = Header { index, data: data.get(..usize::try_from(be32(blob, 4)).ok()?)? };
    let app = Application {
        name: header.text(NAME),
        epoch: header.number(EPOCH),
        version: header.text(VERSION),
        release: header.text(RELEASE),
        arch: header.text(ARCH),
        url: header.text(URL),
        source_package: header.text(SOURCE_RPM),
        summary: header.text(SUMMARY),
        description: header.text(DESCRIPTION),
    };
    (!app.name.is_empty()).then_some(app)
}

struct Header<'a> {
    index: &'a [u8],
    data: &'a [u8],
}

impl<'a> Header<'a> {
    /// A tag's data from its first byte to the header's end, if it is of one of these types.
    fn find(&self, tag: u32, types: &[u32]) -> Option<&'a [u8]> {
        let entry = self.index.chunks_exact(ENTRY).find(|e| be32(e, 0) == tag && types.contains(&be32(e, 4)))?;
        self.data.get(usize::try_from(be32(entry, 8)).ok()?..)
    }

    /// A string, or the first of a translated one: the untranslated.
    fn text(&self, tag: u32) -> String {
        let bytes = self.find(tag, &[TYPE_STRING, TYPE_I18NSTRING]).unwrap_or_default();
        let end = bytes.iter().take(TEXT_LIMIT).position(|b| *b == 0);
        String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len().min(TEXT_LIMIT))]).into_owned()
    }

    fn number(&self, tag: u32) -> u32 {
        self.find(tag, &[TYPE_INT32]).map_or(0, |bytes| be32(bytes, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(entries: &[(u32, u32, u32)], data: &[u8]) -> Vec<u8> {
        let mut out = (entries.len() as u32).to_be_bytes().to_vec();
        out.extend((data.len() as u32).to_be_bytes());
        for (tag, kind, offset) in entries {
            for field in [*tag, *kind, *offset, 1] {
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
}
