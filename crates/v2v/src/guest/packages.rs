//! What a guest has installed, by its package manager's own database.

use std::collections::{BTreeMap, BTreeSet};

use guestfs::GuestFs;
use guestfs::inspect::packages::{Application, of_format};

/// The databases' formats, by libguestfs's names. The first with a package in it is the guest's: others' tools are installed without.
const FORMATS: [&str; 4] = ["deb", "rpm", "apk", "pacman"];

/// Installed packages and their versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packages {
    /// The database's format, by libguestfs's name: `deb`, `rpm`; empty where none is known.
    pub format: &'static str,
    /// Why there are none, where a database is there that cannot be read.
    pub problem: Option<String>,
    versions: BTreeMap<String, String>,
    provided: BTreeSet<String>,
}

impl Packages {
    /// Reads them; none where there is no database, or a damaged one: a guest can run for years without looking into it.
    pub fn read(fs: &dyn GuestFs) -> Self {
        let mut problem = None;
        for format in FORMATS {
            match of_format(fs, format) {
                Ok(Some(list)) if !list.is_empty() => return Self::of(format, list),
                Ok(_) => {}
                Err(e) => problem = Some(e.to_string()),
            }
        }
        Packages { problem, ..Packages::default() }
    }

    fn of(format: &'static str, list: Vec<Application>) -> Self {
        let mut packages = Packages { format, ..Packages::default() };
        for app in list {
            let epoch = if app.epoch == 0 { String::new() } else { format!("{}:", app.epoch) };
            let release = if app.release.is_empty() { String::new() } else { format!("-{}", app.release) };
            packages.versions.insert(app.name, format!("{epoch}{}{release}", app.version));
            packages.provided.extend(app.provides);
        }
        packages
    }

    /// Whether a package is installed.
    pub fn has(&self, name: &str) -> bool {
        self.versions.contains_key(name)
    }

    /// Whether a package is installed that has this name or stands for it.
    pub fn provides(&self, name: &str) -> bool {
        self.has(name) || self.provided.contains(name)
    }

    /// The version of an installed package.
    pub fn version(&self, name: &str) -> Option<&str> {
        self.versions.get(name).map(String::as_str)
    }

    /// The upstream version's first number: 252 of `252.39-1~deb12u1`, without an epoch.
    pub fn major(&self, name: &str) -> Option<u32> {
        let version = self.version(name)?;
        let version = version.split_once(':').map_or(version, |(_, v)| v);
        let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
        version[..digits].parse().ok()
    }

    /// The names of installed packages.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.versions.keys().map(String::as_str)
    }
}

/// What a package file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackageFile {
    /// Its name.
    pub name: String,
    /// Other names that it stands for.
    pub provides: Vec<String>,
    /// The files that it brings, and folders, which end with `/`.
    pub files: Vec<String>,
    /// What it needs: one of each row. Versions are left to the tool that installs it.
    pub depends: Vec<Vec<String>>,
    /// The kernel whose image it holds.
    pub kernel: Option<BroughtKernel>,
    /// Its units that cannot be switched on, as something else starts them: a rule of udev's, another unit.
    pub static_units: Vec<String>,
    /// It is installed beside older versions of it, not in their place: a part of a kernel.
    pub beside_others: bool,
}

impl PackageFile {
    /// Whether it has this name, stands for it, or brings this file.
    pub fn is(&self, name: &str) -> bool {
        self.name == name || self.provides.iter().chain(&self.files).any(|p| p == name)
    }
}

/// A kernel in a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroughtKernel {
    /// Its release.
    pub release: String,
    /// Where its image will be.
    pub image: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemFs;

    #[test]
    fn only_installed_packages_count() {
        let status = "Package: systemd\nStatus: install ok installed\nDescription: x\n y\nVersion: 252.39-1~deb12u1\n\n\
             Package: udev\nStatus: hold ok installed\nProvides: hotplug (= 1), udev-tools\nVersion: 1:175-7.2\n\n\
             Package: grub-legacy\nStatus: deinstall ok config-files\nVersion: 0.97-82\n\nPackage: broken\n\n";
        let packages = Packages::read(&MemFs::new().file("/var/lib/dpkg/status", status));
        assert_eq!((packages.major("systemd"), packages.version("systemd")), (Some(252), Some("252.39-1~deb12u1")));
        assert_eq!((packages.major("udev"), packages.format), (Some(175), "deb"));
        assert!(!packages.has("grub-legacy"));
        assert_eq!(packages.names().count(), 2);
        assert!(packages.provides("hotplug") && packages.provides("udev") && !packages.has("hotplug"));
    }

    #[test]
    fn a_database_with_packages_is_the_guests() {
        let alpine = "C:Q1=\nP:busybox\nV:1.36.1-r15\np:cmd:ash=1.36 /bin/sh\n\n";
        let fs = MemFs::new().file("/var/lib/dpkg/status", "").file("/lib/apk/db/installed", alpine);
        let packages = Packages::read(&fs);
        assert_eq!((packages.format, packages.version("busybox")), ("apk", Some("1.36.1-15")));
        assert!(packages.provides("/bin/sh") && packages.provides("cmd:ash"));
        let arch = "%NAME%\nmkinitcpio\n\n%VERSION%\n39.2-1\n\n%PROVIDES%\ninitramfs\ndracut=1\n\n%DESC%\nx\n";
        let packages = Packages::read(&MemFs::new().file("/var/lib/pacman/local/mkinitcpio-39.2-1/desc", arch));
        assert!(packages.provides("initramfs") && packages.provides("dracut") && !packages.provides("%DESC%"));
        let damaged = Packages::read(&MemFs::new().file("/var/lib/rpm/Packages", [1; 5000]));
        assert!(damaged.problem.unwrap().contains("rpm database") && damaged.format.is_empty());
    }
}
