//! virt-diff, virt-get-kernel and virt-tail beside libguestfs's, on a guest and what became of it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::phony::Guest;

const FILES: &[(&str, &[u8])] = &[
    ("empty", b""),
    ("os-release", b"ID=debian\nVERSION_ID=12\n"),
    ("kernel", b"a kernel\n"),
    ("ramdisk", b"a ramdisk\n"),
    ("text", b"one\ntwo\nthree\n"),
    ("text2", b"one\n2\nthree\nfour\n"),
    ("text3", b"one\ntwx\nthree\n"),
    ("binary", b"bin\0ary"),
    ("binary2", b"bin\0ari"),
];

/// `a.img`, and `b.img` that it became.
fn guests() -> Guest {
    let guest = Guest::empty();
    FILES.iter().for_each(|(name, content)| guest.write(name, content));
    guest.ext2("a.img", 8, include_str!("guest.debugfs"));
    std::fs::copy(guest.path("a.img"), guest.path("b.img")).unwrap();
    guest.debugfs("b.img", include_str!("changed.debugfs"));
    guest
}

const SOURCES: [&str; 4] = ["-a", "a.img", "-A", "b.img"];

fn flags<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [flags, &SOURCES].concat()
}

#[test]
fn differences() {
    let link = ("# changed: st_ino st_mtime_sec st_ctime_sec\n", "# changed: st_ino st_mtime_sec st_ctime_sec link\n");
    let binary = ("/dir/binary\n@@", "/dir/binary\nBinary files differ\n@@");
    guests().agrees_but_for("diff.txt", "diff", &flags(&["-h"]), &[link, binary]);
}

#[test]
fn all_differences() {
    let guest = guests();
    let link = ("# changed: st_ino st_mtime_sec st_ctime_sec\n", "# changed: st_ino st_mtime_sec st_ctime_sec link\n");
    let binary = ("/dir/binary\n@@", "/dir/binary\nBinary files differ\n@@");
    guest.agrees_but_for("diff-all.txt", "diff", &flags(&["--all", "--time-t", "--checksum"]), &[(" 8:0 ", " 0:1 "), link, binary]);
    let link =
        ("#,changed:,st_ino,st_atime_sec,st_mtime_sec,st_ctime_sec\n", "#,changed:,st_ino,st_atime_sec,st_mtime_sec,st_ctime_sec,link\n");
    let csv = ["--csv", "--uids", "--time-t", "--xattrs", "--atime", "--dir-links", "--dir-times"];
    guest.agrees_but_for("diff.csv", "diff", &flags(&csv), &[link]);
}

#[test]
fn a_guest_is_equal_to_itself() {
    let guest = guests();
    assert_eq!(guest.text("diff", &["--all", "--checksum", "-a", "a.img", "-A", "a.img"]), "");
    assert!(guest.failure("diff", &["-a", "a.img"]).contains("-A FILE"));
}

#[test]
fn the_newest_kernel_comes_out() {
    let guest = guests();
    std::fs::create_dir(guest.path("k")).unwrap();
    let names = || {
        let folder = std::fs::read_dir(guest.path("k")).unwrap();
        let mut names: Vec<String> = folder.map(|e| e.unwrap().file_name().into_string().unwrap() + "\n").collect();
        names.sort();
        names.concat()
    };
    let said = guest.text("get-kernel", &["-a", "a.img", "-o", "k"]);
    assert_eq!(said + &names(), include_str!("libguestfs/get-kernel.txt"));
    assert_eq!(guest.text("get-kernel", &["-q", "--unversioned-names", "--prefix", "p", "-a", "a.img", "-o", "k"]), "");
    assert_eq!(names(), "initrd.img-6.1.0-10-amd64\np-initrd.img\np-vmlinuz\nvmlinuz-6.1.0-10-amd64\n");
    assert_eq!(std::fs::read(guest.path("k/p-vmlinuz")).unwrap(), b"a kernel\n");
    assert_eq!(std::fs::read(guest.path("k/initrd.img-6.1.0-10-amd64")).unwrap(), b"a ramdisk\n");
}

#[test]
fn boot_entries_name_kernels() {
    let guest = guests();
    let id = "0123456789abcdef0123456789abcdef";
    guest.write("entry", format!("title New\nversion 7.0.1\nlinux /{id}/7.0.1/linux\ninitrd /{id}/7.0.1/initrd\n").as_bytes());
    guest.write("bad", b"title Bad\nversion 9\nlinux /../../../nowhere\n");
    let script = format!(
        "mkdir boot/loader\nmkdir boot/loader/entries\nwrite entry boot/loader/entries/new.conf\nwrite bad boot/loader/entries/bad.conf\n\
         mkdir boot/{id}\nmkdir boot/{id}/7.0.1\nwrite kernel boot/{id}/7.0.1/linux\nwrite ramdisk boot/{id}/7.0.1/initrd\n"
    );
    guest.debugfs("a.img", &script);
    assert_eq!(
        guest.text("get-kernel", &["-a", "a.img"]),
        format!("download: /boot/{id}/7.0.1/linux -> ./linux\ndownload: /boot/{id}/7.0.1/initrd -> ./initrd\n")
    );
}

fn follow(guest: &Guest, args: &[&str]) -> Child {
    let mut virt = Command::new(env!("CARGO_BIN_EXE_virt"));
    virt.arg("tail").args(args).current_dir(guest.dir.path()).stdout(Stdio::piped()).spawn().unwrap()
}

fn lines(follower: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap)
}

#[test]
fn a_file_is_followed() {
    let guest = guests();
    let source = ["-a", "a.img", "-m", "/dev/sda"];
    // A file that is not there among others is waited for, and which is which is told.
    let mut two = follow(&guest, &[&["-a", "a.img"][..], &["/dir/text", "/none"]].concat());
    let head: String = lines(&mut two).take(7).map(|line| line + "\n").collect();
    assert_eq!(head, include_str!("libguestfs/tail.txt"));
    two.kill().unwrap();
    two.wait().unwrap();
    assert!(guest.failure("tail", &[&source[..], &["/none"]].concat()).contains("there is no file /none to follow"));
    // The same file, growing: both images are made alike.
    let grow = |content: &str| {
        guest.write("log", content.as_bytes());
        guest.ext2("new.img", 1, "write log log\n");
        std::fs::copy(guest.path("new.img"), guest.path("a.img")).unwrap();
    };
    grow("1\n2\n3\n");
    let mut follower = follow(&guest, &[&["-n", "2"], &source[..], &["/log"]].concat());
    let mut lines = lines(&mut follower);
    assert_eq!([lines.next().unwrap(), lines.next().unwrap()], ["2", "3"]);
    grow("1\n2\n3\n4\n");
    assert_eq!(lines.next().unwrap(), "4");
    // Cut, or rotated: from its beginning.
    grow("new\n");
    assert_eq!(lines.next().unwrap(), "new");
    follower.kill().unwrap();
    follower.wait().unwrap();
}
