//! Small filesystems, filled by their own tools.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::seeds::{found, ok};
use super::targets::filesystem::pack;

/// Writes the seeds of one kind of filesystem into `folder`.
pub fn make(kind: &str, folder: &Path) -> bool {
    let scratch = tempfile::tempdir().unwrap();
    let work = scratch.path();
    content(&work.join("content"));
    let variants: &[&[&str]] = match kind {
        "ext4" => &[
            &[
                "mke2fs",
                "-q",
                "-F",
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "inline_data,ea_inode,meta_bg,^resize_inode",
                "-J",
                "size=1",
                "-d",
                "content",
            ],
            &["mke2fs", "-q", "-F", "-t", "ext3", "-b", "1024", "-J", "size=1", "-d", "content"],
            &["mke2fs", "-q", "-F", "-t", "ext4", "-d", "content"],
        ],
        "xfs" => &[
            &["mkfs.xfs", "--unsupported", "-q", "-f", "-b", "size=1024", "-p", "prototype"],
            &["mkfs.xfs", "--unsupported", "-q", "-f", "-m", "crc=0", "-b", "size=1024", "-p", "prototype"],
            &["mkfs.xfs", "--unsupported", "-q", "-f", "-p", "prototype"],
        ],
        "btrfs" => &[&["mkfs.btrfs", "-q", "-M", "-m", "single", "-n", "4096", "--rootdir", "content"]],
        "vfat" => &[&["mkfs.vfat", "-F", "12"], &["mkfs.vfat", "-F", "16"], &["mkfs.vfat", "-F", "32", "-s", "1"]],
        "ntfs" => &[
            &["mkntfs", "-q", "-F", "-f", "-s", "512", "-p", "0", "-H", "0", "-S", "0"],
            &["mkntfs", "-q", "-F", "-f", "-C", "-p", "0", "-H", "0", "-S", "0"],
        ],
        "iso9660" => &[&["genisoimage", "-quiet", "-R", "-o"], &["genisoimage", "-quiet", "-J", "-o"], &["genisoimage", "-quiet", "-o"]],
        "squashfs" => &[
            &["-noI", "-noD", "-noF", "-noX", "-b", "4096"],
            &["-comp", "xz"],
            &["-comp", "zstd", "-b", "4096"],
            &["-comp", "lz4", "-noI"],
            &["-comp", "lzo", "-b", "8192", "-noI"],
            &["-comp", "gzip", "-always-use-fragments"],
        ],
        "ufs" => &[&["makefs", "-s", "4m", "-t", "ffs", "-o", "version=1"], &["makefs", "-s", "4m", "-t", "ffs", "-o", "version=2"]],
        other => panic!("no seeds for {other}"),
    };
    for (i, words) in variants.iter().enumerate() {
        let image = work.join("image");
        let name = image.to_str().unwrap();
        let mib = match kind {
            "xfs" => 20,
            "btrfs" | "vfat" => 40,
            _ => 8,
        };
        std::fs::File::create(&image).unwrap().set_len(if words.contains(&"12") { 2 << 20 } else { mib << 20 }).unwrap();
        let command: Vec<&str> = match kind {
            "iso9660" | "ufs" => [words, &[name, "content"][..]].concat(),
            "squashfs" => [&["mksquashfs", "content", name, "-quiet", "-no-progress", "-noappend"], *words].concat(),
            _ => [words, &[name][..]].concat(),
        };
        if !found(command[0]) {
            return false;
        }
        ok(command[0], work, &command[1..]);
        match kind {
            "vfat" => ok("mcopy", work, &["-i", name, "-s", "content/etc", "content/size-20000", "content/long name of a file", "::/"]),
            "ntfs" => {
                for i in 0..40 {
                    ok("ntfscp", work, &["-f", name, "content/size-900", &format!("a file that makes the index larger {i}")]);
                }
                ok("ntfscp", work, &["-f", name, "content/size-20000", "packed"]);
            }
            // xfs_db dies when it is to do this to version 4.
            "xfs" if !words.contains(&"crc=0") => {
                let inline = ["-x", "-c", "path /etc/passwd", "-c", "attr_set -u -v 20 small", "-c", "attr_set -s -v 200 selinux", name];
                ok("xfs_db", work, &inline);
                ok("xfs_db", work, &["-x", "-c", "path /etc", "-c", "attr_set -r -v 3000 large", "-c", "attr_set -u -v 900 more", name]);
            }
            _ => {}
        }
        std::fs::write(folder.join(format!("{kind}{i}")), pack(&std::fs::read(&image).unwrap())).unwrap();
    }
    true
}

fn content(folder: &Path) {
    let path = |name: &str| folder.join(name);
    for dir in ["etc", "bin", "many"] {
        std::fs::create_dir_all(path(dir)).unwrap();
    }
    std::fs::write(path("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n").unwrap();
    std::fs::write(path("etc/fstab"), "LABEL=x / auto defaults,subvol=@ 0 1\n/dev/xvda /home auto subvol=home 0 0\n").unwrap();
    std::fs::write(path("long name of a file"), "long").unwrap();
    for size in [40usize, 900, 20_000] {
        let text = (0u32..).flat_map(|i| format!("line {i}\n").into_bytes()).take(size).collect::<Vec<_>>();
        std::fs::write(path(&format!("size-{size}")), text).unwrap();
    }
    for i in 0..60 {
        std::fs::write(path(&format!("many/{i}-{}", "n".repeat(i))), "").unwrap();
    }
    symlink("etc/passwd", path("link")).unwrap();
    symlink("t".repeat(200), path("long-link")).unwrap();
    let _ = Command::new("setfattr").args(["-n", "user.note", "-v", "value"]).arg(path("size-40")).status();
    let holes = std::fs::File::create(path("holes")).unwrap();
    for i in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&holes, &[i as u8 + 1; 1024], i * 8192).unwrap();
    }
    prototype(folder);
}

/// The same for mkfs.xfs, which takes a list.
fn prototype(folder: &Path) {
    let many: String = (0..120).map(|i| format!(" {i}-{} ---644 0 0 content/size-40\n", "n".repeat(i % 60))).collect();
    let text = format!(
        "/\n0 0\nd--755 0 0\netc d--755 0 0\n passwd ---644 0 0 content/etc/passwd\n fstab ---644 0 0 content/etc/fstab\n$\nbin d--755 0 0\n$\n\
         many d--755 0 0\n{many}$\nlink l--777 0 0 etc/passwd\nlong-link l--777 0 0 {}\nfile ---644 0 0 content/size-20000\n$\n",
        "t".repeat(800)
    );
    std::fs::write(folder.with_file_name("prototype"), text).unwrap();
}
