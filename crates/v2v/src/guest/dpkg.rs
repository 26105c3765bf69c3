//! The packages of a guest of the Debian family, from dpkg's status file.

use std::collections::{BTreeMap, BTreeSet};

use guestfs::{Ext, GuestFs};

use super::deb;
use crate::Result;

/// A status file larger than this is none.
const LIMIT: u64 = 64 << 20;

/// Installed packages and their versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packages {
    versions: BTreeMap<String, String>,
    provided: BTreeSet<String>,
}

impl Packages {
    /// Reads them; none where there is no dpkg.
    pub fn read(fs: &dyn GuestFs) -> Result<Self> {
        if !fs.is_file(b"/var/lib/dpkg/status") {
            return Ok(Packages::default());
        }
        Ok(Self::parse(&String::from_utf8_lossy(&fs.read(b"/var/lib/dpkg/status", LIMIT)?)))
    }

    /// Reads the text of a status file.
    pub fn parse(status: &str) -> Self {
        let mut packages = Packages::default();
        for paragraph in status.split("\n\n") {
            let field = |name: &str| paragraph.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
            if let (Some(name), Some(version), Some(status)) = (field("Package"), field("Version"), field("Status"))
                && status.ends_with(" installed")
            {
                packages.versions.insert(name.into(), version.into());
                packages.provided.extend(field("Provides").map(deb::relations).unwrap_or_default().into_iter().flatten());
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let packages = Packages::parse(
            "Package: systemd\nStatus: install ok installed\nDescription: x\n y\nVersion: 252.39-1~deb12u1\n\n\
             Package: udev\nStatus: hold ok installed\nProvides: hotplug (= 1), udev-tools\nVersion: 1:175-7.2\n\n\
             Package: grub-legacy\nStatus: deinstall ok config-files\nVersion: 0.97-82\n\nPackage: broken\n\n",
        );
        assert_eq!(packages.major("systemd"), Some(252));
        assert_eq!(packages.major("udev"), Some(175));
        assert!(!packages.has("grub-legacy"));
        assert_eq!(packages.names().count(), 2);
        assert!(packages.provides("hotplug") && packages.provides("udev") && !packages.has("hotplug"));
    }
}
