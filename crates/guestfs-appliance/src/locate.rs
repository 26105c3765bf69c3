//! Finds the appliance's files: `vmlinux`, our kernel or else a distribution's, `initramfs.cpio`, our agent, and `vmm-mini`, our monitor.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use guestfs::{Error, Result};

use crate::distro_kernel::{self, Kernel};

/// Names a directory with both files, before all other places.
pub const VARIABLE: &str = "GUESTLIFT_APPLIANCE";

/// Where the package puts them.
const INSTALLED: &str = "/usr/lib/guestlift/appliance";

/// What the machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The kernel: ours as an uncompressed ELF file, or a distribution's as that has it.
    pub kernel: PathBuf,
    /// The directory of the kernel's modules, if it is a distribution's.
    pub modules: Option<PathBuf>,
    /// The archive with the agent.
    pub initramfs: PathBuf,
}

/// Finds kernel and agent.
pub fn files() -> Result<Files> {
    let Kernel { file: kernel, modules } = kernel()?;
    Ok(Files { kernel, modules, initramfs: initramfs()? })
}

/// Finds the kernel: the one that the user names, our own, or the distribution's newest.
pub fn kernel() -> Result<Kernel> {
    let ours = || find("vmlinux").or_else(|| cache().as_deref().and_then(newest_kernel)).map(|file| Kernel { file, modules: None });
    let kernel = match distro_kernel::named()?.or_else(ours) {
        None => distro_kernel::newest()?,
        found => found,
    };
    kernel.ok_or_else(|| missing("its kernel (vmlinux)", "scripts/build-kernel"))
}

/// Finds the archive with the agent.
pub fn initramfs() -> Result<PathBuf> {
    find("initramfs.cpio").ok_or_else(|| missing("its agent (initramfs.cpio)", "scripts/build-agent"))
}

/// Finds our monitor's program.
pub fn monitor() -> Result<PathBuf> {
    find("vmm-mini").ok_or_else(|| missing("its monitor (vmm-mini)", "scripts/build-agent"))
}

fn find(name: &str) -> Option<PathBuf> {
    here().into_iter().map(|p| p.join(name)).find(|f| f.is_file())
}

fn missing(what: &str, command: &str) -> Error {
    let list: Vec<String> = here().iter().map(|p| p.display().to_string()).collect();
    Error::Missing(format!(
        "the appliance lacks {what}: install the guestlift package, or run {command} in the source tree, or set {VARIABLE} to a directory \
         that has it (looked in {})",
        list.join(", ")
    ))
}

/// The places of this program.
fn here() -> Vec<PathBuf> {
    places(std::env::var_os(VARIABLE).map(PathBuf::from), std::env::current_exe().ok().as_deref(), cache().as_deref())
}

/// Directories that may hold the files, the first one first.
fn places(variable: Option<PathBuf>, executable: Option<&Path>, cache: Option<&Path>) -> Vec<PathBuf> {
    let mut places = Vec::from_iter(variable);
    for dir in executable.into_iter().flat_map(|e| e.ancestors().skip(1)) {
        // A program of the source tree lies somewhere below `target`.
        if dir.join("CACHEDIR.TAG").is_file() {
            places.push(dir.join("appliance"));
        }
    }
    // A program that was installed under a prefix.
    places.extend(executable.and_then(|e| Some(e.parent()?.parent()?.join("lib/guestlift/appliance"))));
    places.push(INSTALLED.into());
    places.extend(cache.map(|c| c.join("appliance")));
    places.dedup();
    places
}

/// Where built things are kept for this user.
pub fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    Some(set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?.join("guestlift"))
}

/// The kernel that scripts/build-kernel put into the cache last.
fn newest_kernel(cache: &Path) -> Option<PathBuf> {
    let kernels = std::fs::read_dir(cache).ok()?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("kernel-"));
    let files = kernels.map(|e| e.path().join("vmlinux")).filter(|p| p.is_file());
    files.max_by_key(|p| p.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_comes_first_and_the_source_tree_before_what_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("CACHEDIR.TAG"), "").unwrap();
        let executable = dir.path().join("debug/deps/test");
        let places = places(Some("/env".into()), Some(&executable), Some(Path::new("/cache")));
        let at = |p: &Path| places.iter().position(|q| q == p).unwrap_or_else(|| panic!("{} in {places:?}", p.display()));
        assert_eq!(at(Path::new("/env")), 0);
        assert!(at(&dir.path().join("appliance")) < at(Path::new(INSTALLED)));
        assert_eq!(at(Path::new("/cache/appliance")), places.len() - 1);
    }

    #[test]
    fn the_cache_gives_its_newest_kernel() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest_kernel(dir.path()), None);
        for name in ["kernel-a", "kernel-b", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("vmlinux"), name).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(newest_kernel(dir.path()), Some(dir.path().join("kernel-b/vmlinux")));
    }
}
