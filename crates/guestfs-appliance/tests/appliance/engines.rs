//! The list once more, on vmm-mini.

#[path = "../../../../tests/kvm-host/host.rs"]
mod host;

use std::process::Command;

use host::host;

use crate::common::scratch;
use crate::trouble::{PROGRAMS, compile_all};

/// What does not run on vmm-mini, as the beginnings of names, and why.
const QEMU_ONLY: &[(&str, &str)] = &[
    ("distro_kernel::", "a distribution's kernel finds its devices by PCI or ACPI, which vmm-mini has not"),
    ("machine::", "the boot check starts firmware and disks of any guest, which is QEMU's work"),
    ("templates::", "these are QEMU's migration files"),
    ("engines::", "this is what runs the others there"),
];

/// How often that host may start. The processor that QEMU emulates for it loses its way once in some hundreds of guests, at any place: that is
/// a guest's end or the host's, and what had not passed until then is run once more.
const STARTS: usize = 5;

#[test]
fn every_test_that_is_not_for_qemu_alone_passes_on_kvm() {
    let program = std::env::current_exe().unwrap();
    let skipped: Vec<&str> = QEMU_ONLY.iter().flat_map(|(name, _)| ["--skip", name]).collect();
    let list = Command::new(&program).args(["--list", "--format", "terse"]).args(&skipped).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let mut wanted: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert!(wanted.len() > 20, "{list} is no list");

    let programs = scratch();
    compile_all(programs.path());
    for start in 1.. {
        let done = host()
            // Far beyond the four minutes that it takes on two cores.
            .args(["--deadline", "1200"])
            .arg(&program)
            .args(&wanted)
            .arg("--exact")
            .env("GUESTLIFT_ACCEL", "kvm")
            .env("GUESTLIFT_QEMU", "/no/qemu")
            .env(PROGRAMS, programs.path())
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        println!("{text}");
        let end = |name: &str, end: &str| text.lines().any(|line| line.strip_prefix("test ") == Some(&format!("{name} ... {end}")));
        let lost = text.contains("the guest died: triple fault") || text.contains("the host ended before its command did");
        assert!(lost || !wanted.iter().any(|name| end(name, "FAILED")), "a test failed there");
        wanted.retain(|name| !end(name, "ok"));
        if wanted.is_empty() {
            break;
        }
        assert!(lost && start < STARTS, "these did not pass there: {wanted:?}");
    }
}

#[test]
fn what_is_for_qemu_alone_exists() {
    let list = Command::new(std::env::current_exe().unwrap()).args(["--list", "--format", "terse"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for (name, _) in QEMU_ONLY {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name}");
    }
}
