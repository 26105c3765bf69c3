//! The appliance with the kernel that this host's distribution has, instead of our own.

use std::process::Command;

use guestfs::Ext;
use guestfs::engine::{Engine, Session};
use guestfs_appliance::{Appliance, distro_kernel, locate};

use crate::common::*;

/// The appliance with the distribution's kernel. Hosts need none, so that this test may find none.
fn appliance() -> Option<Appliance> {
    match distro_kernel::newest() {
        Ok(Some(kernel)) => {
            let initramfs = locate::files().unwrap().initramfs;
            Some(Appliance { files: Some(locate::Files { kernel: kernel.file, modules: kernel.modules, initramfs }), ..Appliance::new() })
        }
        Ok(None) => {
            eprintln!("skipped: no /boot/vmlinuz-* with its modules: install linux-image-amd64");
            None
        }
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

fn start(appliance: &Appliance, disks: Vec<guestfs::engine::Disk>) -> Box<dyn Session> {
    Engine::start(appliance, disks, true).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn filesystems_are_loaded_when_they_are_mounted_and_are_clean_afterwards() {
    let Some(appliance) = appliance() else { return };
    let dir = scratch();
    let root = ext4(dir.path(), "root", 64);
    let xfs = formatted(dir.path(), "xfs", 320, &["mkfs.xfs", "-q", "-f"]);
    let btrfs = formatted(dir.path(), "btrfs", 128, &["mkfs.btrfs", "-q"]);
    let fat = formatted(dir.path(), "fat", 8, &["mkfs.vfat"]);
    let mut s = start(&appliance, [&root, &xfs, &btrfs, &fat].map(|p| writable(p)).into());
    s.mount("/dev/vda", b"/", "", "").unwrap();
    for (device, path, kind) in [("/dev/vdd", b"/fat", "vfat"), ("/dev/vdb", b"/xfs", ""), ("/dev/vdc", b"/btr", "")] {
        s.mkdir(path, guestfs::Attributes::root(0o755)).unwrap();
        s.mount(device, path, kind, "").unwrap_or_else(|e| panic!("{device}: {e}"));
    }
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    for path in [&b"/one"[..], b"/fat/two", b"/xfs/three", b"/btr/four"] {
        let content = &content[..if path == b"/fat/two" { 100_000 } else { content.len() }];
        s.write(path, &mut &content[..], None).unwrap();
        assert!(s.read(path, 1 << 30).unwrap() == content, "{}", String::from_utf8_lossy(path));
    }
    s.shutdown().unwrap();
    checked(&root);
    tool(&["xfs_repair", "-n", xfs.to_str().unwrap()]);
    tool(&["btrfs", "check", btrfs.to_str().unwrap()]);
    tool(&["fsck.vfat", "-n", fat.to_str().unwrap()]);
    assert!(tool(&["debugfs", "-R", "stat /one", root.to_str().unwrap()]).contains("Size: 12000000"));
}

#[test]
fn many_disks_come_in_order() {
    let Some(appliance) = appliance() else { return };
    let dir = scratch();
    let disks: Vec<_> = (1..=40).map(|n| empty(dir.path(), &n.to_string(), n)).collect();
    let mut s = start(&appliance, disks.iter().map(|p| read_only(p)).collect());
    let sizes: Vec<u64> = s.devices().unwrap().into_iter().map(|(_, size)| size >> 20).collect();
    assert_eq!(sizes, Vec::from_iter(1..=40));
    s.shutdown().unwrap();
}

#[test]
fn the_environment_names_the_kernel() {
    let Some(kernel) = appliance().and_then(|a| a.files).map(|f| f.kernel) else { return };
    let program = env!("CARGO_BIN_EXE_guestlift-appliance");
    let run = |kernel: &std::path::Path| Command::new(program).arg("test").env(distro_kernel::VARIABLE, kernel).output().unwrap();
    let output = run(&kernel);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!("{}, since GUESTLIFT_KERNEL names it", kernel.display())), "{text}");
    let output = run("/etc/passwd".as_ref());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("/etc/passwd cannot be the appliance's kernel"), "{text}");
}
