//! The configuration by which `xl create` starts a result as a fully virtual machine of Xen (xl.cfg(5), xl-disk-configuration(5)).

use std::fmt::Write;

use super::{Document, Machine, MachineDisk, MachineNic, Plug};

/// The table's line.
pub const DOCUMENT: Document = Document { suffix: ".cfg", executable: false, text: config };

/// The configuration.
///
/// Disks are `xvda` and so on: of the first four the BIOS sees an emulated IDE disk as well, which goes when Xen's drivers take over.
pub fn config(machine: &Machine) -> String {
    let Machine { name, memory_mib, vcpus, .. } = machine;
    let mut lines =
        format!("# The guest {name} as a fully virtual machine of Xen: xl create {name}.cfg, then xl console -t serial {name}\n");
    let mut set = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{name} = {value}");
    };
    set("type", "'hvm'");
    set("name", &quoted(name));
    if let Some(uuid) = &machine.uuid {
        set("uuid", &quoted(uuid));
    }
    set("memory", &memory_mib.to_string());
    set("vcpus", &vcpus.to_string());
    set("bios", if machine.uefi { "'ovmf'" } else { "'seabios'" });
    set("boot", "'c'");
    set("disk", &list(machine.disks.iter().map(disk)));
    set("vif", &list(machine.nics.iter().map(vif)));
    if machine.local_time {
        set("localtime", "1");
    }
    set("serial", "'pty'");
    set("vga", "'cirrus'");
    set("vnc", "1");
    set("vnclisten", "'127.0.0.1'");
    set("usb", "1");
    set("usbdevice", "[ 'tablet' ]");
    set("on_poweroff", "'destroy'");
    set("on_reboot", "'restart'");
    set("on_crash", "'restart'");
    lines
}

/// `target=` is last: it takes the rest of the string, commas and all.
fn disk(disk: &MachineDisk) -> String {
    let access = if disk.read_only { "ro" } else { "rw" };
    format!("format={}, vdev={}, access={access}, target={}", disk.format.name(), disk.device, disk.file.display())
}

/// Emulated for those without Xen's driver, as the default of Xen's tools.
fn vif(nic: &MachineNic) -> String {
    let bridge = match &nic.plug {
        Some(Plug::Bridge(bridge)) => format!(", bridge={bridge}"),
        // xl knows no networks: the default bridge, xenbr0.
        Some(Plug::Network(_)) | None => String::new(),
    };
    format!("type=ioemu, model=rtl8139, mac={}{bridge}", nic.mac)
}

fn list(values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.map(|v| format!("    {},\n", quoted(&v))).collect();
    if values.is_empty() { "[ ]".into() } else { format!("[\n{}]", values.concat()) }
}

/// A string of xl's grammar.
fn quoted(text: &str) -> String {
    let mut out = String::from("'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "'"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::xl::parse;
    use crate::output::{DiskFormat, example};

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut machine = example();
        machine.disks[0].device = "xvda".into();
        machine.disks[0].file = "/vm/it's, \\here\n/web=1.qcow2".into();
        (machine.disks[1].device, machine.disks[1].format) = ("xvdb".into(), DiskFormat::Raw);
        let text = config(&machine);
        let read = parse("web.cfg", &text).unwrap();
        let value = |name: &str| format!("{:?}", read.get(name).unwrap().0);
        for (name, expected) in [
            ("type", "Text(\"hvm\")"),
            ("name", "Text(\"web\")"),
            ("uuid", "Text(\"4dea22b3-1d52-d8f3-2516-782e98ab3fa0\")"),
            ("memory", "Int(512)"),
            ("serial", "Text(\"pty\")"),
            ("boot", "Text(\"c\")"),
            (
                "vif",
                "List([Text(\"type=ioemu, model=rtl8139, mac=00:16:3e:77:00:10, bridge=br0\"), Text(\"type=ioemu, model=rtl8139, \
                 mac=00:16:3e:77:00:11\"), Text(\"type=ioemu, model=rtl8139, mac=00:16:3e:77:00:12\")])",
            ),
            (
                "disk",
                "List([Text(\"format=qcow2, vdev=xvda, access=rw, target=/vm/it's, \\\\here\\n/web=1.qcow2\"), Text(\"format=raw, vdev=xvdb, \
                 access=ro, target=/vm/R&D, 'new'/web-vdb.qcow2\")])",
            ),
        ] {
            assert_eq!(value(name), expected, "{text}");
        }
        machine.nics.clear();
        assert!(config(&machine).contains("\nvif = [ ]\n"));
    }
}
