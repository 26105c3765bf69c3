//! What only serves a Xen host is switched off; KVM's agent is switched on where it is installed, or is given.

mod install;

use guestfs::{Ext, FileType, GuestFs, GuestFsMut};

use crate::Result;
use crate::guest::sysv;
use crate::staged::path::join;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "agents", about: "Xen's agents and daemons have nobody to talk to on KVM and would fail at boot", run };

/// Services of guests and hosts of Xen, and Red Hat's kudzu, which would take the new hardware for a reason to drop the old network configuration.
const XEN_SERVICES: &[&str] = &[
    "xe-daemon",
    "xe-linux-distribution",
    "xe-guest-utilities",
    "xen-guest-agent",
    "xendomains",
    "xencommons",
    "xen",
    "xenstored",
    "xenconsoled",
    "xen-init-dom0",
    "xen-qemu-dom0-disk-backend",
    "xen-watchdog",
    "xend",
    "kudzu",
];

/// Names of QEMU's guest agent: of its systemd unit, its init script, and that of Red Hat 6.
const GUEST_AGENTS: [&str; 2] = ["qemu-guest-agent", "qemu-ga"];

/// Where init scripts are linked from, by runlevel; SUSE's are below /etc/init.d.
const RC_DIRS: [&str; 2] = ["/etc/rc", "/etc/init.d/rc"];

const UNIT_DIRS: [&str; 3] = ["/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"];

fn run(cx: &mut Context<'_>) -> Result<()> {
    if cx.options.target.is_xen() {
        return Ok(());
    }
    for service in XEN_SERVICES {
        let mut off = disable_sysv(cx, service)?;
        off |= disable_unit(cx, service)?;
        off |= disable_upstart(cx, service)?;
        off |= disable_openrc(cx, service)?;
        if off {
            cx.note(format!("{service} is switched off"));
        }
    }
    for rule in ["z10_xen-vcpu-hotplug.rules", "z10-xen-vcpu-hotplug.rules", "xen-vcpu-hotplug.rules"] {
        let path = format!("/etc/udev/rules.d/{rule}");
        if cx.fs.lstat(path.as_bytes()).is_ok() {
            // udev reads no other ending.
            cx.fs.rename(path.as_bytes(), format!("{path}.xen").as_bytes())?;
        }
    }
    GUEST_AGENTS.iter().try_for_each(|service| enable(cx, service))?;
    install::install(cx)
}

/// Turns the start links of an init script into stop links, as `update-rc.d disable` does.
fn disable_sysv(cx: &mut Context<'_>, service: &str) -> Result<bool> {
    turn_links(cx, service, ("S", "K"), &["2", "3", "4", "5", "S"])
}

/// Turns links of one kind into links of the other; says whether there were any.
fn turn_links(cx: &mut Context<'_>, service: &str, (from, to): (&str, &str), levels: &[&str]) -> Result<bool> {
    let mut turned = false;
    let ordered = sysv::is_ordered(cx);
    for dir in RC_DIRS.iter().flat_map(|dir| levels.iter().map(move |level| format!("{dir}{level}.d"))) {
        for name in cx.names(&dir) {
            let Some(number) = name.strip_suffix(service.as_bytes()).and_then(|n| n.strip_prefix(from.as_bytes())) else { continue };
            if number.len() == 2 && number.iter().all(u8::is_ascii_digit) {
                turned = true;
                if ordered {
                    continue;
                }
                let other = 99u32.saturating_sub(String::from_utf8_lossy(number).parse().unwrap_or(0));
                cx.fs.rename(&join(dir.as_bytes(), &name), format!("{dir}/{to}{other:02}{service}").as_bytes())?;
            }
        }
    }
    if turned && ordered {
        let (why, action) = if to == "K" { ("it serves a Xen host only", "disable") } else { ("KVM's agent", "enable") };
        sysv::update_rc(cx, why, service, action, &["2", "3", "4", "5"]);
    }
    Ok(turned)
}

/// Masks a systemd unit, or the one that systemd would make of an init script.
fn disable_unit(cx: &mut Context<'_>, service: &str) -> Result<bool> {
    let unit = format!("{service}.service");
    let there = UNIT_DIRS.iter().any(|d| cx.fs.lstat(format!("{d}/{unit}").as_bytes()).is_ok());
    let script = cx.fs.is_file(format!("/etc/init.d/{service}").as_bytes()) && cx.fs.is_dir(b"/etc/systemd/system");
    if !there && !script {
        return Ok(false);
    }
    for wants in cx.names(UNIT_DIRS[0]).into_iter().filter(|n| n.ends_with(b".wants") || n.ends_with(b".requires")) {
        let link = join(&join(UNIT_DIRS[0].as_bytes(), &wants), unit.as_bytes());
        if cx.fs.lstat(&link).is_ok() {
            cx.fs.remove(&link)?;
        }
    }
    let mask = format!("{}/{unit}", UNIT_DIRS[0]);
    match cx.fs.lstat(mask.as_bytes()).map(|s| s.kind) {
        Ok(FileType::Symlink) if cx.fs.readlink(mask.as_bytes())? == b"/dev/null" => return Ok(false),
        Ok(FileType::Directory) => return Ok(false),
        Ok(FileType::Symlink) => cx.fs.remove(mask.as_bytes())?,
        // The administrator's own unit: kept beside, where systemd does not read it.
        Ok(_) => cx.fs.rename(mask.as_bytes(), format!("{mask}.xen").as_bytes())?,
        Err(_) => cx.fs.mkdir_all(UNIT_DIRS[0].as_bytes())?,
    }
    cx.fs.symlink(b"/dev/null", mask.as_bytes())?;
    Ok(true)
}

fn disable_upstart(cx: &mut Context<'_>, service: &str) -> Result<bool> {
    let path = format!("/etc/init/{service}.override");
    if !cx.fs.is_file(format!("/etc/init/{service}.conf").as_bytes()) || cx.fs.exists(path.as_bytes()) {
        return Ok(false);
    }
    cx.fs.put(path.as_bytes(), b"manual\n", None)?;
    Ok(true)
}

/// Takes an OpenRC service out of its runlevels.
fn disable_openrc(cx: &mut Context<'_>, service: &str) -> Result<bool> {
    let mut off = false;
    for level in cx.names("/etc/runlevels") {
        let link = join(&join(b"/etc/runlevels", &level), service.as_bytes());
        if cx.fs.lstat(&link).is_ok() {
            cx.fs.remove(&link)?;
            off = true;
        }
    }
    Ok(off)
}

/// Switches an installed service on, under whichever init system.
fn enable(cx: &mut Context<'_>, service: &str) -> Result<()> {
    let mut on = enable_unit(cx, service)?;
    let script = format!("/etc/init.d/{service}");
    if cx.fs.is_file(script.as_bytes()) {
        on |= turn_links(cx, service, ("K", "S"), &["2", "3", "4", "5"])?;
        let link = format!("/etc/runlevels/default/{service}");
        if cx.fs.is_dir(b"/etc/runlevels/default") && cx.fs.lstat(link.as_bytes()).is_err() {
            cx.fs.symlink(script.as_bytes(), link.as_bytes())?;
            on = true;
        }
    }
    if on {
        cx.note(format!("{service} is switched on"));
    }
    Ok(())
}

fn enable_unit(cx: &mut Context<'_>, service: &str) -> Result<bool> {
    let file = format!("{service}.service");
    let Some(unit) = UNIT_DIRS[1..].iter().map(|d| format!("{d}/{file}")).find(|p| cx.fs.is_file(p.as_bytes())) else { return Ok(false) };
    let mut on = false;
    let mask = format!("{}/{file}", UNIT_DIRS[0]);
    if cx.fs.readlink(mask.as_bytes()).is_ok_and(|t| t == b"/dev/null") {
        cx.fs.remove(mask.as_bytes())?;
        on = true;
    }
    let wanted: Vec<String> = cx
        .text(&unit)?
        .iter()
        .flat_map(|t| t.lines())
        .filter_map(|l| l.strip_prefix("WantedBy="))
        .flat_map(str::split_ascii_whitespace)
        .map(String::from)
        .collect();
    for target in wanted.into_iter().filter(|t| !t.contains('/')) {
        let dir = format!("{}/{target}.wants", UNIT_DIRS[0]);
        let link = format!("{dir}/{file}");
        if cx.fs.lstat(link.as_bytes()).is_err() {
            cx.fs.mkdir_all(dir.as_bytes())?;
            cx.fs.symlink(unit.as_bytes(), link.as_bytes())?;
            on = true;
        }
    }
    Ok(on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn sysvinit_links_become_stop_links() {
        let base = MemFs::new()
            .file("/etc/init.d/xendomains", "#!/bin/sh")
            .link_to("/etc/rc2.d/S20xendomains", "../init.d/xendomains")
            .link_to("/etc/rc2.d/S20xendomains-not", "../init.d/other")
            .link_to("/etc/rc0.d/K20xendomains", "../init.d/xendomains");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.names("/etc/rc2.d"), [b"K79xendomains".to_vec(), b"S20xendomains-not".to_vec()]);
            assert_eq!(cx.names("/etc/rc0.d").len(), 1);
            assert_eq!(cx.reports[0].notes, ["xendomains is switched off"]);
            assert!(!cx.fs.exists(b"/etc/systemd"));
        });
    }

    #[test]
    fn where_links_are_ordered_the_guests_own_tool_turns_them() {
        let base = MemFs::new()
            .file("/etc/init.d/xe-daemon", "#!/bin/sh")
            .file("/etc/init.d/.depend.boot", "")
            .file("/sbin/insserv", "")
            .file("/usr/sbin/update-rc.d", "")
            .link_to("/etc/rc2.d/S03xe-daemon", "../init.d/xe-daemon");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.reports[0].commands, ["update-rc.d xe-daemon disable"]);
            assert!(cx.fs.changes().is_empty());
            assert!(cx.fs.commands()[0].makes.contains(&"/etc/init.d/.depend.start".to_string()));
        });
    }

    #[test]
    fn systemd_units_are_masked_once() {
        let base = MemFs::new()
            .file("/lib/systemd/system/xe-daemon.service", "[Service]\n")
            .link_to("/etc/systemd/system/multi-user.target.wants/xe-daemon.service", "/lib/systemd/system/xe-daemon.service")
            .file("/etc/systemd/system/xen-watchdog.service", "[Service]\n")
            .link_to("/etc/systemd/system/xencommons.service", "/dev/null");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.fs.readlink(b"/etc/systemd/system/xe-daemon.service").unwrap(), b"/dev/null");
            assert!(cx.names("/etc/systemd/system/multi-user.target.wants").is_empty());
            assert!(cx.fs.is_file(b"/etc/systemd/system/xen-watchdog.service.xen"));
            assert_eq!(cx.reports[0].notes, ["xe-daemon is switched off", "xen-watchdog is switched off"]);
        });
    }

    #[test]
    fn udev_rules_upstart_jobs_and_kvms_agent() {
        let base = MemFs::new()
            .file("/etc/udev/rules.d/z10_xen-vcpu-hotplug.rules", "x")
            .file("/etc/init/xe-linux-distribution.conf", "start on x")
            .file("/lib/systemd/system/qemu-guest-agent.service", "[Install]\nWantedBy=multi-user.target\n")
            .link_to("/etc/systemd/system/qemu-guest-agent.service", "/dev/null");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.names("/etc/udev/rules.d"), [b"z10_xen-vcpu-hotplug.rules.xen".to_vec()]);
            assert_eq!(cx.show("/etc/init/xe-linux-distribution.override"), "manual\n");
            assert!(cx.fs.lstat(b"/etc/systemd/system/qemu-guest-agent.service").is_err());
            assert!(cx.fs.exists(b"/etc/systemd/system/multi-user.target.wants/qemu-guest-agent.service"));
        });
        run_step(&MemFs::new(), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }

    #[test]
    fn kvms_agent_comes_on_under_any_init() {
        let sysv = MemFs::new()
            .file("/etc/init.d/qemu-guest-agent", "#!/bin/sh")
            .link_to("/etc/rc2.d/K01qemu-guest-agent", "../init.d/qemu-guest-agent");
        run_step(&sysv, &STEP, |cx| assert_eq!(cx.names("/etc/rc2.d"), [b"S98qemu-guest-agent".to_vec()]));
        let openrc = MemFs::new()
            .file("/etc/init.d/qemu-guest-agent", "#!/sbin/openrc-run")
            .link_to("/etc/runlevels/default/xe-guest-utilities", "/etc/init.d/xe-guest-utilities");
        run_step(&openrc, &STEP, |cx| {
            assert_eq!(cx.names("/etc/runlevels/default"), [b"qemu-guest-agent".to_vec()]);
            assert_eq!(cx.reports[0].notes, ["xe-guest-utilities is switched off", "qemu-guest-agent is switched on"]);
        });
        let el6 = MemFs::new().file("/etc/init.d/qemu-ga", "").link_to("/etc/rc3.d/K25qemu-ga", "x").link_to("/etc/rc3.d/S05kudzu", "x");
        run_step(&el6, &STEP, |cx| assert_eq!(cx.names("/etc/rc3.d"), [b"K94kudzu".to_vec(), b"S74qemu-ga".to_vec()]));
    }
}
