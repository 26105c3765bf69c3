//! virt-make-fs: the files of folders and archives on filesystems that fsck finds no fault with, and that are not much too large.

use std::os::unix::fs::PermissionsExt;

use crate::disk::{Desk, MIB, has_appliance, run};

/// The files, a link, and what has a mode of its own; as an archive, too.
fn input(desk: &Desk) {
    let files = desk.files();
    std::fs::hard_link(files.join("a/file-9"), files.join("a/other-9")).unwrap();
    std::os::unix::fs::symlink("file-9", files.join("a/link")).unwrap();
    std::fs::set_permissions(files.join("a/file-8"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    for (name, flag) in [("plain.tar", "-c"), ("packed.tar.gz", "-cz"), ("packed.tar.xz", "-cJ")] {
        run("tar", &[flag, "-f", &desk.name(name), "--owner=1234", "--group=77", "-C", &desk.name("files"), "."], "");
    }
    run("zstd", &["-q", &desk.name("plain.tar"), "-o", &desk.name("packed.tar.zst")], "");
}

/// The ext2, ext3 or ext4 in a file is clean and has all files. Gives debugfs's word on one of them.
fn check(desk: &Desk, part: &str) -> String {
    run("e2fsck", &["-fn", part], "");
    let out = desk.path("out");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir(&out).unwrap();
    run("debugfs", &["-R", &format!("rdump /a {}", out.display()), part], "");
    run("diff", &["-r", &desk.name("files/a"), &desk.name("out/a")], "");
    run("debugfs", &["-R", "stat /a/file-8", part], "") + &run("debugfs", &["-R", "stat /a/file-9", part], "")
}

fn size(desk: &Desk, name: &str) -> u64 {
    std::fs::metadata(desk.path(name)).unwrap().len()
}

#[test]
fn files_of_folders_and_archives_are_on_the_disk() {
    if !has_appliance() {
        return;
    }
    let desk = Desk::new();
    input(&desk);
    let data: u64 = (0..60u64).map(|i| (i * i * 90).next_multiple_of(4096)).sum();

    desk.ok(&["make-fs", "files", "ext2.img"]);
    let told = check(&desk, &desk.name("ext2.img"));
    assert!(told.contains("Mode:  04751") && told.contains("Links: 2"), "{told}");
    assert!(size(&desk, "ext2.img") < data + data / 8 + 3 * MIB, "{} for {data}", size(&desk, "ext2.img"));

    desk.ok(&["make-fs", "--type", "ext4", "--partition=gpt", "--label", "data", "packed.tar.zst", "gpt.img"]);
    assert!(run("sgdisk", &["-v", &desk.name("gpt.img")], "").contains("No problems found"));
    let rows = desk.rows("gpt.img");
    let part = desk.part("gpt.img", MIB, rows[0].2 * MIB);
    let told = check(&desk, &part);
    assert!(told.contains("User:  1234   Group:    77") && told.contains("Mode:  04751") && told.contains("Links: 2"), "{told}");
    assert!(run("blkid", &["-p", "-o", "export", &part], "").contains("LABEL=data"));
    assert!(size(&desk, "gpt.img") < data + data / 8 + 12 * MIB, "{} for {data}", size(&desk, "gpt.img"));

    for (archive, options) in [("packed.tar.gz", &["--size", "100M", "--format", "qcow2"][..]), ("packed.tar.xz", &["--size=+50M"])] {
        desk.ok(&[&["make-fs", "-t", "ext3"], options, &[archive, "image"]].concat());
        run("qemu-img", &["convert", "-O", "raw", &desk.name("image"), &desk.name("raw")], "");
        check(&desk, &desk.name("raw"));
        let text = run("dumpe2fs", &["-h", &desk.name("raw")], "");
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap();
        if archive.ends_with("gz") {
            assert_eq!(size(&desk, "raw"), 100 * MIB);
        } else {
            assert!(field("Free blocks:") * field("Block size:") >= 50 * MIB, "{text}");
        }
    }

    // FAT has no links of either kind.
    assert!(desk.fails(&["make-fs", "--type", "vfat", "files", "none"]).contains("not permitted") && !desk.path("none").exists());
    std::fs::remove_file(desk.path("files/a/link")).unwrap();
    std::fs::remove_file(desk.path("files/a/other-9")).unwrap();
    desk.ok(&["make-fs", "--type", "vfat", "--partition", "--label", "STICK", "--", "files", "vfat.img"]);
    let rows = desk.rows("vfat.img");
    assert_eq!(rows[0].3, "type=c");
    let part = desk.part("vfat.img", MIB, rows[0].2 * MIB);
    let told = run("fsck.vfat", &["-n", "-v", &part], "");
    let files = told.lines().rev().find_map(|l| l.split_once(" files, ")?.0.rsplit(' ').next()?.parse::<u32>().ok());
    // Sixty-one files, two folders, and the label.
    assert!(files.is_some_and(|files| (61..=64).contains(&files)), "{told}");

    let message = desk.fails(&["make-fs", "--size", "1M", "files", "none"]);
    assert!(message.contains("No space left") && !desk.path("none").exists(), "{message}");
    assert!(desk.fails(&["make-fs", "nowhere", "none"]).contains("No such file"));
}
