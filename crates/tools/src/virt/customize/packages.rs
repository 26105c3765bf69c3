//! Packages installed and removed by the guest's own package manager, without a network.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use guestfs::Attributes;
use guestfs::engine::Command;

use super::super::copy_in;
use super::super::show::join;
use super::context::Context;
use super::{Action, Value, act};
use crate::common::Failure;

/// A package manager: the program that the guest must have, and its words.
struct Manager {
    program: &'static str,
    /// Ends of names of packages' files.
    suffix: &'static str,
    /// Installs files that follow.
    install: &'static [&'static str],
    /// Removes packages whose names follow.
    remove: &'static [&'static str],
}

const MANAGERS: [Manager; 6] = [
    Manager {
        program: "apt-get",
        suffix: ".deb",
        install: &["dpkg", "--force-confdef", "--force-confold", "-i"],
        remove: &["apt-get", "-q", "-y", "remove"],
    },
    Manager { program: "dnf", suffix: ".rpm", install: &["rpm", "-U", "--replacepkgs"], remove: &["dnf", "-y", "-C", "remove"] },
    Manager { program: "yum", suffix: ".rpm", install: &["rpm", "-U", "--replacepkgs"], remove: &["yum", "-y", "-C", "remove"] },
    Manager {
        program: "zypper",
        suffix: ".rpm",
        install: &["rpm", "-U", "--replacepkgs"],
        remove: &["zypper", "-n", "--no-refresh", "remove"],
    },
    Manager {
        program: "apk",
        suffix: ".apk",
        install: &["apk", "add", "--no-network", "--allow-untrusted"],
        remove: &["apk", "del", "--no-network"],
    },
    Manager {
        program: "pacman",
        suffix: ".pkg.tar.zst",
        install: &["pacman", "--noconfirm", "-U"],
        remove: &["pacman", "--noconfirm", "-R"],
    },
];

fn manager(c: &Context<'_>) -> Result<&'static Manager, Failure> {
    let known = MANAGERS.map(|m| m.program);
    let found = c.program(&known).and_then(|program| MANAGERS.iter().find(|m| m.program == program));
    found.ok_or_else(|| Failure::new(format!("the guest has no package manager that is known: {}", known.join(", "))))
}

fn words(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_string).collect()
}

/// `FILE,FILE…`, packages of this machine.
pub(super) fn install(value: &Value) -> Result<Action, Failure> {
    let files: Vec<PathBuf> = words(value.bytes()).into_iter().map(PathBuf::from).collect();
    for file in &files {
        if !file.is_file() {
            return Err(value.wrong(&format!("{}: there is no such file", file.display())).hint(
                "packages are installed from files of this machine (.deb, .rpm, .apk); fetching them by name over a network is not there yet",
            ));
        }
    }
    if files.is_empty() {
        return Err(value.wrong("name a package's file"));
    }
    act(move |c| {
        let manager = manager(c)?;
        let mut argv: Vec<Vec<u8>> = manager.install.iter().map(|w| w.as_bytes().to_vec()).collect();
        let folder = b"/var/tmp/guestlift-packages".to_vec();
        c.remove(&folder)?;
        c.make_directories(&folder, Attributes::root(0o700))?;
        for file in &files {
            c.say(&format!("Installing packages: {}", file.display()));
            if !file.as_os_str().as_bytes().ends_with(manager.suffix.as_bytes()) {
                let what = format!("{}: {} installs files that end with {}", file.display(), manager.program, manager.suffix);
                return Err(Failure::new(what));
            }
            let (local, name) = copy_in::named(file)?;
            copy_in::copy_in(c.session, &local, &folder, &name)?;
            argv.push(join(&folder, &name));
        }
        let ran = run(c, argv, manager);
        c.remove(&folder)?;
        ran
    })
}

/// `NAME,NAME…`
pub(super) fn uninstall(value: &Value) -> Result<Action, Failure> {
    let names = words(value.bytes());
    if names.is_empty() || names.iter().any(|n| n.starts_with('-')) {
        return Err(value.wrong("name packages"));
    }
    act(move |c| {
        c.say(&format!("Uninstalling packages: {}", names.join(" ")));
        let manager = manager(c)?;
        let words = manager.remove.iter().map(|w| w.to_string()).chain(names.iter().cloned());
        run(c, words.map(String::into_bytes).collect(), manager)
    })
}

fn run(c: &mut Context<'_>, argv: Vec<Vec<u8>>, manager: &Manager) -> Result<(), Failure> {
    let mut command = Command::new(argv);
    command.env.push((b"DEBIAN_FRONTEND".to_vec(), b"noninteractive".to_vec()));
    c.run(&command, manager.program)
}
