//! The BSDs and their like: roots with an fstab that are no Linux, each known by a file of its own. (libguestfs's rules)

use super::{CONFIG_LIMIT, Release, has_file};
use crate::{Ext, GuestFs};

/// A kind of system.
#[derive(Debug)]
pub(super) struct Kind {
    /// libguestfs's name.
    pub name: &'static str,
    /// What people call it.
    title: &'static str,
    /// Files that all have to be there, besides /etc and /bin.
    marks: &'static [&'static str],
    /// The file that tells the version, and what stands before it there.
    version: (&'static str, &'static str),
    /// The file that tells the host's name, and what stands before it there.
    hostname: (&'static str, &'static str),
}

const KINDS: &[Kind] = &[
    Kind {
        name: "freebsd",
        title: "FreeBSD",
        marks: &["/etc/freebsd-update.conf", "/etc/fstab"],
        version: ("/bin/freebsd-version", "USERLAND_VERSION="),
        hostname: ("/etc/rc.conf", "hostname="),
    },
    Kind {
        name: "netbsd",
        title: "NetBSD",
        marks: &["/netbsd", "/etc/fstab", "/etc/release"],
        version: ("/etc/release", "NetBSD "),
        hostname: ("/etc/rc.conf", "hostname="),
    },
    Kind {
        name: "openbsd",
        title: "OpenBSD",
        marks: &["/bsd", "/etc/fstab", "/etc/motd"],
        version: ("/etc/motd", "OpenBSD "),
        hostname: ("/etc/myname", ""),
    },
    Kind {
        name: "hurd",
        title: "GNU/Hurd",
        marks: &["/hurd/console", "/hurd/hello", "/hurd/null"],
        version: ("/etc/debian_version", ""),
        hostname: ("/etc/hostname", ""),
    },
    Kind {
        name: "minix",
        title: "MINIX",
        marks: &["/service/vm", "/etc/fstab", "/etc/version"],
        version: ("/etc/version", ""),
        hostname: ("/etc/hostname.file", ""),
    },
];

/// The kind of the system whose root this is, if it is one of these.
pub(super) fn detect(fs: &dyn GuestFs) -> Option<&'static Kind> {
    let root = fs.is_dir(b"/etc") && fs.is_dir(b"/bin");
    KINDS.iter().find(|kind| root && kind.marks.iter().all(|path| has_file(fs, path)))
}

impl Kind {
    pub(super) fn release(&self, fs: &dyn GuestFs) -> Release {
        let version = told(fs, self.version).unwrap_or_default();
        let product_name = format!("{} {version}", self.title).trim_end().to_string();
        Release { product_name, ..Release::named(self.name, self.name).version(&version) }
    }

    pub(super) fn hostname(&self, fs: &dyn GuestFs) -> Option<String> {
        told(fs, self.hostname).filter(|name| !name.is_empty())
    }
}

/// The first word behind what a line begins with, without its quotes.
fn told(fs: &dyn GuestFs, (path, before): (&str, &str)) -> Option<String> {
    let content = fs.read(path.as_bytes(), CONFIG_LIMIT).ok()?;
    let text = String::from_utf8_lossy(&content).into_owned();
    let value = text.lines().map(str::trim).filter(|l| !l.is_empty()).find_map(|line| line.strip_prefix(before))?;
    Some(value.split_whitespace().next().unwrap_or_default().trim_matches(['"', '\'']).to_string())
}
