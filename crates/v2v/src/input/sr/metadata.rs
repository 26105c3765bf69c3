//! What a pool called the VDIs of an LVM repository: its volume `MGT`.
//!
//! Source: xapi-project/sm, `drivers/srmetadata.py`. Of its sectors of 512 bytes the first is `XSSM:LENGTH:MAJOR:MINOR`, the next three describe the
//! repository, and then each VDI has two: XML, filled up with spaces.

use std::collections::BTreeMap;

use imgcore::Image;

/// The volume's name.
pub(super) const VOLUME: &str = "MGT";

const SECTOR: usize = 512;
const FIRST: u64 = 4 * SECTOR as u64;
const RECORD: usize = 2 * SECTOR;
/// XenServer makes the volume 4 MiB large, and lets it grow.
const LIMIT: u64 = 64 << 20;

/// What is known of a VDI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub name: String,
    pub is_snapshot: bool,
}

/// What the volume says of each VDI, by its uuid in lower case. Nothing where it cannot be understood: names are all that is lost.
pub(super) fn read(volume: &dyn Image) -> BTreeMap<String, Known> {
    let mut header = [0; SECTOR];
    if volume.size() < FIRST || volume.read_at(&mut header, 0).is_err() {
        return BTreeMap::new();
    }
    let header = String::from_utf8_lossy(&header).into_owned();
    let length = header.strip_prefix("XSSM:").and_then(|rest| rest.split(':').next()?.trim().parse::<u64>().ok());
    let length = length.unwrap_or(0).min(volume.size()).min(LIMIT);
    let mut known = BTreeMap::new();
    let mut record = [0; RECORD];
    for at in (FIRST..length.saturating_sub(RECORD as u64 - 1)).step_by(RECORD) {
        if volume.read_at(&mut record, at).is_err() {
            break;
        }
        known.extend(vdi(&String::from_utf8_lossy(&record)));
    }
    known
}

fn vdi(record: &str) -> Option<(String, Known)> {
    let options = roxmltree::ParsingOptions { nodes_limit: 100, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(record.trim_matches(['\0', ' ', '\n']), options).ok()?;
    let text = |name: &str| document.root_element().children().find(|c| c.has_tag_name(name)).and_then(|c| c.text()).unwrap_or_default();
    let is_vdi = document.root_element().has_tag_name("vdi") && text("deleted") != "1" && !text("uuid").is_empty();
    let name = text("name_label").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    is_vdi.then(|| (text("uuid").to_ascii_lowercase(), Known { name, is_snapshot: text("is_a_snapshot") == "1" }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imgcore::raw::Raw;
    use imgcore::storage::MemStorage;

    use super::*;

    fn known(content: &[u8]) -> BTreeMap<String, Known> {
        let mut bytes = content.to_vec();
        bytes.resize(1 << 20, b' ');
        read(&Raw::open(Arc::new(MemStorage::from_bytes("MGT", &bytes))).unwrap())
    }

    fn volume(records: &[&str]) -> Vec<u8> {
        let mut out = format!("{:<2048}", format!("XSSM:{:<10}:1:2", 2048 + 1024 * records.len()));
        records.iter().for_each(|record| out += &format!("{record:<1024}"));
        out.into_bytes()
    }

    #[test]
    fn names_are_told_and_what_is_damaged_is_passed_over() {
        let records = [
            "<vdi><name_label>web &amp; mail</name_label><name_description></name_description>   <deleted>0</deleted><uuid>AA-1</uuid></vdi>",
            "<vdi><name_label>old</name_label><deleted>1</deleted><uuid>aa-2</uuid></vdi>",
            "<vdi><name_label>cut",
            "<vdi><name_label>before\u{7}</name_label><deleted>0</deleted><uuid>aa-3</uuid><is_a_snapshot>1</is_a_snapshot></vdi>",
        ];
        let name = |name: &str, is_snapshot| Known { name: name.into(), is_snapshot };
        let expected = [("aa-1".to_owned(), name("web & mail", false)), ("aa-3".to_owned(), name("before ", true))];
        let mut bytes = volume(&records);
        bytes.iter_mut().filter(|b| **b == 7).for_each(|b| *b = b'\t');
        assert_eq!(known(&bytes), expected.into());
        for bad in [&b"XSSM:99999999999999999999:1:2"[..], b"XSSM:-1:", b"\xff\xfe", b"XSSM:18446744073709551615:1:2"] {
            assert!(known(bad).is_empty());
        }
    }
}
