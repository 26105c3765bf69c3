//! Proxmox VE: a script that makes a machine there of the disks beside it, with Proxmox's own `qm`.

use super::{Bus, Document, Machine, MachineDisk, NicModel, Plug};

/// The table's line.
pub const DOCUMENT: Document = Document { suffix: "-qm.sh", executable: true, text: script };

/// Places for disks on each bus; any more are attached to virtio-scsi.
const PLACES: [(Bus, &str, usize); 3] = [(Bus::Virtio, "virtio", 16), (Bus::Sata, "sata", 6), (Bus::Ide, "ide", 4)];
/// The bridge that Proxmox's installer makes.
const BRIDGE: &str = "vmbr0";

/// The script. It finds its disks beside itself, and takes back what it has made where it fails.
pub fn script(machine: &Machine) -> String {
    let name = &machine.name;
    let mut create: Vec<String> = vec![
        format!("--name {}", host_name(name)),
        format!("--memory {}", machine.memory_mib),
        format!("--cores {}", machine.vcpus),
        "--cpu host".into(),
        "--ostype l26".into(),
        "--scsihw virtio-scsi-pci".into(),
        "--agent enabled=1".into(),
        "--serial0 socket".into(),
        "--vga std".into(),
        format!("--machine {}", machine.chipset()),
    ];
    match machine.uefi {
        true => create.extend(["--bios ovmf".into(), "--efidisk0 \"$storage:1,efitype=4m,pre-enrolled-keys=0\"".into()]),
        false => create.push("--bios seabios".into()),
    }
    create.push(format!("--localtime {}", u8::from(machine.local_time)));
    create.push(format!("--onboot {}", u8::from(machine.policy.autostart)));
    let startup = [("order", machine.policy.start_order), ("up", machine.policy.start_delay)];
    let startup: Vec<String> = startup.iter().filter_map(|(key, n)| n.map(|n| format!("{key}={n}"))).collect();
    if !startup.is_empty() {
        create.push(format!("--startup {}", startup.join(",")));
    }
    if !machine.description.trim().is_empty() {
        create.push(format!("--description {}", quoted(machine.description.trim())));
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        let model = match nic.model {
            NicModel::Virtio => "virtio",
            NicModel::E1000 => "e1000",
        };
        let bridge = match &nic.plug {
            Some(Plug::Bridge(bridge)) => bridge,
            Some(Plug::Network(_)) | None => BRIDGE,
        };
        create.push(format!("--net{index} {model}={},bridge=\"${{BRIDGE{index}:-${{BRIDGE:-{}}}}}\"", nic.mac, plain(bridge)));
    }
    let disks: String = machine.disks.iter().enumerate().map(|(index, disk)| import(index, disk)).collect();
    let boot: Vec<String> = (0..machine.disks.len()).filter_map(|i| Some(place(i, machine.disks.get(i)?))).collect();
    format!(
        "#!/bin/sh
# Makes the guest {name} a machine of Proxmox VE. To be run there by root, with its disks beside it.
#
#   {name}-qm.sh                        under the next free number, its disks on local-lvm
#   {name}-qm.sh 123                    as machine 123
#   STORAGE=local-zfs {name}-qm.sh      its disks elsewhere
#   BRIDGE0=vmbr1 {name}-qm.sh          its first NIC on another bridge; BRIDGE for all of them
#
# Where it fails it removes what it has made. It starts nothing: 'qm start' does.
set -eu
dir=$(CDPATH='' cd -- \"$(dirname -- \"$0\")\" && pwd)
storage=${{STORAGE:-local-lvm}}
if [ $# -gt 0 ]; then vmid=$1; else vmid=$(pvesh get /cluster/nextid); fi
case $vmid in
    '' | *[!0-9]*)
        echo \"'$vmid' is no number of a machine\" >&2
        exit 1
        ;;
esac
if qm config \"$vmid\" >/dev/null 2>&1; then
    echo \"there is a machine $vmid already: give another number, or none\" >&2
    exit 1
fi
trap 'qm destroy \"$vmid\" --purge >/dev/null 2>&1 || true; echo \"failed: machine $vmid was removed again\" >&2' EXIT
trap 'exit 1' HUP INT TERM

# import FILE PLACE OPTIONS: a disk becomes a volume of the storage, which Proxmox calls unused until it is attached.
import() {{
    qm importdisk \"$vmid\" \"$dir/$1\" \"$storage\"
    volume=$(qm config \"$vmid\" | sed -n 's/^unused[0-9]*: //p' | head -n 1)
    if [ -z \"$volume\" ]; then
        echo \"$1: 'qm importdisk' made no volume\" >&2
        exit 1
    fi
    qm set \"$vmid\" \"--$2\" \"$volume$3\"
}}

qm create \"$vmid\" \\
    {}
{disks}qm set \"$vmid\" --boot {}
trap - EXIT
echo \"{name} is machine $vmid: qm start $vmid\"
",
        create.join(" \\\n    "),
        quoted(&format!("order={}", boot.join(";")))
    )
}

fn import(index: usize, disk: &MachineDisk) -> String {
    let file = disk.file.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
    let place = place(index, disk);
    // IDE knows no disks that cannot be written.
    let read_only = if disk.read_only && !place.starts_with("ide") && !place.starts_with("sata") { ",ro=1" } else { "" };
    format!("import {} {place} ,discard=on{read_only}\n", quoted(&file))
}

/// Where a disk is attached.
fn place(index: usize, disk: &MachineDisk) -> String {
    match PLACES.iter().find(|(bus, ..)| *bus == disk.bus) {
        Some((_, name, places)) if index < *places => format!("{name}{index}"),
        _ => format!("scsi{index}"),
    }
}

/// Proxmox's names are those of hosts.
fn host_name(name: &str) -> String {
    let host: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let labels: Vec<&str> = host.split('.').map(|label| label.trim_matches('-')).filter(|label| !label.is_empty()).collect();
    if labels.is_empty() { "guest".into() } else { labels.join(".") }
}

/// What can be a bridge's name.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')).collect()
}

/// For the shell, as one word without any meaning of its own.
fn quoted(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("'{}'", clean.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Output};

    use super::*;

    /// `qm` and `pvesh` that write down their arguments, a line for each call. Imported volumes are unused until they are set.
    const FAKE: &str = r#"#!/bin/sh
printf '%s' "${0##*/}" >>"$LOG"
for word; do printf ' [%s]' "$word" >>"$LOG"; done
echo >>"$LOG"
case ${0##*/}.$1 in
    pvesh.get) echo 107 ;;
    qm.config) [ -e "$LOG.$2" ] || exit 2; cat "$LOG.$2" ;;
    qm.create) : >"$LOG.$2" ;;
    qm.importdisk)
        [ -e "$3" ] && [ "$FAIL" != import ] || exit 1
        echo "unused0: $4:vm-$2-disk-$(grep -c importdisk "$LOG")" >"$LOG.$2" ;;
    qm.set) case $3 in --boot) ;; *) : >"$LOG.$2" ;; esac ;;
    qm.destroy) rm "$LOG.$2" ;;
esac
"#;

    fn run(machine: &Machine, arguments: &[&str], fail: &str) -> (Output, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, text) in [("qm", FAKE), ("pvesh", FAKE), ("web-qm.sh", &script(machine))] {
            fs::write(path(name), text).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for disk in &machine.disks {
            fs::write(path(disk.file.file_name().unwrap().to_str().unwrap()), "").unwrap();
        }
        fs::write(path("log.200"), "name: other\n").unwrap();
        let search = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(path("web-qm.sh"));
        let output = command.args(arguments).env("PATH", search).env("LOG", path("log")).env("FAIL", fail).env("BRIDGE1", "vmbr9").output();
        let log = fs::read_to_string(path("log")).unwrap_or_default();
        let shown = dir.path().display().to_string();
        (output.unwrap(), log.lines().map(|l| l.replace(&shown, "DIR")).collect())
    }

    #[test]
    fn the_script_makes_a_machine() {
        let mut machine = crate::output::example();
        machine.description = "it's \"the\" $(shop)\nof `us`".into();
        let (output, log) = run(&machine, &[], "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(
            log,
            [
                "pvesh [get] [/cluster/nextid]",
                "qm [config] [107]",
                "qm [create] [107] [--name] [web] [--memory] [512] [--cores] [2] [--cpu] [host] [--ostype] [l26] [--scsihw] [virtio-scsi-pci] \
                 [--agent] [enabled=1] [--serial0] [socket] [--vga] [std] [--machine] [pc] [--bios] [seabios] [--localtime] [0] [--onboot] [1] \
                 [--startup] [order=3] [--description] [it's \"the\" $(shop) of `us`] [--net0] [virtio=00:16:3e:77:00:10,bridge=br0] [--net1] \
                 [virtio=00:16:3e:77:00:11,bridge=vmbr9] [--net2] [virtio=00:16:3e:77:00:12,bridge=vmbr0]",
                "qm [importdisk] [107] [DIR/web-vda.qcow2] [local-lvm]",
                "qm [config] [107]",
                "qm [set] [107] [--virtio0] [local-lvm:vm-107-disk-1,discard=on]",
                "qm [importdisk] [107] [DIR/web-vdb.qcow2] [local-lvm]",
                "qm [config] [107]",
                "qm [set] [107] [--virtio1] [local-lvm:vm-107-disk-2,discard=on,ro=1]",
                "qm [set] [107] [--boot] [order=virtio0;virtio1]",
            ]
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().last(), Some("web is machine 107: qm start 107"));
    }

    #[test]
    fn it_takes_back_what_fails_and_touches_no_other_machine() {
        let machine = crate::output::example();
        let (output, log) = run(&machine, &["300"], "import");
        assert!(!output.status.success());
        assert_eq!(log.last().unwrap(), "qm [destroy] [300] [--purge]");
        assert!(String::from_utf8_lossy(&output.stderr).contains("failed: machine 300 was removed again"));
        let (output, log) = run(&machine, &["200"], "");
        assert!(!output.status.success());
        assert_eq!(log, ["qm [config] [200]"]);
        let (output, log) = run(&machine, &["1; reboot"], "");
        assert!(!output.status.success() && log.is_empty(), "{log:?}");
    }

    #[test]
    fn firmware_and_emulated_hardware() {
        let mut machine = crate::output::example();
        machine.uefi = true;
        machine.emulate_hardware();
        let (output, log) = run(&machine, &["9"], "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(log[1].contains("[--machine] [q35] [--bios] [ovmf] [--efidisk0] [local-lvm:1,efitype=4m,pre-enrolled-keys=0]"), "{log:?}");
        assert!(log[1].contains("[e1000=00:16:3e:77:00:10,bridge=br0]"));
        assert!(log.iter().any(|l| l == "qm [set] [9] [--sata1] [local-lvm:vm-9-disk-2,discard=on]"), "{log:?}");
    }

    #[test]
    fn shellcheck_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = crate::output::example();
        for uefi in [false, true] {
            machine.uefi = uefi;
            let path = dir.path().join("web-qm.sh");
            fs::write(&path, script(&machine)).unwrap();
            let output =
                Command::new("shellcheck").arg(&path).output().unwrap_or_else(|e| panic!("shellcheck: {e}: scripts/setup installs it"));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }

    #[test]
    fn names_of_hosts() {
        for (name, expected) in [("web", "web"), ("web_1.example+x", "web-1.example-x"), ("_", "guest"), ("a..b", "a.b")] {
            assert_eq!(host_name(name), expected);
        }
    }
}
