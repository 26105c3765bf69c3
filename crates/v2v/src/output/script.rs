//! The script that starts a result in QEMU as it is, without libvirt.

use guestfs::machine::UEFI;

use super::{Bus, DiskFormat, Document, Machine, MachineDisk, NicModel, SLOTS};

/// The table's line.
pub const DOCUMENT: Document = Document { suffix: "-run.sh", executable: true, text: script };

/// Ports of one AHCI controller.
const PORTS: usize = 6;

/// The script. It finds its disks beside itself.
pub fn script(machine: &Machine) -> String {
    let Machine { name, memory_mib, vcpus, .. } = machine;
    let qemu = if machine.arch == "i686" { "qemu-system-i386" } else { "qemu-system-x86_64" };
    let mut arguments = Vec::new();
    arguments.push(format!("-name {name}"));
    arguments.push(format!("-machine {}", machine.chipset()));
    if machine.uefi {
        arguments.push("-drive \"if=pflash,unit=0,format=raw,readonly=on,file=$code\"".into());
        arguments.push(format!("-drive \"if=pflash,unit=1,format=raw,file=$dir/{name}-vars.fd\""));
    }
    // The first that works is taken; ACCEL goes before both.
    arguments.push("${ACCEL:+-accel \"$ACCEL\"} -accel kvm -accel tcg -cpu max".into());
    arguments.push("-m \"${MEMORY:-".to_owned() + &memory_mib.to_string() + "}\" -smp \"${CPUS:-" + &vcpus.to_string() + "}\"");
    if machine.local_time {
        arguments.push("-rtc base=localtime".into());
    }
    // Before anything else that takes a slot of the bus.
    for (index, nic) in machine.nics.iter().enumerate() {
        let slot = if index < SLOTS { format!(",addr={:#x}", nic.slot) } else { String::new() };
        let model = match nic.model {
            NicModel::Virtio => "virtio-net-pci",
            NicModel::E1000 => "e1000",
        };
        arguments.push(format!("-netdev \"${{NET{index}:-user}},id=net{index}\""));
        arguments.push(format!("-device {model},netdev=net{index},mac={}{slot}", nic.mac));
    }
    if machine.nics.is_empty() {
        arguments.push("-nic none".into());
    }
    for (index, disk) in machine.disks.iter().enumerate() {
        arguments.push(drive(disk));
        if disk.bus == Bus::Sata && index % PORTS == 0 {
            arguments.push(format!("-device ich9-ahci,id=sata{}", index / PORTS));
        }
        let device = match disk.bus {
            Bus::Virtio => "virtio-blk-pci".into(),
            Bus::Sata => format!("ide-hd,bus=sata{}.{}", index / PORTS, index % PORTS),
            Bus::Ide => format!("ide-hd,bus=ide.{},unit={}", index / 2, index % 2),
        };
        arguments.push(format!("-device {device},drive={},bootindex={}", disk.device, index + 1));
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
{}#
# Further arguments go to QEMU.
set -eu
dir=$(CDPATH= cd -- \"$(dirname -- \"$0\")\" && pwd)
{}dir=$(printf '%s\\n' \"$dir\" | sed 's/,/,,/g')
exec \"${{QEMU:-{qemu}}}\" \\
    {} \\
    \"$@\"
",
        if machine.uefi { "#   UEFI=CODE.fd:VARS.fd                  another firmware, and the template of its variables\n" } else { "" },
        if machine.uefi { firmware(name) } else { String::new() },
        arguments.join(" \\\n    ")
    )
}

fn drive(disk: &MachineDisk) -> String {
    let (device, format) = (&disk.device, disk.format.name());
    let file = disk.file.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
    let more = if disk.read_only { ",readonly=on" } else { "" };
    let zeroes = if disk.format == DiskFormat::Raw { ",detect-zeroes=unmap" } else { "" };
    let place = match &disk.server {
        None => format!("$dir/{file}"),
        // As a word of QEMU's option, and within the shell's double quotes.
        Some(server) => server.name().replace(',', ",,").replace(['\\', '"', '$', '`'], ""),
    };
    format!("-drive \"if=none,id={device},file={place},format={format},discard=unmap{zeroes}{more}\"")
}

/// Finds the host's UEFI, and gives the guest variables of its own beside its disks.
fn firmware(name: &str) -> String {
    let known: String = UEFI.iter().map(|(code, variables)| format!(" \\\n    {code}:{variables}")).collect();
    format!(
        "code=
for pair in ${{UEFI:-}}{known}; do
    if [ -f \"${{pair%%:*}}\" ] && [ -f \"${{pair#*:}}\" ]; then
        code=${{pair%%:*}}
        [ -f \"$dir/{name}-vars.fd\" ] || cat \"${{pair#*:}}\" >\"$dir/{name}-vars.fd\"
        break
    fi
done
if [ -z \"$code\" ]; then
    echo \"{name} starts by UEFI, whose firmware is not here: install OVMF (Debian: ovmf, Fedora: edk2-ovmf, SUSE: qemu-ovmf-x86_64), or set UEFI\" >&2
    exit 1
fi
"
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
            "virtio-blk-pci,drive=vda,bootindex=1",
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
