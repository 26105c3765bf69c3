//! Staging: what is seen before it is written, and what is written.

use guestfs::engine::Command;
use guestfs::{Attributes, Ext, FileType, GuestFs, GuestFsMut};

use super::*;
use crate::testing::MemFs;

fn guest() -> MemFs {
    MemFs::new()
        .file("/etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n")
        .file("/etc/inittab", "1:2345:respawn:/sbin/getty 38400 hvc0\n")
        .file("/usr/lib/systemd/system/x.service", "[Unit]\n")
        .link_to("/lib", "usr/lib")
        .link_to("/etc/abs", "/etc/fstab")
        .link_to("/etc/up", "../../../etc/inittab")
}

#[test]
fn changes_are_seen_at_once_and_the_guest_is_untouched() {
    let base = guest();
    let mut fs = Staged::new(&base);
    fs.begin("one");
    fs.write(b"/etc/abs", &mut &b"new\n"[..], None).unwrap();
    fs.put(b"/lib/udev/rules.d/a.rules", b"rule", None).unwrap();
    fs.remove(b"/etc/inittab").unwrap();
    fs.symlink(b"/dev/null", b"/lib/systemd/system/y.service").unwrap();
    assert_eq!(fs.read(b"/etc/fstab", 100).unwrap(), b"new\n");
    assert_eq!(fs.read(b"/usr/lib/udev/rules.d/a.rules", 100).unwrap(), b"rule");
    assert!(!fs.exists(b"/etc/up"));
    let names: Vec<_> = fs.read_dir(b"/lib/systemd/system").unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
    assert_eq!(names, [(b"x.service".to_vec(), FileType::Regular), (b"y.service".to_vec(), FileType::Symlink)]);
    assert_eq!(fs.read_dir(b"/usr/lib").unwrap().len(), 2);
    assert_eq!(base.read(b"/etc/fstab", 100).unwrap(), b"/dev/xvda2 / ext4 defaults 0 1\n");
    assert!(base.exists(b"/etc/up"));
}

#[test]
fn a_link_chain_that_never_ends_is_an_error() {
    let base = guest().link_to("/a", "b").link_to("/b", "a");
    let fs = Staged::new(&base);
    assert!(fs.stat(b"/a").unwrap_err().to_string().contains("too many symbolic links"));
}

#[test]
fn owners_modes_and_attributes_survive_a_write() {
    let mut base = guest();
    base.set_attributes(b"/etc/fstab", Attributes { mode: 0o600, uid: 5, gid: 6 }).unwrap();
    base.set_xattr(b"/etc/fstab", b"security.selinux", b"etc_t").unwrap();
    let mut fs = Staged::new(&base);
    fs.write(b"/etc/fstab", &mut &b"x"[..], None).unwrap();
    let stat = fs.lstat(b"/etc/fstab").unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.size), (0o600, 5, 6, 1));
    fs.rename(b"/etc/fstab", b"/etc/fstab.old").unwrap();
    assert_eq!(fs.lstat(b"/etc/fstab.old").unwrap().uid, 5);
    assert_eq!(fs.xattrs(b"/etc/fstab.old").unwrap(), [(b"security.selinux".to_vec(), b"etc_t".to_vec())]);
    assert!(!fs.exists(b"/etc/fstab"));
    assert_eq!(fs.read(b"/etc/fstab.old", 10).unwrap(), b"x");
}

#[test]
fn a_directory_made_anew_is_empty() {
    let base = guest();
    let mut fs = Staged::new(&base);
    assert!(fs.remove(b"/usr/lib/systemd/system").is_err());
    fs.remove(b"/usr/lib/systemd/system/x.service").unwrap();
    fs.remove(b"/usr/lib/systemd/system").unwrap();
    assert!(!fs.exists(b"/usr/lib/systemd/system/x.service"));
    fs.mkdir(b"/usr/lib/systemd/system", Attributes::root(0o755)).unwrap();
    assert!(!fs.exists(b"/usr/lib/systemd/system/x.service"));
    assert!(fs.read_dir(b"/usr/lib/systemd/system").unwrap().is_empty());
}

#[test]
fn applying_gives_the_tree_that_was_seen() {
    let base = guest();
    let mut fs = Staged::new(&base);
    fs.begin("one");
    fs.write(b"/etc/fstab", &mut &b"first"[..], Some(Attributes::root(0o640))).unwrap();
    fs.begin("two");
    fs.write(b"/etc/fstab", &mut &b"second"[..], None).unwrap();
    fs.rename(b"/etc/inittab", b"/etc/inittab.xen").unwrap();
    fs.put(b"/etc/new/file", b"\xff\x00", None).unwrap();
    fs.link(b"/etc/fstab", b"/etc/fstab2").unwrap();
    fs.remove(b"/etc/up").unwrap();
    fs.command("because", Command::new(["update-initramfs", "-u", "-k", "6.1 x"]));
    let mut target = guest();
    let ran = fs.apply("web", &mut target).unwrap();
    assert_eq!(ran[0].command.shown(), "update-initramfs -u -k '6.1 x'");
    assert_eq!(target.ran, [Command::new(["update-initramfs", "-u", "-k", "6.1 x"])]);
    for dir in [&b"/etc"[..], b"/etc/new", b"/", b"/usr/lib"] {
        let list = |fs: &dyn GuestFs| fs.read_dir(dir).unwrap().into_iter().map(|e| (e.name, e.kind)).collect::<Vec<_>>();
        assert_eq!(list(&fs), list(&target), "{}", show(dir));
    }
    for file in [&b"/etc/fstab"[..], b"/etc/fstab2", b"/etc/new/file", b"/etc/inittab.xen"] {
        assert_eq!(fs.read(file, 99).unwrap(), target.read(file, 99).unwrap());
        assert_eq!(fs.lstat(file).unwrap().mode, target.lstat(file).unwrap().mode);
    }
    target.status = 2;
    let error = fs.write_to(&mut guest()).err().map(|e| e.to_string());
    assert_eq!(error, None);
    let mut failing = guest();
    failing.status = 2;
    let error = fs.apply("web", &mut failing).unwrap_err().to_string();
    assert!(error.contains("web: step 'two': 'update-initramfs -u -k '6.1 x'' in the guest ended with status 2"), "{error}");
    assert!(error.contains("said the command"), "{error}");
}

#[test]
fn diffs_tell_text_binary_links_and_modes() {
    let base = guest().file("/boot/initrd", [0u8, 1, 2]);
    let mut fs = Staged::new(&base);
    fs.begin("fstab");
    fs.write(b"/etc/fstab", &mut &b"UUID=1 / ext4 defaults 0 1\n"[..], None).unwrap();
    fs.begin("other");
    fs.write(b"/etc/inittab", &mut &b"1:2345:respawn:/sbin/getty 38400 hvc0\n"[..], None).unwrap();
    fs.write(b"/boot/initrd", &mut &[0u8, 1, 3][..], None).unwrap();
    fs.set_attributes(b"/usr/lib/systemd/system/x.service", Attributes::root(0o600)).unwrap();
    fs.symlink(b"/dev/null", b"/etc/masked").unwrap();
    fs.remove(b"/etc/up").unwrap();
    let diff = fs.diff();
    let of = |path: &str| diff.iter().find(|d| d.path == path).map(|d| (d.kind, d.text.as_str(), d.steps.clone()));
    assert_eq!(
        of("/etc/fstab"),
        Some((
            Kind::Changed,
            "--- a/etc/fstab\n+++ b/etc/fstab\n@@ -1 +1 @@\n-/dev/xvda2 / ext4 defaults 0 1\n+UUID=1 / ext4 defaults 0 1\n",
            vec!["fstab"]
        ))
    );
    assert_eq!(of("/etc/inittab"), None, "the same content is no change");
    assert_eq!(of("/boot/initrd").unwrap().1, "binary, 3 B\nbecomes\nbinary, 3 B\n");
    assert_eq!(of("/usr/lib/systemd/system/x.service").unwrap().1, "mode 0644 0:0 becomes 0600 0:0\n");
    assert_eq!(of("/etc/masked").unwrap(), (Kind::Added, "link to /dev/null\n", vec!["other"]));
    assert_eq!(of("/etc/up").unwrap().0, Kind::Removed);
    assert_eq!(diff.len(), 5);
}

#[test]
fn many_new_files_of_one_directory_are_told_as_one() {
    let base = guest();
    let mut fs = Staged::new(&base);
    fs.begin("bootloader");
    for i in 0..30 {
        fs.put(format!("/boot/grub/i386-pc/{i}.mod").as_bytes(), b"1234", None).unwrap();
    }
    let told: Vec<_> = fs.diff().into_iter().map(|d| (d.path, d.text)).collect();
    assert_eq!(told.last().unwrap(), &("/boot/grub/i386-pc/".to_string(), "30 new files, 120 B\n".to_string()));
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(fs.paths_of("bootloader"), ["/boot/grub/i386-pc/"]);

    // Whole trees are told so where it is said, however many folders they have.
    let mut fs = Staged::new(&base);
    fs.begin("kernel");
    fs.tree(b"/lib/modules/6.1").unwrap();
    for i in 0..30 {
        fs.put(format!("/lib/modules/6.1/kernel/{i}/x.ko").as_bytes(), b"1234", None).unwrap();
    }
    let told: Vec<_> = fs.diff().into_iter().map(|d| (d.path, d.text)).collect();
    assert_eq!(told.last().unwrap().1, "30 new files, 120 B\n");
    assert!(told.last().unwrap().0.ends_with("/lib/modules/6.1/") && told.len() <= 2, "{told:?}");
    assert_eq!(fs.paths_of("kernel").len(), 1);
}
