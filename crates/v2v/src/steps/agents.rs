//! What only serves a Xen host is switched off; KVM's agent is switched on where it is installed.

use guestfs::{Ext, FileType, GuestFs, GuestFsMut};

use crate::Result;
use crate::staged::path::join;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "agents", about: "Xen's agents and daemons have nobody to talk to on KVM and would fail at boot", run };

/// Services of guests and hosts of Xen.
const XEN_SERVICES: &[&str] = &[
    "xe-daemon",
    "xe-linux-distribution",
    "xe-guest-utilities",
    "xendomains",
    "xencommons",
    "xen",
    "xenstored",
    "xenconsoled",
    "xen-init-dom0",
    "xen-qemu-dom0-disk-backend",
    "xen-watchdog",
    "xend",
];

const UNIT_DIRS: [&str; 3] = ["/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"];

fn run(cx: &mut Context<'_>) -> Result<()> {
    if cx.options.target.is_xen() {
        return Ok(());
    }
    for service in XEN_SERVICES {
        let mut off = disable_sysv(cx, service)?;
        off |= disable_unit(cx, service)?;
        off |= disable_upstart(cx, service)?;
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
    enable_guest_agent(cx)
}

/// Turns the start links of an init script into stop links, as `update-rc.d disable` does.
fn disable_sysv(cx: &mut Context<'_>, service: &str) -> Result<bool> {
    let mut off = false;
    for level in ["2", "3", "4", "5", "S"] {
        let dir = format!("/etc/rc{level}.d");
        for name in cx.names(&dir) {
            let Some(number) = name.strip_suffix(service.as_bytes()).and_then(|n| n.strip_prefix(b"S")) else { continue };
            if number.len() == 2 && number.iter().all(u8::is_ascii_digit) {
                let stop = format!("{dir}/K{:02}{service}", 99u32.saturating_sub(String::from_utf8_lossy(number).parse().unwrap_or(0)));
                cx.fs.rename(&join(dir.as_bytes(), &name), stop.as_bytes())?;
                off = true;
            }
        }
    }
    Ok(off)
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

fn enable_guest_agent(cx: &mut Context<'_>) -> Result<()> {
    const UNIT: &str = "qemu-guest-agent.service";
    if !cx.packages.has("qemu-guest-agent") {
        return Ok(());
    }
    let mask = format!("/etc/systemd/system/{UNIT}");
    if cx.fs.readlink(mask.as_bytes()).is_ok_and(|t| t == b"/dev/null") {
        cx.fs.remove(mask.as_bytes())?;
    }
    let Some(unit) = UNIT_DIRS.iter().map(|d| format!("{d}/{UNIT}")).find(|p| cx.fs.is_file(p.as_bytes())) else { return Ok(()) };
    let wanted: Vec<String> = cx
        .text(&unit)?
        .iter()
        .flat_map(|t| t.lines())
        .filter_map(|l| l.strip_prefix("WantedBy="))
        .flat_map(str::split_ascii_whitespace)
        .map(String::from)
        .collect();
    for target in wanted.into_iter().filter(|t| !t.contains('/')) {
        let link = format!("/etc/systemd/system/{target}.wants/{UNIT}");
        if cx.fs.lstat(link.as_bytes()).is_err() {
            cx.fs.mkdir_all(format!("/etc/systemd/system/{target}.wants").as_bytes())?;
            cx.fs.symlink(unit.as_bytes(), link.as_bytes())?;
            cx.note("qemu-guest-agent is switched on");
        }
    }
    Ok(())
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
            .link_to("/etc/systemd/system/qemu-guest-agent.service", "/dev/null")
            .file("/var/lib/dpkg/status", "Package: qemu-guest-agent\nStatus: install ok installed\nVersion: 1:7.2\n");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.names("/etc/udev/rules.d"), [b"z10_xen-vcpu-hotplug.rules.xen".to_vec()]);
            assert_eq!(cx.show("/etc/init/xe-linux-distribution.override"), "manual\n");
            assert!(cx.fs.lstat(b"/etc/systemd/system/qemu-guest-agent.service").is_err());
            assert!(cx.fs.exists(b"/etc/systemd/system/multi-user.target.wants/qemu-guest-agent.service"));
        });
        run_step(&MemFs::new(), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }
}
