//! Handing a result over to libvirt, as `virsh define` does it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::{Error, Result};

/// Defines the guest that `xml` describes, on libvirt's own connection or on `connect`, and has it started with its host if it is to be. It can be
/// done again: a guest that libvirt has already with these very disks is no error.
pub fn define(xml: &Path, name: &str, autostart: bool, connect: Option<&str>) -> Result<()> {
    let virsh = |arguments: &[&std::ffi::OsStr]| {
        let mut command = Command::new("virsh");
        command.stdin(Stdio::null()).env("LC_ALL", "C").arg("-q");
        if let Some(uri) = connect {
            command.args(["-c", uri]);
        }
        command.args(arguments).output().map_err(|source| Error::Io { file: "virsh".into(), action: "run", source })
    };
    let defined = virsh(&["define".as_ref(), xml.as_os_str()]).map_err(|e| by_hand(xml, &e.to_string()))?;
    if defined.status.success() {
        if !autostart {
            return Ok(());
        }
        let started = virsh(&["autostart".as_ref(), name.as_ref()])?;
        let said = String::from_utf8_lossy(&started.stderr);
        return match started.status.success() {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "{name}: the guest is converted and defined, but 'virsh autostart {name}' failed: {}",
                said.trim().trim_start_matches("error: ")
            ))),
        };
    }
    // Without a UUID of its own in the XML, libvirt takes it for another guest of that name.
    let there = virsh(&["dumpxml".as_ref(), "--inactive".as_ref(), name.as_ref()])?;
    if there.status.success() && same_disks(xml, &there) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&defined.stderr);
    Err(by_hand(xml, said.trim().trim_start_matches("error: ")))
}

/// The result is whole: only this is left to do.
fn by_hand(xml: &Path, what: &str) -> Error {
    Error::Invalid(format!("{0}: the guest is converted, but 'virsh define {0}' failed: {what}", xml.display()))
}

/// Whether the domain that libvirt shows has the disks of ours.
fn same_disks(xml: &Path, there: &Output) -> bool {
    let Ok(ours) = std::fs::read_to_string(xml) else { return false };
    let there = String::from_utf8_lossy(&there.stdout);
    let files = |text: &str| -> Option<Vec<String>> {
        let document = roxmltree::Document::parse(text).ok()?;
        Some(document.descendants().filter(|n| n.has_tag_name("source")).filter_map(|n| n.attribute("file").map(Into::into)).collect())
    };
    let ours = files(&ours).filter(|f| !f.is_empty());
    ours.is_some() && ours == files(&there)
}
