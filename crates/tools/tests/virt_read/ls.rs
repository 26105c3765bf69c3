//! virt-ls and virt-cat beside libguestfs's, on a filesystem of every kind of file.

use crate::phony::{Guest, run, similar};
use std::process::Command;

fn guest() -> Guest {
    let guest = Guest::empty();
    guest.write("payload", b"some text\n");
    guest.write("empty", b"");
    guest.ext2("ls.img", 1, include_str!("ls.debugfs"));
    guest
}

/// libguestfs's appliance numbers its disks, we the guest's filesystems.
const DEVICE: (&str, &str) = (" 8:0 ", " 0:1 ");

#[test]
fn recursive_and_long() {
    let flags = ["-lR", "--uids", "--extra-stats", "--time-t", "--checksum", "-a", "ls.img", "-m", "/dev/sda", "/"];
    guest().agrees_but_for("ls-lR.txt", "ls", &flags, &[DEVICE]);
}

#[test]
fn every_form() {
    let guest = guest();
    let ls = |name, flags: &[&str]| guest.agrees(name, "ls", &[flags, &["-a", "ls.img", "-m", "/dev/sda"]].concat());
    ls("ls-R.txt", &["-R", "/dir"]);
    ls("ls-csv.txt", &["-lR", "--csv", "--uids", "--times", "--checksum=sha256", "/dir", "/"]);
    ls("ls-h.txt", &["-lR", "-h", "--times", "--checksum=crc", "/dir"]);
    ls("ls-l.txt", &["-l", "/dir"]);
}

#[test]
fn names_come_in_the_order_of_whole_paths() {
    let guest = guest();
    let names = guest.text("ls", &["-R", "-a", "ls.img", "-m", "/dev/sda", "/dir"]);
    assert!(names.starts_with("/a\n/a-b\n/a/x\n/comma,quote'd\n"), "{names}");
}

#[test]
fn directories_may_nest_without_end() {
    let guest = Guest::empty();
    // debugfs itself comes no deeper.
    let deep = 2000;
    let script: String = (0..deep).map(|_| "mkdir d\ncd d\n").collect();
    guest.ext2("deep.img", 8, &script);
    let names = guest.text("ls", &["-R", "-a", "deep.img", "-m", "/dev/sda", "/"]);
    assert_eq!(names.lines().map(str::len).max(), Some(2 * deep - 1));
    // A directory that is in itself.
    guest.ext2("loop.img", 1, "mkdir a\nmkdir a/b\nlink a a/b/c\n");
    let message = guest.failure("ls", &["-lR", "-a", "loop.img", "-m", "/dev/sda", "/"]);
    assert!(message.contains("/a/b/c: the directory is in two places"), "{message}");
}

#[test]
fn twenty_thousand_files() {
    let guest = Guest::empty();
    let tree = guest.path("tree");
    for folder in 0..200 {
        let folder = tree.join(format!("folder-{folder}"));
        std::fs::create_dir_all(&folder).unwrap();
        (0..100).for_each(|file| std::fs::write(folder.join(format!("file-{file}")), b"").unwrap());
    }
    let image = guest.path("many.img");
    std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-N", "21000", "-d"]).arg(&tree).arg(&image));
    let rows = guest.text("ls", &["-lR", "-a", "many.img", "-m", "/dev/sda", "/"]);
    assert_eq!(rows.lines().count(), 20_000 + 200 + 2);
}

#[test]
fn several_files_are_printed_one_after_the_other() {
    let guest = guest();
    let source = ["-a", "ls.img", "-m", "/dev/sda"];
    let cat = |files: &[&'static str]| [&source[..], files].concat();
    let sparse = guest.text("cat", &cat(&["/dir/a/x", "/dir/sparse", "/dir/empty", "/dir/../dir/grüße"]));
    assert_eq!(sparse.len(), 5_000_020);
    similar("cat", &sparse[..20], "some text\nsome text\n");
    assert!(guest.failure("cat", &cat(&["/dir/pipe"])).contains("/dir/pipe: not a regular file"));
    assert!(guest.failure("cat", &cat(&["/dir/link"])).contains("no such file"));
}
