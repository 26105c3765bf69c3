//! Every operation on files, on real filesystems; then the filesystem's own checker.

use std::collections::HashSet;

use guestfs::engine::{Engine, Session};
use guestfs::{Attributes, Error, Ext, FileType, Time};
use guestfs_appliance::Appliance;

use crate::common::*;

fn start(disks: Vec<guestfs::engine::Disk>) -> Box<dyn Session> {
    Engine::start(&Appliance::new(), disks, false).unwrap_or_else(|e| panic!("{e}"))
}

/// Some bytes that are not all alike.
fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 2654435761) >> 11) as u8).collect()
}

/// Writes through every method, and reads back what was written.
fn exercise(s: &mut dyn Session) {
    let root = Attributes::root(0o755);
    s.mkdir(b"/etc", root).unwrap();
    s.write(b"/etc/fstab", &mut &b"# nothing\n"[..], None).unwrap();
    let stat = s.lstat(b"/etc/fstab").unwrap();
    assert_eq!((stat.kind, stat.mode, stat.uid, stat.gid, stat.size, stat.nlink), (FileType::Regular, 0o644, 0, 0, 10, 1));

    // Replacing keeps owner, mode and attributes; others win when they are given.
    s.set_attributes(b"/etc/fstab", Attributes { mode: 0o4750, uid: 1000, gid: 2000 }).unwrap();
    s.set_xattr(b"/etc/fstab", b"user.note", b"kept").unwrap();
    s.write(b"/etc/fstab", &mut &b"UUID=1 / ext4 defaults 0 1\n"[..], None).unwrap();
    let stat = s.lstat(b"/etc/fstab").unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.size), (0o4750, 1000, 2000, 27));
    assert_eq!(s.xattrs(b"/etc/fstab").unwrap(), [(b"user.note".to_vec(), b"kept".to_vec())]);
    assert_eq!(s.read(b"/etc/fstab", 100).unwrap(), b"UUID=1 / ext4 defaults 0 1\n");
    s.write(b"/etc/fstab", &mut &b"x"[..], Some(Attributes { mode: 0o600, uid: 1, gid: 2 })).unwrap();
    let stat = s.lstat(b"/etc/fstab").unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.size), (0o600, 1, 2, 1));

    // Larger than any frame, and read from the middle.
    let big = noise(5_000_001);
    s.write(b"/big", &mut big.as_slice(), Some(Attributes { mode: 0o640, uid: 0, gid: 5 })).unwrap();
    assert!(s.read(b"/big", 1 << 30).unwrap() == big);
    let mut part = vec![0; 1_000_000];
    assert_eq!(s.read_at(b"/big", 4_500_000, &mut part).unwrap(), 500_001);
    assert!(part[..500_001] == big[4_500_000..]);
    assert_eq!(s.read_at(b"/big", 5_000_001, &mut part).unwrap(), 0);
    assert_eq!(s.read_at(b"/big", u64::MAX / 2, &mut part).unwrap_or(0), 0);

    // Links.
    s.symlink(b"../etc/fstab", b"/etc/link").unwrap();
    assert_eq!(s.readlink(b"/etc/link").unwrap(), b"../etc/fstab");
    assert_eq!(s.lstat(b"/etc/link").unwrap().kind, FileType::Symlink);
    assert_eq!(s.stat(b"/etc/link").unwrap().kind, FileType::Regular);
    s.write(b"/etc/link", &mut &b"through"[..], None).unwrap();
    assert_eq!(s.lstat(b"/etc/link").unwrap().kind, FileType::Symlink, "writing follows a link and leaves it");
    assert_eq!(s.read(b"/etc/fstab", 100).unwrap(), b"through");
    s.symlink(b"not-yet", b"/etc/dangling").unwrap();
    s.write(b"/etc/dangling", &mut &b"made"[..], None).unwrap();
    assert_eq!(s.read(b"/etc/not-yet", 100).unwrap(), b"made");
    s.link(b"/etc/fstab", b"/hard").unwrap();
    assert_eq!(s.lstat(b"/hard").unwrap().nlink, 2);
    s.set_attributes(b"/etc/link", Attributes { mode: 0o777, uid: 7, gid: 8 }).unwrap();
    assert_eq!((s.lstat(b"/etc/link").unwrap().uid, s.lstat(b"/etc/fstab").unwrap().uid), (7, 1), "a link's owner is its own");

    // Other kinds.
    s.mknod(b"/fifo", FileType::Fifo, (0, 0), Attributes::root(0o600)).unwrap();
    s.mknod(b"/sock", FileType::Socket, (0, 0), Attributes::root(0o600)).unwrap();
    s.mknod(b"/null", FileType::CharDevice, (1, 3), Attributes::root(0o666)).unwrap();
    s.mknod(b"/disk", FileType::BlockDevice, (254, 257), Attributes::root(0o660)).unwrap();
    let disk = s.lstat(b"/disk").unwrap();
    assert_eq!((disk.kind, disk.rdev, disk.mode), (FileType::BlockDevice, (254, 257), 0o660));

    // Times and the rest.
    let (atime, mtime) = (Time { sec: 1_000_000_000, nsec: 5 }, Time { sec: 1_500_000_000, nsec: 999_999_999 });
    s.set_times(b"/etc/fstab", atime, mtime).unwrap();
    let stat = s.lstat(b"/etc/fstab").unwrap();
    assert_eq!((stat.atime.sec, stat.mtime), (atime.sec, mtime));
    s.rename(b"/hard", b"/etc/moved").unwrap();
    assert!(matches!(s.lstat(b"/hard"), Err(Error::NotFound(_))));
    s.mkdir(b"/empty", root).unwrap();
    s.remove(b"/empty").unwrap();
    s.remove(b"/etc/moved").unwrap();
    let mut names: Vec<Vec<u8>> = s.read_dir(b"/etc").unwrap().into_iter().map(|e| e.name).collect();
    names.sort();
    assert_eq!(names, [&b"dangling"[..], b"fstab", b"link", b"not-yet"]);
    let statfs = s.statfs(b"/etc").unwrap();
    assert!(statfs.block_size >= 512 && statfs.blocks_free > 0 && statfs.blocks_free < statfs.blocks, "{statfs:?}");

    // Errors that a caller can tell apart.
    assert!(matches!(s.stat(b"/nowhere"), Err(Error::NotFound(p)) if p == b"/nowhere"));
    assert!(matches!(s.read_dir(b"/etc/fstab"), Err(Error::WrongType { what: "not a directory", .. })));
    assert!(matches!(s.readlink(b"/etc/fstab"), Err(Error::WrongType { what: "not a symbolic link", .. })));
    assert!(matches!(s.read_at(b"/etc", 0, &mut [0; 8]), Err(Error::WrongType { what: "is a directory", .. })));
    for special in [b"/fifo", b"/null", b"/disk"] {
        assert!(matches!(s.read_at(special, 0, &mut [0; 8]), Err(Error::WrongType { .. })));
        assert!(s.write(special, &mut &b"x"[..], None).is_err());
    }
    assert!(matches!(s.remove(b"/etc"), Err(Error::Guest { action: "remove", .. })));
    assert!(s.write(b"/", &mut &b"x"[..], None).is_err() && s.remove(b"/etc/..").is_err());
    assert!(s.lstat(b"relative").is_err() && s.lstat(b"").is_err() && s.lstat(b"/nul\0byte").is_err());
}

#[test]
fn ext4_takes_every_operation_and_is_clean_afterwards() {
    let dir = scratch();
    let disk = ext4(dir.path(), "disk", 64);
    let mut s = start(vec![writable(&disk)]);
    s.mount("/dev/vda", b"/", "", "").unwrap();
    exercise(s.as_mut());
    s.shutdown().unwrap();
    checked(&disk);
    let listing = tool(&["debugfs", "-R", "stat /etc/fstab", disk.to_str().unwrap()]);
    assert!(listing.contains("Mode:  0600") && listing.contains("User:     1"), "{listing}");
    assert!(tool(&["debugfs", "-R", "cat /etc/not-yet", disk.to_str().unwrap()]).starts_with("made"));
}

#[test]
fn xfs_and_btrfs_below_one_tree_are_found_without_naming_them() {
    let dir = scratch();
    let root = ext4(dir.path(), "root", 32);
    let xfs = formatted(dir.path(), "xfs", 320, &["mkfs.xfs", "-q", "-f"]);
    let btrfs = formatted(dir.path(), "btrfs", 128, &["mkfs.btrfs", "-q"]);
    let fat = formatted(dir.path(), "fat", 8, &["mkfs.vfat"]);
    let mut s = start([&root, &xfs, &btrfs, &fat].map(|p| writable(p)).into());
    let sizes: Vec<(String, u64)> = s.devices().unwrap();
    let expected = [("/dev/vda", 32), ("/dev/vdb", 320), ("/dev/vdc", 128), ("/dev/vdd", 8)];
    assert_eq!(sizes, expected.map(|(name, mib)| (name.to_string(), mib << 20)));
    s.mount("/dev/vda", b"/", "", "").unwrap();
    s.mkdir(b"/srv", Attributes::root(0o755)).unwrap();
    s.mkdir(b"/efi", Attributes::root(0o755)).unwrap();
    s.mount("/dev/vdb", b"/srv", "", "").unwrap();
    s.mkdir(b"/srv/data", Attributes::root(0o755)).unwrap();
    s.mount("/dev/vdc", b"/srv/data", "", "").unwrap();
    s.mount("/dev/vdd", b"/efi", "vfat", "").unwrap();
    for path in [&b"/srv/one"[..], b"/srv/data/two", b"/efi/three.txt"] {
        s.write(path, &mut &b"content"[..], None).unwrap();
    }
    assert_ne!(s.stat(b"/srv").unwrap().dev, s.stat(b"/srv/data").unwrap().dev);
    s.unmount_all().unwrap();
    assert!(s.lstat(b"/srv").is_err(), "nothing is mounted");
    s.mount("/dev/vdb", b"/", "", "ro").unwrap();
    assert_eq!(s.read(b"/one", 100).unwrap(), b"content");
    assert!(matches!(s.write(b"/one", &mut &b"x"[..], None), Err(Error::Guest { .. })), "mounted read only");
    s.unmount_all().unwrap();
    s.mount("/dev/vdc", b"/", "btrfs", "").unwrap();
    exercise(s.as_mut());
    s.shutdown().unwrap();
    checked(&root);
    tool(&["xfs_repair", "-n", xfs.to_str().unwrap()]);
    tool(&["btrfs", "check", btrfs.to_str().unwrap()]);
    tool(&["fsck.vfat", "-n", fat.to_str().unwrap()]);
}

#[test]
fn a_read_only_disk_keeps_every_byte() {
    let dir = scratch();
    let disk = ext4(dir.path(), "disk", 32);
    let before = sha256(&disk);
    let mut s = start(vec![read_only(&disk)]);
    s.mount("/dev/vda", b"/", "", "").unwrap();
    exercise(s.as_mut());
    s.unmount_all().unwrap();
    s.write_device("/dev/vda", 0, &noise(1 << 20)).unwrap();
    let mut back = vec![0; 1 << 20];
    s.read_device("/dev/vda", 0, &mut back).unwrap();
    assert!(back == noise(1 << 20), "what was written is there in the session");
    s.shutdown().unwrap();
    assert_eq!(sha256(&disk), before);
}

#[test]
fn no_link_of_a_guest_leads_out_of_it() {
    let dir = scratch();
    let disk = ext4(dir.path(), "disk", 32);
    let mut s = start(vec![writable(&disk)]);
    s.mount("/dev/vda", b"/", "", "").unwrap();
    s.mkdir(b"/etc", Attributes::root(0o755)).unwrap();
    // `/init` and `/proc/mounts` are the appliance's own files, outside the guest's root.
    for (target, link) in [
        (&b"../../../../../../init"[..], &b"/etc/up"[..]),
        (b"/init", b"/etc/abs"),
        (b"/proc/self/root/init", b"/etc/magic"),
        (b"/../../../proc/mounts", b"/etc/mounts"),
    ] {
        s.symlink(target, link).unwrap();
        assert!(matches!(s.stat(link), Err(Error::NotFound(_))), "{}", guestfs::show(link));
        assert!(s.read_at(link, 0, &mut [0; 8]).is_err());
    }
    s.symlink(b"../../../..", b"/etc/root").unwrap();
    assert_eq!(s.stat(b"/etc/root").unwrap().ino, s.stat(b"/").unwrap().ino, ".. stops at the guest's root");
    s.write(b"/etc/up", &mut &b"inside"[..], None).unwrap();
    assert_eq!(s.read(b"/init", 100).unwrap(), b"inside", "a link that would lead out is followed inside");
    s.write(b"/etc/root/../../etc/passwd", &mut &b"root"[..], None).unwrap();
    assert_eq!(s.read(b"/etc/passwd", 100).unwrap(), b"root");
    s.symlink(b"loop2", b"/loop1").unwrap();
    s.symlink(b"loop1", b"/loop2").unwrap();
    assert!(s.stat(b"/loop1").is_err() && s.write(b"/loop1", &mut &b"x"[..], None).is_err());
    s.shutdown().unwrap();
    checked(&disk);
}

#[test]
fn content_that_fails_leaves_the_old_file_and_no_other() {
    struct Fails(usize);
    impl std::io::Read for Fails {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("the source is gone"));
            }
            self.0 -= 1;
            Ok(buf.len())
        }
    }
    let dir = scratch();
    let disk = ext4(dir.path(), "disk", 8);
    let mut s = start(vec![writable(&disk)]);
    s.mount("/dev/vda", b"/", "", "").unwrap();
    s.write(b"/file", &mut &b"old"[..], None).unwrap();
    let error = s.write(b"/file", &mut Fails(3), None).unwrap_err().to_string();
    assert!(error.contains("the source is gone"), "{error}");
    let error = s.write(b"/file", &mut noise(20 << 20).as_slice(), None).unwrap_err().to_string();
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(s.read(b"/file", 100).unwrap(), b"old");
    let names: Vec<Vec<u8>> = s.read_dir(b"/").unwrap().into_iter().map(|e| e.name).filter(|n| n != b"lost+found").collect();
    assert_eq!(names, [b"file"]);
    s.shutdown().unwrap();
    checked(&disk);
}

#[test]
fn a_directory_of_many_files_is_listed_whole() {
    let dir = scratch();
    let disk = ext4(dir.path(), "disk", 16);
    let mut s = start(vec![writable(&disk)]);
    s.mount("/dev/vda", b"/", "", "").unwrap();
    s.write(b"/file", &mut &b""[..], None).unwrap();
    // More than a frame holds, twice: names as long as can be, of one file.
    let names: Vec<Vec<u8>> = (0..2200).map(|i| format!("/{i:05}{}", "x".repeat(250)).into_bytes()).collect();
    for name in &names {
        s.link(b"/file", name).unwrap();
    }
    let entries = s.read_dir(b"/").unwrap();
    let listed: HashSet<Vec<u8>> = entries.iter().filter(|e| e.kind == FileType::Regular).map(|e| e.name.clone()).collect();
    assert_eq!(listed.len(), 2201);
    assert!(names.iter().all(|name| listed.contains(&name[1..])));
    s.shutdown().unwrap();
}
