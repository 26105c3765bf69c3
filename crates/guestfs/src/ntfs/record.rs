//! Records of the master file table, and the attributes in them. (Linux-NTFS documentation, "FILE Record",
//! "Attributes")

use crate::bytes::{cut, le16, le32, le64};
use crate::{Result, Window};

pub(crate) const STANDARD_INFORMATION: u32 = 0x10;
pub(crate) const ATTRIBUTE_LIST: u32 = 0x20;
pub(crate) const FILE_NAME: u32 = 0x30;
pub(crate) const DATA: u32 = 0x80;
pub(crate) const INDEX_ROOT: u32 = 0x90;
pub(crate) const INDEX_ALLOCATION: u32 = 0xa0;
pub(crate) const BITMAP: u32 = 0xb0;
pub(crate) const REPARSE_POINT: u32 = 0xc0;
const END: u32 = u32::MAX;

const IN_USE: u16 = 0x1;
const DIRECTORY: u16 = 0x2;

pub(crate) const COMPRESSED: u16 = 0x1;
const SPARSE: u16 = 0x8000;
pub(crate) const ENCRYPTED: u16 = 0x4000;

/// The unit in which torn writes are told.
const SECTOR: usize = 512;

/// A record, with its attributes apart.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub number: u64,
    pub is_directory: bool,
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, Debug)]
pub(crate) struct Attribute {
    pub kind: u32,
    pub name: Vec<u8>,
    pub flags: u16,
    pub id: u16,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// In the record.
    Resident(Vec<u8>),
    /// In clusters.
    NonResident {
        first_vcn: u64,
        /// Clusters that are compressed together, as a power of two; 0 for none.
        unit_log: u16,
        size: u64,
        /// Bytes that were ever written; zeroes follow.
        initialized: u64,
        /// Bytes that it takes on the volume.
        total: u64,
        runs: Vec<u8>,
    },
}

/// Puts the ends of sectors back in their places: a structure's last two bytes of every sector stand in its header.
pub(crate) fn fix(raw: &mut [u8], magic: &[u8], window: &Window, what: &str) -> Result<()> {
    if cut(raw, 0, 4) != magic {
        return Err(window.corrupt(format!("{what} has magic '{}'", crate::error::show(cut(raw, 0, 4)))));
    }
    let (offset, count) = (usize::from(le16(raw, 4)), usize::from(le16(raw, 6)));
    let table = raw.get(offset..offset + count * 2).map(<[u8]>::to_vec).unwrap_or_default();
    if count != raw.len() / SECTOR + 1 || table.is_empty() {
        return Err(window.corrupt(format!("{what} has {count} sectors' ends at {offset}")));
    }
    for (sector, end) in raw.chunks_exact_mut(SECTOR).zip(table.chunks_exact(2).skip(1)) {
        if sector[SECTOR - 2..] != table[..2] {
            return Err(window.corrupt(format!("{what} was not written whole")));
        }
        sector[SECTOR - 2..].copy_from_slice(end);
    }
    Ok(())
}

impl Record {
    pub(crate) fn parse(number: u64, raw: &[u8], window: &Window) -> Result<Self> {
        let mut raw = raw.to_vec();
        fix(&mut raw, b"FILE", window, &format!("record {number}"))?;
        let bad = |what: String| window.corrupt(format!("record {number}: {what}"));
        let flags = le16(&raw, 22);
        if flags & IN_USE == 0 {
            return Err(bad("it is not in use".into()));
        }
        let used = (le32(&raw, 24) as usize).min(raw.len());
        let mut attributes = Vec::new();
        let mut at = usize::from(le16(&raw, 20));
        while at + 8 <= used && le32(&raw, at) != END {
            let len = le32(&raw, at + 4) as usize;
            let attribute = raw.get(at..at.saturating_add(len)).filter(|a| a.len() >= 24 && at + len <= used);
            attributes.push(Attribute::parse(
                attribute.ok_or_else(|| bad(format!("an attribute of {len} bytes at {at}")))?,
                number,
                window,
            )?);
            at += len;
        }
        Ok(Record { number, is_directory: flags & DIRECTORY != 0, attributes })
    }

    /// The first attribute of a kind that is in the record itself.
    pub(crate) fn resident(&self, kind: u32) -> Option<&[u8]> {
        self.attributes.iter().find_map(|a| match &a.body {
            Body::Resident(value) if a.kind == kind => Some(value.as_slice()),
            _ => None,
        })
    }
}

impl Attribute {
    fn parse(raw: &[u8], number: u64, window: &Window) -> Result<Self> {
        let bad = |what: &str| window.corrupt(format!("record {number}: an attribute's {what} is cut"));
        let (name_len, name_at) = (usize::from(raw[9]) * 2, usize::from(le16(raw, 10)));
        let name = raw.get(name_at..name_at + name_len).ok_or_else(|| bad("name"))?.to_vec();
        let body = if raw[8] == 0 {
            let (len, at) = (le32(raw, 16) as usize, usize::from(le16(raw, 20)));
            Body::Resident(raw.get(at..at.saturating_add(len)).ok_or_else(|| bad("value"))?.to_vec())
        } else {
            let (allocated, size, unit_log) = (le64(raw, 40), le64(raw, 48), le16(raw, 34));
            if size > i64::MAX as u64 {
                return Err(bad("size"));
            }
            let runs_at = usize::from(le16(raw, 32));
            // Those with holes tell what they take without them, in a longer header.
            let has_holes = le16(raw, 12) & (COMPRESSED | SPARSE) != 0 && runs_at >= 72;
            Body::NonResident {
                first_vcn: le64(raw, 16),
                unit_log,
                size,
                initialized: le64(raw, 56),
                total: if has_holes { le64(raw, 64) } else { allocated },
                runs: raw.get(runs_at..).unwrap_or_default().to_vec(),
            }
        };
        Ok(Attribute { kind: le32(raw, 0), name, flags: le16(raw, 12), id: le16(raw, 14), body })
    }
}
