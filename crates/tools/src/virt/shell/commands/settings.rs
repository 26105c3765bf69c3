//! Settings of guestfish's that scripts begin with. They are about its own machine: here they change nothing.

use super::Command;
use crate::common::Failure;

const IGNORED: &str = "taken for scripts' sake, and of no effect here";

/// A setting with a value.
macro_rules! setting {
    ($($name:expr),*) => {
        Command { names: &[$($name),*], usage: "VALUE", help: IGNORED, run: |_, _| Ok(()) }
    };
}

/// What the setting is.
macro_rules! is {
    ($name:expr, $value:expr) => {
        Command {
            names: &[$name],
            usage: "",
            help: "print a setting that guestfish has, as it would be there",
            run: |shell, _| shell.out.line($value.as_bytes()),
        }
    };
}

pub(super) const COMMANDS: &[Command] = &[
    setting!("set-memsize", "memsize"),
    setting!("set-smp", "smp"),
    setting!("set-network", "network"),
    setting!("set-selinux", "selinux"),
    setting!("set-append", "append"),
    setting!("set-backend", "backend"),
    setting!("set-backend-settings"),
    setting!("set-program", "program"),
    setting!("set-path", "path"),
    setting!("set-hv", "hv", "set-qemu", "qemu"),
    setting!("set-autosync", "autosync"),
    setting!("set-pgroup", "pgroup"),
    setting!("set-recovery-proc", "recovery-proc"),
    setting!("set-tmpdir", "tmpdir"),
    setting!("set-cachedir", "cachedir"),
    setting!("set-identifier", "identifier"),
    setting!("set-trace", "trace"),
    setting!("set-verbose", "verbose"),
    setting!("drop-caches"),
    setting!("modprobe"),
    is!("get-autosync", "true"),
    is!("get-network", "false"),
    is!("get-smp", "1"),
    is!("get-backend", "direct"),
    Command {
        names: &["version"],
        usage: "",
        help: "print this program's version",
        run: |shell, _| {
            let mut parts = env!("CARGO_PKG_VERSION").split('.');
            let mut next = || parts.next().unwrap_or("0");
            let text = format!("major: {}\nminor: {}\nrelease: {}\nextra: guestlift\n", next(), next(), next());
            shell.out.text(&text)
        },
    },
    Command {
        names: &["available"],
        usage: "GROUPS",
        help: "end with an error if a group of features is not there",
        run: |_, a| {
            const THERE: [&[u8]; 8] = [b"lvm2", b"mdadm", b"luks", b"btrfs", b"xfs", b"ntfsprogs", b"linuxxattrs", b"fstrim"];
            let missing = a.list(0)?.into_iter().find(|group| !THERE.contains(&&group[..]));
            missing.map_or(Ok(()), |group| Err(Failure::new(format!("{}: group not available", guestfs::show(&group)))))
        },
    },
];
