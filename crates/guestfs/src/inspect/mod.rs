//! What is installed: operating system roots, their distribution, architecture, name and mounts. (libguestfs's rules)

use std::collections::BTreeMap;

use crate::{Error, Ext, FileType, GuestFs, Result, Volumes};

mod arch;
mod bsd;
mod distro;
pub mod fstab;
mod icon;
mod names;
pub mod packages;
pub(crate) mod subvolume;
mod windows;

pub use arch::{detect as arch, of_program as program_arch};
pub use distro::{Family, Release, detect as release};
pub use fstab::FstabEntry;
pub use icon::icon;
pub use packages::Application;
pub use windows::{Windows, any_case};

/// Configuration files are no larger.
const CONFIG_LIMIT: u64 = 1 << 20;

/// A volume and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The place in the guest's tree.
    pub path: Vec<u8>,
    /// Position in [`Volumes::volumes`].
    pub volume: usize,
    /// Options of fstab.
    pub options: Vec<u8>,
}

impl Mount {
    /// The mount options that choose a subvolume of btrfs; empty where it is the default one.
    pub fn selection(&self) -> String {
        subvolume::selection(&self.options).iter().map(|o| String::from_utf8_lossy(o)).collect::<Vec<_>>().join(",")
    }

    /// Where on its filesystem that begins what is mounted, as a boot loader sees it, which knows no default subvolume:
    /// `/@/.snapshots/1/snapshot`; empty where it is all of it.
    pub fn begins_at(&self, volumes: &Volumes) -> Result<String> {
        let volume = volumes.volumes.get(self.volume).filter(|v| v.kind() == "btrfs");
        let Some(volume) = volume else { return Ok(String::new()) };
        let path = crate::btrfs::subvolume_path(volumes.image(volume)?, 0, volume.len, &self.selection())?;
        match String::from_utf8(path) {
            Ok(path) if path.is_empty() => Ok(path),
            Ok(path) => Ok(format!("/{path}")),
            Err(_) => Err(Error::Unsupported { filesystem: "btrfs", what: "a subvolume's name that is no text".into() }),
        }
    }

    /// What is mounted, by libguestfs's name: `/dev/sda2`, `btrfsvol:/dev/sda2/home`.
    pub fn device_name(&self, volumes: &Volumes) -> String {
        let device = volumes.volumes.get(self.volume).map_or("?", |v| v.device.as_str());
        self.selection().strip_prefix("subvol=").map_or(device.to_string(), |name| format!("btrfsvol:{device}/{name}"))
    }
}

/// The class of an operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// Linux.
    Linux,
    /// FreeBSD, NetBSD or OpenBSD, and what else is told by files of its own: libguestfs's name.
    Other(&'static str),
    /// Windows, with what only it has.
    Windows(Windows),
}

impl System {
    /// libguestfs's name: `linux`, `windows`, `freebsd`.
    pub fn name(&self) -> &'static str {
        match self {
            System::Linux => "linux",
            System::Other(name) => name,
            System::Windows(_) => "windows",
        }
    }
}

/// An operating system on a guest's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The root's volume, by position in [`Volumes::volumes`].
    pub root: usize,
    /// Its class.
    pub system: System,
    /// Distribution and version.
    pub release: Release,
    /// `x86_64`, `i386`, `aarch64`, … of its programs; `unknown` when no program was found.
    pub arch: &'static str,
    /// The host name, where it has one of its own.
    pub hostname: Option<String>,
    /// What is mounted where, the root first, then as their paths sort: each after what it is mounted on.
    pub mounts: Vec<Mount>,
    /// Volumes that fstab uses as swap.
    pub swaps: Vec<usize>,
    /// All of /etc/fstab.
    pub fstab: Vec<FstabEntry>,
}

impl Inspection {
    /// What users call the root: `/dev/xvda2`, or `btrfsvol:/dev/xvda2/@` where it is a subvolume, as libguestfs writes it.
    pub fn root_name(&self, volumes: &Volumes) -> String {
        self.mounts.first().map(|m| m.device_name(volumes)).unwrap_or_default()
    }

    /// What only Windows has.
    pub fn windows(&self) -> Option<&Windows> {
        match &self.system {
            System::Windows(windows) => Some(windows),
            _ => None,
        }
    }

    /// libosinfo's short name: `debian12`, `win2k19`.
    pub fn osinfo(&self) -> Option<String> {
        match &self.system {
            System::Linux => self.release.osinfo(),
            System::Other(name) => (self.release.major != 0).then(|| format!("{name}{}.{}", self.release.major, self.release.minor)),
            System::Windows(windows) => windows::osinfo(&self.release, &windows.variant).map(str::to_string),
        }
    }
}

/// The system whose root this filesystem is; `root` is its volume, `subvolume` the part of it that is mounted, unless it is the default.
pub(crate) fn inspect(fs: &dyn GuestFs, volumes: &Volumes, root: usize, subvolume: Option<&str>) -> Option<Result<Inspection>> {
    if let Some(other) = bsd::detect(fs) {
        return Some(unix(fs, volumes, root, subvolume, Some(other)));
    }
    if is_linux(fs) {
        return Some(unix(fs, volumes, root, subvolume, None));
    }
    windows::systemroot(fs).map(|folder| windows::inspect(fs, volumes, root, folder))
}

/// Whether a mounted filesystem is a Linux root.
fn is_linux(fs: &dyn GuestFs) -> bool {
    // A link to usr/bin leads nowhere when /usr is another filesystem, and is a root's mark all the same.
    let bin = fs.is_dir(b"/bin") || fs.readlink(b"/bin").is_ok_and(|t| matches!(&t[..], b"usr/bin" | b"/usr/bin"));
    bin && fs.is_dir(b"/etc") && (fs.is_file(b"/etc/fstab") || fs.is_file(b"/etc/hosts"))
}

/// A root that has an fstab: Linux, or what `other` says.
fn unix(
    fs: &dyn GuestFs,
    volumes: &Volumes,
    root: usize,
    subvolume: Option<&str>,
    other: Option<&'static bsd::Kind>,
) -> Result<Inspection> {
    let mut fstab = match fs.read(b"/etc/fstab", CONFIG_LIMIT) {
        Ok(content) => fstab::parse(&content),
        Err(Error::NotFound(_)) => Vec::new(),
        Err(e) => return Err(e),
    };
    let names = names::Names::read(fs, volumes);
    for entry in &mut fstab {
        entry.volume = names.find(&entry.spec).or_else(|| fstab::resolve(volumes, &entry.spec));
    }
    fstab::resolve_moved(volumes, &mut fstab);
    match_by_content(&mut fstab, volumes, root);
    let is_part = |entry: &FstabEntry| !subvolume::selection(&entry.options).is_empty();
    let mut mounts = BTreeMap::new();
    let mut swaps = Vec::new();
    for entry in &fstab {
        match entry.volume {
            Some(volume) if entry.is_swap() => swaps.push(volume),
            Some(volume) if volume != root || is_part(entry) => {
                if let Some(path) = entry.mount_point().filter(|p| p != b"/") {
                    mounts.entry(path.clone()).or_insert(Mount { path, volume, options: entry.options.clone() });
                }
            }
            _ => {}
        }
    }
    swaps.dedup();
    let options = fstab.iter().find(|e| e.path == b"/").map_or(b"defaults".to_vec(), |e| e.options.clone());
    let options = subvolume::leading_to(&options, subvolume);
    let root_mount = Mount { path: b"/".to_vec(), volume: root, options };
    Ok(Inspection {
        root,
        system: other.map_or(System::Linux, |other| System::Other(other.name)),
        release: other.map_or_else(|| distro::detect(fs), |other| Ok(other.release(fs)))?,
        arch: arch::detect(fs),
        hostname: other.map_or_else(|| hostname(fs), |other| other.hostname(fs)),
        mounts: std::iter::once(root_mount).chain(mounts.into_values()).collect(),
        swaps,
        fstab,
    })
}

/// Sources that don't say which partition a disk is: `/` is this root, and the one swap entry is the one swap volume.
fn match_by_content(fstab: &mut [FstabEntry], volumes: &Volumes, root: usize) {
    if let Some(entry) = fstab.iter_mut().find(|e| e.path == b"/" && e.volume.is_none()) {
        entry.volume = Some(root);
    }
    let swaps: Vec<usize> = (0..volumes.volumes.len()).filter(|i| volumes.volumes[*i].is_swap()).collect();
    let mut open: Vec<&mut FstabEntry> = fstab.iter_mut().filter(|e| e.is_swap() && e.spec.starts_with(b"/dev/")).collect();
    if let ([swap], [entry]) = (&swaps[..], &mut open[..]) {
        entry.volume.get_or_insert(*swap);
    }
}

fn hostname(fs: &dyn GuestFs) -> Option<String> {
    let line = |path: &[u8]| {
        let content = fs.read(path, CONFIG_LIMIT).ok()?;
        let text = String::from_utf8_lossy(&content).into_owned();
        text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_string)
    };
    let sysconfig = || {
        let content = fs.read(b"/etc/sysconfig/network", CONFIG_LIMIT).ok()?;
        let text = String::from_utf8_lossy(&content).into_owned();
        text.lines().find_map(|l| l.trim().strip_prefix("HOSTNAME=")).map(|v| v.trim_matches(['"', '\'']).to_string())
    };
    line(b"/etc/HOSTNAME").or_else(|| line(b"/etc/hostname")).or_else(sysconfig).filter(|n| !n.is_empty())
}

/// Whether a file is there and no directory.
fn has_file(fs: &dyn GuestFs, path: &str) -> bool {
    fs.stat(path.as_bytes()).is_ok_and(|s| s.kind == FileType::Regular)
}
