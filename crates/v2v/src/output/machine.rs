//! The new machine, in one form for all outputs.

use std::path::PathBuf;

use imgcore::nbd::uri::Uri;

use super::{DiskFormat, Plug, PlugRule};
use crate::source::{Nic, Policy, Source};

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
    /// Its clock runs in local time, not in UTC.
    pub local_time: bool,
    /// How its host treats it.
    pub policy: Policy,
    /// Its disks, in order.
    pub disks: Vec<MachineDisk>,
    /// Its NICs, in order.
    pub nics: Vec<MachineNic>,
}

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// AHCI, for guests without virtio's drivers.
    Sata,
    /// As Xen emulates it, four disks at most.
    Ide,
}

/// What a NIC is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's 82540EM, for guests without virtio's drivers.
    E1000,
}

/// One disk of the new machine.
#[derive(Clone, Debug)]
pub struct MachineDisk {
    /// `vda`
    pub device: String,
    /// What it is attached to.
    pub bus: Bus,
    /// The absolute path of its file; where it is on a server, what that would be.
    pub file: PathBuf,
    /// The server that has it.
    pub server: Option<Uri>,
    /// Its size in bytes.
    pub size: u64,
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
    /// What it is.
    pub model: NicModel,
    /// Where it is plugged in; libvirt's default network when `None`.
    pub plug: Option<Plug>,
    /// The source's name of the network behind that bridge, where it has one.
    pub network: Option<String>,
    /// Its slot on the first PCI bus: NICs keep their order.
    pub slot: u8,
}

/// The first PCI slot of a NIC: 0 is the bridge, 1 the chipset, 2 the display.
const FIRST_NIC_SLOT: u8 = 3;
/// NICs that have a slot of their own; libvirt places any more.
pub const SLOTS: usize = 16;

impl Machine {
    /// QEMU's machine type.
    pub fn chipset(&self) -> &'static str {
        if self.uefi { "q35" } else { "pc" }
    }

    /// Attaches what systems without virtio's drivers know: IDE disks as long as they fit and the machine has IDE, else SATA, none of them
    /// read only, which QEMU emulates for neither; Intel's NICs.
    pub fn emulate_hardware(&mut self) {
        let bus = if self.uefi || self.disks.len() > 4 { Bus::Sata } else { Bus::Ide };
        for disk in &mut self.disks {
            disk.bus = bus;
            disk.read_only = false;
            let prefix = if bus == Bus::Ide { "hd" } else { "sd" };
            disk.device = format!("{prefix}{}", disk.device.trim_start_matches("vd"));
        }
        self.nics.iter_mut().for_each(|nic| nic.model = NicModel::E1000);
    }

    /// The NICs of a source, by the user's rules.
    pub fn nics(source: &Source, rules: &[PlugRule]) -> Vec<MachineNic> {
        let rule = |nic: &Nic| rules.iter().find(|rule| names(rule, nic)).or(rules.iter().find(|r| r.old.is_none()));
        let same = |nic: &Nic| nic.bridge.clone().map(Plug::Bridge).or(nic.network.clone().map(Plug::Network));
        let nic = |(index, nic): (usize, &Nic)| MachineNic {
            mac: nic.mac.clone().unwrap_or_default(),
            model: NicModel::default(),
            plug: rule(nic).map(|r| r.new.clone()).or(same(nic)),
            network: nic.network.clone().filter(|_| rule(nic).is_none()),
            slot: FIRST_NIC_SLOT + u8::try_from(index).unwrap_or(u8::MAX - FIRST_NIC_SLOT),
        };
        source.nics.iter().enumerate().map(nic).collect()
    }

    /// Sentences on NICs that no rule is for, where there are rules: another spelling of their bridge may be meant. Where there are none, on
    /// those of which nobody says where they are.
    pub fn unplugged(source: &Source, rules: &[PlugRule]) -> Vec<String> {
        let has_place = |nic: &Nic| nic.bridge.is_some() || nic.network.is_some();
        let is_for = |nic: &Nic| match rules {
            [] => has_place(nic),
            rules => rules.iter().any(|rule| rule.old.is_none() || names(rule, nic)),
        };
        let left = source.nics.iter().enumerate().filter(|(_, nic)| !is_for(nic));
        let sentence = |(index, nic): (usize, &Nic)| {
            let own: Vec<&str> = nic.bridge.iter().chain(&nic.network).map(String::as_str).collect();
            let own = match (&own[..], &nic.attached) {
                ([], Some(how)) => format!("was attached {how}"),
                ([], None) => "has neither bridge nor network".into(),
                (own, _) => format!("has '{}'", own.join("' or '")),
            };
            if rules.is_empty() {
                return format!("NIC {index} {own}, and is on the new host's default network: choose another with --bridge or --network");
            }
            format!("no --bridge or --network is for NIC {index}, which {own}")
        };
        left.map(sentence).collect()
    }
}

/// Whether a rule names the bridge or the network of a NIC.
fn names(rule: &PlugRule, nic: &Nic) -> bool {
    rule.old.is_some() && (rule.old == nic.bridge || rule.old == nic.network)
}

#[cfg(test)]
pub(crate) fn example() -> Machine {
    let disk = |device: &str, read_only| MachineDisk {
        device: device.into(),
        bus: Bus::default(),
        file: format!("/vm/R&D, 'new'/web-{device}.qcow2").into(),
        server: None,
        size: 10 << 30,
        format: DiskFormat::Qcow2,
        read_only,
    };
    let nic = |mac: &str, plug, slot| MachineNic { mac: mac.into(), model: NicModel::default(), plug, network: None, slot };
    Machine {
        name: "web".into(),
        uuid: Some("4dea22b3-1d52-d8f3-2516-782e98ab3fa0".into()),
        description: "the shop & its <database>\u{7}".into(),
        memory_mib: 512,
        vcpus: 2,
        arch: "x86_64".into(),
        uefi: false,
        local_time: false,
        policy: Policy { autostart: true, start_order: Some(3), start_delay: None },
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

    #[test]
    fn nics_go_where_the_rules_say() {
        let (mut source, _) = crate::testing::xen_tools_guest();
        let nic = |bridge: Option<&str>, network: Option<&str>| Nic {
            bridge: bridge.map(Into::into),
            network: network.map(Into::into),
            ..Nic::default()
        };
        source.nics = vec![nic(Some("xenbr0"), None), nic(Some("xenbr1"), None), nic(None, Some("lan")), nic(None, None)];
        let plugs_of = |source: &Source, rules: &[PlugRule]| Machine::nics(source, rules).into_iter().map(|n| n.plug).collect::<Vec<_>>();
        let (bridge, network) = (|b: &str| Some(Plug::Bridge(b.into())), |n: &str| Some(Plug::Network(n.into())));
        let plugs = |rules: &[PlugRule]| plugs_of(&source, rules);
        assert_eq!(plugs(&[]), [bridge("xenbr0"), bridge("xenbr1"), network("lan"), None]);
        let rules = [PlugRule::parse("xenbr0:br7", Plug::Bridge), PlugRule::parse("default", Plug::Network)];
        assert_eq!(plugs(&rules), [bridge("br7"), network("default"), network("default"), network("default")]);
        // A XenServer's has both.
        source.nics[0].network = Some("Lab: 1".into());
        let rules = [PlugRule::parse("Lab: 1:br7", Plug::Bridge), PlugRule::parse("xenbr9:br9", Plug::Bridge)];
        assert_eq!(plugs_of(&source, &rules)[..2], [bridge("br7"), bridge("xenbr1")]);
        let left = [
            "no --bridge or --network is for NIC 1, which has 'xenbr1'",
            "no --bridge or --network is for NIC 2, which has 'lan'",
            "no --bridge or --network is for NIC 3, which has neither bridge nor network",
        ];
        assert_eq!(Machine::unplugged(&source, &rules), left);
        let unknown =
            "NIC 3 has neither bridge nor network, and is on the new host's default network: choose another with --bridge or --network";
        assert_eq!(Machine::unplugged(&source, &[]), [unknown]);
        source.nics[3].attached = Some("by vif-route".into());
        assert!(
            Machine::unplugged(&source, &[])[0].starts_with("NIC 3 was attached by vif-route, and is on the new host's default network: ")
        );
        source.nics[3].attached = None;
        assert_eq!([&[][..], &rules].map(|rules| Machine::nics(&source, rules)[0].network.clone()), [Some("Lab: 1".into()), None]);
        assert_eq!(Machine::nics(&source, &[]).iter().map(|n| n.slot).collect::<Vec<_>>(), [3, 4, 5, 6]);
    }
}
