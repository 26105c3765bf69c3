//! The host with a true /dev/kvm in which tests run: QEMU as the judge of whether KVM works there, and what comes out of it.

#[path = "../../../tests/kvm-host/host.rs"]
mod host;

use std::time::{Duration, Instant};

use guestfs_appliance::locate;
use host::host;

#[test]
fn kvm_works_there_and_output_files_and_exit_code_come_back() {
    let out = tempfile::tempdir().unwrap();
    let kernel = locate::files().unwrap().kernel;
    // A kernel without a root panics, which ends QEMU. Few words on the console: each byte is an exit, and exits are slow there.
    let script = format!(
        "qemu-system-x86_64 -machine microvm,acpi=off,rtc=on,accel=kvm -cpu host -m 128 -nodefaults -no-user-config -display none \
         -no-reboot -serial stdio -kernel {} -append 'console=ttyS0 loglevel=1 panic=-1 reboot=t no_timer_check nolapic_timer' \
         >{}/console; echo QEMU ended with $? >&2; echo to stdout; exit 7",
        kernel.display(),
        out.path().display()
    );
    let done = host().arg("--out").arg(out.path()).args(["sh", "-c", &script]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!((done.status.code(), &*stdout, &*stderr), (Some(7), "to stdout\n", "QEMU ended with 0\n"));
    let console = std::fs::read_to_string(out.path().join("console")).unwrap();
    assert!(console.contains("Kernel panic - not syncing: VFS: Unable to mount root fs"), "{console}");
}

#[test]
fn a_user_has_kvm_there_but_may_not_write() {
    let done = host().args(["--user", "sh", "-c", "id -u; id -G; : <>/dev/kvm && echo kvm; touch /etc/here"]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(stdout, "65534\n65534 36036\nkvm\n", "{stderr}");
    assert!(done.status.code() == Some(1) && stderr.contains("Permission denied"), "{stderr}");
}

#[test]
fn a_deadline_ends_it() {
    let began = Instant::now();
    let done = host().args(["--deadline", "2", "sleep", "1000"]).output().unwrap();
    assert_eq!(done.status.code(), Some(124), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(began.elapsed() < Duration::from_secs(30));
}
