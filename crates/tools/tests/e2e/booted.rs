//! Converting a guest as a person does, and what its result has to have once it runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::console::{Console, Hardware, Writes};
use crate::guest::{Guest, check_outputs, outputs, run, sha256, v2v};

/// Longest conversion that is waited for.
pub const CONVERSION: Duration = Duration::from_secs(1800);

/// A folder for results.
pub fn scratch() -> tempfile::TempDir {
    // Beside the build's other products: /tmp may be small.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

/// `v2v GUEST -os DIR`, the short form that a person uses.
pub fn convert(source: &Path, out: &Path) {
    let mut command = v2v();
    command.args(["--from", "xen", "--to", "kvm"]).arg(source).arg("-os").arg(out);
    run(&mut command, None, CONVERSION);
}

/// The disks of a conversion with these options, which left the source as it is and which the reference tools found sound.
pub fn converted(guest: &Guest, cfg: &Path, dir: &Path, options: &[&str]) -> Vec<PathBuf> {
    let before = sha256(&guest.disks);
    run(v2v().arg(cfg).arg("-os").arg(dir).args(options), None, CONVERSION);
    assert_eq!(before, sha256(&guest.disks), "the source changed");
    let disks = outputs(dir, &guest.name);
    check_outputs(&disks, dir);
    disks
}

/// What every converted guest has to have, on its first boot and its second.
pub fn boots(guest: &Guest, disks: Vec<PathBuf>) -> Console {
    let hardware = Hardware { disks, extra: None, agent: None, macs: vec![&guest.mac], writes: Writes::Discarded };
    let mut console = Console::start(&hardware);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, guest);
    console
}

/// Its address, its swap, and no failed unit or init script.
pub fn healthy(console: &mut Console, guest: &Guest) {
    let systemd = console.ok("if [ -d /run/systemd/system ]; then echo yes; else echo no; fi").trim() == "yes";
    if systemd {
        console.settle();
    }
    // Through a pipe: Debian 13 colours what goes to a terminal.
    let status = "systemctl --no-pager --full status networking 2>/dev/null | tail -20; true";
    let address = console.ok(&format!("ip -4 -o addr show dev {} | cat; {status}", guest.nic));
    assert!(address.contains(&format!("inet {}/24", guest.ip)), "{}: {address}", guest.nic);
    let swaps = console.ok("swapon --show=NAME --noheadings");
    assert_eq!(swaps.trim().lines().count(), 1, "swap: {swaps:?}");
    if systemd {
        let failed = console.ok("systemctl --failed --plain --no-legend");
        assert_eq!(failed.trim(), "", "failed units");
    } else {
        // A getty starts when the runlevel's scripts have ended; what each of them said is on the console.
        let said = console.boot();
        // A line of the kernel's begins with its time.
        let is_kernels = |line: &str| line.strip_prefix('[').is_some_and(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit()));
        let is_bad = |line: &&str| {
            ["FAIL", "fail", "FATAL", "error:", "ERROR:", "[ !! ]"].iter().any(|word| line.contains(word)) && !is_kernels(line)
        };
        let failed: Vec<_> = said.lines().filter(is_bad).collect();
        assert!(failed.is_empty(), "init scripts: {failed:#?}");
        assert!(said.contains("INIT: Entering runlevel: 2") || said.contains("OpenRC"), "sysvinit or OpenRC says so:\n{said}");
    }
}
