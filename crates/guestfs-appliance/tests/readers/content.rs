//! What the filesystems are filled with.

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use guestfs::engine::{Command, Session};
use guestfs::{Attributes, FileType, Time};

/// Bytes that don't compress.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

/// Text that compresses well, and is nowhere the same.
pub fn text(len: usize) -> Vec<u8> {
    (0u32..).flat_map(|i| format!("line {i} of a file that compresses well\n").into_bytes()).take(len).collect()
}

/// A folder with all kinds of files that every filesystem takes; `many` of them in one directory.
pub fn plain(root: &Path, many: usize) -> PathBuf {
    let folder = root.join("content");
    let path = |name: &str| folder.join(name);
    for dir in ["empty", "many", "etc"] {
        std::fs::create_dir_all(path(dir)).unwrap();
    }
    for i in 0..many {
        std::fs::write(path("many").join(format!("{i:05}-{}", "n".repeat(i % 23))), format!("{i}")).unwrap();
    }
    std::fs::write(path("many").join("l".repeat(200)), "long").unwrap();
    std::fs::write(path("many").join("Größe mit Leerzeichen – 日本語.txt"), "name").unwrap();
    let deep = (0..30).fold(path("deep"), |p, i| p.join(format!("level-{i}")));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "here").unwrap();
    for size in [0usize, 1, 60, 500, 700, 2000, 4095, 4096, 4097, 70_000, 131_072, 400_001] {
        std::fs::write(path(&format!("noise-{size}")), noise(size, size as u64)).unwrap();
        std::fs::write(path(&format!("text-{size}")), text(size)).unwrap();
    }
    std::fs::write(path("zeroes"), vec![0; 300_000]).unwrap();
    std::fs::write(path("large"), [text(2_000_000), noise(700_000, 3), vec![0; 500_000], text(900_000)].concat()).unwrap();
    std::fs::write(path("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n").unwrap();
    folder
}

/// The same with what POSIX filesystems take besides: links, modes, holes.
pub fn posix(root: &Path, many: usize) -> PathBuf {
    let folder = plain(root, many);
    let path = |name: &str| folder.join(name);
    for len in [1usize, 59, 60, 160, 336, 900, 1023] {
        symlink("t".repeat(len), path(&format!("link-{len}"))).unwrap();
    }
    symlink("../etc/passwd", path("etc/up")).unwrap();
    std::fs::hard_link(path("etc/passwd"), path("etc/same")).unwrap();
    std::fs::set_permissions(path("etc/passwd"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    std::fs::set_permissions(path("empty"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    // More extents than an inode holds.
    let holes = std::fs::File::create(path("holes")).unwrap();
    for i in 0..200u64 {
        holes.write_all_at(&[(i % 255) as u8 + 1; 4096], i * 12288).unwrap();
    }
    let sparse = std::fs::File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"head", 0).unwrap();
    sparse.write_all_at(b"middle", (40 << 20) + 5).unwrap();
    sparse.set_len(90 << 20).unwrap();
    assert!(Process::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    folder
}

/// A file of 8 TiB with three bytes in its middle.
pub fn add_huge(session: &mut dyn Session) {
    let write = ["dd", "of=/guest/huge", "bs=4096", "seek=1073741824", "conv=notrunc", "status=none"];
    let write = Command { stdin: b"far".to_vec(), ..Command::new(write) };
    for command in [write, Command::new(["truncate", "-s", "8T", "/guest/huge"])] {
        let output = session.run_tool(&command).unwrap();
        assert_eq!(output.status, 0, "{}", guestfs::show(&output.stderr));
    }
}

/// Nobody reads through terabytes of it to find them.
pub fn huge_is_found(tree: &guestfs::Tree) {
    use guestfs::GuestFs;
    const MIDDLE: u64 = 4 << 40;
    assert_eq!(tree.stat(b"/huge").unwrap().size, 8 << 40);
    let data = tree.next_data(b"/huge", 0).unwrap().unwrap();
    assert!(data.start <= MIDDLE && data.end > MIDDLE && data.end - data.start <= 1 << 20, "{data:?}");
    assert_eq!(tree.next_data(b"/huge", data.end).unwrap(), None);
}

/// An archive of the folder, as a disk that the appliance reads.
pub fn archive(folder: &Path) -> PathBuf {
    let tar = folder.with_extension("tar");
    crate::common::tool(&[
        "tar",
        "--sort=name",
        "--owner=1000",
        "--group=2000",
        "-S",
        "-cf",
        tar.to_str().unwrap(),
        "-C",
        folder.to_str().unwrap(),
        ".",
    ]);
    tar
}

/// Unpacks the archive on the second disk into a folder of the mounted filesystem.
pub fn unpack(session: &mut dyn Session, into: &str, options: &[&str]) {
    let target = format!("/guest/{into}");
    let argv = [&["tar", "-xf", "/dev/vdb", "-C", &target], options].concat();
    let out = session.run_tool(&Command::new(argv)).unwrap();
    assert_eq!(out.status, 0, "{}", String::from_utf8_lossy(&out.stderr));
}

/// Devices, times, attributes and access lists, which the host may not let us make.
pub fn add_posix(session: &mut dyn Session, largest_value: usize) {
    let root = Attributes::root(0o640);
    session.mknod(b"/tty", FileType::CharDevice, (4, 64), root).unwrap();
    session.mknod(b"/disk", FileType::BlockDevice, (259, 100_000), root).unwrap();
    session.mknod(b"/socket", FileType::Socket, (0, 0), root).unwrap();
    session.write(b"/old", &mut &b"x"[..], Some(Attributes { mode: 0o2755, uid: 70_000, gid: 4_000_000_000 })).unwrap();
    session.set_times(b"/old", Time { sec: -5, nsec: 1 }, Time { sec: -1_000_000, nsec: 999_999_999 }).unwrap();
    session.write(b"/attributes", &mut &b"x"[..], None).unwrap();
    for (i, len) in [0usize, 1, 200, 3000, largest_value].into_iter().enumerate() {
        session.set_xattr(b"/attributes", format!("user.{i}").as_bytes(), &noise(len, i as u64)).unwrap();
    }
    session.set_xattr(b"/attributes", b"security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    session.set_xattr(b"/attributes", b"trusted.overlay.opaque", b"y").unwrap();
    session.write(b"/many-attributes", &mut &b"x"[..], None).unwrap();
    for i in 0..150 {
        session.set_xattr(b"/many-attributes", format!("user.attribute-{i}").as_bytes(), &noise(100, i)).unwrap();
    }
    // user::rw-, user:1000:r--, group::r--, mask::r--, other::---
    let entry = |tag: u16, permissions: u16, id: u32| [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat();
    let list = [(1, 6, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let acl = [&2u32.to_le_bytes()[..], &list.map(|(t, p, i)| entry(t, p, i)).concat()].concat();
    session.write(b"/acl", &mut &b"x"[..], None).unwrap();
    session.set_xattr(b"/acl", b"system.posix_acl_access", &acl).unwrap();
    session.mkdir(b"/acl-dir", Attributes::root(0o755)).unwrap();
    session.set_xattr(b"/acl-dir", b"system.posix_acl_default", &acl).unwrap();
}
