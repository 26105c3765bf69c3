//! The libvirt domain of a result: KVM with virtio devices, as the openSUSE virtualization guide's 15.2.4 asks for.

use std::fmt::Write;

use super::{Machine, MachineDisk, MachineNic, Plug, SLOTS};

/// The domain as XML.
///
/// BIOS guests get the machine type `pc`: there virtio devices keep the legacy interface, which kernels before 3.x need.
pub fn domain(machine: &Machine) -> String {
    let mut xml = String::from("<domain type='kvm'>\n");
    let mut line = |text: &str| {
        xml.push_str(text);
        xml.push('\n');
    };
    line(&format!("  <name>{}</name>", escaped(&machine.name)));
    if let Some(uuid) = machine.uuid.as_ref().filter(|u| is_uuid(u)) {
        line(&format!("  <uuid>{uuid}</uuid>"));
    }
    if !machine.description.trim().is_empty() {
        line(&format!("  <description>{}</description>", escaped(machine.description.trim())));
    }
    line(&format!("  <memory unit='MiB'>{}</memory>", machine.memory_mib));
    line(&format!("  <currentMemory unit='MiB'>{}</currentMemory>", machine.memory_mib));
    line(&format!("  <vcpu placement='static'>{}</vcpu>", machine.vcpus));
    let (firmware, kind) = if machine.uefi { (" firmware='efi'", "q35") } else { ("", "pc") };
    line(&format!("  <os{firmware}>"));
    line(&format!("    <type arch='{}' machine='{kind}'>hvm</type>", escaped(&machine.arch)));
    line("    <boot dev='hd'/>");
    line("  </os>");
    line("  <features>\n    <acpi/>\n    <apic/>\n  </features>");
    line("  <cpu mode='host-model'/>");
    line("  <clock offset='utc'>");
    line("    <timer name='rtc' tickpolicy='catchup'/>\n    <timer name='pit' tickpolicy='delay'/>\n    <timer name='hpet' present='no'/>");
    line("  </clock>");
    line("  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>restart</on_reboot>\n  <on_crash>restart</on_crash>");
    line("  <devices>");
    for disk in &machine.disks {
        line(&disk_element(disk));
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        line(&interface(nic, index < SLOTS));
    }
    line("    <serial type='pty'>\n      <target port='0'/>\n    </serial>");
    line("    <console type='pty'>\n      <target type='serial' port='0'/>\n    </console>");
    line("    <channel type='unix'>\n      <target type='virtio' name='org.qemu.guest_agent.0'/>\n    </channel>");
    line("    <input type='tablet' bus='usb'/>\n    <input type='mouse' bus='ps2'/>\n    <input type='keyboard' bus='ps2'/>");
    line("    <graphics type='vnc' autoport='yes' listen='127.0.0.1'/>");
    line("    <video>\n      <model type='vga'/>\n    </video>");
    line("    <memballoon model='virtio'/>");
    line("    <rng model='virtio'>\n      <backend model='random'>/dev/urandom</backend>\n    </rng>");
    line("  </devices>");
    line("</domain>");
    xml
}

fn disk_element(disk: &MachineDisk) -> String {
    let file = escaped(&disk.file.to_string_lossy());
    let mut xml = String::from("    <disk type='file' device='disk'>\n");
    // Writing to a String cannot fail.
    let _ = writeln!(xml, "      <driver name='qemu' type='{}' discard='unmap'/>", disk.format.name());
    let _ = writeln!(xml, "      <source file='{file}'/>");
    let _ = writeln!(xml, "      <target dev='{}' bus='virtio'/>", escaped(&disk.device));
    if disk.read_only {
        xml.push_str("      <readonly/>\n");
    }
    xml + "    </disk>"
}

fn interface(nic: &MachineNic, has_slot: bool) -> String {
    let (kind, source) = match &nic.plug {
        Some(Plug::Bridge(bridge)) => ("bridge", format!("bridge='{}'", escaped(bridge))),
        Some(Plug::Network(network)) => ("network", format!("network='{}'", escaped(network))),
        None => ("network", "network='default'".into()),
    };
    let mut xml = format!("    <interface type='{kind}'>\n      <mac address='{}'/>\n", escaped(&nic.mac));
    let _ = write!(xml, "      <source {source}/>\n      <model type='virtio'/>\n");
    if has_slot {
        let _ = writeln!(xml, "      <address type='pci' domain='0x0000' bus='0x00' slot='{:#04x}' function='0x0'/>", nic.slot);
    }
    xml + "    </interface>"
}

/// Text for XML 1.0, in elements and attributes: what it can't hold at all is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths = [8, 4, 4, 4, 12];
    parts.len() == 5 && parts.iter().zip(lengths).all(|(p, n)| p.len() == n && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
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
        assert_eq!(find("description").next().unwrap().text(), Some("the shop & its <database>"));
        let sources: Vec<_> = find("interface").map(|i| i.attribute("type").unwrap()).collect();
        assert_eq!(sources, ["bridge", "network", "network"]);
        let slots: Vec<_> = find("address").map(|a| a.attribute("slot").unwrap()).collect();
        assert_eq!(slots, ["0x03", "0x04", "0x05"]);
        assert!(find("model").filter(|m| m.parent().unwrap().has_tag_name("interface")).all(|m| m.attribute("type") == Some("virtio")));
        assert_eq!(find("memballoon").next().unwrap().attribute("model"), Some("virtio"));
    }

    #[test]
    fn the_reference_tools_take_it() {
        let uefi = Machine { uefi: true, uuid: Some("none".into()), nics: Vec::new(), ..crate::output::example() };
        for machine in [crate::output::example(), uefi] {
            for command in [&["xmllint", "--noout", "-"][..], &["virt-xml-validate", "-", "domain"]] {
                let child = Command::new(command[0])
                    .args(&command[1..])
                    .stdin(Stdio::piped())
                    .stderr(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn();
                let Ok(mut child) = child else {
                    // libvirt is no part of the build's environment; xmllint is.
                    assert!(command[0] != "xmllint" || std::env::var_os("CI").is_none(), "xmllint is missing");
                    eprintln!("skipped: {} is not installed", command[0]);
                    continue;
                };
                child.stdin.take().unwrap().write_all(domain(&machine).as_bytes()).unwrap();
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{}: {}", command[0], String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}
