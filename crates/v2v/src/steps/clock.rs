//! The machine has a clock of its own: settings for a paravirtual guest's go, and the hardware clock is read again where that had been switched off.

use guestfs::{Ext, GuestFs};

use crate::Result;
use crate::guest::sysv;
use crate::guest::text::Line;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "clock", about: "settings of a paravirtual guest's clock are errors on a machine that has a hardware clock", run };

/// Programs that keep a system's clock right.
const KEEPERS: [&str; 8] = [
    "/usr/sbin/ntpd",
    "/usr/sbin/chronyd",
    "/sbin/chronyd",
    "/lib/systemd/systemd-timesyncd",
    "/usr/lib/systemd/systemd-timesyncd",
    "/usr/sbin/openntpd",
    "/usr/sbin/ntpsec",
    "/usr/bin/ntpdate",
];

fn run(cx: &mut Context<'_>) -> Result<()> {
    let mut files: Vec<Vec<u8>> = vec![b"/etc/sysctl.conf".to_vec(), b"/etc/sysfs.conf".to_vec()];
    for dir in ["/etc/sysctl.d", "/etc/sysfs.d", "/etc/tmpfiles.d"] {
        files.extend(cx.names(dir).into_iter().map(|n| [dir.as_bytes(), b"/", &n[..]].concat()));
    }
    for file in files {
        cx.edit_lines(file, |line| if is_xens(line) { Line::Become(format!("#{line}")) } else { Line::Keep })?;
    }
    for script in ["/etc/rc.local", "/etc/rc.d/rc.local", "/etc/init.d/boot.local", "/etc/init.d/rc.local"] {
        // An empty command stays: a line of its own may be all that is between `then` and `fi`.
        cx.edit_lines(script, |line| Line::of((is_xens(line) && is_setting(line)).then(|| format!(": #{line}"))))?;
    }
    for settings in ["/etc/default/hwclock", "/etc/default/rcS"] {
        cx.edit_lines(settings, |line| {
            let off = line.strip_prefix("HWCLOCKACCESS=").is_some_and(|value| value.trim().trim_matches(['"', '\'']) == "no");
            Line::of(off.then(|| "HWCLOCKACCESS=yes".into()))
        })?;
    }
    hardware_clock(cx);
    let is_local = |text: crate::guest::text::Text| text.lines().nth(2).is_some_and(|zone| zone.trim() == "LOCAL");
    if !cx.source.local_time && cx.text("/etc/adjtime")?.is_some_and(is_local) {
        cx.warn("/etc/adjtime says that the hardware clock has local time, and the new machine's has UTC: run 'hwclock --systohc --utc' in the guest");
    }
    if !cx.is_hvm() && !KEEPERS.iter().any(|program| cx.fs.is_file(program.as_bytes())) {
        cx.note("the Xen host kept the guest's clock right, and nothing in the guest does: install chrony or the like");
    }
    Ok(())
}

/// A setting of Xen's clock, or of a clock that only Xen has.
fn is_xens(line: &str) -> bool {
    let clock = line.contains("independent_wallclock") || line.contains("permitted_clock_jitter");
    (clock || line.contains("current_clocksource") && line.contains("xen")) && !line.trim_start().starts_with(['#', ';'])
}

/// A line of shell that sets something by itself: not the head of a test or a loop, and not one that goes on.
fn is_setting(line: &str) -> bool {
    let line = line.trim();
    let head = ["if ", "while ", "for ", "case ", "elif "].iter().any(|word| line.starts_with(word))
        && !line.ends_with("fi")
        && !line.ends_with("done");
    (line.contains('>') || line.contains("sysctl "))
        && !head
        && !line.ends_with(['\\', '{', '|', '&'])
        && !line.starts_with(['}', '&', '|'])
}

/// sysvinit's script, which xen-tools takes out of all runlevels; systemd reads the clock by itself.
fn hardware_clock(cx: &mut Context<'_>) {
    let script = cx.fs.is_file(b"/etc/init.d/hwclock.sh");
    let linked = ["S", "0", "6"].iter().any(|l| cx.names(format!("/etc/rc{l}.d")).iter().any(|n| n.ends_with(b"hwclock.sh")));
    let systemd = cx.packages.has("systemd-sysv") || cx.fs.readlink(b"/sbin/init").is_ok_and(|t| t.ends_with(b"systemd"));
    if script && !linked && !systemd && cx.fs.is_file(b"/usr/sbin/update-rc.d") {
        // Before insserv, the defaults are those of a service.
        let action = if sysv::is_ordered(cx) { "defaults" } else { "start 11 S . stop 25 0 6 ." };
        sysv::update_rc(cx, "xen-tools had switched the hardware clock off", "hwclock.sh", action, &["S", "0", "6"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn settings_of_xens_clock_are_commented_out() {
        let script = "#!/bin/sh -e\nif [ -e /proc/sys/xen/independent_wallclock ]; then\n    echo 1 > /proc/sys/xen/independent_wallclock\nfi\n\
                      echo xen > /sys/devices/system/clocksource/clocksource0/current_clocksource\nexit 0\n";
        let base = MemFs::new()
            .file("/etc/sysctl.conf", "# xen.independent_wallclock=1\nxen.independent_wallclock = 1\nvm.swappiness=1\n")
            .file("/etc/sysfs.conf", "devices/system/clocksource/clocksource0/current_clocksource = xen\n")
            .file("/etc/default/hwclock", "#HWCLOCKACCESS=yes\nHWCLOCKACCESS=no\nHWCLOCKPARS=\n")
            .file("/usr/sbin/chronyd", "")
            .file("/etc/rc.local", script);
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.show("/etc/sysctl.conf"), "# xen.independent_wallclock=1\n#xen.independent_wallclock = 1\nvm.swappiness=1\n");
            assert!(cx.show("/etc/sysfs.conf").starts_with("#devices"));
            assert_eq!(cx.show("/etc/default/hwclock"), "#HWCLOCKACCESS=yes\nHWCLOCKACCESS=yes\nHWCLOCKPARS=\n");
            assert_eq!(cx.show("/etc/rc.local"), script.replace("    echo 1", ": #    echo 1").replace("echo xen", ": #echo xen"));
            assert!(cx.fs.commands().is_empty() && cx.reports[0].notes.is_empty());
        });
        let local = MemFs::new().file("/etc/adjtime", "0.0 0 0.0\n0\nLOCAL\n");
        run_step(&local, &STEP, |cx| {
            assert!(cx.reports[0].warnings[0].contains("local time"));
            assert!(cx.reports[0].notes[0].contains("install chrony"));
        });
    }

    #[test]
    fn only_whole_commands_of_a_script_go() {
        for (line, goes) in [
            ("echo 1 > /proc/sys/xen/independent_wallclock", true),
            ("[ -e /proc/sys/xen/independent_wallclock ] && echo 1 >/proc/sys/xen/independent_wallclock", true),
            ("sysctl -w xen.independent_wallclock=1", true),
            ("if [ -e /proc/sys/xen/independent_wallclock ]; then echo 1 > /proc/sys/xen/independent_wallclock; fi", true),
            ("if [ \"$(cat /proc/sys/xen/independent_wallclock 2>/dev/null)\" = 0 ]; then", false),
            ("[ -e /proc/sys/xen/independent_wallclock ] && \\", false),
            ("&& echo 1 > /proc/sys/xen/independent_wallclock", false),
        ] {
            assert_eq!(is_xens(line) && is_setting(line), goes, "{line}");
        }
    }

    #[test]
    fn the_hardware_clock_comes_back_under_sysvinit_only() {
        let base = MemFs::new()
            .file("/etc/init.d/hwclock.sh", "")
            .file("/usr/sbin/update-rc.d", "")
            .file("/usr/sbin/ntpd", "")
            .link_to("/etc/rcS.d/S02hostname.sh", "x");
        run_step(&base, &STEP, |cx| assert_eq!(cx.reports[0].commands, ["update-rc.d hwclock.sh start 11 S . stop 25 0 6 ."]));
        let ordered = base.clone().file("/sbin/insserv", "").file("/etc/init.d/.depend.boot", "");
        run_step(&ordered, &STEP, |cx| assert_eq!(cx.reports[0].commands, ["update-rc.d hwclock.sh defaults"]));
        let linked = base.clone().link_to("/etc/rcS.d/S08hwclock.sh", "../init.d/hwclock.sh");
        run_step(&linked, &STEP, |cx| assert!(cx.fs.is_unchanged()));
        let systemd = base.link_to("/sbin/init", "/lib/systemd/systemd");
        run_step(&systemd, &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }
}
