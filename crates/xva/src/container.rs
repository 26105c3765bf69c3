//! Appliances as a container of named disks: `FILE#Ref:10`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use imgcore::formats::{Container, ContainerProbe, ContainerWriter, DiskSet, NamedDisk};
use imgcore::{Image, Result};

use crate::archive::{Member, Options, Xva};
use crate::bytes::Pipe;
use crate::model::{Boot, Form, Role, Vm};
use crate::tar::Tar;
use crate::wrap::{Wrap, unwrap};

/// Members that are looked at to tell an XVA from another tar.
const PROBED_MEMBERS: usize = 8;
/// The longest member that is passed over for it.
const PROBED_BYTES: u64 = 4 << 20;

/// Registers XVA archives and folders in a [table of formats](imgcore::Formats).
#[derive(Clone, Debug, Default)]
pub struct XvaContainer {
    /// How archives are opened.
    pub options: Options,
}

/// Whether `path` is an XVA: a folder with an `ova.xml`, or a tar (packed or not) that begins with one or with chunks.
/// What cannot be read is none.
pub fn probe(path: &Path) -> bool {
    if path.is_dir() {
        return path.join("ova.xml").is_file();
    }
    // A pipe would lose what is read here.
    std::fs::metadata(path).is_ok_and(|m| m.is_file()) && File::open(path).is_ok_and(probe_archive)
}

/// Whether an archive that begins with these bytes (four or more) is compressed as a whole.
pub fn is_packed(head: &[u8]) -> bool {
    Wrap::detect(head) != Wrap::None
}

fn probe_archive(file: File) -> bool {
    let Ok((_, reader)) = unwrap(file, "") else { return false };
    let mut tar = Tar::new(Pipe::new(reader, ""), "");
    for _ in 0..PROBED_MEMBERS {
        let Ok(Some(entry)) = tar.next() else { return false };
        let (folder, file) = entry.split();
        match Member::parse(file) {
            Member::Ova => return true,
            Member::Chunk(_) | Member::Legacy(_) | Member::Sum(..) if !folder.is_empty() => return true,
            _ if entry.size > PROBED_BYTES => return false,
            _ => {}
        }
    }
    false
}

impl Container for XvaContainer {
    fn name(&self) -> &'static str {
        "xva"
    }

    fn probe(&self, container: &ContainerProbe<'_>) -> bool {
        probe(container.path)
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn DiskSet>> {
        Ok(Arc::new(Xva::open(path, &self.options)?))
    }

    fn writer(&self) -> Option<&dyn ContainerWriter> {
        Some(self)
    }
}

impl DiskSet for Xva {
    fn disks(&self) -> Vec<NamedDisk> {
        self.appliance().disks.iter().map(|d| NamedDisk { name: d.id.clone(), size: d.size }).collect()
    }

    fn open_disk(&self, name: &str) -> Result<Arc<dyn Image>> {
        self.disk_by_id(name)
    }

    fn details(&self) -> Vec<(String, String)> {
        let appliance = self.appliance();
        let mut details = Vec::new();
        let mut detail = |key: &str, value: String| {
            if !value.is_empty() {
                details.push((key.to_string(), value));
            }
        };
        detail("kind", if appliance.form == Form::Legacy { "legacy".into() } else { "modern".into() });
        detail("stored as", self.wrapping().into());
        detail("written by", appliance.product.clone());
        for vm in &appliance.vms {
            detail("machine", describe(vm));
            for drive in &vm.drives {
                let disk = appliance.disks.get(drive.disk).map_or("", |d| &d.id);
                let boot = if drive.bootable { ", boots from it" } else { "" };
                let read_only = if drive.read_only { ", read only" } else { "" };
                detail("drive", format!("{} of {}: {disk}{boot}{read_only}", drive.device, vm.name));
            }
            for nic in &vm.nics {
                detail(
                    "nic",
                    [&nic.mac, &nic.bridge, &nic.network].into_iter().filter(|t| !t.is_empty()).cloned().collect::<Vec<_>>().join(", "),
                );
            }
            if !vm.dom0_files().is_empty() {
                detail(
                    "warning",
                    format!("{} starts with files of the Xen host that are not in the archive: {}", vm.name, vm.dom0_files().join(", ")),
                );
            }
            if vm.suspended {
                detail("warning", format!("{} was suspended: its filesystems are dirty", vm.name));
            }
        }
        for disk in appliance.disks.iter().filter(|d| d.role == Role::Suspend) {
            detail("warning", format!("{} is the memory of a suspended machine, no disk", disk.id));
        }
        for warning in &appliance.warnings {
            detail("warning", warning.clone());
        }
        details
    }
}

fn describe(vm: &Vm) -> String {
    let kind = match &vm.boot {
        Boot::Hvm { uefi: true, .. } => "fully virtual, UEFI",
        Boot::Hvm { uefi: false, .. } => "fully virtual, BIOS",
        Boot::Pv { pvh: true, .. } => "PVH",
        Boot::Pv { .. } => "paravirtual",
    };
    let role = match (vm.snapshot, vm.template) {
        (true, _) => ", snapshot",
        (_, true) => ", template",
        _ => "",
    };
    format!("{} ({kind}{role}, {} MiB of memory, {} processors)", vm.name, vm.memory >> 20, vm.vcpus)
}
