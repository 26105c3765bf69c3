//! What the tests of the appliance share: disks made by the filesystems' own tools.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use guestfs::engine::Disk;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;
use imgcore::{Image, ImageMut};

/// A scratch directory.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// An empty file of `mib` MiB.
pub fn empty(dir: &Path, name: &str, mib: u64) -> PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path
}

/// A disk with a filesystem on all of it. `mkfs` is the command before the file's name.
pub fn formatted(dir: &Path, name: &str, mib: u64, mkfs: &[&str]) -> PathBuf {
    let path = empty(dir, name, mib);
    tool(&[mkfs, &[path.to_str().unwrap()]].concat());
    path
}

/// An ext4 disk.
pub fn ext4(dir: &Path, name: &str, mib: u64) -> PathBuf {
    formatted(dir, name, mib, &["mke2fs", "-q", "-F", "-t", "ext4"])
}

/// Runs a reference tool that must succeed.
pub fn tool(argv: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(argv[0]).args(&argv[1..]).env("PATH", path).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}: scripts/setup installs it", argv[0]));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{argv:?}: {}\n{text}", output.status);
    text
}

pub fn checked(path: &Path) {
    tool(&["e2fsck", "-fn", path.to_str().unwrap()]);
}

pub fn read_only(path: &Path) -> Disk {
    let image: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(FileStorage::open(path).unwrap())).unwrap());
    Disk::ReadOnly(image)
}

pub fn writable(path: &Path) -> Disk {
    let image: Arc<dyn ImageMut> = Arc::new(Raw::open(Arc::new(FileStorage::open_writable(path).unwrap())).unwrap());
    Disk::Writable(image)
}

/// The file's digest, by a program that is not ours.
pub fn sha256(path: &Path) -> String {
    tool(&["sha256sum", path.to_str().unwrap()])[..64].to_string()
}
