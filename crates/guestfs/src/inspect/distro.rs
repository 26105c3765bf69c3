//! Which distribution a root is, and its version: os-release, lsb-release, then each distribution's own file.

use super::{CONFIG_LIMIT, has_file};
use crate::{Error, Ext, GuestFs, Result};

/// Distributions that work alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the distributions'")]
pub enum Family {
    Debian,
    RedHat,
    Suse,
    Alpine,
    Arch,
    Gentoo,
    Slackware,
    Other,
}

/// os-release's ID, libguestfs's name, and what it works like.
const DISTROS: &[(&str, &str, Family)] = &[
    ("debian", "debian", Family::Debian),
    ("ubuntu", "ubuntu", Family::Debian),
    ("linuxmint", "linuxmint", Family::Debian),
    ("kali", "kalilinux", Family::Debian),
    ("devuan", "debian", Family::Debian),
    ("raspbian", "debian", Family::Debian),
    ("rhel", "rhel", Family::RedHat),
    ("centos", "centos", Family::RedHat),
    ("rocky", "rocky", Family::RedHat),
    ("almalinux", "almalinux", Family::RedHat),
    ("ol", "oraclelinux", Family::RedHat),
    ("fedora", "fedora", Family::RedHat),
    ("scientific", "scientificlinux", Family::RedHat),
    ("amzn", "amazonlinux", Family::RedHat),
    ("sles", "sles", Family::Suse),
    ("sled", "sles", Family::Suse),
    ("opensuse", "opensuse", Family::Suse),
    ("opensuse-leap", "opensuse", Family::Suse),
    ("opensuse-tumbleweed", "opensuse", Family::Suse),
    ("suse", "suse-based", Family::Suse),
    ("alpine", "alpinelinux", Family::Alpine),
    ("arch", "archlinux", Family::Arch),
    ("gentoo", "gentoo", Family::Gentoo),
    ("slackware", "slackware", Family::Slackware),
    ("altlinux", "altlinux", Family::Other),
    ("openmandriva", "openmandriva", Family::Other),
    ("mageia", "mageia", Family::Other),
    ("void", "voidlinux", Family::Other),
    ("cirros", "cirros", Family::Other),
    ("coreos", "coreos", Family::Other),
    ("flatcar", "coreos", Family::Other),
    ("frugalware", "frugalware", Family::Arch),
    ("kylin", "kylin", Family::Debian),
    ("neokylin", "neokylin", Family::RedHat),
    ("mandriva", "mandriva", Family::Other),
    ("meego", "meego", Family::Other),
    ("pardus", "pardus", Family::Debian),
    ("pld", "pldlinux", Family::Other),
    ("ttylinux", "ttylinux", Family::Other),
    ("buildroot", "buildroot", Family::Other),
];

/// Files of one line that name their distribution, in the order in which they are tried: several of these have another's too.
const RELEASE_FILES: &[(&str, &str)] = &[
    ("/etc/oracle-release", "ol"),
    ("/etc/centos-release", "centos"),
    ("/etc/rocky-release", "rocky"),
    ("/etc/almalinux-release", "almalinux"),
    ("/etc/fedora-release", "fedora"),
    ("/etc/frugalware-release", "frugalware"),
    ("/etc/mageia-release", "mageia"),
    ("/etc/mandriva-release", "mandriva"),
    ("/etc/meego-release", "meego"),
    ("/etc/pardus-release", "pardus"),
    ("/etc/altlinux-release", "altlinux"),
    ("/etc/redhat-release", "rhel"),
    ("/etc/debian_version", "debian"),
    ("/etc/arch-release", "arch"),
    ("/etc/gentoo-release", "gentoo"),
    ("/etc/slackware-version", "slackware"),
    ("/etc/SuSE-release", "suse"),
    ("/etc/cirros/version", "cirros"),
    ("/etc/pld-release", "pld"),
    ("/etc/ttylinux-target", "ttylinux"),
    ("/etc/alpine-release", "alpine"),
];

/// A distribution and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// os-release's ID, or what it would be: `debian`, `ubuntu`, `rhel`, `sles`; `linux` when nothing tells.
    pub id: String,
    /// libguestfs's name: `debian`, `oraclelinux`; `unknown` for what it does not know.
    pub distro: &'static str,
    /// What it works like.
    pub family: Family,
    /// For people: `Debian GNU/Linux 12 (bookworm)`.
    pub product_name: String,
    /// Version, 0 where there is none.
    pub major: u32,
    /// Second part of the version, 0 where there is none.
    pub minor: u32,
    /// `bookworm`, where the distribution says so.
    pub codename: Option<String>,
    /// The first line of the distribution's own file (`12.15` in debian_version), where os-release did not say all.
    pub release_line: Option<String>,
    /// os-release's BUILD_ID.
    pub build_id: Option<String>,
}

impl Release {
    fn new(id: &str, like: &str) -> Self {
        let known = |id: &str| DISTROS.iter().find(|(name, ..)| *name == id);
        let (distro, family) = match known(id) {
            Some((_, distro, family)) => (*distro, *family),
            None => ("unknown", like.split_whitespace().find_map(known).map_or(Family::Other, |(_, _, family)| *family)),
        };
        Release {
            id: id.into(),
            distro,
            family,
            product_name: String::new(),
            major: 0,
            minor: 0,
            codename: None,
            release_line: None,
            build_id: None,
        }
    }

    /// A system that no os-release tells of: its id, and libguestfs's name.
    pub(super) fn named(id: &str, distro: &'static str) -> Self {
        Release { distro, ..Release::new(id, "") }
    }

    pub(super) fn version(mut self, version: &str) -> Self {
        let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        if let Some(Ok(major)) = numbers.next() {
            self.major = major;
            self.minor = numbers.next().and_then(std::result::Result::ok).unwrap_or(0);
        }
        self
    }

    /// The product's name as libguestfs has it: the distribution's own file wins.
    pub fn libguestfs_name(&self) -> &str {
        self.release_line.as_deref().unwrap_or(&self.product_name)
    }

    /// The format of its packages, by libguestfs's name; empty when it is not known.
    pub fn package_format(&self) -> &'static str {
        match (self.family, self.distro) {
            (Family::Debian, _) => "deb",
            (Family::RedHat | Family::Suse, _) | (_, "altlinux" | "mageia" | "mandriva" | "openmandriva" | "meego" | "pldlinux") => "rpm",
            (Family::Alpine, _) => "apk",
            (Family::Arch, _) => "pacman",
            (Family::Gentoo, _) => "ebuild",
            (_, "voidlinux") => "xbps",
            _ => "",
        }
    }

    /// The program that installs its packages, by libguestfs's name; empty when it is not known.
    pub fn package_management(&self) -> &'static str {
        match (self.family, self.distro) {
            (Family::Debian, _) | (_, "altlinux") => "apt",
            (Family::RedHat, "fedora") if self.major < 22 => "yum",
            (Family::RedHat, "rhel" | "centos" | "oraclelinux" | "scientificlinux") if self.major < 5 => "up2date",
            (Family::RedHat, "rhel" | "centos" | "oraclelinux" | "scientificlinux") if self.major < 8 => "yum",
            (Family::RedHat, _) => "dnf",
            (Family::Suse, _) => "zypper",
            (_, "mageia" | "mandriva") => "urpmi",
            (_, "openmandriva") => "dnf",
            (Family::Alpine, _) => "apk",
            (Family::Arch, _) => "pacman",
            (Family::Gentoo, _) => "portage",
            (_, "voidlinux") => "xbps",
            _ => "",
        }
    }

    /// libosinfo's short name: `debian12`, `ubuntu22.04`.
    pub fn osinfo(&self) -> Option<String> {
        let (major, minor) = (self.major, self.minor);
        Some(match self.distro {
            "unknown" => return None,
            name @ ("archlinux" | "gentoo" | "voidlinux") => name.into(),
            _ if major == 0 => return None,
            "ubuntu" => format!("ubuntu{major}.{minor:02}"),
            "sles" if minor == 0 => format!("sles{major}"),
            "sles" => format!("sles{major}sp{minor}"),
            "centos" if major == 7 => "centos7.0".into(),
            "centos" if major < 7 => format!("centos{major}.{minor}"),
            name @ ("centos" | "debian" | "fedora" | "rocky" | "almalinux" | "mageia" | "amazonlinux") => format!("{name}{major}"),
            "oraclelinux" => format!("ol{major}.{minor}"),
            "altlinux" => format!("alt{major}.{minor}"),
            name => format!("{name}{major}.{minor}"),
        })
    }
}

/// The distribution of the root in this tree: what names it, else what the programs there tell.
pub fn detect(fs: &dyn GuestFs) -> Result<Release> {
    let from_os_release = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| shell_file(fs, p).transpose()).transpose()?;
    let mut release = from_os_release.and_then(|v| os_release(&v));
    if release.is_none() {
        release = shell_file(fs, "/etc/lsb-release")?.and_then(|v| lsb_release(&v));
    }
    // These two give only the first number in os-release.
    let incomplete = release.as_ref().is_some_and(|r| matches!(r.id.as_str(), "debian" | "centos") && r.minor == 0);
    if release.is_some() && !incomplete {
        return Ok(release.unwrap_or_else(|| Release::new("linux", "")));
    }
    for (path, id) in RELEASE_FILES {
        if !has_file(fs, path) {
            continue;
        }
        let content = fs.read(path.as_bytes(), CONFIG_LIMIT)?;
        let first = String::from_utf8_lossy(&content).lines().next().unwrap_or_default().trim().to_string();
        match &mut release {
            // A name like `trixie/sid` tells no more than we know.
            Some(known) if known.id == *id => {
                let version = first.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default();
                let more = known.clone().version(version);
                if more.major == known.major {
                    *known = more;
                }
                known.release_line = Some(first);
            }
            Some(_) => {}
            None => {
                let version = first.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default();
                let id = match *id {
                    "rhel" if first.starts_with("CentOS") => "centos",
                    "rhel" if first.starts_with("Scientific") => "scientific",
                    "rhel" if first.starts_with("Fedora") => "fedora",
                    "suse" if first.contains("Enterprise Server") => "sles",
                    "suse" if first.contains("openSUSE") => "opensuse",
                    id => id,
                };
                let found = Release { product_name: first.clone(), ..Release::new(id, "").version(version) };
                return Ok(if id == "sles" || id == "suse" || id == "opensuse" { suse(found, &content) } else { found });
            }
        }
    }
    Ok(release.unwrap_or_else(|| by_programs(fs)))
}

fn os_release(values: &[(String, String)]) -> Option<Release> {
    let get = |key: &str| values.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let release = Release::new(&get("ID")?.to_ascii_lowercase(), &get("ID_LIKE").unwrap_or_default());
    Some(Release {
        product_name: get("PRETTY_NAME").or_else(|| get("NAME")).unwrap_or_default(),
        codename: get("VERSION_CODENAME"),
        build_id: get("BUILD_ID"),
        ..release.version(&get("VERSION_ID").unwrap_or_default())
    })
}

fn lsb_release(values: &[(String, String)]) -> Option<Release> {
    let get = |key: &str| values.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let id = match get("DISTRIB_ID")?.as_str() {
        "Ubuntu" => "ubuntu",
        "Debian" => "debian",
        "LinuxMint" => "linuxmint",
        "CentOS" => "centos",
        "Mageia" => "mageia",
        _ => return None,
    };
    let release = Release::new(id, "").version(&get("DISTRIB_RELEASE").unwrap_or_default());
    Some(Release { product_name: get("DISTRIB_DESCRIPTION").unwrap_or_default(), codename: get("DISTRIB_CODENAME"), ..release })
}

/// SuSE-release has its version on lines of their own.
fn suse(mut release: Release, content: &[u8]) -> Release {
    let text = String::from_utf8_lossy(content).into_owned();
    let number = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.trim_start().strip_prefix('=')).map(|v| v.trim().to_string());
    if let Some(version) = number("VERSION") {
        release = release.version(&version);
    }
    if let Some(level) = number("PATCHLEVEL").and_then(|l| l.parse().ok()) {
        release.minor = level;
    }
    release
}

/// Nothing names the distribution: its package manager tells what it works like.
fn by_programs(fs: &dyn GuestFs) -> Release {
    let marks = [
        ("/var/lib/dpkg/status", Family::Debian),
        ("/sbin/apk", Family::Alpine),
        ("/usr/bin/zypper", Family::Suse),
        ("/usr/bin/pacman", Family::Arch),
        ("/usr/bin/emerge", Family::Gentoo),
        ("/usr/bin/rpm", Family::RedHat),
        ("/bin/rpm", Family::RedHat),
    ];
    let family = marks.iter().find(|(path, _)| has_file(fs, path)).map_or(Family::Other, |(_, family)| *family);
    Release { family, ..Release::new("linux", "") }
}

/// Assignments of a shell script that only assigns, with their quotes undone. `None` when the file is not there.
fn shell_file(fs: &dyn GuestFs, path: &str) -> Result<Option<Vec<(String, String)>>> {
    let content = match fs.read(path.as_bytes(), CONFIG_LIMIT) {
        Ok(content) => content,
        Err(Error::NotFound(_) | Error::WrongType { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let text = String::from_utf8_lossy(&content).into_owned();
    let assignment = |line: &str| {
        let (key, value) = line.trim().split_once('=')?;
        Some((key.to_string(), unquote(value)))
    };
    Ok(Some(text.lines().filter(|l| !l.trim_start().starts_with('#')).filter_map(assignment).collect()))
}

fn unquote(value: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => out.extend(chars.next()),
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values() {
        let values = |text: &str| -> Vec<(String, String)> {
            text.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.into(), unquote(v))).collect()
        };
        let ubuntu = os_release(&values(
            "NAME=\"Ubuntu\"\nVERSION_ID=\"22.04\"\nID=ubuntu\nPRETTY_NAME='Ubuntu 22.04.3 LTS'\nVERSION_CODENAME=jammy",
        ))
        .unwrap();
        assert_eq!((ubuntu.distro, ubuntu.major, ubuntu.minor), ("ubuntu", 22, 4));
        assert_eq!(ubuntu.osinfo().as_deref(), Some("ubuntu22.04"));
        assert_eq!(ubuntu.product_name, "Ubuntu 22.04.3 LTS");
        let unknown = os_release(&values("ID=mydebian\nID_LIKE=\"foo debian\"\nVERSION_ID=3")).unwrap();
        assert_eq!((unknown.distro, unknown.family, unknown.major), ("unknown", Family::Debian, 3));
    }

    #[test]
    fn versions() {
        let of = |v: &str| {
            let r = Release::new("debian", "").version(v);
            (r.major, r.minor)
        };
        assert_eq!(of("12.5"), (12, 5));
        assert_eq!(of("trixie/sid"), (0, 0));
        assert_eq!(of("15"), (15, 0));
        assert_eq!(of("99999999999999.1"), (0, 0));
    }

    #[test]
    fn every_distribution_is_named_once() {
        for (i, (id, ..)) in DISTROS.iter().enumerate() {
            assert!(DISTROS[..i].iter().all(|(other, ..)| other != id), "{id}");
        }
        for (_, id) in RELEASE_FILES {
            assert!(DISTROS.iter().any(|(name, ..)| name == id), "{id}");
        }
    }
}
