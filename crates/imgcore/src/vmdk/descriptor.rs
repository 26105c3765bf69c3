//! The descriptor: text that names the extents, the parent and the disk's geometry, in a file of its own or inside an extent.

use std::fmt::Write;

use super::FORMAT;
use crate::{Error, Result};

/// Larger ones are refused. The same bound as QEMU's.
pub(super) const MAX_LEN: u64 = 1 << 20;

/// The CID that stands for no parent.
pub(super) const NO_PARENT: u32 = 0xffff_ffff;

/// A parsed descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub cid: u32,
    pub parent_cid: u32,
    pub create_type: String,
    pub parent_file_name_hint: Option<String>,
    pub extents: Vec<ExtentLine>,
}

/// One line such as `RW 4192256 SPARSE "disk-s001.vmdk"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub sectors: u64,
    pub kind: String,
    pub file: Option<String>,
    /// The first sector of the file that belongs to the disk.
    pub offset: u64,
}

/// Whether `head` is the start of a descriptor: comments and empty lines, then its version.
pub(super) fn is_descriptor(head: &[u8]) -> bool {
    let first = head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty() && !line.starts_with(b"#"));
    let Some(Ok(line)) = first.map(std::str::from_utf8) else { return false };
    line.split_once('=')
        .is_some_and(|(key, value)| key.trim_end().eq_ignore_ascii_case("version") && matches!(unquoted(value), "1" | "2" | "3" | "4"))
}

fn unquoted(value: &str) -> &str {
    let value = value.trim();
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
}

impl Descriptor {
    /// Parses the text of `file`; it ends with the first zero byte. What is not known is passed over.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(bytes);
        let corrupt = |line: &str, what: &str| Error::corrupt(file, FORMAT, None, format!("its descriptor has '{line}': {what}"));
        let mut parsed = Descriptor { parent_cid: NO_PARENT, ..Descriptor::default() };
        let mut has_cid = false;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(extent) = extent_line(line) {
                parsed.extents.push(extent.map_err(|what| corrupt(line, what))?);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let cid = || u32::from_str_radix(unquoted(value), 16).map_err(|_| corrupt(line, "no hexadecimal number of 32 bits"));
            match key.trim().to_ascii_lowercase().as_str() {
                "cid" => (parsed.cid, has_cid) = (cid()?, true),
                "parentcid" => parsed.parent_cid = cid()?,
                "createtype" => parsed.create_type = unquoted(value).to_owned(),
                "parentfilenamehint" => parsed.parent_file_name_hint = Some(unquoted(value).to_owned()),
                _ => {}
            }
        }
        if !has_cid {
            return Err(Error::corrupt(file, FORMAT, None, "its descriptor has no CID"));
        }
        Ok(parsed)
    }

    /// The parent's name, if there is a parent.
    pub fn parent(&self) -> Option<&str> {
        self.parent_file_name_hint.as_deref().filter(|hint| !hint.is_empty() && self.parent_cid != NO_PARENT)
    }
}

/// Parses a line that begins as an extent's does.
fn extent_line(line: &str) -> Option<Result<ExtentLine, &'static str>> {
    let (access, rest) = line.split_once(char::is_whitespace)?;
    match access.to_ascii_uppercase().as_str() {
        "RW" | "RDONLY" => Some(extent(rest).ok_or("no extent: a number of sectors, a type and a quoted file name are expected")),
        "NOACCESS" => Some(Err("the extent must not be accessed")),
        _ => None,
    }
}

fn extent(rest: &str) -> Option<ExtentLine> {
    let (sectors, rest) = rest.trim_start().split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let mut line = ExtentLine { sectors: sectors.parse().ok()?, kind: kind.to_ascii_uppercase(), file: None, offset: 0 };
    if line.kind == "ZERO" {
        return Some(line);
    }
    let (file, rest) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
    line.file = Some(file.to_owned());
    if let Some(offset) = rest.split_whitespace().next() {
        line.offset = offset.parse().ok()?;
    }
    (!file.is_empty()).then_some(line)
}

/// What a new descriptor tells, besides its one extent.
pub(super) struct NewDescriptor<'a> {
    pub cid: u32,
    pub create_type: &'a str,
    pub sectors: u64,
    pub extent: &'a str,
    pub hardware_version: &'a str,
    pub adapter_type: &'a str,
    pub tools_version: &'a str,
}

impl NewDescriptor<'_> {
    /// The text, as QEMU writes it.
    pub fn text(&self) -> String {
        let heads = if self.adapter_type == "ide" { 16 } else { 255 };
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={NO_PARENT:08x}\ncreateType=\"{}\"\n",
            self.cid, self.create_type
        );
        let _ = write!(
            text,
            "\n# Extent description\nRW {} SPARSE \"{}\"\n\n# The Disk Data Base\n#DDB\n\n",
            self.sectors,
            self.extent.replace(['"', '\n', '\r'], "_")
        );
        for (name, value) in [
            ("virtualHWVersion", self.hardware_version.to_owned()),
            ("geometry.cylinders", (self.sectors / (63 * heads)).to_string()),
            ("geometry.heads", heads.to_string()),
            ("geometry.sectors", "63".to_owned()),
            ("adapterType", self.adapter_type.to_owned()),
            ("toolsVersion", self.tools_version.to_owned()),
        ] {
            let _ = writeln!(text, "ddb.{name} = \"{value}\"");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_all_kinds_are_read() {
        let text = "# Disk DescriptorFile\r\nversion=1\r\nencoding=\"windows-1252\"\r\nCID = FFFFFFFE\r\nParentCID=1a2b3c4d\r\ncreateType=\"vmfs\"\r\n\
                    parentFileNameHint=\"my base.vmdk\"\r\n# Extent description\r\nRW 4192256 SPARSE \"a b-s001.vmdk\"\r\n  rdonly 63 flat \"/dev/sda\" 128 \"id\"\r\n\
                    RW 10 ZERO\r\nRW 7 ZERO \"ignored\"\r\nddb.adapterType = \"lsilogic\"\r\n\0RW x";
        assert!(is_descriptor(text.as_bytes()));
        let parsed = Descriptor::parse("x", text.as_bytes()).unwrap();
        assert_eq!((parsed.cid, parsed.parent_cid, parsed.parent()), (0xffff_fffe, 0x1a2b_3c4d, Some("my base.vmdk")));
        let extent = |sectors, kind: &str, file: Option<&str>, offset| ExtentLine {
            sectors,
            kind: kind.into(),
            file: file.map(str::to_owned),
            offset,
        };
        assert_eq!(
            parsed.extents,
            [
                extent(4192256, "SPARSE", Some("a b-s001.vmdk"), 0),
                extent(63, "FLAT", Some("/dev/sda"), 128),
                extent(10, "ZERO", None, 0),
                extent(7, "ZERO", None, 0)
            ]
        );
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        for (text, message) in [
            ("CID=1\nNOACCESS 10 FLAT \"x\" 0", "must not be accessed"),
            ("CID=1\nRW ten FLAT \"x\"", "no extent"),
            ("CID=1\nRW 10 FLAT x", "no extent"),
            ("CID=1\nRW 10 FLAT \"x", "no extent"),
            ("CID=1\nRW 18446744073709551616 FLAT \"x\"", "no extent"),
            ("CID=123456789", "no hexadecimal"),
            ("version=1", "no CID"),
        ] {
            let error = Descriptor::parse("x", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
        for text in ["", "#\n#\n", "version=9\n", "# x\nfoo\nversion=1\n", "KDMV"] {
            assert!(!is_descriptor(text.as_bytes()), "{text}");
        }
    }
}
