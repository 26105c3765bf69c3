//! Commands about installed operating systems.

use guestfs::Inspection;

use super::{Arguments, Command};
use crate::common::Failure;
use crate::virt::shell::Shell;

/// A command that prints something of an operating system that was found.
macro_rules! get {
    ($name:expr, $help:expr, |$found:ident| $what:expr) => {
        Command {
            names: &[$name],
            usage: "ROOT",
            help: $help,
            run: |shell, a| {
                let $found = root(shell, a)?;
                let text: String = $what;
                shell.out.line(text.as_bytes())
            },
        }
    };
}

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["inspect-os"],
        usage: "",
        help: "look for operating systems and list their roots",
        run: |shell, _| {
            shell.guest()?.inspect()?;
            roots(shell)
        },
    },
    Command { names: &["inspect-get-roots"], usage: "", help: "list the roots that were found last", run: |shell, _| roots(shell) },
    get!("inspect-get-type", "print the kind of an operating system", |_found| "linux".into()),
    get!("inspect-get-distro", "print the distribution", |found| found.release.distro.into()),
    get!("inspect-get-arch", "print the architecture", |found| found.arch.into()),
    get!("inspect-get-major-version", "print the major version", |found| found.release.major.to_string()),
    get!("inspect-get-minor-version", "print the minor version", |found| found.release.minor.to_string()),
    get!("inspect-get-product-name", "print the name of the operating system for people", |found| found.release.libguestfs_name().into()),
    get!("inspect-get-hostname", "print the host name", |found| found.hostname.unwrap_or_else(|| "unknown".into())),
    get!("inspect-get-package-format", "print the format of packages", |found| found.release.package_format().into()),
    get!("inspect-get-package-management", "print the package manager", |found| found.release.package_management().into()),
    get!("inspect-get-osinfo", "print the operating system's name in libosinfo's list", |found| found
        .release
        .osinfo()
        .unwrap_or_else(|| "unknown".into())),
    Command {
        names: &["inspect-get-mountpoints"],
        usage: "ROOT",
        help: "list what is mounted where in an operating system",
        run: |shell, a| {
            let found = root(shell, a)?;
            let volumes = shell.guest()?.volumes()?;
            let device = |index: usize| volumes.volumes.get(index).map_or("", |v| v.device.as_str());
            let lines: Vec<String> =
                found.mounts.iter().map(|m| format!("{}: {}", String::from_utf8_lossy(&m.path), device(m.volume))).collect();
            lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
        },
    },
    Command {
        names: &["inspect-get-filesystems"],
        usage: "ROOT",
        help: "list the volumes that an operating system uses",
        run: |shell, a| {
            let found = root(shell, a)?;
            let volumes = shell.guest()?.volumes()?;
            let used = found.mounts.iter().map(|m| m.volume).chain(found.swaps.iter().copied());
            let mut lines: Vec<String> = used.filter_map(|index| Some(volumes.volumes.get(index)?.device.clone())).collect();
            lines.sort();
            lines.dedup();
            lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
        },
    },
    Command {
        names: &["file-architecture"],
        usage: "PATH",
        help: "print which processors a program is for",
        run: |shell, a| {
            let arch = guestfs::inspect::program_arch(shell.guest()?.fs()?, a.path(0)?);
            let arch = arch.ok_or_else(|| Failure::new(format!("{}: not a program", guestfs::show(a.word(0)))))?;
            shell.out.line(arch.as_bytes())
        },
    },
];

fn roots(shell: &mut Shell<'_>) -> Result<(), Failure> {
    let guest = shell.guest()?;
    let roots: Vec<usize> = guest.roots.iter().map(|r| r.root).collect();
    let volumes = guest.volumes()?;
    let lines: Vec<String> = roots.into_iter().filter_map(|index| Some(volumes.volumes.get(index)?.device.clone())).collect();
    lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
}

/// The operating system whose root the first argument names.
fn root(shell: &mut Shell<'_>, a: &Arguments) -> Result<Inspection, Failure> {
    let name = a.device(0)?;
    let guest = shell.guest()?;
    if guest.roots.is_empty() {
        guest.inspect()?;
    }
    let volume = guest.volumes()?.find(name.as_bytes());
    let found = guest.roots.iter().find(|found| Some(found.root) == volume).cloned();
    found.ok_or_else(|| Failure::new(format!("there is no operating system on {name}")))
}
