//! `virt doctor` on hosts that lack this or that.

#[path = "../../../tests/kvm-host/host.rs"]
mod host;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A host of which nothing is known: no home, no PATH, the program outside of the source tree.
struct Host {
    dir: tempfile::TempDir,
    variables: HashMap<&'static str, PathBuf>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "home", "tmp"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::hard_link(env!("CARGO_BIN_EXE_virt"), dir.path().join("virt"))
            .or_else(|_| std::fs::copy(env!("CARGO_BIN_EXE_virt"), dir.path().join("virt")).map(drop))
            .unwrap();
        let variables = [("PATH", "bin"), ("HOME", "home"), ("TMPDIR", "tmp")].map(|(name, folder)| (name, dir.path().join(folder)));
        Host { variables: variables.into(), dir }
    }

    fn set(mut self, variable: &'static str, value: impl Into<PathBuf>) -> Self {
        self.variables.insert(variable, value.into());
        self
    }

    /// A file in it.
    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn doctor(&self, arguments: &[&str]) -> Report {
        let output = Command::new(self.dir.path().join("virt"))
            .args(["doctor", "--json"])
            .args(arguments)
            .env_clear()
            .envs(&self.variables)
            .output()
            .unwrap();
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)));
        let report = Report(json);
        let missing = report.0["findings"].as_array().unwrap().iter().any(|f| f["state"] == "missing");
        assert_eq!(output.status.code(), Some(i32::from(missing)), "{:#}", report.0);
        assert_eq!(report.0["works"], !missing);
        report
    }
}

struct Report(Value);

impl Report {
    fn finding(&self, name: &str) -> &Value {
        let findings = self.0["findings"].as_array().unwrap();
        findings.iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("no {name} in {:#}", self.0))
    }

    fn state(&self, name: &str) -> &str {
        self.finding(name)["state"].as_str().unwrap()
    }

    /// Detail and fix.
    fn words(&self, name: &str) -> String {
        let finding = self.finding(name);
        format!("{} | {}", finding["detail"].as_str().unwrap(), finding["fix"].as_str().unwrap_or_default())
    }
}

#[test]
fn a_host_with_nothing_is_told_what_to_install() {
    let report = Host::new().doctor(&[]);
    if !Path::new("/usr/lib/guestlift/appliance").exists() {
        assert_eq!(report.state("agent"), "missing");
        assert!(report.words("agent").contains("install the guestlift package"), "{}", report.words("agent"));
        assert_eq!(report.state("monitor"), "warning");
        // Without our monitor nothing but QEMU can run the appliance.
        assert_eq!(report.state("QEMU"), "missing");
    }
    assert!(report.words("QEMU").contains("qemu-system-x86"), "{}", report.words("QEMU"));
    assert!(["works", "emulated", "unusable"].contains(&report.0["kvm"]["verdict"].as_str().unwrap()));
    // What is borrowed is looked for where the appliance looks for it, whatever the PATH is.
    assert_eq!(report.state("e2fsprogs") == "ok", Path::new("/usr/sbin/e2fsck").exists() || Path::new("/sbin/e2fsck").exists());
}

#[test]
fn qemu_is_there_when_it_tells_its_version() {
    let host = Host::new();
    host.file("bin/qemu-system-x86_64", "#!/bin/sh\necho QEMU emulator version 99.1\necho more\n");
    let report = host.doctor(&[]);
    assert_eq!((report.state("QEMU"), report.words("QEMU").as_str()), ("ok", "QEMU emulator version 99.1 | "));
    let broken = host.file("broken", "#!/bin/sh\nexit 127\n");
    let report = host.set("GUESTLIFT_QEMU", broken).doctor(&[]);
    assert!(report.state("QEMU") != "ok" && report.words("QEMU").contains("exit status: 127"), "{}", report.words("QEMU"));
}

#[test]
fn a_kernel_that_is_none_is_missing() {
    let host = Host::new();
    let kernel = host.file("vmlinuz", &"no kernel ".repeat(100));
    let report = host.set("GUESTLIFT_KERNEL", kernel).doctor(&[]);
    assert_eq!(report.state("kernel"), "missing");
    assert!(report.words("kernel").contains("it is no Linux kernel"), "{}", report.words("kernel"));
}

#[test]
fn a_folder_that_takes_no_files_is_no_folder_for_them() {
    // In /proc not even root makes files.
    let report = Host::new().set("TMPDIR", "/proc").set("XDG_CACHE_HOME", "/proc").doctor(&[]);
    assert_eq!((report.state("temporary files"), report.state("cache")), ("missing", "warning"));
    assert!(report.words("temporary files").contains("TMPDIR="), "{}", report.words("temporary files"));
}

#[test]
fn the_appliance_is_really_started() {
    if let Err(e) = guestfs_appliance::locate::files() {
        assert!(std::env::var_os("CI").is_none(), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_virt")).args(["doctor", "--boot"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.lines().any(|l| l.starts_with("ok ") && l.contains("appliance") && l.contains("answers after ")), "{text}");
    // Whatever is there: an agent that is none does not start.
    let host = Host::new().set("PATH", std::env::var_os("PATH").unwrap());
    std::fs::create_dir(host.dir.path().join("appliance")).unwrap();
    host.file("appliance/initramfs.cpio", "no archive");
    let appliance = host.dir.path().join("appliance");
    let report = host.set("GUESTLIFT_APPLIANCE", appliance).set("GUESTLIFT_KERNEL", locate_kernel()).doctor(&["--boot"]);
    assert_eq!((report.state("agent"), report.state("appliance")), ("ok", "missing"));
}

#[test]
fn without_qemu_a_true_kvm_does_it() {
    if let Err(e) = guestfs_appliance::locate::files().and_then(|_| guestfs_appliance::locate::monitor()) {
        assert!(std::env::var_os("CI").is_none(), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let mut on_kvm = host::host();
    on_kvm.args(["--user", "--deadline", "200"]).arg(env!("CARGO_BIN_EXE_virt")).args(["doctor", "--boot", "--json"]);
    let done = on_kvm.env("GUESTLIFT_QEMU", "/nowhere/qemu").env_remove("GUESTLIFT_ACCEL").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let report = Report(serde_json::from_slice(&done.stdout).unwrap());
    assert_eq!(["KVM", "monitor", "QEMU", "appliance"].map(|name| report.state(name)), ["ok", "ok", "warning", "ok"], "{said}");
    assert!(report.0["appliance"].as_str().unwrap().contains("KVM"), "{said}");
}

#[test]
fn a_wish_that_cannot_be_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_virt")).arg("doctor").env("GUESTLIFT_ACCEL", "magic").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // Where something is missing besides, that comes first.
    assert!(!output.status.success() && (text.contains("'magic' is none of") || guestfs_appliance::locate::files().is_err()), "{text}");
}

fn locate_kernel() -> PathBuf {
    guestfs_appliance::locate::kernel().unwrap().file
}
