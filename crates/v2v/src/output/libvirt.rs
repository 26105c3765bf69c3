//! The libvirt domain of a result: KVM with virtio devices, as the openSUSE virtualization guide's 15.2.4 asks for.

use imgcore::nbd::uri::Address;
use imgcore::xml::Xml;

use super::{Bus, Document, Machine, MachineDisk, MachineNic, NicModel, Plug, SLOTS};

/// The table's line.
pub const DOCUMENT: Document = Document { suffix: ".xml", executable: false, text: domain };

/// What libvirt keeps for us and does not look into.
const NAMESPACE: &str = "urn:guestlift:source";

/// The domain as XML.
///
/// The machine type has no version: `virsh define` writes that of the host's own QEMU in its place, and from then on it stays the same
/// across QEMU's updates. A version written here would be unknown to an older QEMU, and to those distributions that count on their own.
pub fn domain(machine: &Machine) -> String {
    let mut xml = Xml::default();
    xml.parent("domain", &[("type", "kvm")], |xml| {
        xml.element("name", &machine.name);
        if let Some(uuid) = machine.uuid.as_ref().filter(|u| is_uuid(u)) {
            xml.element("uuid", uuid);
        }
        xml.optional("description", machine.description.trim());
        metadata(xml, machine);
        xml.leaf("memory", &[("unit", "MiB")], &machine.memory_mib.to_string());
        xml.leaf("currentMemory", &[("unit", "MiB")], &machine.memory_mib.to_string());
        xml.leaf("vcpu", &[("placement", "static")], &machine.vcpus.to_string());
        firmware(xml, machine);
        xml.parent("features", &[], |xml| {
            xml.empty("acpi", &[]);
            xml.empty("apic", &[]);
        });
        xml.empty("cpu", &[("mode", "host-model")]);
        xml.parent("clock", &[("offset", if machine.local_time { "localtime" } else { "utc" })], |xml| {
            xml.empty("timer", &[("name", "rtc"), ("tickpolicy", "catchup")]);
            xml.empty("timer", &[("name", "pit"), ("tickpolicy", "delay")]);
            xml.empty("timer", &[("name", "hpet"), ("present", "no")]);
        });
        xml.element("on_poweroff", "destroy");
        xml.element("on_reboot", "restart");
        xml.element("on_crash", "restart");
        xml.parent("devices", &[], |xml| devices(xml, machine));
    });
    xml.text()
}

/// How the guest was treated on Xen, for those who set up its new host: a domain says nothing of starting with the host.
fn metadata(xml: &mut Xml, machine: &Machine) {
    let policy = &machine.policy;
    if !policy.autostart && policy.start_order.is_none() {
        return;
    }
    xml.parent("metadata", &[], |xml| {
        let numbers = [("order", policy.start_order), ("delay", policy.start_delay)];
        let numbers: Vec<_> = numbers.iter().filter_map(|(name, n)| Some((*name, (*n)?.to_string()))).collect();
        let mut attributes = vec![("xmlns:guestlift", NAMESPACE), ("autostart", if policy.autostart { "yes" } else { "no" })];
        attributes.extend(numbers.iter().map(|(name, number)| (*name, number.as_str())));
        xml.empty("guestlift:start", &attributes);
    });
}

/// BIOS guests get the machine type `pc`: there virtio devices keep the legacy interface, which kernels before 3.x need.
///
/// For UEFI libvirt takes the firmware that its host has, without keys: the loaders of converted guests are not all signed. It makes the
/// file of the variables from the firmware's own template.
fn firmware(xml: &mut Xml, machine: &Machine) {
    let attributes: &[(&str, &str)] = if machine.uefi { &[("firmware", "efi")] } else { &[] };
    xml.parent("os", attributes, |xml| {
        xml.leaf("type", &[("arch", &machine.arch), ("machine", machine.chipset())], "hvm");
        if machine.uefi {
            xml.parent("firmware", &[], |xml| {
                for feature in ["enrolled-keys", "secure-boot"] {
                    xml.empty("feature", &[("enabled", "no"), ("name", feature)]);
                }
            });
            if let Some(folder) = machine.disks.first().and_then(|d| d.file.parent()) {
                xml.element("nvram", &folder.join(format!("{}-nvram.fd", machine.name)).to_string_lossy());
            }
        }
    });
}

fn devices(xml: &mut Xml, machine: &Machine) {
    for (index, disk) in machine.disks.iter().enumerate() {
        disk_element(xml, disk, index + 1);
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        interface(xml, nic, index < SLOTS);
    }
    xml.parent("serial", &[("type", "pty")], |xml| xml.empty("target", &[("port", "0")]));
    xml.parent("console", &[("type", "pty")], |xml| xml.empty("target", &[("type", "serial"), ("port", "0")]));
    xml.parent("channel", &[("type", "unix")], |xml| xml.empty("target", &[("type", "virtio"), ("name", "org.qemu.guest_agent.0")]));
    for (kind, bus) in [("tablet", "usb"), ("mouse", "ps2"), ("keyboard", "ps2")] {
        xml.empty("input", &[("type", kind), ("bus", bus)]);
    }
    xml.empty("graphics", &[("type", "vnc"), ("autoport", "yes"), ("listen", "127.0.0.1")]);
    xml.parent("video", &[], |xml| xml.empty("model", &[("type", "vga")]));
    xml.empty("memballoon", &[("model", "virtio")]);
    xml.parent("rng", &[("model", "virtio")], |xml| xml.leaf("backend", &[("model", "random")], "/dev/urandom"));
}

/// A disk, the `order`th that the firmware tries.
fn disk_element(xml: &mut Xml, disk: &MachineDisk, order: usize) {
    let bus = match disk.bus {
        Bus::Virtio => "virtio",
        Bus::Sata => "sata",
        Bus::Ide => "ide",
    };
    let kind = if disk.server.is_some() { "network" } else { "file" };
    xml.parent("disk", &[("type", kind), ("device", "disk")], |xml| {
        xml.empty("driver", &[("name", "qemu"), ("type", disk.format.name()), ("discard", "unmap")]);
        match &disk.server {
            None => xml.empty("source", &[("file", &disk.file.to_string_lossy())]),
            Some(server) => xml.parent("source", &[("protocol", "nbd"), ("name", &server.export)], |xml| match &server.address {
                Address::Tcp { host, port } => xml.empty("host", &[("name", host), ("port", &port.to_string())]),
                Address::Unix(path) => xml.empty("host", &[("transport", "unix"), ("socket", &path.to_string_lossy())]),
            }),
        }
        xml.empty("target", &[("dev", &disk.device), ("bus", bus)]);
        if disk.read_only {
            xml.empty("readonly", &[]);
        }
        xml.empty("boot", &[("order", &order.to_string())]);
    });
}

fn interface(xml: &mut Xml, nic: &MachineNic, has_slot: bool) {
    let (kind, place) = match &nic.plug {
        Some(Plug::Bridge(bridge)) => ("bridge", bridge.as_str()),
        Some(Plug::Network(network)) => ("network", network.as_str()),
        None => ("network", "default"),
    };
    let model = match nic.model {
        NicModel::Virtio => "virtio",
        NicModel::E1000 => "e1000",
    };
    xml.parent("interface", &[("type", kind)], |xml| {
        xml.empty("mac", &[("address", &nic.mac)]);
        xml.empty("source", &[(kind, place)]);
        xml.empty("model", &[("type", model)]);
        if has_slot {
            let slot = format!("{:#04x}", nic.slot);
            let address = [("type", "pci"), ("domain", "0x0000"), ("bus", "0x00"), ("slot", &slot), ("function", "0x0")];
            xml.empty("address", &address);
        }
    });
}

pub(super) fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths = [8, 4, 4, 4, 12];
    parts.len() == 5 && parts.iter().zip(lengths).all(|(p, n)| p.len() == n && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn the_domain_has_what_the_guide_asks_for() {
        let xml = domain(&crate::output::example());
        let document = roxmltree::Document::parse(&xml).unwrap();
        let find = |tag: &'static str| document.descendants().filter(move |n| n.has_tag_name(tag));
        assert_eq!(document.root_element().attribute("type"), Some("kvm"));
        assert_eq!(find("bootloader").count() + find("script").count() + find("kernel").count(), 0);
        assert_eq!(find("os").next().unwrap().first_element_child().unwrap().text(), Some("hvm"));
        let disks: Vec<_> = find("disk")
            .map(|d| d.children().find_map(|c| c.attribute("dev").map(|v| (v, c.attribute("bus").unwrap()))).unwrap())
            .collect();
        assert_eq!(disks, [("vda", "virtio"), ("vdb", "virtio")]);
        assert_eq!(find("source").next().unwrap().attribute("file"), Some("/vm/R&D, 'new'/web-vda.qcow2"));
        assert_eq!(find("description").next().unwrap().text(), Some("the shop & its <database>\u{fffd}"));
        let sources: Vec<_> = find("interface").map(|i| i.attribute("type").unwrap()).collect();
        assert_eq!(sources, ["bridge", "network", "network"]);
        let slots: Vec<_> = find("address").map(|a| a.attribute("slot").unwrap()).collect();
        assert_eq!(slots, ["0x03", "0x04", "0x05"]);
        assert!(find("model").filter(|m| m.parent().unwrap().has_tag_name("interface")).all(|m| m.attribute("type") == Some("virtio")));
        assert_eq!(find("memballoon").next().unwrap().attribute("model"), Some("virtio"));
        let order: Vec<_> = find("boot").map(|b| b.attribute("order").unwrap()).collect();
        assert_eq!(order, ["1", "2"]);
        let start = document.descendants().find(|n| n.has_tag_name((NAMESPACE, "start"))).unwrap();
        assert_eq!(["autostart", "order", "delay"].map(|a| start.attribute(a)), [Some("yes"), Some("3"), None]);
    }

    #[test]
    fn the_reference_tools_take_it() {
        let uefi = Machine { uefi: true, uuid: Some("none".into()), nics: Vec::new(), ..crate::output::example() };
        let mut emulated = Machine { local_time: true, policy: Default::default(), ..crate::output::example() };
        emulated.emulate_hardware();
        for machine in [crate::output::example(), uefi, emulated] {
            assert_valid(&domain(&machine));
        }
    }

    /// The reference tools take it.
    pub(in crate::output) fn assert_valid(xml: &str) {
        for command in [&["xmllint", "--noout", "-"][..], &["virt-xml-validate", "-", "domain"]] {
            let mut program = Command::new(command[0]);
            program.args(&command[1..]).stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped());
            let mut child = program.spawn().unwrap_or_else(|e| panic!("{} does not start: {e}", command[0]));
            child.stdin.take().unwrap().write_all(xml.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}: {}", command[0], String::from_utf8_lossy(&output.stderr));
        }
    }
}
