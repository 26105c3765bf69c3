//! A login waits on the serial port and on the screen, as it did on Xen's console.

use guestfs::{Ext, FileType, GuestFs, GuestFsMut};

use crate::Result;
use crate::guest::cmdline::is_xen_console;
use crate::guest::text::{Line, add_line, fields, map_lines};
use crate::staged::path::join;
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step {
    name: "console",
    about: "Xen's console hvc0 is none of the new machine's: the login waits on ttyS0, and on the screen's tty1 again",
    run,
};

const XEN_TTYS: [&str; 2] = ["hvc0", "xvc0"];
const SYSTEMD: &str = "/etc/systemd/system";

fn run(cx: &mut Context<'_>) -> Result<()> {
    // Red Hat's has agetty, and none by the shorter name.
    let gettys = ["/sbin/getty", "/sbin/agetty", "/usr/sbin/agetty"];
    let getty = gettys.into_iter().find(|program| cx.fs.exists(program.as_bytes())).unwrap_or(gettys[0]);
    cx.edit("/etc/inittab", |text| inittab(text, getty))?;
    securetty(cx)?;
    upstart(cx, "/etc/init", ".conf")?;
    upstart(cx, "/etc/event.d", "")?;
    systemd(cx)
}

/// sysvinit's table. xen-tools puts hvc0 in tty1's place and comments tty2 to tty6 out: both are taken back.
fn inittab(text: &str, getty: &str) -> String {
    let is_on = |tty: &str| text.lines().any(|l| !l.starts_with('#') && l.contains("respawn") && fields(l).iter().any(|w| w.1 == tty));
    let screen = is_on("tty1");
    let mut by_xen_tools = false;
    // YaST's waits on `console`, which is the serial port.
    let mut serial = text.lines().any(|l| {
        let on_console = || l.split(|c: char| c == ':' || c.is_ascii_whitespace()).any(|word| word == "console");
        !l.starts_with('#') && l.contains("respawn") && (l.contains("ttyS0") || on_console())
    });
    let new = map_lines(text, |line| {
        if line.starts_with('#') || !line.contains("respawn") {
            return Line::Keep;
        }
        let Some(tty) = line.split(|c: char| c == ':' || c.is_ascii_whitespace()).find(|w| is_xen_console(w)) else { return Line::Keep };
        if line.starts_with("1:") && !screen && line.trim_end().ends_with(tty) {
            by_xen_tools = true;
            return Line::Become(line.replace(tty, "tty1"));
        }
        if std::mem::replace(&mut serial, true) {
            return Line::Drop;
        }
        // BusyBox's first field is the terminal. sysvinit's is any name of four letters at most, and stays.
        let from = if is_busyboxs(line) { 0 } else { line.find(':').unwrap_or(0) };
        Line::Become(format!("{}{}", &line[..from], line[from..].replace(tty, "ttyS0")))
    });
    let new = map_lines(&new, |line| {
        let number = line.strip_prefix('#').and_then(|l| l.split_once(':')).map_or("", |l| l.0);
        let own = matches!(number, "2" | "3" | "4" | "5" | "6") && line.ends_with(&format!("tty{number}")) && line.contains("respawn");
        Line::of((by_xen_tools && own).then(|| line[1..].into()))
    });
    // Upstart and systemd leave a file in which no login waits.
    if serial || !new.lines().any(|l| !l.starts_with('#') && l.contains("respawn")) {
        return new;
    }
    if new.lines().any(|l| !l.starts_with('#') && is_busyboxs(l)) {
        return add_line(&new, "ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100");
    }
    let own =
        new.lines().find(|l| !l.starts_with('#') && l.contains("tty1")).and_then(|l| l.split(':').nth(3)).and_then(|c| c.split(' ').next());
    let getty = own.filter(|own| own.ends_with("agetty") || own.ends_with("/getty")).unwrap_or(getty);
    add_line(&new, &format!("S0:2345:respawn:{getty} -L ttyS0 115200 vt100"))
}

/// BusyBox's init knows no runlevels: their field is empty.
fn is_busyboxs(line: &str) -> bool {
    line.split(':').nth(1).is_some_and(str::is_empty)
        && line.split(':').nth(2).is_some_and(|action| matches!(action, "respawn" | "askfirst"))
}

/// Where root may log in: xen-tools' list may hold Xen's consoles only.
fn securetty(cx: &mut Context<'_>) -> Result<()> {
    cx.edit("/etc/securetty", |text| {
        let text = map_lines(text, |line| if is_xen_console(line.trim()) { Line::Drop } else { Line::Keep });
        let listed = |tty: &str| text.lines().any(|l| l.trim() == tty);
        let wanted = ["tty1", "ttyS0"].into_iter().filter(|t| !listed(t));
        wanted.fold(text.clone(), |text, tty| add_line(&text, tty))
    })?;
    Ok(())
}

/// Upstart's jobs. xen-tools renames tty1's to hvc0 and removes tty2's to tty6's.
fn upstart(cx: &mut Context<'_>, dir: &str, end: &str) -> Result<()> {
    for xen in XEN_TTYS {
        let old = format!("{dir}/{xen}{end}");
        let Some(job) = cx.text(&old)? else { continue };
        let job = job.to_string();
        let add = |cx: &mut Context<'_>, tty: &str, text: &str| -> Result<()> {
            let path = format!("{dir}/{tty}{end}");
            if cx.fs.lstat(path.as_bytes()).is_err() {
                cx.fs.put(path.as_bytes(), text.replace(xen, tty).as_bytes(), None)?;
            }
            Ok(())
        };
        let has = |cx: &Context<'_>, name: &str, word: &str| {
            Ok::<_, crate::Error>(cx.text(format!("{dir}/{name}{end}"))?.is_some_and(|text| text.contains(word)))
        };
        // Red Hat 6 has a job for all screens, and one for whichever serial line the kernel's messages go to.
        let (screens, serial) = (has(cx, "tty", "$TTY")?, has(cx, "serial", "serial-console-available")?);
        let whole_screen = screens || cx.fs.lstat(format!("{dir}/tty1{end}").as_bytes()).is_ok();
        if !serial {
            let speed = format!("38400 {xen}");
            let terminal = if job.lines().any(|l| l.trim_end().ends_with(&speed)) { " vt100" } else { "" };
            add(cx, "ttyS0", &job.replace(&speed, &format!("-L 115200 {xen}{terminal}")))?;
        }
        if !screens {
            add(cx, "tty1", &job)?;
        }
        // Debian and Ubuntu have the other screens in runlevels 2 and 3 only.
        for tty in ["tty2", "tty3", "tty4", "tty5", "tty6"].into_iter().filter(|_| !whole_screen) {
            add(cx, tty, &job.replace("runlevel [2345]", "runlevel [23]").replace("[!2345]", "[!23]"))?;
        }
        cx.fs.remove(old.as_bytes())?;
    }
    serial_as_screen(cx, dir, end)
}

/// A guest that was installed on a screen has jobs for screens only: one like the first screen's waits on the serial port.
fn serial_as_screen(cx: &mut Context<'_>, dir: &str, end: &str) -> Result<()> {
    let serial = format!("{dir}/ttyS0{end}");
    let is_there = cx.fs.exists(format!("{dir}/serial{end}").as_bytes()) || cx.fs.lstat(serial.as_bytes()).is_ok();
    if let Some(job) = cx.text(format!("{dir}/tty1{end}"))?.filter(|_| !is_there) {
        let text = job.replace("38400 tty1", "-L 115200 tty1 vt100").replace("tty1", "ttyS0");
        cx.fs.put(serial.as_bytes(), text.as_bytes(), None)?;
    }
    Ok(())
}

/// systemd's units: its generator starts a getty on ttyS0 because the kernel's command line names it; what was set up for hvc0 moves there.
fn systemd(cx: &mut Context<'_>) -> Result<()> {
    for dir in cx.names(SYSTEMD) {
        let dir = join(SYSTEMD.as_bytes(), &dir);
        let is_wants = dir.ends_with(b".wants") || dir.ends_with(b".requires");
        if is_wants && cx.fs.is_dir(&dir) {
            for name in cx.names(&dir) {
                move_unit(cx, &dir, &name)?;
            }
        }
    }
    for name in cx.names(SYSTEMD) {
        if name.ends_with(b".d") {
            move_drop_ins(cx, &name)?;
        } else {
            move_unit(cx, SYSTEMD.as_bytes(), &name)?;
        }
    }
    Ok(())
}

/// The name that a unit for one of Xen's consoles has for the serial port.
fn serial_unit(name: &[u8]) -> Option<Vec<u8>> {
    let name = std::str::from_utf8(name).ok()?;
    let (kind, rest) = name.split_once('@')?;
    let (tty, rest) = rest.split_once('.')?;
    let end = rest.strip_prefix("service")?;
    (matches!(kind, "serial-getty" | "getty") && is_xen_console(tty)).then(|| format!("serial-getty@ttyS0.service{end}").into_bytes())
}

fn move_unit(cx: &mut Context<'_>, dir: &[u8], name: &[u8]) -> Result<()> {
    let Some(new) = serial_unit(name) else { return Ok(()) };
    let (old, new) = (join(dir, name), join(dir, &new));
    let there = cx.fs.lstat(&new).is_ok();
    match cx.fs.lstat(&old)?.kind {
        FileType::Symlink => {
            let target = cx.fs.readlink(&old)?;
            cx.fs.remove(&old)?;
            // A masked console stays one that nobody waits for; that is no reason to mask the serial port.
            if !there && target != b"/dev/null" {
                let target = String::from_utf8_lossy(&target).replace("/getty@.service", "/serial-getty@.service");
                let target = XEN_TTYS.iter().fold(target, |t, tty| t.replace(&format!("@{tty}."), "@ttyS0."));
                cx.fs.symlink(target.as_bytes(), &new)?;
            }
        }
        FileType::Regular if there => cx.fs.remove(&old)?,
        FileType::Regular => {
            cx.fs.rename(&old, &new)?;
            cx.edit(&new, |text| XEN_TTYS.iter().fold(text.to_string(), |t, tty| t.replace(tty, "ttyS0")))?;
        }
        _ => {}
    }
    Ok(())
}

fn move_drop_ins(cx: &mut Context<'_>, name: &[u8]) -> Result<()> {
    let Some(new) = serial_unit(name) else { return Ok(()) };
    let (old, new) = (join(SYSTEMD.as_bytes(), name), join(SYSTEMD.as_bytes(), &new));
    for file in cx.names(&old) {
        let Some(text) = cx.text(join(&old, &file))? else { continue };
        let to = join(&new, &file);
        if cx.fs.lstat(&to).is_err() {
            let changed = XEN_TTYS.iter().fold(text.to_string(), |t, tty| t.replace(tty, "ttyS0"));
            cx.fs.put(&to, &text.encode(&changed), None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    /// wheezy's inittab as xen-tools leaves it.
    const WHEEZY: &str = "id:2:initdefault:\nsi::sysinit:/etc/init.d/rcS\n# Note that on most Debian systems tty7 is used by the X Window System\n\
        1:2345:respawn:/sbin/getty 38400 hvc0\n#2:23:respawn:/sbin/getty 38400 tty2\n#3:23:respawn:/sbin/getty 38400 tty3\n\
        #4:23:respawn:/sbin/getty 38400 tty4\n#5:23:respawn:/sbin/getty 38400 tty5\n#6:23:respawn:/sbin/getty 38400 tty6\n\
        # Example how to put a getty on a serial line (for a terminal)\n#\n##\t0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n";

    #[test]
    fn xen_tools_inittab() {
        run_step(&MemFs::new().file("/etc/inittab", WHEEZY), &STEP, |cx| {
            let new = WHEEZY
                .replace("38400 hvc0", "38400 tty1")
                .replace("#2:23", "2:23")
                .replace("#3:23", "3:23")
                .replace("#4:23", "4:23")
                .replace("#5:23", "5:23")
                .replace("#6:23", "6:23");
            assert_eq!(cx.show("/etc/inittab"), format!("{new}S0:2345:respawn:/sbin/getty -L ttyS0 115200 vt100\n"));
        });
    }

    #[test]
    fn red_hats_agetty() {
        let old = "id:3:initdefault:\n1:2345:respawn:/sbin/mingetty tty1\n2:2345:respawn:/sbin/mingetty tty2\n";
        let base = MemFs::new().file("/etc/inittab", old).file("/sbin/agetty", "");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.show("/etc/inittab"), format!("{old}S0:2345:respawn:/sbin/agetty -L ttyS0 115200 vt100\n"))
        });
    }

    #[test]
    fn a_getty_beside_the_screens_moves_to_the_serial_port() {
        let old = "1:2345:respawn:/sbin/getty 38400 tty1\n#2:23:respawn:/sbin/getty 38400 tty2\nh0:2345:respawn:/sbin/agetty -L hvc0 9600 vt100\nx0:2345:respawn:/sbin/getty xvc0\n";
        run_step(&MemFs::new().file("/etc/inittab", old), &STEP, |cx| {
            assert_eq!(
                cx.show("/etc/inittab"),
                "1:2345:respawn:/sbin/getty 38400 tty1\n#2:23:respawn:/sbin/getty 38400 tty2\nh0:2345:respawn:/sbin/agetty -L ttyS0 9600 vt100\n"
            );
        });
    }

    #[test]
    fn yasts_getty_on_the_console_stays_alone() {
        let cons = "1:2345:respawn:/sbin/mingetty --noclear tty1\ncons:12345:respawn:/sbin/smart_agetty -L 42 console\n";
        for xen in ["", "x0:12345:respawn:/sbin/agetty -L 9600 xvc0 xterm\n", "# x0:12345:respawn:/sbin/agetty -L 9600 xvc0 xterm\n"] {
            run_step(&MemFs::new().file("/etc/inittab", format!("{cons}{xen}")), &STEP, |cx| {
                assert_eq!(cx.show("/etc/inittab"), format!("{cons}{}", if xen.starts_with('#') { xen } else { "" }));
            });
        }
    }

    #[test]
    fn busyboxs_table() {
        let old = "::sysinit:/sbin/openrc sysinit\ntty1::respawn:/sbin/getty 38400 tty1\nhvc0::respawn:/sbin/getty -L 115200 hvc0 vt100\n";
        let new = old.replace("hvc0", "ttyS0");
        run_step(&MemFs::new().file("/etc/inittab", old), &STEP, |cx| assert_eq!(cx.show("/etc/inittab"), new));
        let without = old.replace("hvc0::respawn:/sbin/getty -L 115200 hvc0 vt100\n", "");
        run_step(&MemFs::new().file("/etc/inittab", without), &STEP, |cx| assert_eq!(cx.show("/etc/inittab"), new));
    }

    #[test]
    fn securetty_lists_where_logins_wait() {
        run_step(&MemFs::new().file("/etc/securetty", "hvc0\nxvc0\n"), &STEP, |cx| assert_eq!(cx.show("/etc/securetty"), "tty1\nttyS0\n"));
        let old = "# tty1 and so on\ntty1\ntty2\nttyS0\nttyS1\n";
        run_step(&MemFs::new().file("/etc/securetty", old), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }

    #[test]
    fn upstart_jobs() {
        let job = "# hvc0 - getty\nstart on stopped rc RUNLEVEL=[2345] and runlevel [2345]\nstop on runlevel [!2345]\nrespawn\nexec /sbin/getty -8 38400 hvc0\n";
        run_step(&MemFs::new().file("/etc/init/hvc0.conf", job), &STEP, |cx| {
            assert_eq!(cx.show("/etc/init/tty1.conf"), job.replace("hvc0", "tty1"));
            assert!(cx.show("/etc/init/ttyS0.conf").ends_with("exec /sbin/getty -8 -L 115200 ttyS0 vt100\n"));
            assert!(cx.show("/etc/init/tty6.conf").contains("stop on runlevel [!23]\n"));
            assert!(cx.fs.lstat(b"/etc/init/hvc0.conf").is_err());
            assert_eq!(cx.names("/etc/init").len(), 7);
        });
    }

    #[test]
    fn upstart_on_a_screen_gets_a_serial_login() {
        let job = "start on stopped rc RUNLEVEL=[2345]\nrespawn\nexec /sbin/getty -8 38400 tty1\n";
        run_step(&MemFs::new().file("/etc/init/tty1.conf", job), &STEP, |cx| {
            assert_eq!(cx.show("/etc/init/ttyS0.conf"), job.replace("38400 tty1", "-L 115200 ttyS0 vt100"));
        });
        let red_hat = MemFs::new().file("/etc/init/tty1.conf", job).file("/etc/init/serial.conf", "start on serial-console-available\n");
        run_step(&red_hat, &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }

    #[test]
    fn systemd_units_for_xens_console_move() {
        let base = MemFs::new()
            .link_to("/etc/systemd/system/getty.target.wants/getty@tty1.service", "/lib/systemd/system/getty@.service")
            .link_to("/etc/systemd/system/getty.target.wants/serial-getty@hvc0.service", "/lib/systemd/system/serial-getty@.service")
            .link_to("/etc/systemd/system/getty@xvc0.service", "/dev/null")
            .file("/etc/systemd/system/serial-getty@hvc0.service.d/autologin.conf", "[Service]\nExecStart=-/sbin/agetty -a root hvc0\n");
        run_step(&base, &STEP, |cx| {
            assert_eq!(
                cx.names("/etc/systemd/system/getty.target.wants"),
                [b"getty@tty1.service".to_vec(), b"serial-getty@ttyS0.service".to_vec()]
            );
            assert_eq!(
                cx.fs.readlink(b"/etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service").unwrap(),
                b"/lib/systemd/system/serial-getty@.service"
            );
            assert_eq!(
                cx.show("/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"),
                "[Service]\nExecStart=-/sbin/agetty -a root ttyS0\n"
            );
            assert!(cx.fs.lstat(b"/etc/systemd/system/getty@xvc0.service").is_err());
            assert!(cx.fs.lstat(b"/etc/systemd/system/serial-getty@ttyS0.service").is_err());
        });
    }

    /// What xen-tools leaves of the files of Ubuntu 8.04, 10.04 and 14.04: tty1's, called hvc0.
    #[test]
    fn upstart_jobs_of_three_ubuntus() {
        let hardy = "# hvc0 - getty\n#\n# This service maintains a getty on hvc0 from the point the system is\n# started until it is shut down again.\n\n\
                     start on stopped rc2\nstart on stopped rc3\nstart on stopped rc4\nstart on stopped rc5\n\nstop on runlevel 0\nstop on runlevel 1\nstop on runlevel 6\n\n\
                     respawn\nexec /sbin/getty 38400 hvc0\n";
        let lucid = "# hvc0 - getty\n#\n# This service maintains a getty on hvc0 from the point the system is\n# started until it is shut down again.\n\n\
                     start on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\n\nrespawn\nexec /sbin/getty -8 38400 hvc0\n";
        let trusty = "# hvc0 - getty\n\nstart on stopped rc RUNLEVEL=[2345] and (\n            not-container or\n            container CONTAINER=lxc or\n            container CONTAINER=lxc-libvirt)\n\n\
                      stop on runlevel [!2345]\n\nrespawn\nexec /sbin/getty -8 38400 hvc0\n";
        for (dir, end, job, serial) in [
            ("/etc/event.d", "", hardy, "exec /sbin/getty -L 115200 ttyS0 vt100\n"),
            ("/etc/init", ".conf", lucid, "exec /sbin/getty -8 -L 115200 ttyS0 vt100\n"),
            ("/etc/init", ".conf", trusty, "exec /sbin/getty -8 -L 115200 ttyS0 vt100\n"),
        ] {
            let base = MemFs::new()
                .file(&format!("{dir}/hvc0{end}"), job)
                .file(&format!("{dir}/rc{end}"), "start on runlevel [0123456]\n")
                .file("/etc/securetty", "console\ntty1\ntty2\nhvc0\nttyS0\n");
            run_step(&base, &STEP, |cx| {
                assert_eq!(cx.show(&format!("{dir}/tty1{end}")), job.replace("hvc0", "tty1"));
                let on_serial = cx.show(&format!("{dir}/ttyS0{end}"));
                assert!(on_serial.ends_with(serial) && !on_serial.contains("hvc0"), "{on_serial}");
                assert_eq!(cx.names(dir).len(), 8, "rc, six screens, the serial line");
                assert_eq!(cx.show("/etc/securetty"), "console\ntty1\ntty2\nttyS0\n");
            });
        }
    }
}
