//! virt-resize: tables as sfdisk and sgdisk read them, filesystems as fsck does, and the files in them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::disk::{Desk, MIB, bytes, has_appliance, run};

const SWAP: &str = "8b0d5f6e-1c2a-4e3b-9f00-0123456789ab";

fn row(number: u32, start: u64, len: u64, rest: &str) -> (u32, u64, u64, String) {
    (number, start, len, rest.to_string())
}

#[test]
fn a_logical_partition_grows_and_its_extended_one_with_it() {
    if !has_appliance() {
        return;
    }
    let desk = Desk::new();
    let script = "label: dos\nlabel-id: 0x1a2b3c4d\n1 : start=2048, size=65536, type=83, bootable\n2 : start=67584, size=129024, type=f\n\
                  3 : start=196608, size=6144, type=da\n5 : start=69632, size=81920, type=83\n6 : start=153600, size=40960, type=82\n";
    desk.disk("old", 100, script);
    let old = File::options().write(true).open(desk.path("old")).unwrap();
    old.write_all_at(&[0x90; 440], 0).unwrap();
    old.write_all_at(b"a boot loader's", MIB / 2).unwrap();
    old.write_all_at(&[0x5a; 3 << 20], 96 * MIB).unwrap();
    desk.ext4("old", MIB, 32 * MIB);
    desk.ext4("old", 34 * MIB, 40 * MIB);
    desk.put("old", 75 * MIB, 20 * MIB, "mkswap", &["-q", "-U", SWAP, "-L", "spare"]);
    let before = bytes(desk.path("old"));
    let said = desk.ok(&["resize", "--size", "+100M", "--resize", "/dev/sda6=+10M", "--expand", "/dev/sda5", "old", "new"]);
    assert!(said.contains("/dev/sda1: This partition will be left alone.") && said.contains("no errors"), "{said}");
    assert!(before == bytes(desk.path("old")), "the input stays as it is");
    let expected = [
        row(1, 1, 32, "type=83, bootable"),
        row(2, 33, 164, "type=f"),
        row(3, 197, 3, "type=da"),
        row(5, 34, 131, "type=83"),
        row(6, 166, 30, "type=82"),
    ];
    assert_eq!(desk.rows("new"), expected);
    assert!(run("sfdisk", &["-d", &desk.name("new")], "").contains("label-id: 0x1a2b3c4d"));
    assert_eq!(desk.check_ext4("new", MIB, 32 * MIB), 32 * MIB);
    assert_eq!(desk.check_ext4("new", 34 * MIB, 131 * MIB), 131 * MIB);
    let swap = run("blkid", &["-p", "-o", "export", &desk.part("new", 166 * MIB, 30 * MIB)], "");
    assert!(swap.contains(SWAP) && swap.contains("LABEL=spare") && swap.contains("TYPE=swap"), "{swap}");
    let after = bytes(desk.path("new"));
    assert!(after[..440] == before[..440] && after[512..MIB as usize] == before[512..MIB as usize], "the boot loader is there");
    assert!(after[197 << 20..200 << 20] == [0x5a; 3 << 20]);
}

#[test]
fn a_filesystem_is_shrunk_before_it_is_copied_and_a_whole_disk_has_one_too() {
    if !has_appliance() {
        return;
    }
    let desk = Desk::new();
    desk.disk("old", 200, "label: dos\n1 : start=2048, size=327680, type=83\n2 : start=329728, size=40960, type=83\n");
    desk.ext4("old", MIB, 160 * MIB);
    desk.ext4("old", 161 * MIB, 20 * MIB);
    let before = bytes(desk.path("old"));
    desk.ok(&["resize", "-q", "--size", "81M", "--shrink", "/dev/sda1", "--output-format", "qcow2", "old", "small"]);
    run("qemu-img", &["check", "-q", &desk.name("small")], "");
    run("qemu-img", &["convert", "-O", "raw", &desk.name("small"), &desk.name("small.raw")], "");
    assert_eq!(desk.rows("small.raw"), [row(1, 1, 60, "type=83"), row(2, 61, 20, "type=83")]);
    assert_eq!(desk.check_ext4("small.raw", MIB, 60 * MIB), 60 * MIB);
    assert_eq!(desk.check_ext4("small.raw", 61 * MIB, 20 * MIB), 20 * MIB);
    assert!(before == bytes(desk.path("old")));

    // Too small for what is in it: nothing is left, and nothing is changed.
    let message = desk.fails(&["resize", "--size", "40M", "--shrink", "/dev/sda1", "old", "none"]);
    assert!(message.contains("resize2fs"), "{message}");
    let names: Vec<_> = std::fs::read_dir(desk.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().contains("none")), "{names:?}");
    assert!(before == bytes(desk.path("old")));

    desk.disk("whole", 64, "");
    desk.ext4("whole", 0, 64 * MIB);
    desk.ok(&["resize", "-q", "--size", "300M", "--expand", "/dev/sda", "whole", "larger"]);
    assert_eq!(desk.check_ext4("larger", 0, 300 * MIB), 300 * MIB);
    // NTFS does both, one after the other.
    desk.disk("ntfs", 60, "");
    desk.put("ntfs", 0, 60 * MIB, "mkfs.ntfs", &["-q", "-Q", "-F"]);
    desk.ok(&["resize", "-q", "--size", "100M", "--expand", "/dev/sda", "ntfs", "ntfs-100"]);
    desk.ok(&["resize", "-q", "--size", "40M", "--shrink", "/dev/sda", "--ntfsresize-force", "ntfs-100", "ntfs-40"]);
    for (mib, disk) in [(100, "ntfs-100"), (40, "ntfs-40")] {
        let info = run("ntfsresize", &["--info", "--force", "--no-progress-bar", &desk.name(disk)], "");
        let bytes: u64 = info.lines().find_map(|l| l.strip_prefix("Current volume size: ")?.split(' ').next()?.parse().ok()).unwrap();
        assert!(bytes <= mib * MIB && bytes + 8192 > mib * MIB, "{info}");
    }
    // What is there gives size and format, and is replaced.
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=128k", &desk.name("there"), "40M"], "");
    desk.ok(&["resize", "-q", "--shrink", "/dev/sda", "whole", "there"]);
    let info = run("qemu-img", &["info", &desk.name("there")], "");
    assert!(info.contains("file format: qcow2") && info.contains("40 MiB") && info.contains("cluster_size: 131072"), "{info}");
    run("qemu-img", &["convert", "-O", "raw", &desk.name("there"), &desk.name("there.raw")], "");
    assert_eq!(desk.check_ext4("there.raw", 0, 40 * MIB), 40 * MIB);
}

#[test]
fn a_gpt_keeps_its_ids_and_xfs_and_btrfs_grow() {
    if !has_appliance() {
        return;
    }
    let desk = Desk::new();
    desk.disk("old", 600, "");
    let disk = desk.name("old");
    let words =
        ["-U", "11111111-2222-4333-8444-555555555555", "-n", "1:2048:+2M", "-t", "1:ef02", "-n", "3:6144:+320M", "-c", "3:the root"];
    let more = ["-u", "3:aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", "-A", "3:set:60", "-n", "7:661504:+200M", &disk];
    run("sgdisk", &[&words[..], &more].concat(), "");
    desk.put("old", 3 * MIB, 320 * MIB, "mkfs.xfs", &["-q", "-L", "xfs"]);
    let files = desk.files().display().to_string();
    desk.put("old", 323 * MIB, 200 * MIB, "mkfs.btrfs", &["-q", "-r", &files]);
    desk.ok(&["resize", "-q", "--size", "1G", "--resize", "sda3=400M", "--expand", "sda7", "old", "new"]);
    let new = desk.name("new");
    assert!(run("sgdisk", &["-v", &new], "").contains("No problems found"));
    for (number, expected) in [
        ("1", &["First sector: 2048 ", "Last sector: 6143 ", "21686148-6449-6E6F-744E-656564454649"][..]),
        ("3", &["First sector: 6144 ", "Last sector: 825343 ", "AAAAAAAA-BBBB-4CCC-8DDD-EEEEEEEEEEEE", "'the root'", "1000000000000000"]),
        ("7", &["First sector: 825344 ", "Last sector: 2097023 "]),
    ] {
        let info = run("sgdisk", &["-i", number, &new], "");
        assert!(expected.iter().all(|e| info.contains(e)), "{info}");
    }
    assert!(run("sgdisk", &["-p", &new], "").contains("11111111-2222-4333-8444-555555555555"));
    let xfs = desk.part("new", 3 * MIB, 400 * MIB);
    run("xfs_repair", &["-n", &xfs], "");
    assert!(run("xfs_db", &["-r", "-c", "sb 0", "-c", "p dblocks", &xfs], "").contains("dblocks = 102400"));
    let len = (2_097_023 + 1 - 825_344) * 512;
    let btrfs = desk.part("new", 403 * MIB, len);
    run("btrfs", &["check", &btrfs], "");
    let text = run("btrfs", &["inspect-internal", "dump-super", &btrfs], "");
    let total = text.lines().find_map(|l| l.strip_prefix("total_bytes")).unwrap().trim().to_string();
    assert_eq!(total.parse::<u64>().unwrap(), len / 4096 * 4096);

    let message = desk.fails(&["resize", "--size", "500M", "--shrink", "/dev/sda3", "old", "none"]);
    assert!(message.contains("xfs cannot shrink"), "{message}");
}

#[test]
fn what_is_not_copied_and_what_cannot_be_is_told_before_anything_is_done() {
    let desk = Desk::new();
    desk.disk(
        "old",
        100,
        "label: dos\n1 : start=2048, size=65536, type=83\n2 : start=67584, size=65536, type=83\n3 : start=133120, type=83\n",
    );
    for at in [MIB, 33 * MIB, 65 * MIB] {
        File::options().write(true).open(desk.path("old")).unwrap().write_all_at(&[at as u8 | 1; 4096], at).unwrap();
    }
    let dry = desk.ok(&["resize", "-n", "--size", "200M", "--delete", "/dev/sda1", "old", "new"]);
    assert!(dry.contains("An extra partition will be created") && !desk.path("new").exists(), "{dry}");
    desk.ok(&["resize", "-q", "--size", "200M", "--delete", "sda1", "--ignore", "sda2", "--no-copy-boot-loader", "old", "new"]);
    let rows = desk.rows("new");
    // Numbers stay, and what is deleted leaves room behind.
    assert_eq!(rows, [row(1, 68, 132, "type=83"), row(2, 1, 32, "type=83"), row(3, 33, 35, "type=83")]);
    let new = bytes(desk.path("new"));
    assert!(new[MIB as usize..][..4096] == [0; 4096] && new[33 << 20..][..4096] == [(65 * MIB) as u8 | 1; 4096]);
    for (args, says) in [
        (&["old", "none"][..], "no size is given"),
        (&["--size", "50M", "old", "none"], "too small by 50 MiB"),
        (&["--size", "1G", "--expand", "sda4", "old", "none"], "there is no partition 4"),
        (&["--size", "1G", "--expand", "sda1", "--delete", "sda1", "old", "none"], "named twice"),
        (&["--size", "99M", "--shrink", "sda3", "old", "none"], "what it holds is unknown"),
        (&["--size", "1G", "--LV-expand", "/dev/vg/lv", "old", "none"], "there is no logical volume"),
        (&["--size", "1G", "old", "old"], "is the input itself"),
    ] {
        let message = desk.fails(&[&["resize"], args].concat());
        assert!(message.contains(says) && !desk.path("none").exists(), "{message}");
    }
}
