//! Where a root can lie.

use std::path::{Path, PathBuf};

use crate::booted::{boots, converted, healthy, scratch};
use crate::console::{Console, Hardware, Writes};
use crate::guest::{Guest, recipe, tool};
use crate::planned::planned;
use crate::updated::{DEBIANS_HOOKS, takes_a_newer_kernel};

fn boots_twice(guest: &Guest, disks: Vec<PathBuf>) -> Console {
    let mut console = boots(guest, disks);
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, guest);
    console
}

/// The sizes of a disk's partitions in MiB, by number.
fn partitions(disk: &Path) -> Vec<u64> {
    let table =
        tool(env!("CARGO_BIN_EXE_virt"), ["filesystems", "--partitions", "--long", "--csv", "-a"].map(Path::new).into_iter().chain([disk]));
    let size = |line: &str| line.split(',').nth(3).and_then(|s| s.parse::<u64>().ok()).map(|s| s >> 20);
    table.lines().skip(1).filter_map(size).collect()
}

#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn a_volume_group_with_boot_on_whole_disks() {
    let Some(guest) = recipe("lvm") else { return };
    let dir = scratch();
    let disks = planned(&guest, dir.path(), &["--grow", "256M"]);
    assert_eq!(disks.len(), 2, "the first disk becomes a partition of one, the other stays");
    let mut console = takes_a_newer_kernel(&guest, disks, DEBIANS_HOOKS);
    let size: u64 = console.ok("blockdev --getsize64 /dev/vg0/root").trim().parse().expect("a size");
    assert_eq!(size >> 20, 1600 + 256);
    let free: u64 = console.ok("df --output=size -BM / | tail -1 | tr -dc 0-9").trim().parse().expect("a size");
    assert!(free > 1650, "{free}");
}

#[test]
fn a_volume_group_on_a_mirror() {
    let Some(guest) = recipe("raid") else { return };
    let dir = scratch();
    let mut console = boots_twice(&guest, planned(&guest, dir.path(), &[]));
    let state = console.ok("cat /proc/mdstat");
    assert!(state.contains("[2/2] [UU]"), "{state}");
}

#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn btrfs_as_opensuse_lays_it_out() {
    let Some(guest) = recipe("btrfs") else { return };
    let dir = scratch();
    let mut console = takes_a_newer_kernel(&guest, planned(&guest, dir.path(), &[]), DEBIANS_HOOKS);
    let mounts = console.ok("grep ' btrfs ' /proc/mounts");
    for mounted in [" / btrfs", "subvol=/@/.snapshots/1/snapshot 0", " /home btrfs", "subvol=/@/home 0"] {
        assert!(mounts.contains(mounted), "{mounted} is not in {mounts}");
    }
}

#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn xfs_and_boot_on_a_whole_disk_each() {
    let Some(guest) = recipe("xfs") else { return };
    let dir = scratch();
    let disks = planned(&guest, dir.path(), &["--alignment", "4M", "--grow", "+300M"]);
    assert_eq!(disks.len(), 3, "root and /boot become partitions of one disk; swap and the empty disk stay");
    assert_eq!(partitions(&disks[0]), [1800, 200]);
    let mut console = boots_twice(&guest, disks);
    let mounts = console.ok("grep ^/dev/ /proc/mounts");
    assert!(mounts.contains("/dev/vda1 / xfs ") && mounts.contains("/dev/vda2 /boot ext2 "), "{mounts}");
    let size: u64 = console.ok("df --output=size -BM / | tail -1 | tr -dc 0-9").trim().parse().expect("a size");
    assert!(size > 1600, "{size}");
}

#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn an_encrypted_volume_group() {
    let Some(guest) = recipe("luks") else { return };
    let dir = scratch();
    let disks = converted(&guest, &guest.cfg, dir.path(), &["--key", "all:key:a passphrase"]);
    let hardware = Hardware { disks, extra: None, agent: None, macs: vec![&guest.mac], writes: Writes::Discarded };
    let mut console = Console::start(&hardware);
    for boot in 0..2 {
        if boot > 0 {
            console.restart();
        }
        console.answer("Please unlock disk xvda2_crypt:", "a passphrase");
        console.login(&guest.name, &guest.password);
        healthy(&mut console, &guest);
    }
}

/// btrfs by subvolumes' names on a GPT that has no room set aside for a boot loader; the second of two NICs has the address.
#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn btrfs_subvolumes_by_name_and_two_nics() {
    let Some(guest) = recipe("subvolumes") else { return };
    let dir = scratch();
    let disks = planned(&guest, dir.path(), &[]);
    let mut console = Console::of_script(&dir.path().join("subvolumes-run.sh"), &["-snapshot"]);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, &guest);
    let seen = console.ok("ip -4 -o addr | cat; grep ' btrfs ' /proc/mounts");
    for wanted in ["enX0    inet 192.168.78.10/24", "subvol=/@ 0", "subvol=/@home 0"] {
        assert!(seen.contains(wanted), "{wanted} is not in {seen}");
    }
    drop(console);
    takes_a_newer_kernel(&guest, disks, DEBIANS_HOOKS);
}
