//! Roots in btrfs subvolumes, as distributions lay them out: found and mounted in process and in the appliance.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestfs::engine::{Command, Session};
use guestfs::{Attributes, EngineChoice, Ext, Guest, GuestDisk, MountRequest, OpenOptions};
use guestfs_appliance::Appliance;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

use crate::common::*;

fn run(session: &mut dyn Session, argv: &[&str]) {
    let out = session.run_tool(&Command::new(argv)).unwrap();
    assert_eq!(out.status, 0, "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn subvolume(session: &mut dyn Session, name: &str) {
    run(session, &["btrfs", "subvolume", "create", &format!("/guest/{name}")]);
}

/// A root's files below a folder.
fn system(session: &mut dyn Session, at: &str, name: &str, fstab: &str) {
    for dir in ["etc", "bin", "home"] {
        session.mkdir(format!("{at}/{dir}").as_bytes(), Attributes::root(0o755)).unwrap();
    }
    let release = format!("ID={name}\nNAME={name}\nVERSION_ID=1\nPRETTY_NAME=\"{name} 1\"\n");
    for (file, text) in [("fstab", fstab), ("os-release", &release), ("hostname", name)] {
        session.write(format!("{at}/etc/{file}").as_bytes(), &mut text.as_bytes(), None).unwrap();
    }
}

fn made(dir: &Path, name: &str, fill: impl FnOnce(&mut dyn Session)) -> PathBuf {
    let disk = formatted(dir, name, 128, &["mkfs.btrfs", "-q", "-L", "sys"]);
    let mut session = crate::compare::start(vec![writable(&disk)]);
    session.mount("/dev/vda", b"/", "btrfs", "").unwrap();
    fill(session.as_mut());
    session.unmount_all().unwrap();
    session.shutdown().unwrap();
    disk
}

fn disks(paths: &[&Path]) -> Vec<GuestDisk> {
    let disk = |(i, path): (usize, &&Path)| GuestDisk {
        name: format!("xvd{}", char::from(b'a' + i as u8)),
        image: Arc::new(Raw::open(Arc::new(FileStorage::open(path).unwrap())).unwrap()),
    };
    paths.iter().enumerate().map(disk).collect()
}

/// The guest's root and what is in /home, by both engines.
fn looked_at(paths: &[&Path], root: &str) {
    let appliance = Appliance::new();
    for engine in [EngineChoice::Direct, EngineChoice::Appliance] {
        let options = OpenOptions { engine, appliance: Some(&appliance), ..OpenOptions::default() };
        let guest = Guest::open(disks(paths), &options).unwrap_or_else(|e| panic!("{root}: {engine:?}: {e}"));
        assert_eq!(guest.inspection.as_ref().unwrap().root_name(&guest.volumes), root, "{engine:?}");
        assert_eq!(guest.fs().read(b"/home/me", 100).unwrap(), b"home", "{engine:?}");
        assert_eq!(guest.fs().read(b"/etc/state", 100).unwrap(), b"now", "{engine:?}");
        guest.shutdown().unwrap();
    }
}

#[test]
fn roots_in_subvolumes_are_found_and_snapshots_of_them_are_not() {
    let dir = scratch();
    // Ubuntu's and Debian's way, with a snapshot beside the root.
    let at = made(dir.path(), "at", |s| {
        subvolume(s, "@");
        subvolume(s, "@home");
        system(s, "/@", "ubuntu", "LABEL=sys / btrfs defaults,subvol=@ 0 1\nLABEL=sys /home btrfs defaults,subvol=@home 0 2\n");
        s.write(b"/@home/me", &mut &b"home"[..], None).unwrap();
        s.write(b"/@/etc/state", &mut &b"before"[..], None).unwrap();
        run(s, &["btrfs", "subvolume", "snapshot", "/guest/@", "/guest/@before"]);
        s.write(b"/@/etc/state", &mut &b"now"[..], None).unwrap();
    });
    looked_at(&[&at], "btrfsvol:/dev/xvda/@");
    // openSUSE's: the default subvolume is a snapshot of the first root.
    let suse = made(dir.path(), "suse", |s| {
        for name in ["@", "@/home", "@/.snapshots"] {
            subvolume(s, name);
        }
        s.mkdir(b"/@/.snapshots/1", Attributes::root(0o755)).unwrap();
        subvolume(s, "@/.snapshots/1/snapshot");
        let fstab = "LABEL=sys / btrfs defaults 0 0\nLABEL=sys /home btrfs subvol=/@/home 0 0\n";
        system(s, "/@/.snapshots/1/snapshot", "opensuse", fstab);
        s.write(b"/@/home/me", &mut &b"home"[..], None).unwrap();
        s.write(b"/@/.snapshots/1/snapshot/etc/state", &mut &b"now"[..], None).unwrap();
        run(s, &["btrfs", "subvolume", "set-default", "/guest/@/.snapshots/1/snapshot"]);
    });
    looked_at(&[&suse], "/dev/xvda");
    // What the caller asks for, by options and by libguestfs's name.
    let appliance = Appliance::new();
    let request = |device: &str, options: &str| {
        vec![MountRequest { device: device.into(), path: "/".into(), options: options.into(), filesystem: String::new() }]
    };
    for engine in [EngineChoice::Direct, EngineChoice::Appliance] {
        let options = OpenOptions { engine, appliance: Some(&appliance), ..OpenOptions::default() };
        for mounts in [request("/dev/xvda", "subvol=@before"), request("btrfsvol:/dev/xvda/@before", "")] {
            let guest = Guest::open_with_mounts(disks(&[&at]), &mounts, &options).unwrap();
            assert_eq!(guest.fs().read(b"/etc/state", 100).unwrap(), b"before");
            guest.shutdown().unwrap();
        }
    }
}

#[test]
fn a_filesystem_on_two_devices_is_mounted_whole_in_the_appliance() {
    let dir = scratch();
    let (one, two) = (empty(dir.path(), "one", 128), empty(dir.path(), "two", 128));
    tool(&["mkfs.btrfs", "-q", "-d", "raid0", "-m", "raid1", one.to_str().unwrap(), two.to_str().unwrap()]);
    let mut s = crate::compare::start(vec![writable(&one), writable(&two)]);
    s.mount("/dev/vda", b"/", "btrfs", "device=/dev/vdb").unwrap();
    subvolume(s.as_mut(), "root");
    system(s.as_mut(), "/root", "fedora", "LABEL=none / btrfs subvol=root 0 0\n");
    s.shutdown().unwrap();
    let appliance = Appliance::new();
    let log = std::cell::RefCell::new(String::new());
    let options = OpenOptions { appliance: Some(&appliance), log: &|line| log.borrow_mut().push_str(line), ..OpenOptions::default() };
    let guest = Guest::open(disks(&[&one, &two]), &options).unwrap();
    assert_eq!(guest.fs().read(b"/etc/hostname", 100).unwrap(), b"fedora");
    assert_eq!(guest.inspection.as_ref().unwrap().root_name(&guest.volumes), "btrfsvol:/dev/xvda/root");
    guest.shutdown().unwrap();
    assert!(log.borrow().contains("2 devices"), "{}", log.borrow());
}
