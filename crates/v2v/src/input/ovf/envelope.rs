//! The descriptor: files, disks, and the machines that have them. Namespaces are not looked at: OVF 0.9, 1 and 2 differ in them.

use std::collections::HashMap;

use roxmltree::{Document, Node};

use super::system::System;
use super::units;
use crate::{Error, Result};

/// A descriptor.
#[derive(Debug)]
pub(super) struct Envelope {
    pub disks: Vec<Disk>,
    pub systems: Vec<System>,
}

/// A virtual disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub id: String,
    /// None: it is empty.
    pub file: Option<File>,
    /// Bytes.
    pub capacity: Option<u64>,
    /// The URI of its format's specification.
    specification: String,
}

/// A file that belongs to the package.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub href: String,
    pub is_gzip: bool,
    pub is_split: bool,
}

impl Disk {
    /// The name of its format in [`imgcore::Formats`]; `None`: find out.
    pub fn format(&self) -> Option<&'static str> {
        let specification = self.specification.to_ascii_lowercase();
        let known = [("vmdk", "vmdk"), ("vhdx", "vhdx"), ("vhd", "vpc"), ("qcow", "qcow2")];
        known.iter().find(|(word, _)| specification.contains(word)).map(|(_, format)| *format)
    }
}

/// Where errors are.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub file: &'a str,
    pub document: &'a Document<'a>,
}

impl At<'_> {
    pub fn error(&self, node: Node<'_, '_>, what: impl Into<String>) -> Error {
        let line = self.document.text_pos_at(node.range().start).row as usize;
        Error::Config { file: self.file.into(), line, what: what.into() }
    }
}

impl Envelope {
    /// `file` is the descriptor's name, for messages.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let text = decode(bytes);
        let options = roxmltree::ParsingOptions { nodes_limit: 200_000, ..Default::default() };
        let document = Document::parse_with_options(&text, options).map_err(|e| Error::Config {
            file: file.into(),
            line: e.pos().row as usize,
            what: format!("not well-formed XML: {e}"),
        })?;
        let at = At { file, document: &document };
        let root = document.root_element();
        if root.tag_name().name() != "Envelope" {
            return Err(at.error(root, format!("<{}> is no <Envelope>: this is no OVF", root.tag_name().name())));
        }
        let files = files(root);
        let disks = find(root, "DiskSection").flat_map(|s| find(s, "Disk")).map(|n| disk(at, n, &files)).collect::<Result<Vec<_>>>()?;
        let choice = configuration(root);
        let systems = root.descendants().filter(|n| n.tag_name().name() == "VirtualSystem");
        let systems = systems.map(|n| System::parse(at, n, &disks, choice.as_deref())).collect::<Result<_>>()?;
        Ok(Envelope { disks, systems })
    }
}

/// UTF-8, or UTF-16 with its mark, which XenCenter has written.
fn decode(bytes: &[u8]) -> String {
    let units =
        |read: fn([u8; 2]) -> u16| String::from_utf16_lossy(&bytes.as_chunks().0.iter().skip(1).map(|c| read(*c)).collect::<Vec<_>>());
    match bytes {
        [0xff, 0xfe, ..] => units(u16::from_le_bytes),
        [0xfe, 0xff, ..] => units(u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn files(root: Node<'_, '_>) -> HashMap<String, File> {
    let file = |node: Node<'_, '_>| {
        let is_gzip = attribute(node, "compression").is_some_and(|c| c.eq_ignore_ascii_case("gzip"));
        let file = File { href: attribute(node, "href")?.to_owned(), is_gzip, is_split: attribute(node, "chunkSize").is_some() };
        Some((attribute(node, "id")?.to_owned(), file))
    };
    find(root, "References").flat_map(|s| find(s, "File")).filter_map(file).collect()
}

fn disk(at: At<'_>, node: Node<'_, '_>, files: &HashMap<String, File>) -> Result<Disk> {
    let id = attribute(node, "diskId").ok_or_else(|| at.error(node, "a <Disk> without a diskId"))?.to_owned();
    let file = match attribute(node, "fileRef").filter(|r| !r.is_empty()) {
        None => None,
        Some(name) => {
            Some(files.get(name).cloned().ok_or_else(|| at.error(node, format!("disk {id} is in a file {name}, which is not listed")))?)
        }
    };
    if attribute(node, "parentRef").is_some_and(|p| !p.is_empty()) {
        return Err(at.error(node, format!("disk {id} holds only the difference to another one: export the machine without snapshots")));
    }
    let unit = attribute(node, "capacityAllocationUnits").unwrap_or("byte");
    // A capacity may be a property of the installation's, as ${size}.
    let number = attribute(node, "capacity").and_then(|c| c.trim().parse::<u64>().ok());
    let capacity = number.zip(units::bytes(unit)).and_then(|(n, unit)| n.checked_mul(unit)).filter(|c| *c > 0 && *c < 1 << 60);
    Ok(Disk { id, file, capacity, specification: attribute(node, "format").unwrap_or_default().to_owned() })
}

/// The configuration that is deployed if nobody chooses one.
fn configuration(root: Node<'_, '_>) -> Option<String> {
    let all: Vec<_> = find(root, "DeploymentOptionSection").flat_map(|s| find(s, "Configuration")).collect();
    let default = all.iter().find(|c| matches!(attribute(**c, "default"), Some("true" | "1"))).or(all.first())?;
    attribute(*default, "id").map(str::to_owned)
}

/// The children of this name, in whatever namespace.
pub(super) fn find<'a, 'd: 'a>(node: Node<'a, 'd>, name: &'static str) -> impl Iterator<Item = Node<'a, 'd>> {
    node.children().filter(move |n| n.tag_name().name() == name)
}

/// The attribute of this name, in whatever namespace.
pub(super) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|a| a.name() == name).map(|a| a.value())
}

/// The text of the first child of this name.
pub(super) fn text(node: Node<'_, '_>, name: &'static str) -> Option<String> {
    find(node, name).next()?.text().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}
