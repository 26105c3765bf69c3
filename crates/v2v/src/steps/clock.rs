//! The machine has a clock of its own: the setting for a paravirtual guest's goes, and the hardware clock is read again where xen-tools had switched that off.

use guestfs::engine::Command;
use guestfs::{Ext, GuestFs};

use crate::Result;
use crate::guest::text::Line;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "clock", about: "settings of a paravirtual guest's clock are errors on a machine that has a hardware clock", run };

fn run(cx: &mut Context<'_>) -> Result<()> {
    let mut files: Vec<Vec<u8>> = vec![b"/etc/sysctl.conf".to_vec(), b"/etc/rc.local".to_vec()];
    files.extend(cx.names("/etc/sysctl.d").into_iter().map(|n| [b"/etc/sysctl.d/", &n[..]].concat()));
    for file in files {
        cx.edit_lines(file, |line| {
            let set = line.contains("independent_wallclock") || line.contains("permitted_clock_jitter");
            if set && !line.trim_start().starts_with('#') { Line::Become(format!("#{line}")) } else { Line::Keep }
        })?;
    }
    // systemd reads the hardware clock by itself.
    let script = cx.fs.is_file(b"/etc/init.d/hwclock.sh");
    let linked = ["S", "0", "6"].iter().any(|l| cx.names(format!("/etc/rc{l}.d")).iter().any(|n| n.ends_with(b"hwclock.sh")));
    let systemd = cx.packages.has("systemd-sysv") || cx.fs.readlink(b"/sbin/init").is_ok_and(|t| t.ends_with(b"systemd"));
    if script && !linked && !systemd && cx.fs.is_file(b"/usr/sbin/update-rc.d") {
        cx.fs.command("xen-tools had switched the hardware clock off", Command::new(["update-rc.d", "hwclock.sh", "defaults"]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn wallclock_settings_are_commented_out() {
        let base = MemFs::new()
            .file("/etc/sysctl.conf", "# xen.independent_wallclock=1\nxen.independent_wallclock = 1\nvm.swappiness=1\n")
            .file("/etc/rc.local", "#!/bin/sh -e\necho 1 > /proc/sys/xen/independent_wallclock\nexit 0\n");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.show("/etc/sysctl.conf"), "# xen.independent_wallclock=1\n#xen.independent_wallclock = 1\nvm.swappiness=1\n");
            assert!(cx.show("/etc/rc.local").contains("\n#echo 1 >"));
            assert!(cx.fs.commands().is_empty());
        });
    }

    #[test]
    fn the_hardware_clock_comes_back_under_sysvinit_only() {
        let base =
            MemFs::new().file("/etc/init.d/hwclock.sh", "").file("/usr/sbin/update-rc.d", "").link_to("/etc/rcS.d/S02hostname.sh", "x");
        run_step(&base, &STEP, |cx| assert_eq!(cx.reports[0].commands, ["update-rc.d hwclock.sh defaults"]));
        let linked = base.clone().link_to("/etc/rcS.d/S08hwclock.sh", "../init.d/hwclock.sh");
        run_step(&linked, &STEP, |cx| assert!(cx.fs.is_unchanged()));
        let systemd = base.link_to("/sbin/init", "/lib/systemd/systemd");
        run_step(&systemd, &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }
}
