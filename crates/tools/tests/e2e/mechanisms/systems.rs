//! Init systems, initrds, boot loaders and services beside those of Debian's installer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::booted::{CONVERSION, healthy, scratch};
use crate::console::{Console, Hardware, Writes};
use crate::guest::{Guest, recipe, run, top};
use crate::planned::planned;
use crate::updated::{DEBIANS_HOOKS, takes_a_newer_kernel};

/// The socket that leads to a result's agent.
fn agent_of(dir: &Path) -> PathBuf {
    dir.join("agent")
}

/// What the guest's agent answers, by QEMU's protocol for it.
fn ask_agent(dir: &Path, question: &str) -> String {
    let mut stream = UnixStream::connect(agent_of(dir)).expect("QEMU listens");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a socket has a timeout");
    writeln!(stream, "{{\"execute\":\"{question}\"}}").expect("QEMU takes it");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("the agent answers");
    answer
}

/// Converts with these options, compares with the plan, and starts the result, whose disks keep what it writes.
fn started<'a>(guest: &'a Guest, options: &[&str], dir: &Path) -> (Console, Hardware<'a>) {
    let disks = planned(guest, dir, options);
    let hardware = Hardware { disks, extra: None, agent: Some(agent_of(dir)), macs: vec![&guest.mac], writes: Writes::Kept };
    let mut console = Console::start(&hardware);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, guest);
    (console, hardware)
}

/// i386, sysvinit, extlinux's configuration, xen-tools' clock and consoles; KVM's agent from a package beside the guest.
#[test]
fn sysvinit_and_extlinux() {
    let Some(guest) = recipe("sysvinit") else { return };
    let dir = scratch();
    let package = guest.cfg.with_file_name("qemu-guest-agent.deb");
    let package = package.to_str().expect("a path of letters");
    let (mut console, _) = started(&guest, &["--install-agent", package], dir.path());
    let answer = ask_agent(dir.path(), "guest-get-host-name");
    assert!(answer.contains("\"sysvinit\""), "{answer}");
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

/// KVM's agent, from packages that the guest does not have.
#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn an_agent_is_installed() {
    let Some(guest) = recipe("raid") else { return };
    let dir = scratch();
    let mut options = vec!["--install-agent".to_owned()];
    for package in ["qemu-guest-agent", "libglib2.0-0", "libnuma1", "liburing2"] {
        let deb = run(Command::new(top().join("scripts/fetch-deb")).args(["bookworm", package]), None, CONVERSION);
        options.push(String::from_utf8(deb.stdout).expect("a path").trim().to_owned());
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let (_console, _) = started(&guest, &options, dir.path());
    let answer = ask_agent(dir.path(), "guest-get-host-name");
    assert!(answer.contains("\"raid\""), "{answer}");
}

/// An initrd of dracut's without virtio, SELinux enforcing, GRUB legacy, networkd.
#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn dracut_and_selinux() {
    let Some(guest) = recipe("dracut") else { return };
    let dir = scratch();
    let (mut console, hardware) = started(&guest, &[], dir.path());
    assert_eq!(console.ok("getenforce").trim(), "Enforcing");
    let labels = console.ok("cd / && restorecon -n -v -R /etc /boot /usr/lib/modules | head");
    assert_eq!(labels.trim(), "", "labels that are not the policy's");
    assert_eq!(console.ok("systemctl is-enabled xe-daemon; true").trim(), "masked");
    let agent = console.ok("systemctl is-enabled qemu-guest-agent; ls /etc/systemd/system/*.wants/qemu-guest-agent.service; true");
    assert!(agent.contains("qemu-guest-agent.service") && !agent.contains("masked"), "{agent}");
    console.power_off();
    // Debian's policy does not let dracut run depmod in its folder, on Xen neither.
    let hooks = format!("setenforce 0; {DEBIANS_HOOKS} && update-grub -y && restorecon -R /boot /usr/lib/modules && setenforce 1");
    takes_a_newer_kernel(&guest, hardware.disks, &hooks);
}
