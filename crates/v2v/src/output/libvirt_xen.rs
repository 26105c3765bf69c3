//! The libvirt domain of a result as a fully virtual machine of Xen, as the openSUSE virtualization guide's chapter 30 asks for.

use imgcore::xml::Xml;

use super::libvirt::is_uuid;
use super::{Document, Machine, MachineDisk, MachineNic, Plug};

/// The table's line.
pub const DOCUMENT: Document = Document { suffix: ".xml", executable: false, text: domain };

/// The firmware that starts a machine's BIOS or UEFI, where Xen itself and SUSE install it.
const HVMLOADER: &str = "/usr/lib/xen/boot/hvmloader";

/// The domain as XML.
pub fn domain(machine: &Machine) -> String {
    let mut xml = Xml::default();
    xml.parent("domain", &[("type", "xen")], |xml| {
        xml.element("name", &machine.name);
        if let Some(uuid) = machine.uuid.as_ref().filter(|u| is_uuid(u)) {
            xml.element("uuid", uuid);
        }
        xml.optional("description", machine.description.trim());
        xml.leaf("memory", &[("unit", "MiB")], &machine.memory_mib.to_string());
        xml.leaf("currentMemory", &[("unit", "MiB")], &machine.memory_mib.to_string());
        xml.leaf("vcpu", &[("placement", "static")], &machine.vcpus.to_string());
        xml.parent("os", if machine.uefi { &[("firmware", "efi")] } else { &[] }, |xml| {
            // Xen's drivers and QEMU know one kind of machine, whatever the guest's own architecture.
            xml.leaf("type", &[("arch", "x86_64"), ("machine", "xenfv")], "hvm");
            if !machine.uefi {
                xml.leaf("loader", &[("type", "rom")], HVMLOADER);
            }
            xml.empty("boot", &[("dev", "hd")]);
        });
        xml.parent("features", &[], |xml| ["acpi", "apic", "pae"].iter().for_each(|feature| xml.empty(feature, &[])));
        xml.empty("clock", &[("offset", if machine.local_time { "localtime" } else { "utc" })]);
        xml.element("on_poweroff", "destroy");
        xml.element("on_reboot", "restart");
        xml.element("on_crash", "restart");
        xml.parent("devices", &[], |xml| devices(xml, machine));
    });
    xml.text()
}

fn devices(xml: &mut Xml, machine: &Machine) {
    machine.disks.iter().for_each(|disk| disk_element(xml, disk));
    machine.nics.iter().for_each(|nic| interface(xml, nic));
    xml.parent("serial", &[("type", "pty")], |xml| xml.empty("target", &[("port", "0")]));
    xml.parent("console", &[("type", "pty")], |xml| xml.empty("target", &[("type", "serial"), ("port", "0")]));
    for (kind, bus) in [("tablet", "usb"), ("mouse", "ps2"), ("keyboard", "ps2")] {
        xml.empty("input", &[("type", kind), ("bus", bus)]);
    }
    xml.empty("graphics", &[("type", "vnc"), ("autoport", "yes"), ("listen", "127.0.0.1")]);
    xml.parent("video", &[], |xml| xml.empty("model", &[("type", "cirrus")]));
}

/// Of the first four `xvdX` the BIOS sees an emulated IDE disk as well.
fn disk_element(xml: &mut Xml, disk: &MachineDisk) {
    xml.parent("disk", &[("type", "file"), ("device", "disk")], |xml| {
        xml.empty("driver", &[("name", "qemu"), ("type", disk.format.name())]);
        xml.empty("source", &[("file", &disk.file.to_string_lossy())]);
        xml.empty("target", &[("dev", &disk.device), ("bus", "xen")]);
        if disk.read_only {
            xml.empty("readonly", &[]);
        }
    });
}

/// Emulated for those without Xen's driver. Scripts and names of the host's end are the new host's own.
fn interface(xml: &mut Xml, nic: &MachineNic) {
    let (kind, place) = match &nic.plug {
        Some(Plug::Bridge(bridge)) => ("bridge", bridge.as_str()),
        Some(Plug::Network(network)) => ("network", network.as_str()),
        None => ("network", "default"),
    };
    xml.parent("interface", &[("type", kind)], |xml| {
        xml.empty("mac", &[("address", &nic.mac)]);
        xml.empty("source", &[(kind, place)]);
        xml.empty("model", &[("type", "rtl8139")]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::libvirt::tests::assert_valid;

    fn example() -> Machine {
        let mut machine = crate::output::example();
        machine.disks.iter_mut().for_each(|d| d.device = d.device.replace("vd", "xvd"));
        machine
    }

    #[test]
    fn the_domain_has_what_the_guide_asks_for() {
        let xml = domain(&example());
        let document = roxmltree::Document::parse(&xml).unwrap();
        let find = |tag: &'static str| document.descendants().filter(move |n| n.has_tag_name(tag));
        assert_eq!(document.root_element().attribute("type"), Some("xen"));
        assert_eq!(find("bootloader").count() + find("kernel").count() + find("cmdline").count(), 0);
        assert_eq!(find("os").next().unwrap().first_element_child().unwrap().text(), Some("hvm"));
        assert_eq!(find("loader").next().unwrap().text(), Some(HVMLOADER));
        let target = |d: roxmltree::Node<'_, '_>| {
            d.children().find_map(|c| Some((c.attribute("dev")?.to_string(), c.attribute("bus")?.to_string())))
        };
        assert_eq!(find("disk").filter_map(target).collect::<Vec<_>>(), [("xvda".into(), "xen".into()), ("xvdb".into(), "xen".into())]);
        assert_eq!(find("input").filter(|i| i.attribute("bus") == Some("ps2")).count(), 2);
        assert!(!xml.contains("virtio"));
    }

    #[test]
    fn the_reference_tools_take_it() {
        for machine in [example(), Machine { uefi: true, nics: Vec::new(), ..example() }] {
            assert_valid(&domain(&machine));
        }
    }
}
