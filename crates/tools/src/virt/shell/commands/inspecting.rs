//! Commands about installed operating systems.

use guestfs::Inspection;
use guestfs::inspect::{Application, Windows};

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
    get!("inspect-get-type", "print the kind of an operating system", |found| found.system.name().into()),
    get!("inspect-get-distro", "print the distribution", |found| found.release.distro.into()),
    get!("inspect-get-arch", "print the architecture", |found| found.arch.into()),
    get!("inspect-get-major-version", "print the major version", |found| found.release.major.to_string()),
    get!("inspect-get-minor-version", "print the minor version", |found| found.release.minor.to_string()),
    get!("inspect-get-product-name", "print the name of the operating system for people", |found| found.release.libguestfs_name().into()),
    get!("inspect-get-hostname", "print the host name", |found| found.hostname.unwrap_or_else(|| "unknown".into())),
    get!("inspect-get-package-format", "print the format of packages", |found| found.release.package_format().into()),
    get!("inspect-get-package-management", "print the package manager", |found| found.release.package_management().into()),
    get!("inspect-get-osinfo", "print the operating system's name in libosinfo's list", |found| found
        .osinfo()
        .unwrap_or_else(|| "unknown".into())),
    get!("inspect-get-build-id", "print what the system calls its build", |found| found
        .release
        .build_id
        .unwrap_or_else(|| "unknown".into())),
    get!("inspect-get-product-variant", "print a Windows' variant: Client or Server", |found| found
        .windows()
        .map_or_else(|| "unknown".into(), |w| w.variant.clone())),
    get!("inspect-get-windows-systemroot", "print where a Windows lies", |found| windows(&found)?.systemroot.clone()),
    get!("inspect-get-windows-current-control-set", "print which control set a Windows starts with", |found| {
        let set = windows(&found)?.control_set.clone();
        set.ok_or_else(|| Failure::new("the registry does not tell which it is"))?
    }),
    Command {
        names: &["inspect-get-windows-software-hive"],
        usage: "ROOT",
        help: "print the path of a Windows' hive SOFTWARE",
        run: |shell, a| hive(shell, a, "software"),
    },
    Command {
        names: &["inspect-get-windows-system-hive"],
        usage: "ROOT",
        help: "print the path of a Windows' hive SYSTEM",
        run: |shell, a| hive(shell, a, "system"),
    },
    Command {
        names: &["inspect-get-drive-mappings"],
        usage: "ROOT",
        help: "list the letters of a Windows' drives and their volumes",
        run: |shell, a| {
            let found = root(shell, a)?;
            let volumes = shell.guest()?.volumes()?;
            let drives = found.windows().map_or(&[][..], |w| &w.drives);
            let lines: Vec<String> =
                drives.iter().filter_map(|(letter, index)| Some(format!("{letter}: {}", volumes.volumes.get(*index)?.device))).collect();
            lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
        },
    },
    Command {
        names: &["inspect-list-applications", "inspect-list-applications2"],
        usage: "ROOT",
        help: "list the installed packages of a mounted operating system",
        run: |shell, a| {
            let found = root(shell, a)?;
            let packages = guestfs::inspect::packages::applications(shell.guest()?.fs()?, &found)?.unwrap_or_default();
            packages.iter().enumerate().try_for_each(|(index, package)| application(shell, index, package))
        },
    },
    Command {
        names: &["inspect-get-icon"],
        usage: "ROOT",
        help: "print the system's logo, as PNG (the system must be mounted)",
        run: |shell, a| {
            let found = root(shell, a)?;
            let icon = guestfs::inspect::icon(shell.guest()?.fs()?, &found).unwrap_or_default();
            shell.out.bytes(&icon)
        },
    },
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

/// What only Windows has.
fn windows(found: &Inspection) -> Result<&Windows, Failure> {
    found.windows().ok_or_else(|| Failure::new("this operating system is no Windows"))
}

fn hive(shell: &mut Shell<'_>, a: &Arguments, name: &str) -> Result<(), Failure> {
    let found = root(shell, a)?;
    let systemroot = &windows(&found)?.systemroot;
    shell.out.line(format!("{systemroot}/system32/config/{name}").as_bytes())
}

/// One package, as guestfish prints a structure.
fn application(shell: &mut Shell<'_>, index: usize, package: &Application) -> Result<(), Failure> {
    let epoch = package.epoch.to_string();
    let fields: [(&str, &str); 17] = [
        ("name", &package.name),
        ("display_name", &package.display_name),
        ("epoch", &epoch),
        ("version", &package.version),
        ("release", &package.release),
        ("arch", &package.arch),
        ("install_path", &package.install_path),
        ("trans_path", ""),
        ("publisher", &package.publisher),
        ("url", &package.url),
        ("source_package", &package.source_package),
        ("summary", &package.summary),
        ("description", &package.description),
        ("spare1", ""),
        ("spare2", ""),
        ("spare3", ""),
        ("spare4", ""),
    ];
    let lines: String = fields.iter().map(|(name, value)| format!("  app2_{name}: {value}\n")).collect();
    shell.out.line(format!("[{index}] = {{\n{lines}}}").as_bytes())
}

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
