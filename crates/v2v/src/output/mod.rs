//! Where results go and what they are: one file for each thing that is written.

use std::path::PathBuf;

pub mod folder;
pub mod libvirt;
pub mod names;
pub mod script;
pub mod virsh;

pub use folder::Folder;

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
    /// Reads `NEW` or `OLD:NEW`; `plug` makes a place of the new name.
    pub fn parse(text: &str, plug: fn(String) -> Plug) -> Self {
        match text.split_once(':') {
            Some((old, new)) => PlugRule { old: Some(old.into()), new: plug(new.into()) },
            None => PlugRule { old: None, new: plug(text.into()) },
        }
    }
}

/// The new machine, as all outputs describe it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name: safe in file names and XML.
    pub name: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// What its owner wrote about it.
    pub description: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// `x86_64`, `i686`.
    pub arch: String,
    /// UEFI instead of BIOS.
    pub uefi: bool,
    /// Its disks, in order.
    pub disks: Vec<MachineDisk>,
    /// Its NICs, in order.
    pub nics: Vec<MachineNic>,
}

/// One disk of the new machine.
#[derive(Clone, Debug)]
pub struct MachineDisk {
    /// `vda`
    pub device: String,
    /// The absolute path of its file.
    pub file: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The guest may not write it.
    pub read_only: bool,
}

/// One NIC of the new machine.
#[derive(Clone, Debug)]
pub struct MachineNic {
    /// Its MAC address.
    pub mac: String,
    /// Where it is plugged in; libvirt's default network when `None`.
    pub plug: Option<Plug>,
    /// Its slot on the first PCI bus: NICs keep their order.
    pub slot: u8,
}

/// The first PCI slot of a NIC: 0 is the bridge, 1 the chipset, 2 the display.
const FIRST_NIC_SLOT: u8 = 3;
/// NICs that have a slot of their own; libvirt places any more.
pub const SLOTS: usize = 16;

impl Machine {
    /// The NICs of a source, by the user's rules.
    pub fn nics(source: &crate::source::Source, rules: &[PlugRule]) -> Vec<MachineNic> {
        let plug = |nic: &crate::source::Nic| {
            let own = nic.bridge.as_ref().or(nic.network.as_ref());
            let rule = rules.iter().find(|r| r.old.is_some() && r.old.as_ref() == own).or(rules.iter().find(|r| r.old.is_none()));
            let same = nic.bridge.clone().map(Plug::Bridge).or(nic.network.clone().map(Plug::Network));
            rule.map(|r| r.new.clone()).or(same)
        };
        let nic = |(index, nic): (usize, &crate::source::Nic)| MachineNic {
            mac: nic.mac.clone().unwrap_or_default(),
            plug: plug(nic),
            slot: FIRST_NIC_SLOT + u8::try_from(index).unwrap_or(u8::MAX - FIRST_NIC_SLOT),
        };
        source.nics.iter().enumerate().map(nic).collect()
    }
}

#[cfg(test)]
pub(crate) fn example() -> Machine {
    let disk = |device: &str, read_only| MachineDisk {
        device: device.into(),
        file: format!("/vm/R&D, 'new'/web-{device}.qcow2").into(),
        format: DiskFormat::Qcow2,
        read_only,
    };
    let nic = |mac: &str, plug, slot| MachineNic { mac: mac.into(), plug, slot };
    Machine {
        name: "web".into(),
        uuid: Some("4dea22b3-1d52-d8f3-2516-782e98ab3fa0".into()),
        description: "the shop & its <database>\u{7}".into(),
        memory_mib: 512,
        vcpus: 2,
        arch: "x86_64".into(),
        uefi: false,
        disks: vec![disk("vda", false), disk("vdb", true)],
        nics: vec![
            nic("00:16:3e:77:00:10", Some(Plug::Bridge("br0".into())), 3),
            nic("00:16:3e:77:00:11", Some(Plug::Network("lan".into())), 4),
            nic("00:16:3e:77:00:12", None, 5),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Nic;

    #[test]
    fn nics_go_where_the_rules_say() {
        let (mut source, _) = crate::testing::xen_tools_guest();
        let nic = |bridge: Option<&str>, network: Option<&str>| Nic {
            bridge: bridge.map(Into::into),
            network: network.map(Into::into),
            ..Nic::default()
        };
        source.nics = vec![nic(Some("xenbr0"), None), nic(Some("xenbr1"), None), nic(None, Some("lan")), nic(None, None)];
        let plugs = |rules: &[PlugRule]| Machine::nics(&source, rules).into_iter().map(|n| n.plug).collect::<Vec<_>>();
        let (bridge, network) = (|b: &str| Some(Plug::Bridge(b.into())), |n: &str| Some(Plug::Network(n.into())));
        assert_eq!(plugs(&[]), [bridge("xenbr0"), bridge("xenbr1"), network("lan"), None]);
        let rules = [PlugRule::parse("xenbr0:br7", Plug::Bridge), PlugRule::parse("default", Plug::Network)];
        assert_eq!(plugs(&rules), [bridge("br7"), network("default"), network("default"), network("default")]);
        assert_eq!(Machine::nics(&source, &[]).iter().map(|n| n.slot).collect::<Vec<_>>(), [3, 4, 5, 6]);
    }
}
