//! Packages installed, removed and brought up to date by the guest's own package manager.

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
    /// Asks the mirrors what they have; empty where the next two do that themselves.
    refresh: &'static [&'static str],
    /// Fetches and installs packages whose names follow, with what they need.
    fetch: &'static [&'static str],
    /// Brings all packages up to date.
    update: &'static [&'static str],
    /// Removes packages whose names follow.
    remove: &'static [&'static str],
}

const MANAGERS: [Manager; 6] = [
    Manager {
        program: "apt-get",
        suffix: ".deb",
        install: &["dpkg", "--force-confdef", "--force-confold", "-i"],
        refresh: &["apt-get", "-q", "-y", "-o", "Acquire::Retries=3", "update"],
        fetch: &[
            "apt-get",
            "-q",
            "-y",
            "-o",
            "Acquire::Retries=3",
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
            "install",
        ],
        update: &[
            "apt-get",
            "-q",
            "-y",
            "-o",
            "Acquire::Retries=3",
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
            "upgrade",
        ],
        remove: &["apt-get", "-q", "-y", "remove"],
    },
    Manager {
        program: "dnf",
        suffix: ".rpm",
        install: &["rpm", "-U", "--replacepkgs"],
        refresh: &[],
        fetch: &["dnf", "-y", "install"],
        update: &["dnf", "-y", "upgrade"],
        remove: &["dnf", "-y", "-C", "remove"],
    },
    Manager {
        program: "yum",
        suffix: ".rpm",
        install: &["rpm", "-U", "--replacepkgs"],
        refresh: &[],
        fetch: &["yum", "-y", "install"],
        update: &["yum", "-y", "update"],
        remove: &["yum", "-y", "-C", "remove"],
    },
    Manager {
        program: "zypper",
        suffix: ".rpm",
        install: &["rpm", "-U", "--replacepkgs"],
        refresh: &["zypper", "-n", "refresh"],
        fetch: &["zypper", "-n", "install", "-l"],
        update: &["zypper", "-n", "update", "-l"],
        remove: &["zypper", "-n", "--no-refresh", "remove"],
    },
    Manager {
        program: "apk",
        suffix: ".apk",
        install: &["apk", "add", "--no-network", "--allow-untrusted"],
        refresh: &["apk", "update"],
        fetch: &["apk", "add"],
        update: &["apk", "upgrade"],
        remove: &["apk", "del", "--no-network"],
    },
    Manager {
        program: "pacman",
        suffix: ".pkg.tar.zst",
        install: &["pacman", "--noconfirm", "-U"],
        refresh: &[],
        fetch: &["pacman", "--noconfirm", "-Sy"],
        update: &["pacman", "--noconfirm", "-Syu"],
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

/// `FILE,NAME,…`: packages of this machine, and such as the guest's mirrors have.
pub(super) fn install(value: &Value) -> Result<Action, Failure> {
    let is_file = |word: &String| word.contains('/') || MANAGERS.iter().any(|m| word.ends_with(m.suffix));
    let (files, names): (Vec<_>, Vec<_>) = words(value.bytes()).into_iter().partition(is_file);
    let files: Vec<PathBuf> = files.into_iter().map(PathBuf::from).collect();
    if let Some(file) = files.iter().find(|file| !file.is_file()) {
        return Err(value.wrong(&format!("{}: there is no such file", file.display())));
    }
    if files.is_empty() && names.is_empty() || names.iter().any(|n| n.starts_with('-')) {
        return Err(value.wrong("name packages, or their files"));
    }
    act(move |c| {
        if !files.is_empty() {
            install_files(c, &files)?;
        }
        if names.is_empty() { Ok(()) } else { fetch(c, &names) }
    })
}

fn install_files(c: &mut Context<'_>, files: &[PathBuf]) -> Result<(), Failure> {
    let manager = manager(c)?;
    let mut argv: Vec<Vec<u8>> = manager.install.iter().map(|w| w.as_bytes().to_vec()).collect();
    let folder = b"/var/tmp/guestlift-packages".to_vec();
    c.remove(&folder)?;
    c.make_directories(&folder, Attributes::root(0o700))?;
    for file in files {
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
}

fn fetch(c: &mut Context<'_>, names: &[String]) -> Result<(), Failure> {
    c.say(&format!("Installing packages: {}", names.join(" ")));
    let manager = manager(c)?;
    from_mirrors(c, manager, manager.fetch.iter().map(|w| w.to_string()).chain(names.iter().cloned()))
}

/// All packages, as the guest's mirrors have them now.
pub(super) fn update(_: &Value) -> Result<Action, Failure> {
    act(|c| {
        c.say("Updating packages");
        let manager = manager(c)?;
        from_mirrors(c, manager, manager.update.iter().map(|w| w.to_string()))
    })
}

fn from_mirrors(c: &mut Context<'_>, manager: &Manager, argv: impl Iterator<Item = String>) -> Result<(), Failure> {
    if c.proxy.is_none() {
        return Err(Failure::new("packages are fetched from the guest's mirrors, but commands have no network").hint(
            "allow it with --network: then the guest's package manager reaches its own mirrors through this host, and nothing else",
        ));
    }
    if !manager.refresh.is_empty() {
        run(c, manager.refresh.iter().map(|w| w.as_bytes().to_vec()).collect(), manager)?;
    }
    run(c, argv.map(String::into_bytes).collect(), manager)
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

/// `PKG,...`, fetched by the guest itself when it has a network.
pub(super) fn at_first_boot(value: &Value) -> Result<Action, Failure> {
    let names: Vec<String> = String::from_utf8_lossy(value.bytes()).split(',').map(str::to_string).collect();
    // Each is a word of a shell's line.
    let is_name = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:=~@".contains(&b));
    if names.iter().any(|name| !is_name(name) || name.starts_with('-')) {
        return Err(value.wrong("it is names of packages with commas between them"));
    }
    act(move |c| {
        c.say(&format!("Installing firstboot packages: {}", names.join(" ")));
        let manager = MANAGERS.iter().find(|m| c.program(&[m.program]).is_some());
        let manager = manager.ok_or_else(|| Failure::new("the guest has no package manager that is known here"))?;
        let refresh = if manager.refresh.is_empty() { String::new() } else { manager.refresh.join(" ") + "\n" };
        let script =
            format!("#!/bin/sh\nexport DEBIAN_FRONTEND=noninteractive\n{refresh}{} {}\n", manager.fetch.join(" "), names.join(" "));
        super::firstboot::install(c, b"packages", script.as_bytes())
    })
}
