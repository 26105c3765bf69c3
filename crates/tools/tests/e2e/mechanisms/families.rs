//! Distributions that are not Debian: their layout, databases and tools over Debian's programs.

use std::path::Path;

use crate::booted::{CONVERSION, boots, convert, scratch};
use crate::guest::{Guest, check_outputs, finish, outputs, recipe, run, sha256, v2v};
use crate::updated::takes_a_newer_kernel;

/// `v2v GUEST -os DIR` with more options.
fn convert_with(guest: &Guest, out: &Path, options: &[&str]) {
    run(v2v().args(["--from", "xen", "--to", "kvm"]).arg(&guest.cfg).arg("-os").arg(out).args(options), None, CONVERSION);
}

#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn red_hats_entries_dracut_and_ifcfg() {
    let Some(guest) = recipe("rhel") else { return };
    let dir = scratch();
    let before = sha256(&guest.disks);
    convert(&guest.cfg, dir.path());
    assert_eq!(before, sha256(&guest.disks), "the source changed");
    let disks = outputs(dir.path(), &guest.name);
    check_outputs(&disks, dir.path());
    let mut console = boots(&guest, disks);
    let cmdline = console.ok("cat /proc/cmdline");
    assert!(cmdline.contains("guestlift.kept=1") && !cmdline.contains("hvc0"), "the entry's own options: {cmdline}");
    let seen = console.ok("cat /etc/sysconfig/kernel");
    assert!(seen.contains("DEFAULTKERNEL=kernel-core"), "{seen}");
    drop(console);
    // As kernel-install leaves it.
    let entry = "e=/boot/loader/entries/$(cat /etc/machine-id); sed \"s/$(uname -r)/$v/g\" $e-$(uname -r).conf >$e-$v.conf";
    takes_a_newer_kernel(&guest, outputs(dir.path(), &guest.name), &format!("{entry} && dracut /boot/initramfs-$v.img $v"));
}

#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn a_guest_of_suse_with_a_kernel_for_xen_gets_another() {
    let Some(guest) = recipe("suse") else { return };
    let dir = scratch();
    let output = finish(v2v().arg(&guest.cfg).arg("-os").arg(dir.path()), None, CONVERSION);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in
        ["suse", "step 'kernel'", "/boot/vmlinuz-3.0.101-63-xen", "Get kernel-default", "--kernel-package FILE.rpm", "--kernel-from GUEST"]
    {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert_eq!(output.status.code(), Some(1));

    let rpm = guest.cfg.with_file_name("kernel-default.rpm");
    let by_package = dir.path().join("package");
    convert_with(&guest, &by_package, &["--kernel-package", &rpm.to_string_lossy()]);
    let disks = outputs(&by_package, &guest.name);
    check_outputs(&disks, dir.path());
    let mut console = boots(&guest, disks);
    // What the package manager knows, and what the guest's own tool put into the initrd.
    let seen = console.ok("rpm -q kernel-default; cat /proc/cmdline /etc/sysconfig/kernel; ls /var/tmp");
    assert!(seen.contains("kernel-default-1-1") && seen.contains("guestlift.kept=1") && !seen.contains("guestlift-kernel"), "{seen}");
    assert!(seen.contains("INITRD_MODULES=\"ext4 virtio_pci virtio_blk virtio_scsi virtio_net\""), "{seen}");
    drop(console);
    takes_a_newer_kernel(&guest, outputs(&by_package, &guest.name), "/sbin/mkinitrd -k vmlinuz-$v -i initrd-$v");

    let Some(donor) = recipe("lvm") else { return };
    let by_guest = dir.path().join("guest");
    convert_with(&guest, &by_guest, &["--kernel-from", &donor.cfg.to_string_lossy()]);
    let disks = outputs(&by_guest, &guest.name);
    check_outputs(&disks, dir.path());
    boots(&guest, disks);
}
