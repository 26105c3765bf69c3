//! The host's GRUB: where its files are, and core images made of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imgcore::partition::TableKind;

use super::BootPlace;
use crate::stack::Layer;
use crate::{Error, Result};

/// Names another folder than Debian's.
const FOLDER_VARIABLE: &str = "GUESTLIFT_GRUB";
const FOLDERS: [&str; 2] = ["/usr/lib/grub", "/usr/share/grub2"];
const PROGRAMS: [&str; 2] = ["grub-mkimage", "grub2-mkimage"];

/// blkid's kinds of filesystem and GRUB's modules that read them.
const FILESYSTEMS: [(&str, &str); 9] = [
    ("ext2", "ext2"),
    ("ext3", "ext2"),
    ("ext4", "ext2"),
    ("xfs", "xfs"),
    ("btrfs", "btrfs"),
    ("vfat", "fat"),
    ("reiserfs", "reiserfs"),
    ("jfs", "jfs"),
    ("f2fs", "f2fs"),
];

/// GRUB's name of a BIOS.
const BIOS: &str = "i386-pc";
/// GRUB's name of a PC's UEFI.
const UEFI: &str = "x86_64-efi";

/// The files of GRUB for one kind of firmware on this host.
#[derive(Clone, Debug)]
pub struct Grub {
    folder: PathBuf,
    platform: &'static str,
}

impl Grub {
    /// Finds them: in `folder`, else where the variable `GUESTLIFT_GRUB` says, else where distributions put them.
    pub fn find(folder: Option<&Path>) -> Result<Self> {
        let named = folder.map(Path::to_owned).or_else(|| std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from));
        let candidates = named.map_or_else(|| FOLDERS.map(|folder| Path::new(folder).join(BIOS)).to_vec(), |folder| vec![folder]);
        match candidates.iter().find(|folder| folder.join("boot.img").is_file() && folder.join("normal.mod").is_file()) {
            Some(folder) => Ok(Grub { folder: folder.clone(), platform: BIOS }),
            None => Err(Error::Invalid(format!(
                "the guest needs a boot loader, but GRUB for BIOS is not in {}: install the package grub-pc-bin (on other systems than Debian \
                 grub2-pc-modules), or set {FOLDER_VARIABLE} to the folder that has boot.img",
                candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(" nor ")
            ))),
        }
    }

    /// Finds those for UEFI: beside the folder that the variable names, else where distributions put them.
    pub fn find_efi() -> Result<Self> {
        let named = std::env::var_os(FOLDER_VARIABLE).and_then(|folder| Some(Path::new(&folder).parent()?.to_owned()));
        let candidates = named.map_or_else(|| FOLDERS.map(PathBuf::from).to_vec(), |folder| vec![folder]);
        let folder = candidates.iter().map(|folder| folder.join(UEFI)).find(|folder| folder.join("normal.mod").is_file());
        match folder {
            Some(folder) => Ok(Grub { folder, platform: UEFI }),
            None => Err(Error::Invalid(format!(
                "the guest is to start by UEFI, but GRUB for it ({UEFI}) is not in {}: install the package grub-efi-amd64-bin (on other systems than \
                 Debian grub2-efi-x64-modules)",
                candidates.iter().map(|c| c.display().to_string()).collect::<Vec<_>>().join(" nor ")
            ))),
        }
    }

    /// Whether it is for a BIOS, which loads modules from the guest.
    pub fn is_for_bios(&self) -> bool {
        self.platform == BIOS
    }

    /// A file of GRUB's folder.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.folder.join(name);
        std::fs::read(&path).map_err(|source| Error::Io { file: path.display().to_string(), action: "read", source })
    }

    /// The names of modules and of the lists that GRUB loads them by.
    pub(super) fn module_names(&self) -> Result<Vec<String>> {
        let io = |source| Error::Io { file: self.folder.display().to_string(), action: "list", source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            names.extend(name.into_string().ok().filter(|n| n.ends_with(".mod") || n.ends_with(".lst")));
        }
        names.sort();
        Ok(names)
    }

    /// The core image that finds `place`, whole sectors of 512 bytes; small enough for the 62 sectors before an old disk's first partition
    /// with most filesystems.
    pub fn core_image(&self, place: &BootPlace, table: TableKind) -> Result<Vec<u8>> {
        let Some((_, filesystem)) = FILESYSTEMS.iter().find(|(kind, _)| *kind == place.filesystem) else {
            return Err(Error::Invalid(format!(
                "GRUB cannot be installed: it is not known to start from a '{}' filesystem",
                place.filesystem
            )));
        };
        let (scheme, module) = match table {
            TableKind::Mbr => ("msdos", "part_msdos"),
            TableKind::Gpt => ("gpt", "part_gpt"),
        };
        let partition = place.partition.map(|number| format!("{scheme}{number}"));
        let prefix = format!("{}/grub", place.boot_dir);
        let mut modules = vec!["biosdisk", module, filesystem];
        for layer in &place.layers {
            modules.extend_from_slice(match layer {
                Layer::Group => &["lvm"],
                Layer::Array => &["mdraid09", "mdraid1x"],
                Layer::Encrypted => return Err(Error::Invalid("GRUB is not installed to start from an encrypted volume".into())),
            });
        }
        if !place.layers.is_empty() {
            // It may lie on disks with the other kind of table, too.
            modules.extend(["part_msdos", "part_gpt"].into_iter().filter(|m| *m != module));
        }
        // Found by UUID, it may be on any disk; without one it is on the disk that the BIOS started.
        let uuid = place.uuid.as_deref().filter(|uuid| is_plain(uuid));
        let config = uuid.map(|uuid| {
            modules.push("search_fs_uuid");
            let hint = partition.as_ref().map_or(String::new(), |p| format!(" hd0,{p}"));
            format!("search.fs_uuid {uuid} root{hint}\nset prefix=($root){prefix}\n")
        });
        let prefix = match (&partition, uuid) {
            (Some(partition), _) => format!("(,{partition}){prefix}"),
            (None, Some(_)) => prefix,
            (None, None) => {
                return Err(Error::Invalid("GRUB cannot be installed: the filesystem with /boot has no UUID to find it by".into()));
            }
        };
        let mut image = self.mkimage(&prefix, config.as_deref(), &modules)?;
        image.resize(image.len().next_multiple_of(512), 0);
        Ok(image)
    }

    pub(super) fn mkimage(&self, prefix: &str, config: Option<&str>, modules: &[&str]) -> Result<Vec<u8>> {
        let io = |action| move |source| Error::Io { file: "GRUB's core image in a temporary folder".into(), action, source };
        // It seeks in its configuration and syncs its output, and so pipes won't do.
        let folder = tempfile::tempdir().map_err(io("make"))?;
        let (config_file, image) = (folder.path().join("config"), folder.path().join("core.img"));
        std::fs::write(&config_file, config.unwrap_or_default()).map_err(io("write"))?;
        for program in PROGRAMS {
            let mut command = Command::new(program);
            command.args(["-O", self.platform, "-p", prefix, "-d"]).arg(&self.folder).arg("-o").arg(&image).stdin(Stdio::null());
            if config.is_some() {
                command.arg("-c").arg(&config_file);
            }
            let output = match command.args(modules).output() {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(Error::Io { file: program.into(), action: "run", source }),
                Ok(output) => output,
            };
            if output.status.success() {
                return std::fs::read(&image).map_err(io("read"));
            }
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Invalid(format!("{program} could not make GRUB's core image from {}: {said}", self.folder.display())));
        }
        Err(Error::Invalid("the guest needs a boot loader, but grub-mkimage is missing: install the package grub-common".into()))
    }
}

/// Whether a UUID can stand in a script of GRUB as it is.
pub(super) fn is_plain(uuid: &str) -> bool {
    !uuid.is_empty() && uuid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}
