//! Operations on a guest's settings: its name, its time zone, its labels; and commands that run in it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use guestfs::engine::Command;
use guestfs::{Attributes, Ext};

use super::{Action, Value, act};
use crate::common::Failure;

/// `HOSTNAME`
pub(super) fn hostname(value: &Value) -> Result<Action, Failure> {
    let name = String::from_utf8_lossy(value.bytes()).into_owned();
    let label = |l: &str| !l.is_empty() && l.len() < 64 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(value.wrong("a host's name has letters, digits, dashes and dots"));
    }
    act(move |c| {
        c.say(&format!("Setting the hostname: {name}"));
        let mut set = false;
        // The old name of what the guest calls itself, before it is gone.
        let old = String::from_utf8_lossy(&c.read_or_empty(b"/etc/hostname")?).trim().to_string();
        if c.session.exists(b"/etc/hostname") || c.session.is_dir(b"/etc/systemd") || c.session.exists(b"/etc/debian_version") {
            c.write(b"/etc/hostname", format!("{name}\n").as_bytes())?;
            set = true;
        }
        if c.session.exists(b"/etc/HOSTNAME") {
            c.write(b"/etc/HOSTNAME", format!("{name}\n").as_bytes())?;
            set = true;
        }
        let network = c.read_or_empty(b"/etc/sysconfig/network")?;
        if network.split(|b| *b == b'\n').any(|line| line.starts_with(b"HOSTNAME=")) {
            let lines = String::from_utf8_lossy(&network).into_owned();
            let lines = lines.lines().map(|l| if l.starts_with("HOSTNAME=") { format!("HOSTNAME={name}\n") } else { format!("{l}\n") });
            c.write(b"/etc/sysconfig/network", lines.collect::<String>().as_bytes())?;
            set = true;
        }
        if !set {
            return Err(Failure::new("it is not known where this guest keeps its name"));
        }
        rename_in_hosts(c, &old, &name)
    })
}

/// Debian's guests find their own name in /etc/hosts.
fn rename_in_hosts(c: &mut super::context::Context<'_>, old: &str, name: &str) -> Result<(), Failure> {
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_string();
    if old.is_empty() || old == name || old == "localhost" {
        return Ok(());
    }
    let hosts = c.read_or_empty(b"/etc/hosts")?;
    let Ok(hosts) = String::from_utf8(hosts) else { return Ok(()) };
    let change = |line: &str| -> String {
        let is_own = |word: &str| word == old || word == short(old) || word.starts_with(&format!("{}.", short(old)));
        let mut words = line.split_whitespace();
        match words.next() {
            // The guest's own addresses; others belong to other machines.
            Some(address) if !address.starts_with('#') && words.clone().any(is_own) => {
                let mut names: Vec<String> = vec![name.to_string()];
                names.push(short(name));
                names.extend(words.filter(|w| !is_own(w)).map(str::to_string));
                names.dedup();
                format!("{address}\t{}\n", names.join(" "))
            }
            _ => format!("{line}\n"),
        }
    };
    let new: String = hosts.lines().map(change).collect();
    if new == hosts { Ok(()) } else { c.write(b"/etc/hosts", new.as_bytes()) }
}

/// `AREA/CITY`
pub(super) fn timezone(value: &Value) -> Result<Action, Failure> {
    let zone = String::from_utf8_lossy(value.bytes()).into_owned();
    if zone.is_empty() || zone.split('/').any(|w| w.is_empty() || w.starts_with('.')) {
        return Err(value.wrong("a time zone is written as Europe/London"));
    }
    act(move |c| {
        c.say(&format!("Setting the timezone: {zone}"));
        let file = format!("/usr/share/zoneinfo/{zone}");
        if !c.session.is_file(file.as_bytes()) {
            return Err(Failure::new(format!("the guest knows no time zone '{zone}': {file} is not there")));
        }
        c.symlink(format!("..{file}").as_bytes(), b"/etc/localtime")?;
        if c.session.exists(b"/etc/timezone") {
            c.write(b"/etc/timezone", format!("{zone}\n").as_bytes())?;
        }
        Ok(())
    })
}

/// `SCRIPT`, a file of this machine.
pub(super) fn run(value: &Value) -> Result<Action, Failure> {
    let local = PathBuf::from(OsStr::from_bytes(value.bytes()));
    let script = std::fs::read(&local).map_err(|e| Failure::new(format!("{}: {e}", local.display())))?;
    act(move |c| {
        c.say(&format!("Running: {}", local.display()));
        let folder: &[u8] = if c.session.is_dir(b"/tmp") { b"/tmp" } else { b"" };
        let file = [folder, b"/guestlift-run"].concat();
        c.remove(&file)?;
        c.write_as(&file, &script, Attributes::root(0o755))?;
        let ran = c.run(&Command::new([&file]), &local.display().to_string());
        c.remove(&file)?;
        ran
    })
}

/// `COMMAND LINE`
pub(super) fn run_command(value: &Value) -> Result<Action, Failure> {
    let line = value.bytes().to_vec();
    act(move |c| {
        c.say(&format!("Running: {}", guestfs::show(&line)));
        c.run(&Command::new([&b"/bin/sh"[..], b"-c", &line]), &guestfs::show(&line))
    })
}

/// Labels all files as the guest's policy says, now or at its next start.
pub(super) fn selinux_relabel(_: &Value) -> Result<Action, Failure> {
    act(|c| {
        c.say("SELinux relabelling");
        let config = String::from_utf8_lossy(&c.read_or_empty(b"/etc/selinux/config")?).into_owned();
        let policy = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
        let Some(policy) = policy.map(|p| p.trim().to_string()).filter(|p| !p.is_empty() && !p.contains('/')) else {
            c.say("The guest has no SELinux policy: nothing is labelled");
            return Ok(());
        };
        let contexts = format!("/etc/selinux/{policy}/contexts/files/file_contexts");
        if c.session.is_file(contexts.as_bytes())
            && let Some(setfiles) = c.program(&["setfiles"])
        {
            let excluded = ["/proc", "/sys", "/dev", "/run"].iter().flat_map(|dir| ["-e", dir]);
            let words = [setfiles, "-F", "-q"].into_iter().chain(excluded).chain([contexts.as_str(), "/"]);
            if c.run(&Command::new(words), "setfiles").is_ok() {
                return c.remove(b"/.autorelabel");
            }
        }
        c.say("The guest will be relabelled when it starts");
        c.write(b"/.autorelabel", b"")
    })
}

/// Nothing is logged in the guest by this program; what libguestfs's left is removed.
pub(super) fn no_logfile(_: &Value) -> Result<Action, Failure> {
    act(|c| ["/tmp/builder.log", "/builder.log"].iter().try_for_each(|log| c.remove(log.as_bytes())))
}
