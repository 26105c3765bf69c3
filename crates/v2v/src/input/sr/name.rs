//! How XenServer's storage managers call VDIs: by their uuid and their kind.

use std::path::Path;

/// What a volume group of a repository is called, before the repository's uuid.
pub(super) const GROUP: &str = "VG_XenStorage-";

/// What a VDI is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vhd,
    Raw,
    Qcow2,
}

impl Kind {
    /// The name of the format in [`imgcore::Formats`].
    pub fn format(self) -> &'static str {
        match self {
            Kind::Vhd => "vpc",
            Kind::Raw => "raw",
            Kind::Qcow2 => "qcow2",
        }
    }
}

/// Files by their ends, volumes by their beginnings.
const KINDS: &[(Kind, &str, &str)] = &[(Kind::Vhd, ".vhd", "VHD-"), (Kind::Raw, ".raw", "LV-"), (Kind::Qcow2, ".qcow2", "QCOW2-")];

/// The name of a VDI's file or volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VdiName {
    /// In lower case.
    pub uuid: String,
    pub kind: Kind,
    /// The volume group, where the name tells it: that of a device in /dev/mapper does.
    pub group: Option<String>,
}

impl VdiName {
    /// Reads `<uuid>.vhd`, `VHD-<uuid>`, `VG_XenStorage--<sr>-VHD--<uuid>` with doubled dashes, and those of other kinds.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some((group, volume)) = mapped(name).filter(|(group, _)| group.starts_with(GROUP)) {
            return Some(VdiName { group: Some(group), ..Self::parse(&volume)? });
        }
        let found = KINDS.iter().find_map(|(kind, end, start)| {
            let uuid = name.strip_suffix(end).or_else(|| name.strip_prefix(start))?;
            is_uuid(uuid).then(|| (uuid.to_ascii_lowercase(), *kind))
        });
        found.map(|(uuid, kind)| VdiName { uuid, kind, group: None })
    }

    /// That of a file or device, by the last part of its path.
    pub fn of(path: &Path) -> Option<Self> {
        Self::parse(path.file_name()?.to_str()?)
    }

    /// What the VDI `uuid` may be called, for messages.
    pub fn all(uuid: &str) -> String {
        let names = KINDS.iter().flat_map(|(_, end, start)| [format!("{uuid}{end}"), format!("{start}{uuid}")]);
        names.collect::<Vec<_>>().join(", ")
    }
}

/// Splits a name of the device mapper at its one single dash; doubled ones stand for those of the two names.
fn mapped(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'-'), Some(b'-')) => at += 2,
            (Some(b'-'), _) => return Some((name.get(..at)?.replace("--", "-"), name.get(at + 1..)?.replace("--", "-"))),
            _ => at += 1,
        }
    }
    None
}

fn is_uuid(text: &str) -> bool {
    let dashes = [8, 13, 18, 23];
    text.len() == 36 && text.bytes().enumerate().all(|(at, b)| if dashes.contains(&at) { b == b'-' } else { b.is_ascii_hexdigit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_volumes_and_devices() {
        const UUID: &str = "0b4cd4c2-6e6b-4f2a-9d0a-3f1f0d6b8a11";
        let doubled = UUID.replace('-', "--");
        let name = |kind, group: Option<&str>| Some(VdiName { uuid: UUID.into(), kind, group: group.map(Into::into) });
        for (text, expected) in [
            (format!("{UUID}.vhd"), name(Kind::Vhd, None)),
            (format!("{}.raw", UUID.to_uppercase()), name(Kind::Raw, None)),
            (format!("{UUID}.qcow2"), name(Kind::Qcow2, None)),
            (format!("VHD-{UUID}"), name(Kind::Vhd, None)),
            (format!("LV-{UUID}"), name(Kind::Raw, None)),
            (format!("QCOW2-{UUID}"), name(Kind::Qcow2, None)),
            (format!("VG_XenStorage--aa--bb-VHD--{doubled}"), name(Kind::Vhd, Some("VG_XenStorage-aa-bb"))),
            (format!("vg-VHD--{doubled}"), None),
            ("MGT".into(), None),
            (format!("OLD_{UUID}.vhd"), None),
            (UUID.to_owned(), None),
            ("web.vhd".into(), None),
            ("ü-".into(), None),
        ] {
            assert_eq!(VdiName::parse(&text), expected, "{text}");
        }
        assert_eq!(VdiName::of(Path::new(&format!("/dev/VG_XenStorage-aa/VHD-{UUID}"))), name(Kind::Vhd, None));
    }
}
