//! `--to hvm`: what was paravirtual starts by itself. On a real Xen 4.17 host, before and after, by `make xen-host`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::booted::{CONVERSION, healthy, scratch};
use crate::console::Console;
use crate::guest::{Guest, guest, recipe, run, sha256, tool, top, v2v};

/// Converts a guest for a fully virtual machine of Xen.
fn to_hvm(guest: &Guest, dir: &Path, options: &[&str]) {
    let before = sha256(&guest.disks);
    run(v2v().args(["--to", "hvm"]).args(options).arg(&guest.cfg).arg("-os").arg(dir), None, CONVERSION);
    assert_eq!(before, sha256(&guest.disks), "the source changed");
}

#[test]
fn the_result_starts_from_what_xen_emulates() {
    let Some(guest) = guest("bookworm", "pygrub") else { return };
    let dir = scratch();
    to_hvm(&guest, dir.path(), &["--check-boot=400"]);
    let cfg = std::fs::read_to_string(dir.path().join(format!("{}.cfg", guest.name))).expect("the configuration");
    let disk = dir.path().join(format!("{}-xvda.qcow2", guest.name));
    assert!(cfg.contains(&format!("vdev=xvda, access=rw, target={}'", disk.display())), "{cfg}");
    tool("qemu-img", ["check".as_ref(), disk.as_os_str()]);
    // Its own drivers are there, in this initrd and in those that are built later.
    let look = |command: &str, path: &str| {
        let mut virt = Command::new(env!("CARGO_BIN_EXE_virt"));
        String::from_utf8_lossy(&run(virt.args([command, "-a"]).arg(&disk).arg(path), None, CONVERSION).stdout).into_owned()
    };
    assert!(look("cat", "/etc/initramfs-tools/modules").contains("xen_blkfront\n"));
    let link = look("cat", "/etc/systemd/network/10-eth0.link");
    assert!(link.contains("Driver=vif\n"), "{link}");
}

#[test]
fn an_appliance_is_read_as_what_it_is() {
    let Some(guest) = guest("bookworm", "pygrub") else { return };
    let dir = scratch();
    to_hvm(&guest, dir.path(), &["-o", "xva"]);
    let file = dir.path().join(format!("{}.xva", guest.name));
    let names: Vec<_> = std::fs::read_dir(dir.path()).expect("the folder").map(|e| e.expect("an entry").path()).collect();
    assert_eq!(names, std::slice::from_ref(&file), "one file, and nothing else");
    let members = tool("tar", ["-tf".as_ref(), file.as_os_str()]);
    assert!(members.starts_with("ova.xml\nRef:") && members.contains(".checksum\n"), "{members}");
    let plan = run(v2v().args(["--plan", "--json"]).arg(&file), None, CONVERSION);
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    assert_eq!((&plan["guest"]["boot"], &plan["guest"]["macs"][0]), (&"fully virtual, BIOS".into(), &guest.mac.as_str().into()), "{plan}");
}

/// Starts a guest by its configuration, with these lines besides, on the host of `tests/xen-host`.
fn on_xen(cfg: &Path, lines: &[&str], disks: &[PathBuf]) -> Console {
    let mut host = Command::new(top().join("tests/xen-host/run"));
    for line in lines {
        host.args(["--set", line]);
    }
    host.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())).arg(cfg).args(disks);
    Console::of(host).patient(10)
}

/// The source as it was made, then what `--to hvm` makes of it: the same guest with the same root, and a network that leads to the host.
///
/// The source's own network is not asked for: xen-create-image calls its NIC eth0, and systemd 252 calls it enX0 on a real host.
fn before_and_after(guest: &Guest, root: &str, format: &str) {
    let dir = scratch();
    let mut console = on_xen(&guest.cfg, &[], &guest.disks);
    console.login(&guest.name, &guest.password);
    assert_eq!(console.ok("cat /sys/hypervisor/guest_type; findmnt -n -o SOURCE /").trim(), format!("PV\n{root}"));
    drop(console);

    to_hvm(guest, dir.path(), &["-of", format]);
    let disk = |letter| dir.path().join(format!("{}-xvd{letter}.{format}", guest.name));
    let disks: Vec<PathBuf> = ('a'..='z').map(disk).take_while(|p| p.exists()).collect();
    // A BIOS reads IDE disks word by word, which takes an hour where every word is emulated twice. So does a screen of text.
    // A kernel dies at once in paging that is nested twice, and lives in Xen's own.
    let lines = ["hdtype = 'ahci'", "vga = 'none'", "vnc = 0", "usb = 0", "hap = 0"];
    let mut console = on_xen(&dir.path().join(format!("{}.cfg", guest.name)), &lines, &disks);
    console.login(&guest.name, &guest.password);
    assert_eq!(console.ok("cat /sys/hypervisor/guest_type").trim(), "HVM");
    // Xen's own disk is there. AHCI's stays beside it, which IDE's would not: the same root is on both.
    let found = console.ok("findmnt -n -o UUID /");
    assert_eq!(console.ok(&format!("blkid -o value -s UUID {root}")), found);
    healthy(&mut console, guest);
    assert_eq!(console.ok("basename $(readlink /sys/class/net/eth0/device/driver)").trim(), "vif");
    assert_eq!(console.ok("cat </dev/tcp/192.168.77.1/7").trim(), "the Xen host");
}

#[test]
#[ignore = "boots a Xen host in emulation, which takes minutes: make xen-host"]
fn on_a_xen_host_partitions_of_xen_create_image() {
    let Some(guest) = guest("bookworm", "pygrub") else { return };
    before_and_after(&guest, "/dev/xvda2", "qcow2");
}

#[test]
#[ignore = "boots a Xen host in emulation, which takes minutes: make xen-host"]
fn on_a_xen_host_a_volume_group_over_two_disks() {
    let Some(guest) = recipe("lvm") else { return };
    before_and_after(&guest, "/dev/mapper/vg0-root", "raw");
}
