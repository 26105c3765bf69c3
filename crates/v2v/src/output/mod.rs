//! Where results go and what they are: one file for each thing that is written.

pub mod folder;
pub mod kubevirt;
pub mod libvirt;
pub mod libvirt_xen;
pub mod machine;
pub mod names;
pub mod nbd;
pub mod proxmox;
pub mod script;
pub mod virsh;
pub mod xl;
pub mod xva;

use imgcore::nbd::uri::Uri;

use crate::target::Target;

pub use folder::Folder;
#[cfg(test)]
pub(crate) use machine::example;
pub use machine::{Bus, Machine, MachineDisk, MachineNic, NicModel, SLOTS};

/// A file that describes the machine, beside its disks: one file of this folder, and one line in [`documents`].
pub struct Document {
    /// What follows the machine's name in the file's name: `.xml`.
    pub suffix: &'static str,
    /// A program.
    pub executable: bool,
    /// What is written.
    pub text: fn(&Machine) -> String,
}

impl Document {
    /// The name of the file.
    pub fn file(&self, machine: &str) -> String {
        format!("{machine}{}", self.suffix)
    }
}

/// What the result is handed over as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// Disks in a folder, for hosts of the target itself.
    #[default]
    Files,
    /// One appliance that XenServer imports.
    Appliance,
    /// Disks in a folder, and what KubeVirt makes a machine of.
    KubeVirt,
    /// Disks in a folder, and what makes them a machine of Proxmox VE.
    Proxmox,
    /// Disks on servers, one for each.
    Nbd(Vec<Uri>),
}

/// What is written beside the disks, in the order in which the files get their place: the last one is the mark of a whole result.
pub fn documents(target: Target, handover: &Handover) -> &'static [Document] {
    match (handover, target) {
        (Handover::KubeVirt, _) => &[kubevirt::DOCUMENT],
        (Handover::Proxmox, _) => &[proxmox::DOCUMENT],
        (_, Target::Kvm) => &[script::DOCUMENT, libvirt::DOCUMENT],
        (_, Target::XenHvm) => &[xl::DOCUMENT, libvirt_xen::DOCUMENT],
    }
}

/// The format of the result's disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// qcow2.
    #[default]
    Qcow2,
    /// Raw, with holes.
    Raw,
}

impl DiskFormat {
    /// Its name, as QEMU, libvirt and [`imgcore::Formats`] call it; also the end of the file's name.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

/// Where a NIC is plugged in on the new host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plug {
    /// A bridge of the host.
    Bridge(String),
    /// A network of libvirt.
    Network(String),
}

/// Old names of bridges or networks and where their NICs go: `--bridge xenbr0:br0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlugRule {
    /// The source's bridge or network; any when `None`.
    pub old: Option<String>,
    /// The new place.
    pub new: Plug,
}

impl PlugRule {
    /// Reads `NEW` or `OLD:NEW`, where OLD may have colons itself; `plug` makes a place of the new name.
    pub fn parse(text: &str, plug: fn(String) -> Plug) -> Self {
        match text.rsplit_once(':') {
            Some((old, new)) => PlugRule { old: Some(old.into()), new: plug(new.into()) },
            None => PlugRule { old: None, new: plug(text.into()) },
        }
    }
}
