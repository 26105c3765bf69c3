//! Programs that the appliance borrows from the host: e2fsck, mkfs and the like, with their libraries.
//!
//! They are sent over the agent's port when one is first used, under the paths that they have on the host, into
//! the otherwise empty root of the appliance. So they cost nothing at the start, need no image that could be out
//! of date, and take no place of a disk.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guestfs::{Error, Result};

use crate::checkup::{self, Finding, State};

/// Where programs are looked for on the host: an ordinary user's PATH lacks the half of it.
const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What a program needs besides its libraries: other programs by name, files and whole directories by path.
const ALSO: [(&str, &[&str]); 10] = [
    ("file", &["/etc/magic", "/usr/share/misc/magic.mgc", "/usr/lib/file/magic.mgc"]),
    ("mke2fs", &["/etc/mke2fs.conf"]),
    ("mkfs.ext2", &["/etc/mke2fs.conf"]),
    ("mkfs.ext3", &["/etc/mke2fs.conf"]),
    ("mkfs.ext4", &["/etc/mke2fs.conf"]),
    ("xfs_repair", &["xfs_db"]),
    ("fsck", &["fsck.ext4", "fsck.vfat"]),
    ("xfs_admin", &["xfs_db", "xfs_io"]),
    ("grub-install", &["grub-mkimage", "grub-bios-setup", "grub-probe", "/usr/lib/grub/i386-pc"]),
    ("grub-bios-setup", &["/usr/lib/grub/i386-pc"]),
];

/// A package of Debian's that hosts may lack.
struct Package {
    name: &'static str,
    /// What its programs begin with; the first is one that it surely has.
    programs: &'static [&'static str],
    /// Whose guests want it.
    purpose: &'static str,
}

const PACKAGES: [Package; 11] = [
    Package {
        name: "e2fsprogs",
        programs: &["e2fsck", "mke2fs", "mkfs.ext", "resize2fs", "tune2fs", "debugfs"],
        purpose: "ext2, ext3, ext4",
    },
    Package { name: "xfsprogs", programs: &["xfs_repair", "xfs_", "mkfs.xfs"], purpose: "XFS" },
    Package { name: "btrfs-progs", programs: &["btrfs", "mkfs.btrfs"], purpose: "btrfs" },
    Package { name: "dosfstools", programs: &["fsck.vfat", "mkfs.vfat"], purpose: "FAT, which UEFI starts from" },
    Package { name: "ntfs-3g", programs: &["mkfs.ntfs", "ntfsresize", "mkntfs", "ntfs"], purpose: "NTFS" },
    Package { name: "util-linux", programs: &["fstrim", "mkswap", "blkid"], purpose: "free space, swap" },
    Package { name: "lvm2", programs: &["lvm"], purpose: "logical volumes" },
    Package { name: "dmsetup", programs: &["dmsetup"], purpose: "encrypted volumes" },
    Package { name: "cryptsetup-bin", programs: &["cryptsetup"], purpose: "headers of encrypted volumes" },
    Package { name: "mdadm", programs: &["mdadm"], purpose: "software RAID" },
    Package { name: "grub-common", programs: &["grub-mkimage", "grub-"], purpose: "boot loaders" },
];

/// Which of the packages are here.
pub fn findings() -> impl Iterator<Item = Finding> {
    PACKAGES.into_iter().map(|Package { name, programs, purpose }| match programs.first().map(|program| locate(program)) {
        Some(Some(path)) => Finding::ok(name, format!("{purpose}: {}", path.display())),
        _ => Finding::bad(name, State::Warning, format!("not installed: checks and changes of {purpose} fail"), checkup::install(name)),
    })
}

/// A file of the host for the appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Borrowed {
    /// Its path, on both sides.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
}

/// What one appliance has got already.
#[derive(Default)]
pub struct Tools {
    sent: HashSet<PathBuf>,
}

impl Tools {
    /// What is to be sent before this program can run; nothing the second time.
    pub fn files_for(&mut self, program: &[u8]) -> Result<Vec<Borrowed>> {
        let program = std::str::from_utf8(program).map_err(|_| Error::Invalid("a program's name that is not text".into()))?;
        let mut files = Vec::new();
        self.add_program(program, &mut files)?;
        Ok(files)
    }

    fn add_program(&mut self, program: &str, files: &mut Vec<Borrowed>) -> Result<()> {
        let path = find(program)?;
        if !self.sent.insert(path.clone()) {
            return Ok(());
        }
        for library in needed_by(&path)? {
            self.add_path(&library, files)?;
        }
        files.push(Borrowed { path, mode: 0o755 });
        let name = program.rsplit('/').next().unwrap_or(program);
        for also in ALSO.iter().filter(|(of, _)| *of == name).flat_map(|(_, also)| also.iter()) {
            match also.strip_prefix('/') {
                Some(_) => self.add_path(Path::new(also), files)?,
                // A helper that the host lacks matters only if it is called.
                None => drop(self.add_program(also, files)),
            }
        }
        Ok(())
    }

    fn add_path(&mut self, path: &Path, files: &mut Vec<Borrowed>) -> Result<()> {
        let failed = |e| Error::Invalid(format!("{}: {e}, but the appliance needs it", path.display()));
        let meta = match fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            meta => meta.map_err(failed)?,
        };
        if meta.is_dir() {
            let mut entries = fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            entries.sort_by_key(fs::DirEntry::file_name);
            return entries.iter().try_for_each(|e| self.add_path(&e.path(), files));
        }
        if self.sent.insert(path.into()) {
            files.push(Borrowed { path: path.into(), mode: meta.permissions().mode() & 0o777 });
        }
        Ok(())
    }
}

/// Where the host has a program.
fn locate(program: &str) -> Option<PathBuf> {
    match program.starts_with('/') {
        true => Some(PathBuf::from(program)).filter(|p| p.is_file()),
        false => PLACES.iter().map(|dir| Path::new(dir).join(program)).find(|p| p.is_file()),
    }
}

fn find(program: &str) -> Result<PathBuf> {
    locate(program).ok_or_else(|| {
        let name = program.rsplit('/').next().unwrap_or(program);
        let package = PACKAGES.iter().find(|p| p.programs.iter().any(|prefix| name.starts_with(prefix)));
        let hint = package.map_or(String::new(), |p| format!(": install the package {}", p.name));
        Error::Missing(format!("the appliance borrows {program} from this host, which lacks it{hint}"))
    })
}

/// The libraries and the loader of a program, or the interpreter of a script.
fn needed_by(program: &Path) -> Result<Vec<PathBuf>> {
    let failed = |what: String| Error::Invalid(format!("{}: {what}", program.display()));
    let start = read_start(program).map_err(|e| failed(e.to_string()))?;
    if let Some(script) = start.strip_prefix(b"#!") {
        let line = String::from_utf8_lossy(script.split(|b| *b == b'\n').next().unwrap_or_default()).into_owned();
        let interpreter = PathBuf::from(line.split_whitespace().next().unwrap_or_default());
        let mut needed = needed_by(&interpreter)?;
        needed.push(interpreter);
        return Ok(needed);
    }
    // The host's own programs: its loader may be asked.
    let listed = Command::new("ldd").arg(program).env("LC_ALL", "C").output().map_err(|e| failed(format!("ldd: {e}")))?;
    let list = String::from_utf8_lossy(&listed.stdout);
    if !listed.status.success() {
        // A static program needs nothing.
        return Ok(Vec::new());
    }
    parse_ldd(&list).map_err(|missing| failed(format!("the library {missing} is missing on this host")))
}

fn read_start(file: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    fs::File::open(file)?.take(256).read_to_end(&mut start)?;
    Ok(start)
}

/// The paths in ldd's output, or the name that it could not find.
fn parse_ldd(list: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for line in list.lines().map(str::trim) {
        let (name, path) = line.split_once(" => ").unwrap_or((line, line));
        if path.starts_with("not found") {
            return Err(name.to_string());
        }
        let path = path.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            paths.push(path.into());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldds_lines_give_paths() {
        let list =
            "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let paths = parse_ldd(list).unwrap();
        assert_eq!(paths, [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
        assert_eq!(parse_ldd("\tlibx.so => not found\n"), Err("libx.so".to_string()));
    }

    #[test]
    fn a_program_comes_with_its_libraries_once() {
        let mut tools = Tools::default();
        let files = tools.files_for(b"sh").unwrap();
        assert!(files.iter().any(|f| f.path.to_string_lossy().contains("libc.so")), "{files:?}");
        assert!(tools.files_for(b"sh").unwrap().is_empty());
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = find("xfs_no_such_program").unwrap_err().to_string();
        assert!(error.contains("xfsprogs"), "{error}");
    }
}
