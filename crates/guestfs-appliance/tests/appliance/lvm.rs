//! Logical volumes: made by LVM's own tools and the kernel's device mapper in an appliance, read in this process and in another appliance.

use std::path::Path;

use guestfs::engine::{Command, Engine, Session};
use guestfs::{Attributes, EngineChoice, Ext, Guest, GuestDisk, GuestFs, MountRequest, OpenOptions, Volumes, lvm};
use guestfs_appliance::Appliance;
use imgcore::formats::{Formats, OpenOptions as ImageOptions};

use crate::common::*;

/// Runs a program in the appliance that must succeed.
fn run(session: &mut dyn Session, argv: &[&str]) {
    let output = session.run_tool(&Command::new(argv)).unwrap_or_else(|e| panic!("{argv:?}: {e}"));
    assert_eq!(output.status, 0, "{argv:?}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

fn lvm(session: &mut dyn Session, argv: &[&str]) {
    let settings = ["--config", "activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0} devices{use_devicesfile=0}"];
    run(session, &[&["lvm"], &argv[..1], &settings, &argv[1..]].concat());
}

/// Bytes that differ everywhere.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The names, sizes and contents of the volumes on two disks: one of two pieces, one in stripes, one that only the kernel can read.
const VOLUMES: [(&str, u64); 3] = [("root", 40), ("fast-er", 32), ("thin", 16)];

fn make(disks: [&Path; 2]) {
    let mut session = Engine::start(&Appliance::new(), disks.map(writable).into(), true).unwrap_or_else(|e| panic!("{e}"));
    let s = session.as_mut();
    lvm(s, &["pvcreate", "-q", "/dev/vda", "/dev/vdb"]);
    lvm(s, &["vgcreate", "-q", "vg-x", "/dev/vda", "/dev/vdb"]);
    lvm(s, &["lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", "24m", "-n", "root", "vg-x", "/dev/vdb"]);
    lvm(s, &["lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", "32m", "-i", "2", "-I", "64k", "-n", "fast-er", "vg-x"]);
    lvm(s, &["lvextend", "-qq", "-L", "40m", "vg-x/root", "/dev/vda"]);
    lvm(s, &["lvcreate", "-qq", "-y", "-Wn", "-L", "32m", "--thinpool", "pool", "vg-x"]);
    lvm(s, &["lvcreate", "-qq", "-y", "-Wn", "-V", "16m", "--thin", "-n", "thin", "vg-x/pool"]);
    for (seed, (name, mib)) in VOLUMES.iter().enumerate() {
        let device = format!("/dev/vg-x/{name}");
        run(s, &["mke2fs", "-q", "-F", "-t", "ext4", &device]);
        s.mount(&device, b"/", "ext4", "rw").unwrap();
        s.mkdir(b"/etc", Attributes::root(0o755)).unwrap();
        s.write(b"/etc/noise", &mut noise((*mib as usize) << 19, seed as u64).as_slice(), None).unwrap();
        s.unmount_all().unwrap();
    }
    session.shutdown().unwrap();
}

fn disks(paths: [&Path; 2]) -> Vec<GuestDisk> {
    let open = |(index, path): (usize, &Path)| GuestDisk {
        name: ["xvda", "xvdb"][index].into(),
        image: Formats::new().open(path, &ImageOptions::new(&imgcore::LocalGate)).unwrap(),
    };
    paths.into_iter().enumerate().map(open).collect()
}

fn mount(device: &str) -> [MountRequest; 1] {
    [MountRequest { device: device.into(), path: "/".into(), options: String::new(), filesystem: String::new() }]
}

fn holds(fs: &dyn GuestFs, volume: usize) {
    let wanted = noise((VOLUMES[volume].1 as usize) << 19, volume as u64);
    assert!(fs.read(b"/etc/noise", 1 << 30).unwrap() == wanted, "{}", VOLUMES[volume].0);
}

#[test]
fn volumes_are_read_in_process_and_in_the_appliance() {
    let dir = scratch();
    let (a, b) = (empty(dir.path(), "a", 100), empty(dir.path(), "b", 100));
    let paths = [a.as_path(), b.as_path()];
    make(paths);
    let volumes = Volumes::open(disks(paths)).unwrap();
    assert_eq!(volumes.complaints, [] as [String; 0]);
    let named: Vec<(&str, u64, &str)> = volumes.volumes.iter().map(|v| (v.device.as_str(), v.len >> 20, v.kind())).collect();
    for line in
        [("/dev/xvda", 100, "LVM2_member"), ("/dev/vg-x/root", 40, "ext4"), ("/dev/vg-x/fast-er", 32, "ext4"), ("/dev/vg-x/thin", 16, "")]
    {
        assert!(named.contains(&line), "{line:?} is not in {named:?}");
    }
    for spec in ["/dev/vg-x/fast-er", "/dev/mapper/vg--x-fast--er"] {
        assert_eq!(volumes.find(spec.as_bytes()).map(|v| volumes.volumes[v].device.as_str()), Some("/dev/vg-x/fast-er"));
    }

    let direct = OpenOptions { engine: EngineChoice::Direct, ..OpenOptions::default() };
    let appliance = Appliance::new();
    let any = OpenOptions { appliance: Some(&appliance), ..OpenOptions::default() };
    for (volume, device) in ["/dev/vg-x/root", "/dev/mapper/vg--x-fast--er"].into_iter().enumerate() {
        holds(Guest::open_with_mounts(disks(paths), &mount(device), &direct).unwrap().fs(), volume);
    }
    let error = Guest::open_with_mounts(disks(paths), &mount("/dev/vg-x/thin"), &direct).err().unwrap().to_string();
    assert!(error.contains("type thin"), "{error}");
    let guest = Guest::open_with_mounts(disks(paths), &mount("/dev/vg-x/thin"), &any).unwrap();
    holds(guest.fs(), 2);
    guest.shutdown().unwrap();

    // A disk alone: what lies on the other cannot be read, and what is wrong is said.
    let alone = Volumes::open(disks(paths).split_off(1)).unwrap();
    let root = alone.find(b"/dev/vg-x/root").unwrap();
    let error = alone.image(&alone.volumes[root]).err().unwrap().to_string();
    assert!(error.contains("on none of the disks"), "{error}");
    assert_eq!(lvm::mapper_name("vg-x", "fast-er"), "vg--x-fast--er");
}
