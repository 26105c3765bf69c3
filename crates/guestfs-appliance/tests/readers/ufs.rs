//! UFS of both versions, made by NetBSD's makefs and read by Linux's kernel as well; and the labels that its partitions lie in.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

use guestfs::engine::{Command, Disk};
use guestfs::{Ext, FileType, GuestDisk, GuestFs, Volumes};
use imgcore::Image;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

use crate::common::*;
use crate::compare::{Spared, open, ready_made, start};
use crate::content::posix;

fn made(image: &Path, folder: &Path, version: u32, block: u32) {
    let options = format!("version={version},bsize={block},fsize={}", block / 8);
    let _ = std::fs::remove_file(image);
    tool(&["makefs", "-s", "128m", "-t", "ffs", "-o", &options, image.to_str().unwrap(), folder.to_str().unwrap()]);
}

#[test]
fn version_1_reads_as_the_kernel_reads_it() {
    let dir = scratch();
    let folder = posix(dir.path(), 700);
    let image = dir.path().join("image");
    made(&image, &folder, 1, 8192);
    ready_made(&image, "ufs", "ufstype=44bsd", Spared::default());
}

/// makefs puts version 2's superblock where Linux does not look for it.
#[test]
fn version_2_reads_as_the_folder_that_it_was_made_of() {
    let dir = scratch();
    let folder = posix(dir.path(), 700);
    let image = dir.path().join("image");
    for block in [8192, 65536] {
        made(&image, &folder, 2, block);
        let tree = open(&image, "ufs").unwrap();
        let mut pending = vec![PathBuf::from("/")];
        let mut files = 0;
        while let Some(path) = pending.pop() {
            files += 1;
            let (name, here) = (path.as_os_str().as_bytes(), folder.join(path.strip_prefix("/").unwrap()));
            let (stat, meta) = (tree.lstat(name).unwrap(), here.symlink_metadata().unwrap());
            let told = (stat.mode, stat.uid, stat.mtime.sec);
            assert_eq!(told, (meta.mode() & 0o7777, meta.uid(), meta.mtime()), "{}", path.display());
            if meta.is_dir() {
                let mut ours: Vec<Vec<u8>> = tree.read_dir(name).unwrap().into_iter().map(|entry| entry.name).collect();
                let mut theirs: Vec<Vec<u8>> =
                    std::fs::read_dir(&here).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
                ours.sort();
                theirs.sort();
                assert_eq!(ours, theirs, "{}", path.display());
                pending.extend(theirs.iter().map(|name| path.join(std::ffi::OsStr::from_bytes(name))));
            } else if meta.is_symlink() {
                assert_eq!(tree.readlink(name).unwrap(), here.read_link().unwrap().as_os_str().as_bytes());
            } else if meta.is_file() {
                assert_eq!((stat.size, stat.nlink), (meta.len(), meta.nlink()), "{}", path.display());
                assert!(tree.read(name, 1 << 30).unwrap() == std::fs::read(&here).unwrap(), "{}", path.display());
            } else {
                assert_eq!(stat.kind, FileType::Fifo);
            }
        }
        assert!(files > 700, "{files}");
    }
}

/// fdisk makes a label in a partition; the kernel and this process number what is in it alike.
#[test]
fn partitions_in_labels_are_numbered_as_the_kernel_numbers_them() {
    let dir = scratch();
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let path = disk.to_str().unwrap();
    // A Linux partition, FreeBSD's, an extended one and a logical one in it.
    let table = "label: dos\nstart=2048,size=8192,type=83\nstart=10240,size=65536,type=a5\nstart=75776,size=40960,type=5\nstart=77824,size=8192,type=83\n";
    fdisk(&["sfdisk", "-q", path], table);
    fdisk(&["fdisk", path], "b\n2\ny\nn\na\n\n+8M\nn\nb\n20480\n+4M\nt\na\n7\nt\nb\n1\nw\n");
    let image: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(FileStorage::open(&disk).unwrap())).unwrap());
    let mut session = start(vec![Disk::ReadOnly(image.clone())]);
    let script = "cd /sys/block/vda; for p in vda[0-9]*; do read start < $p/start; read size < $p/size; echo $p $start $size; done";
    let told = session.run_tool(&Command::new(["sh", "-c", script])).unwrap();
    let volumes = Volumes::open(vec![GuestDisk { name: "vda".into(), image }]).unwrap();
    let mut ours: Vec<String> = volumes
        .partitions(0)
        .map(|p| format!("vda{} {} {}", p.number, p.start / 512, if p.kind.is_extended() { 2 } else { p.len / 512 }))
        .collect();
    ours.sort();
    assert!(ours.len() >= 6, "{ours:?}");
    assert_eq!(String::from_utf8(told.stdout).unwrap().lines().collect::<Vec<_>>(), ours);
}

fn fdisk(argv: &[&str], script: &str) {
    let mut child = Process::new(argv[0]).args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{argv:?}");
}
