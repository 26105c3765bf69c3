//! Scripts that run when the guest starts for the first time, in their order, late in its start and as root.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use guestfs::{Attributes, Ext};

use super::context::Context;
use super::{Action, Value, act};
use crate::common::Failure;

const FOLDER: &str = "/usr/lib/guestlift/firstboot";
const RUNNER: &str = "/usr/lib/guestlift/firstboot.sh";
const UNIT: &str = "/etc/systemd/system/guestlift-firstboot.service";
const INIT: &str = "/etc/init.d/guestlift-firstboot";

/// Runs each script once, even if one of them restarts the machine.
const RUN: &str = "#!/bin/sh
### BEGIN INIT INFO
# Provides:          guestlift-firstboot
# Required-Start:    $all
# Required-Stop:
# Default-Start:     2 3 4 5
# Default-Stop:
# Short-Description: Runs scripts at the first start
### END INIT INFO

folder=/usr/lib/guestlift/firstboot
log=/var/log/guestlift-firstboot.log
[ \"${1:-start}\" = start ] || exit 0
mkdir -p \"$folder-done\"
for script in \"$folder\"/*; do
    [ -f \"$script\" ] || continue
    name=${script##*/}
    mv \"$script\" \"$folder-done/$name\"
    echo \"=== $name ===\" >> \"$log\"
    \"$folder-done/$name\" >> \"$log\" 2>&1
    echo \"=== $name ended with $? ===\" >> \"$log\"
done
rm -f /etc/systemd/system/multi-user.target.wants/guestlift-firstboot.service /etc/rc[2-5].d/S99guestlift-firstboot
";

const SERVICE: &str = "[Unit]
Description=Runs scripts at the first start
After=network.target
Before=systemd-user-sessions.service

[Service]
Type=oneshot
ExecStart=/usr/lib/guestlift/firstboot.sh start
RemainAfterExit=yes
TimeoutSec=0

[Install]
WantedBy=multi-user.target
";

/// `SCRIPT`, a file of this machine.
pub(super) fn script(value: &Value) -> Result<Action, Failure> {
    let local = PathBuf::from(OsStr::from_bytes(value.bytes()));
    let content = std::fs::read(&local).map_err(|e| Failure::new(format!("{}: {e}", local.display())))?;
    let name = local.file_name().unwrap_or_default().as_bytes().to_vec();
    act(move |c| {
        c.say(&format!("Installing firstboot script: {}", local.display()));
        install(c, &name, &content)
    })
}

/// `COMMAND LINE`
pub(super) fn command(value: &Value) -> Result<Action, Failure> {
    let line = value.bytes().to_vec();
    act(move |c| {
        c.say(&format!("Installing firstboot command: {}", guestfs::show(&line)));
        install(c, b"command", &[b"#!/bin/sh\n", line.as_slice(), b"\n"].concat())
    })
}

pub(super) fn install(c: &mut Context<'_>, name: &[u8], content: &[u8]) -> Result<(), Failure> {
    c.make_directories(FOLDER.as_bytes(), Attributes::root(0o755))?;
    c.write_as(RUNNER.as_bytes(), RUN.as_bytes(), Attributes::root(0o755))?;
    if c.session.is_dir(b"/etc/systemd/system") {
        c.write(UNIT.as_bytes(), SERVICE.as_bytes())?;
        let wants = b"/etc/systemd/system/multi-user.target.wants";
        c.make_directories(wants, Attributes::root(0o755))?;
        c.symlink(UNIT.as_bytes(), &[&wants[..], b"/guestlift-firstboot.service"].concat())?;
    } else if c.session.is_dir(b"/etc/init.d") {
        c.symlink(RUNNER.as_bytes(), INIT.as_bytes())?;
        for level in 2..=5 {
            let folder = format!("/etc/rc{level}.d");
            if c.session.is_dir(folder.as_bytes()) {
                c.symlink(b"../init.d/guestlift-firstboot", format!("{folder}/S99guestlift-firstboot").as_bytes())?;
            }
        }
    } else {
        return Err(Failure::new("the guest has neither systemd nor /etc/init.d: nothing would run a script at its first start"));
    }
    // Scripts of an earlier customization that have not run yet come first.
    let before = c.session.read_dir(FOLDER.as_bytes())?.len();

    let name: String = String::from_utf8_lossy(name).chars().map(|ch| if ch.is_ascii_alphanumeric() { ch } else { '-' }).collect();
    let file = format!("{FOLDER}/{:04}-{name}", before + 1);
    c.write_as(file.as_bytes(), content, Attributes::root(0o755))
}
