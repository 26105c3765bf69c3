//! The script that starts a result in QEMU as it is, without libvirt.

use super::{DiskFormat, Machine, SLOTS};

/// The script. It finds its disks beside itself.
pub fn script(machine: &Machine) -> String {
    let Machine { name, memory_mib, vcpus, .. } = machine;
    let qemu = if machine.arch == "i686" { "qemu-system-i386" } else { "qemu-system-x86_64" };
    let mut arguments = Vec::new();
    arguments.push(format!("-name {name}"));
    arguments.push(if machine.uefi { "-machine q35 -bios \"${UEFI:-/usr/share/ovmf/OVMF.fd}\"".into() } else { "-machine pc".into() });
    // The first that works is taken; ACCEL goes before both.
    arguments.push("${ACCEL:+-accel \"$ACCEL\"} -accel kvm -accel tcg -cpu max".into());
    arguments.push("-m \"${MEMORY:-".to_owned() + &memory_mib.to_string() + "}\" -smp \"${CPUS:-" + &vcpus.to_string() + "}\"");
    for disk in &machine.disks {
        let (device, format) = (&disk.device, disk.format.name());
        let file = disk.file.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
        let more = if disk.read_only { ",readonly=on" } else { "" };
        let zeroes = if disk.format == DiskFormat::Raw { ",detect-zeroes=unmap" } else { "" };
        arguments.push(format!("-drive \"if=none,id={device},file=$dir/{file},format={format},discard=unmap{zeroes}{more}\""));
        arguments.push(format!("-device virtio-blk-pci,drive={device}"));
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        let slot = if index < SLOTS { format!(",addr={:#x}", nic.slot) } else { String::new() };
        arguments.push(format!("-netdev \"${{NET{index}:-user}},id=net{index}\""));
        arguments.push(format!("-device virtio-net-pci,netdev=net{index},mac={}{slot}", nic.mac));
    }
    if machine.nics.is_empty() {
        arguments.push("-nic none".into());
    }
    arguments.push("-device virtio-rng-pci -device virtio-balloon-pci".into());
    arguments.push("-display none -serial mon:stdio".into());
    format!(
        "#!/bin/sh
# Starts the guest {name} in QEMU, its serial console on this terminal (Ctrl-A X ends it).
#
#   {name}-run.sh -snapshot        throws away at the end what the guest wrote: a safe first start
#   MEMORY=2048 CPUS=4 {name}-run.sh
#   NET0=bridge,br=br0 {name}-run.sh    the first NIC on a bridge; without it, QEMU's own network
#   ACCEL=tcg {name}-run.sh        without KVM, where /dev/kvm is there but does not work
#   QEMU=/path/to/qemu {name}-run.sh
#
# Further arguments go to QEMU.
set -eu
dir=$(CDPATH= cd -- \"$(dirname -- \"$0\")\" && pwd | sed 's/,/,,/g')
exec \"${{QEMU:-{qemu}}}\" \\
    {} \\
    \"$@\"
",
        arguments.join(" \\\n    ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// What QEMU is given, one argument a line, when the script lies in a folder with an awkward name.
    fn run(machine: &Machine, env: &[(&str, &str)], arguments: &[&str]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a, b 'c'");
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("run.sh");
        std::fs::write(&path, script(machine)).unwrap();
        let qemu = dir.join("qemu");
        std::fs::write(&qemu, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
        std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new("sh").arg(&path).args(arguments).env("QEMU", &qemu).envs(env.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|l| l.replace(&dir.to_str().unwrap().replace(',', ",,"), "DIR")).collect()
    }

    #[test]
    fn qemu_gets_the_disks_and_nics() {
        let lines = run(&crate::output::example(), &[], &["-snapshot"]);
        for wanted in [
            "if=none,id=vda,file=DIR/web-vda.qcow2,format=qcow2,discard=unmap",
            "if=none,id=vdb,file=DIR/web-vdb.qcow2,format=qcow2,discard=unmap,readonly=on",
            "virtio-net-pci,netdev=net0,mac=00:16:3e:77:00:10,addr=0x3",
            "user,id=net2",
            "512",
        ] {
            assert!(lines.iter().any(|l| l == wanted), "{wanted} is not in {lines:#?}");
        }
        assert_eq!(lines.last().unwrap(), "-snapshot");
        let lines = run(&crate::output::example(), &[("MEMORY", "99"), ("NET1", "bridge,br=br0")], &[]);
        for wanted in ["99", "bridge,br=br0,id=net1"] {
            assert!(lines.iter().any(|l| l == wanted), "{wanted} is not in {lines:#?}");
        }
    }
}
