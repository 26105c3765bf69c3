//! Mounts the guest's filesystems below one directory, and what a command in the guest's root needs besides.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags, fsync, open, syncfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::failure::{Result, because, other};
use super::tree::Tree;
use crate::protocol::Failure;

/// Where the guest's tree is mounted.
pub const ROOT: &str = guestfs::engine::GUEST_ROOT;

/// Programs that a guest's scripts call and that mean nothing here: first in the guest's PATH.
pub const STUBS: &str = "/dev/.guestlift";

/// Filesystems that are tried first, in this order; then the kernel's other ones.
const FIRST: [&str; 4] = ["ext4", "xfs", "btrfs", "vfat"];

/// What is mounted, in the order in which it was.
#[derive(Default)]
pub struct Mounts {
    tree: Option<Tree>,
    points: Vec<(String, Vec<u8>)>,
}

impl Mounts {
    /// The guest's tree.
    pub fn tree(&self) -> Result<&Tree> {
        self.tree.as_ref().ok_or_else(|| other("nothing is mounted at / yet"))
    }

    /// Mounts a device in the guest's tree; `/` must come first.
    pub fn mount(&mut self, device: &str, path: &[u8], filesystem: &str, options: &str) -> Result<()> {
        super::devices::check_name(device)?;
        let (flags, data) = parse_options(options);
        if path == b"/" {
            if self.tree.is_some() {
                return Err(other("something is mounted there already"));
            }
            mount_device(device, ROOT, filesystem, flags, &data)?;
            self.tree = Some(Tree::open(ROOT)?);
        } else {
            let dir = self.tree()?.at(path, OFlags::PATH | OFlags::DIRECTORY)?;
            mount_device(device, &format!("/proc/self/fd/{}", dir.as_raw_fd()), filesystem, flags, &data)?;
        }
        self.points.push((device.to_string(), path.to_vec()));
        Ok(())
    }

    /// Writes everything out and unmounts, the last one first. What was not written out is an error.
    pub fn unmount_all(&mut self) -> Result<()> {
        let mut first_failure = self.sync().err();
        while let Some((device, path)) = self.points.pop() {
            let target = if path == b"/" {
                self.tree = None;
                ROOT.to_string()
            } else {
                // Found inside the guest's tree again, as it was when it was mounted.
                match self.tree().and_then(|t| t.at(&path, OFlags::PATH)) {
                    Ok(fd) => fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.to_string_lossy().into_owned(),
                    Err(e) => {
                        first_failure.get_or_insert(e);
                        continue;
                    }
                }
            };
            let unmounted = unmount(&target, UnmountFlags::NOFOLLOW).map_err(|e| because(&format!("unmounting {device}"), e));
            // A failure to write that only unmounting met shows on the device.
            let written = open(&device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(fsync)
                .map_err(|e| because(&format!("writing {device} out"), e));
            if let Err(e) = unmounted.and(written) {
                first_failure.get_or_insert(e);
            }
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// Writes everything out.
    pub fn sync(&self) -> Result<()> {
        for (device, path) in &self.points {
            let fd = self.tree()?.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            syncfs(fd).map_err(|e| because(&format!("writing {device} out"), e))?;
        }
        rustix::fs::sync();
        Ok(())
    }

    /// Puts /proc, /sys, /dev and /run in place for a command in the guest's root.
    pub fn enter(&self) -> Result<Entered> {
        let tree = self.tree()?;
        let mut entered = Entered { targets: Vec::new() };
        let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        for (path, kind, flags, data) in [
            ("/proc", "proc", quiet, c""),
            ("/sys", "sysfs", quiet, c""),
            ("/dev", "bind", MountFlags::empty(), c""),
            ("/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0620,gid=5,ptmxmode=0666"),
            ("/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777"),
            ("/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755"),
        ] {
            // A guest without one of these directories, as old ones have no /run, gets along without.
            let Ok(dir) = tree.at(path.as_bytes(), OFlags::PATH | OFlags::DIRECTORY) else { continue };
            let target = format!("/proc/self/fd/{}", dir.as_raw_fd());
            let place = fs::read_link(&target)?;
            let mounted = if kind == "bind" { mount_bind("/dev", &target) } else { mount(kind, &target, kind, flags, data) };
            mounted.map_err(|e| because(&format!("mounting {path}"), e))?;
            entered.targets.push(place);
        }
        if let Ok(run) = tree.at(b"/run", OFlags::PATH | OFlags::DIRECTORY) {
            let _ = rustix::fs::mkdirat(&run, "lock", Mode::from_raw_mode(0o1777));
        }
        Ok(entered)
    }
}

/// The mounts of [`Mounts::enter`]; they go when this is dropped.
pub struct Entered {
    targets: Vec<std::path::PathBuf>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        for target in self.targets.iter().rev() {
            let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// blkid's name of a filesystem as the kernel's, and the option that gives names of files as UTF-8.
fn in_kernels_words(kind: &str) -> (&str, &'static str) {
    match kind {
        "ntfs" | "ntfs3" => ("ntfs3", "iocharset=utf8"),
        "vfat" => ("vfat", "utf8"),
        "iso9660" => ("iso9660", "iocharset=utf8"),
        other => (other, ""),
    }
}

fn mount_device(device: &str, target: &str, filesystem: &str, flags: MountFlags, data: &str) -> Result<()> {
    let mount_as = |kind: &str| {
        let (kind, names) = in_kernels_words(kind);
        let all: Vec<&str> = [names, data].into_iter().filter(|o| !o.is_empty()).collect();
        mount(device, target, kind, flags, &*CString::new(all.join(",")).map_err(|_| Errno::INVAL)?)
    };
    if !filesystem.is_empty() {
        return mount_as(filesystem).map_err(|e| because(&format!("mounting {device} as {filesystem}"), e));
    }
    let mut failure: Option<Failure> = None;
    for kind in filesystems()? {
        match mount_as(&kind) {
            Ok(()) => return Ok(()),
            // "Not mine", or not known here.
            Err(Errno::INVAL | Errno::NODEV) => {}
            Err(Errno::NOENT | Errno::NXIO) => return Err(other(format!("no device {device}"))),
            Err(e) => {
                failure.get_or_insert(because(&format!("mounting {device} as {kind}"), e));
            }
        }
    }
    Err(failure.unwrap_or_else(|| other(format!("{device} has no filesystem that the appliance's kernel knows"))))
}

/// The kernel's filesystems that lie on a device, also those that it would have to load.
fn filesystems() -> Result<Vec<String>> {
    let list = fs::read_to_string("/proc/filesystems")?;
    let loadable = super::modules::filesystems();
    let mut known: Vec<&str> = list.lines().filter(|l| !l.starts_with("nodev")).map(str::trim).collect();
    for name in &loadable {
        if !known.contains(&name.as_str()) {
            known.push(name);
        }
    }
    let first = FIRST.into_iter().filter(|f| known.contains(f));
    // ext4 mounts ext2 and ext3 as well.
    let rest = known.iter().copied().filter(|f| !FIRST.contains(f) && !["ext2", "ext3", "fuseblk", "msdos"].contains(f));
    Ok(first.chain(rest).map(str::to_string).collect())
}

/// Flags that the kernel takes apart from the filesystem's own options. Nothing is ever marked as read only by
/// being read, and no device file of a guest is honoured.
fn parse_options(options: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::NOATIME | MountFlags::NODEV;
    let mut own = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" => {}
            "noexec" => flags |= MountFlags::NOEXEC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" | "noatime" | "relatime" => {}
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            _ => own.push(option),
        }
    }
    (flags, own.join(","))
}
