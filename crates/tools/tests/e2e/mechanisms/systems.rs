//! Init systems, initrds, boot loaders and services beside those of Debian's installer.

use std::time::Duration;

use crate::booted::{CONVERSION, healthy, scratch};
use crate::console::{Console, Hardware, Writes};
use crate::guest::{Guest, check_outputs, outputs, recipe, run, sha256, v2v};
use crate::planned::as_planned;

/// Converts with these options, compares with the plan, and starts the result, whose disks keep what it writes.
fn started<'a>(guest: &'a Guest, options: &[&str], dir: &std::path::Path) -> (Console, Hardware<'a>) {
    let before = sha256(&guest.disks);
    run(v2v().arg(&guest.cfg).arg("-os").arg(dir).args(options), None, CONVERSION);
    assert_eq!(before, sha256(&guest.disks), "the source changed");
    let disks = outputs(dir, &guest.name);
    check_outputs(&disks, dir);
    as_planned(guest, options, &disks);
    let hardware = Hardware { disks, extra: None, agent: None, macs: vec![&guest.mac], writes: Writes::Kept };
    let mut console = Console::start(&hardware);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, guest);
    (console, hardware)
}

/// i386, sysvinit, extlinux's configuration, xen-tools' clock and consoles.
#[test]
fn sysvinit_and_extlinux() {
    let Some(guest) = recipe("sysvinit") else { return };
    let dir = scratch();
    let (mut console, _) = started(&guest, &[], dir.path());
    assert_eq!(console.ok("ls /var/log/xe.log 2>/dev/null | wc -l").trim(), "0", "XenServer's agent is off");
    console.ok("ls /etc/rcS.d/S*hwclock.sh && grep -x HWCLOCKACCESS=yes /etc/default/hwclock");
    assert_eq!(
        console.ok("ps -eo tty,comm | grep getty | awk '{ print $1 }' | sort | tr '\\n' ' '").trim(),
        "tty1 tty2 tty3 tty4 tty5 tty6"
    );
    // A kernel comes by its package's hooks, which are these: GRUB takes the new entry.
    let old = console.ok("uname -r").trim().to_owned();
    console.ok(&format!(
        "cd /boot && for f in vmlinuz initrd.img config System.map; do cp $f-{old} $f-9{old}; done && \
         cp -r /lib/modules/{old} /lib/modules/9{old} && u-boot-update"
    ));
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, &guest);
    let started = console.ok("cat /proc/cmdline");
    assert!(started.contains(&format!("vmlinuz-9{old}")), "{started}");
    console.power_off();
}

/// An initrd of dracut's without virtio, SELinux enforcing, GRUB legacy, networkd.
#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn dracut_and_selinux() {
    let Some(guest) = recipe("dracut") else { return };
    let dir = scratch();
    let (mut console, _) = started(&guest, &[], dir.path());
    assert_eq!(console.ok("getenforce").trim(), "Enforcing");
    let labels = console.ok("cd / && restorecon -n -v -R /etc /boot /usr/lib/modules | head");
    assert_eq!(labels.trim(), "", "labels that are not the policy's");
    assert_eq!(console.ok("systemctl is-enabled xe-daemon; true").trim(), "masked");
    let agent = console.ok("systemctl is-enabled qemu-guest-agent; ls /etc/systemd/system/*.wants/qemu-guest-agent.service; true");
    assert!(agent.contains("qemu-guest-agent.service") && !agent.contains("masked"), "{agent}");
    let (_, code) = console.run("lsinitrd | grep -q virtio_blk", Duration::from_secs(120));
    assert_eq!(code, 0, "the initrd has virtio");
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, &guest);
}
