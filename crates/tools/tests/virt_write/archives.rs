//! Trees of files out of guests and into them.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};

use crate::guest::{Guest, appliance, run};

/// Files of every kind, with all that can be said of one.
fn zoo(root: &Path) {
    let top = root.join("srv/zoo");
    std::fs::create_dir_all(top.join("empty")).unwrap();
    std::fs::write(top.join("plain"), "content\n").unwrap();
    std::fs::write(top.join("x".repeat(200)), "long\n").unwrap();
    std::fs::write(top.join("line\nend"), "odd\n").unwrap();
    std::fs::hard_link(top.join("plain"), top.join("second")).unwrap();
    symlink("../../etc/motd", top.join("link")).unwrap();
    symlink("y".repeat(150), top.join("long-link")).unwrap();
    for (name, kind, device) in [("pipe", FileType::Fifo, 0), ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3))] {
        rustix::fs::mknodat(CWD, top.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    std::os::unix::fs::chown(top.join("plain"), Some(1000), Some(3_000_000)).unwrap();
    std::fs::set_permissions(top.join("plain"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    for (name, value) in [("user.note", &b"a\nb\0c"[..]), ("security.selinux", b"system_u:object_r:etc_t:s0\0")] {
        rustix::fs::setxattr(top.join("plain"), name, value, XattrFlags::empty()).unwrap();
    }
    let sparse = std::fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(8 << 40).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 4 << 40).unwrap();
    for name in ["plain", "empty", "sparse"] {
        set_time(&top.join(name), 0);
    }
}

fn set_time(path: &Path, nanoseconds: u32) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, nanoseconds);
    std::fs::File::open(path).unwrap().set_times(std::fs::FileTimes::new().set_modified(time)).unwrap();
}

#[test]
fn an_archive_is_what_gnu_tar_reads_and_comes_back_the_same() {
    let guest = Guest::new(zoo);
    guest.text("tar-out", &["/srv/zoo", "zoo.tar"]);
    assert!(guest.path("zoo.tar").metadata().unwrap().len() < 1 << 20, "holes are not stored");
    assert_eq!(std::fs::read(guest.path("zoo.tar")).unwrap(), guest.bytes("tar-out", &["/srv/zoo", "-"]));
    // GNU tar's own view of it.
    std::fs::create_dir(guest.path("out")).unwrap();
    run(&["tar", "--xattrs", "--xattrs-include=*", "-xpf", &guest.at("zoo.tar"), "-C", &guest.at("out")]);
    let of = |name: &str| guest.path("out").join(name);
    assert_eq!(std::fs::read(of("plain")).unwrap(), b"content\n");
    assert_eq!(std::fs::read(of(&"x".repeat(200))).unwrap(), b"long\n");
    assert_eq!(std::fs::read(of("line\nend")).unwrap(), b"odd\n");
    assert_eq!(std::fs::read_link(of("long-link")).unwrap(), Path::new(&"y".repeat(150)));
    let plain = of("plain").metadata().unwrap();
    assert_eq!((plain.mode() & 0o7777, plain.uid(), plain.gid(), plain.mtime()), (0o4755, 1000, 3_000_000, 1_000_000_000));
    assert_eq!(plain.ino(), of("second").metadata().unwrap().ino());
    assert_eq!(of("null").symlink_metadata().unwrap().rdev(), rustix::fs::makedev(1, 3));
    let sparse = of("sparse").metadata().unwrap();
    assert!(sparse.len() == 8 << 40 && sparse.blocks() < 100, "{} {}", sparse.len(), sparse.blocks());
    let mut note = [0; 20];
    let len = rustix::fs::getxattr(of("plain"), "user.note", &mut note[..]).unwrap();
    assert_eq!(&note[..len], b"a\nb\0c");
    if !appliance() {
        return;
    }
    // Unpacked in another guest, by name and from a pipe, it packs to the same bytes; so does what GNU tar packs of it.
    run(&["tar", "--sparse", "--format=gnu", "-cf", &guest.at("gnu.tar"), "-C", &guest.at("out"), "."]);
    for archive in ["zoo.tar", "gnu.tar"] {
        let other = Guest::new(|_| {});
        std::fs::copy(guest.path(archive), other.path(archive)).unwrap();
        other.text("customize", &["-q", "--mkdir", "/srv/new"]);
        let mut child = other.command("tar-in", &["-", "/srv/new"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&std::fs::read(guest.path(archive)).unwrap()).unwrap();
        assert!(child.wait().unwrap().success());
        other.is_clean();
        let back = other.bytes("tar-out", &["/srv/new", "-"]);
        let listing = |tar: &[u8]| {
            std::fs::write(other.path("listed"), tar).unwrap();
            run(&["tar", "--numeric-owner", "--full-time", "-tvf", &other.at("listed")])
        };
        let before = std::fs::read(guest.path("zoo.tar")).unwrap();
        if archive == "zoo.tar" {
            assert_eq!(listing(&back), listing(&before));
            assert!(back == before, "all that pax records tell is the same, too");
        } else {
            assert_eq!(listing(&back).lines().count(), listing(&before).lines().count());
        }
    }
}

/// An archive of headers that no tar program would write.
fn hostile(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, link) in members {
        let mut header = tar::Header::new_ustar();
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_ustar_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        let content: &[u8] = if kind.is_file() { b"pwned" } else { b"" };
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.extend(header.as_bytes());
        out.extend(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn no_archive_leads_out_of_its_folder() {
    if !appliance() {
        return;
    }
    use tar::EntryType::{Link, Regular, Symlink};
    let guest = Guest::new(|root| {
        std::fs::create_dir(root.join("srv/in")).unwrap();
        symlink("../../etc", root.join("srv/in/there")).unwrap();
        symlink("/etc", root.join("srv/in/absolute")).unwrap();
    });
    let before = guest.sum();
    let cases: [&[(&str, tar::EntryType, &str)]; 7] = [
        &[("../motd", Regular, "")],
        &[("a/../../../etc/motd", Regular, "")],
        &[("there/motd", Regular, "")],
        &[("absolute/motd", Regular, "")],
        &[("up", Symlink, "../.."), ("up/etc/motd", Regular, "")],
        &[("hard", Link, "../../etc/motd")],
        &[("hard", Link, "there/motd"), ("hard", Regular, "")],
    ];
    for case in cases {
        std::fs::write(guest.path("bad.tar"), hostile(case)).unwrap();
        guest.failure("tar-in", &["bad.tar", "/srv/in"]);
        assert_eq!(guest.sum(), before, "{case:?}");
    }
    // A slash in front is taken off; a link that leads out is made as it stands, and replaced by what has its name.
    let case = [("/etc/motd", Regular, ""), ("out", Symlink, "/etc/motd"), ("out", Regular, "")];
    std::fs::write(guest.path("fair.tar"), hostile(&case)).unwrap();
    guest.text("tar-in", &["fair.tar", "/srv/in"]);
    assert_eq!(guest.text("cat", &["/srv/in/etc/motd", "/srv/in/out", "/etc/motd"]), "pwnedpwnedhello\n");
    // One that was cut off changes nothing.
    let whole = guest.sum();
    let bytes = std::fs::read(guest.path("fair.tar")).unwrap();
    for cut in [100, 512, 700, bytes.len() - 1024] {
        std::fs::write(guest.path("cut.tar"), &bytes[..cut]).unwrap();
        assert!(guest.failure("tar-in", &["cut.tar", "/srv/in"]).contains("archive"));
    }
    assert_eq!(guest.sum(), whole);
    guest.is_clean();
}

#[test]
fn copies_keep_what_a_file_has() {
    let guest = Guest::new(zoo);
    std::fs::create_dir(guest.path("out")).unwrap();
    guest.text("copy-out", &["--preserve", "--special", "/srv/zoo", "out"]);
    let of = |name: &str| guest.path("out/zoo").join(name);
    let plain = of("plain").metadata().unwrap();
    assert_eq!((plain.mode() & 0o7777, plain.uid(), plain.gid(), plain.mtime()), (0o4755, 1000, 3_000_000, 1_000_000_000));
    assert_eq!(plain.ino(), of("second").metadata().unwrap().ino());
    let sparse = of("sparse").metadata().unwrap();
    assert!(sparse.len() == 8 << 40 && sparse.blocks() < 200, "{} {}", sparse.len(), sparse.blocks());
    assert_eq!(of("empty").metadata().unwrap().mtime(), 1_000_000_000);
    if !appliance() {
        return;
    }
    set_time(&of("plain"), 123_456_789);
    guest.text("customize", &["-q", "--mkdir", "/srv/back"]);
    guest.text("copy-in", &["out/zoo", "/srv/back"]);
    guest.is_clean();
    // Devices and labels are the host's own and stay there; all else is the same, but for times of access and of the copy.
    let shown = |top: &str| {
        let listing = guest.text("ls", &["-lR", "--uids", "--time-t", top]).replace(top, "");
        let lines = listing.lines().filter(|line| !line.ends_with("/null")).map(|line| {
            line.split_whitespace().enumerate().filter(|(i, _)| ![5, 7].contains(i)).map(|(_, w)| format!("{w} ")).collect::<String>()
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(shown("/srv/back/zoo"), shown("/srv/zoo"));
    let stat = run(&["debugfs", "-R", "stat /srv/back/zoo/second", &guest.at("disk.img")]);
    assert!(stat.contains("Links: 2") && stat.contains("user.note"), "{stat}");
    guest.text("copy-out", &["/srv/back/zoo/second", "out"]);
    let second = guest.path("out/second");
    assert_eq!((second.metadata().unwrap().mtime_nsec(), std::fs::read(second).unwrap()), (123_456_789, b"content\n".to_vec()));
}

#[test]
fn deep_trees_go_in_and_come_out_without_recursion() {
    const DEPTH: usize = 2500;
    if !appliance() {
        return;
    }
    let guest = Guest::new(|_| {});
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    std::fs::create_dir(guest.path("deep")).unwrap();
    let mut dir = rustix::fs::open(guest.path("deep"), flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(&dir, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    std::fs::File::from(file).write_all(b"reached").unwrap();
    run(&["tar", "-cf", &guest.at("in.tar"), "-C", &guest.at("deep"), "d"]);
    guest.text("tar-in", &["in.tar", "/srv"]);
    guest.is_clean();
    std::fs::create_dir(guest.path("out")).unwrap();
    guest.text("copy-out", &["/srv/d", "out"]);
    let found = run(&["sh", "-c", &format!("cd {} && find . -name bottom -execdir cat '{{}}' \\;", guest.at("out"))]);
    assert_eq!(found, "reached");
    guest.text("tar-out", &["/srv/d", "deep.tar"]);
    assert_eq!(run(&["sh", "-c", &format!("tar -tf {} | wc -l", guest.at("deep.tar"))]).trim(), (DEPTH + 1).to_string());
    run(&["rm", "-rf", &guest.at("out"), &guest.at("deep")]);
}

#[test]
fn trees_go_into_xfs_and_btrfs() {
    if !appliance() {
        return;
    }
    let guest = Guest::new(zoo);
    guest.text("tar-out", &["/srv/zoo", "zoo.tar"]);
    for (name, mib, mkfs, check) in [
        ("xfs.img", 320, &["mkfs.xfs", "-q"][..], &["xfs_repair", "-n"][..]),
        ("btrfs.img", 128, &["mkfs.btrfs", "-q"], &["btrfs", "check"]),
    ] {
        let image = guest.at(name);
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run(&[mkfs, &[&image]].concat());
        let virt =
            |command: &str, args: &[&str]| run(&[&[env!("CARGO_BIN_EXE_virt"), command, "-a", &image, "-m", "/dev/sda"], args].concat());
        virt("tar-in", &[&guest.at("zoo.tar"), "/"]);
        run(&[check, &[&image]].concat());
        virt("tar-out", &["--engine", "appliance", "/", &guest.at("back.tar")]);
        assert_eq!(run(&["tar", "-tvf", &guest.at("back.tar")]), run(&["tar", "-tvf", &guest.at("zoo.tar")]), "{name}");
    }
}
