//! virt-format, and volume groups through virt-resize and virt-sparsify.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::disk::{Desk, MIB, bytes, has_appliance, run};

#[test]
fn blank_disks_have_what_was_asked_for() {
    let desk = Desk::new();
    desk.disk("disk", 64, "");
    desk.ext4("disk", 0, 64 * MIB);
    desk.ok(&["format", "-a", "disk"]);
    let rows = desk.rows("disk");
    assert_eq!(rows, [(1, 1, 63, "type=83".to_string())]);
    assert!(bytes(desk.path("disk"))[512..8 << 20].iter().all(|b| *b == 0), "the old filesystem is gone");
    File::options().write(true).open(desk.path("disk")).unwrap().write_all_at(&[7; 4096], 30 * MIB).unwrap();
    desk.ok(&["format", "-a", "disk", "--partition=gpt", "--wipe"]);
    assert!(run("sgdisk", &["-v", &desk.name("disk")], "").contains("No problems found"));
    assert_eq!(desk.rows("disk").iter().map(|r| (r.0, r.1, r.2)).collect::<Vec<_>>(), [(1, 1, 62)]);
    assert!(bytes(desk.path("disk"))[2 << 20..63 << 20].iter().all(|b| *b == 0), "nothing is left");
    assert!(desk.fails(&["format", "-a", "disk", "--label", "x"]).contains("--filesystem"));
    assert!(desk.fails(&["format", "-a", "disk", "--lvm=none/x"]).contains("is not /dev/GROUP/VOLUME"));
    if !has_appliance() {
        return;
    }
    run("qemu-img", &["create", "-q", "-f", "qcow2", &desk.name("second"), "400M"], "");
    desk.ok(&["format", "-a", "disk", "-a", "second", "--filesystem", "vfat", "--label", "STICK"]);
    for disk in ["disk", "second"] {
        if disk == "second" {
            run("qemu-img", &["convert", "-O", "raw", &desk.name("second"), &desk.name("raw")], "");
        }
        let raw = if disk == "second" { "raw" } else { disk };
        let rows = desk.rows(raw);
        assert_eq!(rows[0].3, "type=c");
        let part = desk.part(raw, MIB, rows[0].2 * MIB);
        run("fsck.vfat", &["-n", &part], "");
        assert!(run("blkid", &["-p", "-o", "export", &part], "").contains("LABEL=STICK"));
    }
}

#[test]
fn a_volume_group_grows_and_gives_back_what_it_does_not_use() {
    if !has_appliance() {
        return;
    }
    let desk = Desk::new();
    desk.disk("old", 128, "");
    desk.ok(&["format", "-a", "old", "--lvm=/dev/data/srv", "--filesystem", "ext4", "--label", "srv"]);
    // 31 extents of 4 MiB behind 1 MiB of LVM's own, behind 1 MiB of the table.
    let lvm = |disk: &str| {
        let part = desk.part(disk, MIB, std::fs::metadata(desk.path(disk)).unwrap().len() - MIB);
        run("pvck", &["--dump", "metadata", &part], "")
    };
    assert!(lvm("old").contains("extent_count = 31"), "{}", lvm("old"));
    let fs = |disk: &str, mib: u64| {
        let part = desk.part(disk, 2 * MIB, mib * MIB);
        run("e2fsck", &["-fn", &part], "");
        let text = run("dumpe2fs", &["-h", &part], "");
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap();
        assert_eq!(field("Block count:") * field("Block size:"), mib * MIB);
    };
    fs("old", 124);

    desk.ok(&["resize", "-q", "--size", "256M", "--expand", "/dev/sda1", "old", "new"]);
    let metadata = lvm("new");
    assert!(metadata.contains("extent_count = 31") && metadata.contains("pe_count = 63"), "{metadata}");
    fs("new", 124);
    let file = File::options().read(true).write(true).open(desk.path("new")).unwrap();
    file.write_all_at(&vec![0xd1; 100 << 20], 140 * MIB).unwrap();
    desk.ok(&["sparsify", "-q", "--ignore", "data", "new", "same"]);
    assert!(bytes(desk.path("same"))[140 << 20..240 << 20].iter().all(|b| *b == 0xd1));
    desk.ok(&["sparsify", "-q", "--in-place", "new"]);
    assert!(bytes(desk.path("new"))[140 << 20..240 << 20].iter().all(|b| *b == 0) && desk.allocated("new") < 30 * MIB);
    fs("new", 124);

    desk.ok(&["resize", "-q", "--size", "256M", "--expand", "/dev/sda1", "--LV-expand", "/dev/data/srv", "old", "whole"]);
    assert!(lvm("whole").contains("extent_count = 63"));
    fs("whole", 252);
    // A physical volume shrinks only to what its volumes use.
    let message = desk.fails(&["resize", "-q", "--size", "100M", "--shrink", "/dev/sda1", "whole", "none"]);
    assert!(message.contains("pvresize") && !desk.path("none").exists(), "{message}");
    desk.ok(&["resize", "-q", "--size", "200M", "--shrink", "/dev/sda1", "new", "less"]);
    assert!(lvm("less").contains("pe_count = 49"), "{}", lvm("less"));
    fs("less", 124);
}
