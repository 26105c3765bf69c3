//! A libvirt domain's disks: from a file as `virsh dumpxml` writes it, or from virsh itself.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use guestfs::volume::letters;
use imgcore::nbd::uri::{Address, Uri};
use roxmltree::{Document, Node, ParsingOptions};

use super::sources::{DiskArg, Place};
use crate::common::Failure;

/// No domain is described by more.
const MAX_LEN: u64 = 16 << 20;
const MAX_NODES: u32 = 100_000;

/// A guest as libvirt knows it.
pub(super) struct Domain {
    pub name: String,
    pub uuid: Option<String>,
    pub disks: Vec<DiskArg>,
}

impl Domain {
    /// The domain in a file, or of a name or UUID where there is no such file.
    pub(super) fn find(file_or_name: &OsStr, connect: Option<&str>) -> Result<Self, Failure> {
        let (path, shown) = (Path::new(file_or_name), file_or_name.to_string_lossy());
        if connect.is_none() && path.exists() {
            let failed = |e: std::io::Error| Failure::new(format!("{shown}: cannot read: {e}"));
            if path.metadata().map_err(failed)?.len() > MAX_LEN {
                return Err(Failure::new(format!("{shown}: this is too large for a domain's XML")).hint("add disk images with -a"));
            }
            let text = std::fs::read_to_string(path).map_err(failed)?;
            return Self::parse(&text, &shown, path.parent().unwrap_or(Path::new("")));
        }
        let mut virsh = Command::new("virsh");
        virsh.args(["--quiet", "--readonly"]).args(connect.map(|uri| format!("--connect={uri}")));
        let output = virsh.args(["dumpxml", "--domain"]).arg(file_or_name).output().map_err(|e| {
            let what = if e.kind() == std::io::ErrorKind::NotFound { "virsh is not installed here".to_string() } else { e.to_string() };
            Failure::new(format!("{shown}: there is no such file, and libvirt cannot be asked for a domain of this name: {what}"))
                .hint("-d takes a file as 'virsh dumpxml' writes it, or the name of a domain")
        })?;
        if !output.status.success() {
            let what = guestfs::show(String::from_utf8_lossy(&output.stderr).trim().as_bytes());
            return Err(Failure::new(format!("{shown}: there is no such file, and virsh says: {what}")));
        }
        Self::parse(&String::from_utf8_lossy(&output.stdout), &shown, Path::new("/"))
    }

    /// Relative files lie below `folder`.
    fn parse(text: &str, shown: &str, folder: &Path) -> Result<Self, Failure> {
        let bad = |what: String| Failure::new(format!("{shown}: {what}")).hint("-d takes a file as 'virsh dumpxml' writes it");
        let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options).map_err(|e| bad(e.to_string()))?;
        let root = document.root_element();
        let text_of = |name: &str| root.children().find(|c| c.has_tag_name(name)).and_then(|c| c.text()).map(|t| t.trim().to_string());
        let mut disks = Vec::new();
        for disk in document.descendants().filter(|n| n.has_tag_name("disk") && n.attribute("device").unwrap_or("disk") == "disk") {
            let source = child(disk, "source").ok_or_else(|| bad("a disk has no source".into()))?;
            let place = place(source, folder).map_err(bad)?;
            let format = child(disk, "driver").and_then(|d| d.attribute("type")).map(|f| if f == "aio" { "raw" } else { f }.to_string());
            let name = child(disk, "target").and_then(|t| t.attribute("dev")).map(str::to_string);
            disks.push(DiskArg::new(name.unwrap_or_else(|| format!("sd{}", letters(disks.len()))), place, format));
        }
        if disks.is_empty() {
            return Err(bad("there is no disk in it".into()));
        }
        Ok(Domain { name: text_of("name").unwrap_or_else(|| shown.to_string()), uuid: text_of("uuid"), disks })
    }
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|c| c.has_tag_name(name))
}

fn place(source: Node<'_, '_>, folder: &Path) -> Result<Place, String> {
    if let Some(file) = source.attribute("file").or(source.attribute("dev")) {
        return Ok(Place::File(folder.join(file)));
    }
    let export = source.attribute("name").unwrap_or_default().to_string();
    let host = source.children().find(|c| c.has_tag_name("host"));
    match (source.attribute("protocol"), host) {
        (Some("nbd"), Some(host)) => {
            let address = match (host.attribute("socket"), host.attribute("name")) {
                (Some(socket), _) => Address::Unix(socket.into()),
                (None, Some(name)) => {
                    let port =
                        host.attribute("port").map_or(Ok(10809), str::parse).map_err(|_| "the port of a disk's server is no number")?;
                    Address::Tcp { host: name.into(), port }
                }
                _ => return Err("a disk's server has neither a name nor a socket".into()),
            };
            Ok(Place::Nbd(Uri { address, export }))
        }
        (Some(protocol), _) => Err(format!("a disk is on a server that speaks {protocol}, which is not supported")),
        _ => Err("a disk has neither a file nor a device as its source".into()),
    }
}
