//! Every kind of filesystem that mke2fs makes is read as the folder that it was made from.

use guestfs::{Ext, FileType, GuestFs};

use crate::make::{Host, debugfs, folder, mke2fs, open, run};

pub const VARIANTS: &[(&str, &[&str])] = &[
    ("ext2", &["-t", "ext2"]),
    ("ext3", &["-t", "ext3"]),
    ("ext4", &["-t", "ext4"]),
    ("revision 0", &["-t", "ext2", "-r", "0", "-O", "none"]),
    ("no extents", &["-t", "ext4", "-O", "^extents,^64bit"]),
    ("no extents, 1 KiB", &["-t", "ext4", "-b", "1024", "-O", "^extents,^64bit"]),
    ("bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "65536"]),
    ("32 bits", &["-t", "ext4", "-O", "^64bit"]),
    ("meta_bg", &["-t", "ext4", "-O", "meta_bg,^resize_inode"]),
    ("meta_bg, 1 KiB", &["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"]),
    ("inline_data", &["-t", "ext4", "-O", "inline_data", "-I", "256"]),
    ("inline_data, 1 KiB", &["-t", "ext4", "-O", "inline_data", "-I", "1024", "-b", "1024"]),
    ("ea_inode", &["-t", "ext4", "-O", "ea_inode"]),
    ("large_dir", &["-t", "ext4", "-O", "large_dir"]),
    ("casefold", &["-t", "ext4", "-O", "casefold", "-E", "encoding=utf8"]),
    ("mmp", &["-t", "ext4", "-O", "mmp"]),
    ("1 KiB", &["-t", "ext4", "-b", "1024"]),
    ("2 KiB", &["-t", "ext4", "-b", "2048"]),
    ("64 KiB", &["-t", "ext4", "-b", "65536"]),
    ("no checksums", &["-t", "ext4", "-O", "^metadata_csum"]),
    ("small inodes", &["-t", "ext4", "-I", "128"]),
    ("no kinds in directories", &["-t", "ext4", "-O", "^filetype"]),
    ("sparse_super2", &["-t", "ext4", "-O", "sparse_super2"]),
    ("checksum seed", &["-t", "ext4", "-O", "metadata_csum_seed"]),
    ("orphan file, fast commits", &["-t", "ext4", "-O", "orphan_file,fast_commit"]),
];

/// What debugfs adds, since mke2fs takes extended attributes only from filesystems that have them.
fn add_xattrs(image: &std::path::Path, dir: &std::path::Path, large: bool) -> Vec<(&'static str, &'static [u8], Vec<u8>)> {
    let sizes = if large { &[5usize, 700, 4096][..] } else { &[5usize, 700] };
    let names: [(&str, &[u8]); 3] =
        [("user.small", b"user.small"), ("security.capability", b"security.capability"), ("trusted.large", b"trusted.large")];
    let mut wanted = Vec::new();
    let mut commands = Vec::new();
    for (size, (name, bytes)) in sizes.iter().zip(names) {
        let value: Vec<u8> = (0..*size).map(|i| (i % 251) as u8).collect();
        let file = dir.join(format!("value-{size}"));
        std::fs::write(&file, &value).unwrap();
        commands.push(format!("ea_set -f {} /etc/conf {name}", file.display()));
        wanted.push((name, bytes, value));
    }
    debugfs(image, &commands);
    wanted
}

#[test]
fn all_variants_read_as_their_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), false);
    let host = Host(folder.clone());
    let image = dir.path().join("fs.img");
    for (name, options) in VARIANTS {
        println!("{name}");
        mke2fs(&image, 600 << 20, Some(&folder), options);
        let fs = open(&image).unwrap();
        same_as_host(&fs, &host, b"");
        assert_eq!(fs.read(b"/absolute", 100).unwrap(), b"conf");
        assert!(fs.is_dir(b"/lost+found"));
        if *name != "revision 0" && !name.contains("inline") {
            let wanted = add_xattrs(&image, dir.path(), *name == "ea_inode");
            let mut found = open(&image).unwrap().xattrs(b"/etc/same").unwrap();
            found.sort();
            let mut wanted: Vec<_> = wanted.into_iter().map(|(_, name, value)| (name.to_vec(), value)).collect();
            wanted.sort();
            assert!(found == wanted, "{name}: attributes differ");
        }
    }
}

/// mke2fs keeps seconds only, and its root directory is its own.
fn same_as_host(fs: &dyn GuestFs, host: &Host, path: &[u8]) {
    let shown = guestfs::show(path);
    let (mut left, mut right) = (fs.lstat(path).unwrap(), host.lstat(path).unwrap());
    assert_eq!(left.kind, right.kind, "{shown}");
    if left.kind == FileType::Directory {
        (left.size, right.size, right.nlink) = (0, 0, left.nlink);
    }
    if !path.is_empty() {
        assert_eq!(
            (left.mode, left.uid, left.gid, left.size, left.nlink, left.mtime.sec),
            (right.mode, right.uid, right.gid, right.size, right.nlink, right.mtime.sec),
            "{shown}"
        );
    }
    match left.kind {
        FileType::Regular => assert!(fs.read(path, 1 << 30).unwrap() == host.read(path, 1 << 30).unwrap(), "{shown}"),
        FileType::Symlink => assert_eq!(fs.readlink(path).unwrap(), host.readlink(path).unwrap(), "{shown}"),
        FileType::Directory => {
            let names = |fs: &dyn GuestFs| {
                let mut names: Vec<_> = fs.read_dir(path).unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
                names.retain(|(n, _)| n != b"lost+found");
                names.sort_by(|x, y| x.0.cmp(&y.0));
                names
            };
            let entries = names(host);
            assert_eq!(names(fs), entries, "{shown}");
            for (name, _) in entries {
                same_as_host(fs, host, &[path, b"/", &name].concat());
            }
        }
        _ => {}
    }
}

#[test]
fn device_files_acls_and_times_are_as_debugfs_set_them() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("fs.img");
    mke2fs(&image, 8 << 20, None, &["-t", "ext4"]);
    let commands =
        ["mknod tty c 4 64", "mknod disk b 259 1000", "mkdir d", "set_inode_field d mtime 20600101", "set_inode_field d uid 70000"];
    debugfs(&image, &commands.map(String::from));
    let fs = open(&image).unwrap();
    let tty = fs.lstat(b"/tty").unwrap();
    assert_eq!((tty.kind, tty.rdev), (FileType::CharDevice, (4, 64)));
    assert_eq!(fs.lstat(b"/disk").unwrap().rdev, (259, 1000));
    let d = fs.lstat(b"/d").unwrap();
    assert_eq!((d.uid, d.mtime.sec), (70000, 2_840_140_800));
    // Both count the same, whatever the kernel takes off for itself.
    let text = run("dumpe2fs", &["-h", image.to_str().unwrap()]);
    let count = |key: &str| -> u64 { text.lines().find_map(|l| l.strip_prefix(key)).unwrap().trim().parse().unwrap() };
    let statfs = fs.statfs(b"/").unwrap();
    assert_eq!((statfs.blocks_free, statfs.files_free), (count("Free blocks:"), count("Free inodes:")));
}
