//! virt-sparsify: less on the host, the same files, and nothing for fsck to mend.

use crate::disk::{Desk, MIB, UUID, bytes, has_appliance, run};

/// What files left that are there no more.
const SOIL: u8 = 0xd1;

/// Two ext4 of which most is free but not empty, a swap that was used, and a partition that is no more.
fn soiled(desk: &Desk) {
    let script =
        "label: dos\n1 : start=2048, size=204800, type=83\n2 : start=206848, size=40960, type=82\n3 : start=309248, size=81920, type=83\n";
    desk.disk("old", 191, script);
    let files = desk.files().display().to_string();
    let ext4 =
        ["-q", "-F", "-t", "ext4", "-O", "^resize_inode", "-E", "nodiscard,lazy_itable_init=0", "-U", UUID, "-L", "root", "-d", &files];
    desk.put_on(SOIL, "old", MIB, 100 * MIB, "mke2fs", &ext4);
    desk.put_on(SOIL, "old", 101 * MIB, 20 * MIB, "mkswap", &["-q", "-U", UUID]);
    desk.put_on(SOIL, "old", 121 * MIB, 30 * MIB, "true", &[]);
    desk.put_on(SOIL, "old", 151 * MIB, 40 * MIB, "mke2fs", &ext4);
}

/// All is as it was but for what is free.
fn check(desk: &Desk, disk: &str) {
    assert_eq!(desk.check_ext4(disk, MIB, 100 * MIB), 100 * MIB);
    assert_eq!(desk.check_ext4(disk, 151 * MIB, 40 * MIB), 40 * MIB);
    let swap = run("blkid", &["-p", "-o", "export", &desk.part(disk, 101 * MIB, 20 * MIB)], "");
    assert!(swap.contains(UUID) && swap.contains("TYPE=swap"), "{swap}");
    let content = bytes(desk.path(disk));
    assert!(content[..MIB as usize] == bytes(desk.path("before"))[..MIB as usize]);
    assert!(content[102 << 20..121 << 20].iter().all(|b| *b == 0), "the swap is empty");
    assert!(content[122 << 20..150 << 20].iter().all(|b| *b == 0), "the gap is empty");
    let left = content.chunks(4096).filter(|c| c.iter().all(|b| *b == SOIL)).count();
    // The margins of the gap, the head of the swap, and what mke2fs takes and leaves as it was.
    assert!(left <= 2 * 256 + 32, "{left} blocks are left");
}

#[test]
fn a_copy_has_what_is_used_and_starts_nothing() {
    let desk = Desk::new();
    soiled(&desk);
    std::fs::copy(desk.path("old"), desk.path("before")).unwrap();
    assert!(desk.allocated("old") > 190 * MIB);
    let said = desk.ok(&["sparsify", "old", "new"]);
    assert!(said.contains("were on the host"), "{said}");
    assert!(bytes(desk.path("old")) == bytes(desk.path("before")), "the input stays as it is");
    check(&desk, "new");
    assert!(desk.allocated("new") < 40 * MIB, "{}", desk.allocated("new"));

    desk.ok(&["sparsify", "-q", "--convert", "qcow2", "--compress", "-o", "compression_type=zstd", "old", "small"]);
    run("qemu-img", &["check", "-q", &desk.name("small")], "");
    run("qemu-img", &["convert", "-O", "raw", &desk.name("small"), &desk.name("small.raw")], "");
    assert!(bytes(desk.path("small.raw")) == bytes(desk.path("new")));
    assert!(desk.allocated("small") < desk.allocated("new"));

    desk.ok(&["sparsify", "-q", "--ignore", "/dev/sda1", "--zero", "/dev/sda3", "old", "other"]);
    let other = bytes(desk.path("other"));
    assert!(
        other[MIB as usize..101 << 20] == bytes(desk.path("old"))[MIB as usize..101 << 20] && other[151 << 20..].iter().all(|b| *b == 0)
    );
    for (args, says) in [
        (&["--ignore", "/dev/sda9", "old", "none"][..], "there is no /dev/sda9"),
        (&["--compress", "old", "none"], "--compress is for qcow2 only"),
        (&["old", "old"], "is the input itself"),
    ] {
        let message = desk.fails(&[&["sparsify"], args].concat());
        assert!(message.contains(says) && !desk.path("none").exists(), "{message}");
    }
}

#[test]
fn in_place_raw_and_qcow2_give_back_what_is_free() {
    let desk = Desk::new();
    soiled(&desk);
    std::fs::copy(desk.path("old"), desk.path("before")).unwrap();
    run("qemu-img", &["convert", "-O", "qcow2", &desk.name("old"), &desk.name("old.qcow2")], "");
    run("qemu-img", &["convert", "-O", "vmdk", &desk.name("old"), &desk.name("old.vmdk")], "");
    desk.ok(&["sparsify", "--in-place", "old"]);
    check(&desk, "old");
    assert!(desk.allocated("old") < 40 * MIB, "{}", desk.allocated("old"));

    assert!(desk.allocated("old.qcow2") > 120 * MIB);
    desk.ok(&["sparsify", "--in-place", "old.qcow2"]);
    run("qemu-img", &["check", "-q", &desk.name("old.qcow2")], "");
    assert!(desk.allocated("old.qcow2") < 40 * MIB, "{}", desk.allocated("old.qcow2"));
    run("qemu-img", &["convert", "-O", "raw", &desk.name("old.qcow2"), &desk.name("qcow2.raw")], "");
    let again = bytes(desk.path("qcow2.raw"));
    // Clusters of 64 KiB are given back whole or not at all.
    let left = again.chunks(65536).filter(|c| c.iter().all(|b| *b == SOIL)).count();
    assert!(left <= 2 * 16 + 4, "{left} clusters are left");
    assert_eq!(desk.check_ext4("qcow2.raw", MIB, 100 * MIB), 100 * MIB);

    let output = desk.virt(&["sparsify", "--in-place", "old.vmdk"]);
    assert_eq!(output.status.code(), Some(3), "libguestfs's code where nothing can be discarded");
}

#[test]
fn filesystems_of_the_kernel_are_trimmed_in_the_appliance() {
    if !has_appliance() {
        return;
    }
    let desk = Desk::new();
    desk.disk("old", 660, "label: gpt\nstart=2048, size=320M\nsize=200M\nsize=64M\nsize=64M\n");
    let files = desk.files().display().to_string();
    desk.put_on(SOIL, "old", MIB, 320 * MIB, "mkfs.xfs", &["-q", "-K"]);
    desk.put_on(SOIL, "old", 321 * MIB, 200 * MIB, "mkfs.btrfs", &["-q", "-K", "-r", &files]);
    desk.put_on(SOIL, "old", 521 * MIB, 64 * MIB, "mkfs.vfat", &[]);
    desk.put_on(SOIL, "old", 585 * MIB, 64 * MIB, "mkfs.ntfs", &["-q", "-F", "-Q"]);
    let before = bytes(desk.path("old"));
    let said = desk.ok(&["sparsify", "old", "new"]);
    assert!(!said.contains("warning"), "{said}");
    assert!(before == bytes(desk.path("old")));
    desk.ok(&["sparsify", "--in-place", "old"]);
    for disk in ["new", "old"] {
        assert!(desk.allocated(disk) < 80 * MIB, "{disk}: {}", desk.allocated(disk));
        run("xfs_repair", &["-n", &desk.part(disk, MIB, 320 * MIB)], "");
        run("btrfs", &["check", &desk.part(disk, 321 * MIB, 200 * MIB)], "");
        run("fsck.vfat", &["-n", &desk.part(disk, 521 * MIB, 64 * MIB)], "");
        run("ntfsfix", &["-n", &desk.part(disk, 585 * MIB, 64 * MIB)], "");
    }
}
