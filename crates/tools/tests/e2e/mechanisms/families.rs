//! Distributions that are not Debian: their layout, databases and tools over Debian's programs.

use std::path::Path;

use crate::booted::{CONVERSION, boots, healthy, scratch};
use crate::console::{Console, Hardware, Writes};
use crate::guest::{Guest, check_outputs, finish, outputs, recipe, run, v2v};
use crate::planned::planned;
use crate::updated::{DEBIANS_HOOKS, takes_a_newer_kernel};

/// `v2v GUEST -os DIR` with more options.
fn convert_with(guest: &Guest, out: &Path, options: &[&str]) {
    run(v2v().args(["--from", "xen", "--to", "kvm"]).arg(&guest.cfg).arg("-os").arg(out).args(options), None, CONVERSION);
}

#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn red_hats_entries_dracut_and_ifcfg() {
    let Some(guest) = recipe("rhel") else { return };
    let dir = scratch();
    let mut console = boots(&guest, planned(&guest, dir.path(), &[]));
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

/// GRUB 2 in the boot sector with its menu in /boot/grub2 and a remembered entry, XFS on LVM with /boot of its own, dracut, NetworkManager.
#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn red_hats_grub2_without_entries_of_their_own() {
    let Some(guest) = recipe("rhel7") else { return };
    let dir = scratch();
    let disks = planned(&guest, dir.path(), &[]);
    let mut console = boots(&guest, disks.clone());
    let cmdline = console.ok("cat /proc/cmdline");
    assert!(cmdline.contains("guestlift.kept=2") && !cmdline.contains("hvc0"), "the menu's own options: {cmdline}");
    drop(console);
    // As grubby: the new one is the default.
    let scripts = "dracut /boot/initramfs-$v.img $v && grub2-mkconfig -o /boot/grub2/grub.cfg && \
                   grub-editenv /boot/grub2/grubenv set \"saved_entry=$(sed -n \"s/^menuentry '\\([^']*$v\\)'.*/\\1/p\" /boot/grub2/grub.cfg)\"";
    let mut console = takes_a_newer_kernel(&guest, disks, scripts);
    let seen = console.ok("cat /proc/cmdline; nmcli -t -f NAME,DEVICE connection show --active");
    assert!(seen.contains("guestlift.kept=1") && seen.contains("eth0:eth0"), "{seen}");
}

/// BusyBox's init with OpenRC and no udev, an initrd by mkinitfs's features, extlinux.conf that a tool writes, a kernel that is called by its flavor.
#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn alpines_init_initrd_and_extlinux() {
    let Some(guest) = recipe("alpine") else { return };
    let dir = scratch();
    // As the package's triggers do.
    let scripts = "mv /boot/vmlinuz-$v /boot/vmlinuz-virt && rm -f /boot/config-$v /boot/System.map-$v && \
                   mkinitfs -o /boot/initramfs-virt $v && update-extlinux";
    let mut console = takes_a_newer_kernel(&guest, planned(&guest, dir.path(), &[]), scripts);
    let seen = console.ok("cat /proc/cmdline; rc-status -a; grep ^ttyS0 /etc/inittab");
    assert!(seen.contains("BOOT_IMAGE=/boot/vmlinuz-virt") && !seen.contains("crashed") && !seen.contains("hvc0"), "{seen}");
}

/// mkinitcpio with its presets, a kernel that is called by its package, XFS and swap on whole disks, a NIC that systemd called enX0.
#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn archs_presets_and_names() {
    let Some(guest) = recipe("arch") else { return };
    let dir = scratch();
    // As the package manager's hooks do.
    let scripts = "mv /boot/vmlinuz-$v /boot/vmlinuz-linux && mkinitcpio -p linux";
    let mut console = takes_a_newer_kernel(&guest, planned(&guest, dir.path(), &[]), scripts);
    let seen = console.ok("cat /proc/cmdline; pacman -Q; grep -m1 ' / ' /proc/mounts");
    for wanted in ["BOOT_IMAGE=/boot/vmlinuz-linux", "guestlift.kept=1", "mkinitcpio 1-1", " / xfs "] {
        assert!(seen.contains(wanted), "{wanted} is not in {seen}");
    }
    drop(console);

    // The same kernel as a package, which the guest's own pacman installs.
    let package = guest.cfg.with_file_name("linux.pkg.tar.zst");
    let by_package = dir.path().join("package");
    convert_with(&guest, &by_package, &["--kernel-package", &package.to_string_lossy()]);
    let seen = boots(&guest, outputs(&by_package, &guest.name)).ok("uname -r; pacman -Q linux; ls /var/tmp");
    assert!(seen.contains("-cloud-amd64") && seen.contains("linux 2-1") && !seen.contains("guestlift-kernel"), "{seen}");
}

/// No package database, no tool for initrds: virtio's modules are appended to the one that is there. grub.conf by hand, names as genkernel gives them,
/// a network that no other distribution configures so.
#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn a_system_that_its_owner_made() {
    let Some(guest) = recipe("gentoo") else { return };
    let dir = scratch();
    let disks = planned(&guest, dir.path(), &[]);
    let hardware = Hardware { disks, extra: None, agent: None, macs: vec![&guest.mac], writes: Writes::Discarded };
    let mut console = Console::start(&hardware);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, &guest);
    let old = console.ok("uname -r").trim().to_owned();
    // A kernel of one's own needs no more than its files.
    console.ok(&format!("cd /boot && cp kernel-{old} kernel-9{old} && cp initramfs-{old}.img initramfs-9{old}.img && sync"));
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, &guest);
    let started = console.ok("cat /proc/cmdline");
    assert!(started.contains(&format!("kernel-9{old}")) && started.contains("guestlift.kept=1"), "{started}");
}

/// sysvinit, a kernel for Xen only and another from a package, whose scripts build the initrd by modprobe.conf and add to grub.conf.
#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn red_hats_mkinitrd_and_grubby() {
    let Some(guest) = recipe("rhel5") else { return };
    let dir = scratch();
    let output = finish(v2v().arg(&guest.cfg).arg("-os").arg(dir.path()), None, CONVERSION);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("Get kernel (not kernel-xen) for CentOS release 5.11 (Final)"), "{message}");
    let rpm = guest.cfg.with_file_name("kernel.rpm");
    convert_with(&guest, dir.path(), &["--kernel-package", &rpm.to_string_lossy()]);
    let disks = outputs(dir.path(), &guest.name);
    check_outputs(&disks, dir.path());
    // Of a later kernel nobody but its package says which modules it needs.
    let mut console = takes_a_newer_kernel(&guest, disks, "/sbin/new-kernel-pkg --package kernel --mkinitrd --depmod --install $v");
    let seen = console.ok("rpm -q kernel; cat /proc/cmdline /etc/sysconfig/kernel; grep ^co: /etc/inittab");
    assert!(seen.contains("kernel-1-1") && seen.contains("guestlift.kept=1") && seen.contains("agetty ttyS0"), "{seen}");
}

/// The same release's successor: dracut, LVM and /boot of its own, grub.conf, and a name that udev's rules give by MAC address.
#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn red_hats_dracut_and_grub_legacy() {
    let Some(guest) = recipe("rhel6") else { return };
    let dir = scratch();
    let scripts = "/sbin/new-kernel-pkg --package kernel --mkinitrd --dracut --depmod --install $v";
    let mut console = takes_a_newer_kernel(&guest, planned(&guest, dir.path(), &[]), scripts);
    let seen = console.ok("cat /proc/cmdline; grep ^co: /etc/inittab");
    assert!(seen.contains("guestlift.kept=1") && seen.contains("agetty ttyS0") && !seen.contains("hvc0"), "{seen}");
}

/// btrfs with a default subvolume, dracut, and a menu whose paths begin there.
#[test]
#[ignore = "its initrd is built in translation, which takes minutes: make test-guests"]
fn opensuses_dracut_and_subvolumes() {
    let Some(guest) = recipe("leap") else { return };
    let dir = scratch();
    let scripts = "dracut /boot/initrd-$v $v && grub2-mkconfig -o /boot/grub2/grub.cfg";
    let mut console = takes_a_newer_kernel(&guest, planned(&guest, dir.path(), &[]), scripts);
    let seen = console.ok("cat /proc/cmdline; grep ' btrfs ' /proc/mounts");
    for wanted in ["guestlift.kept=1", "subvol=/@/.snapshots/1/snapshot 0", "subvol=/@/home 0"] {
        assert!(seen.contains(wanted), "{wanted} is not in {seen}");
    }
}

/// A fully virtual guest of a XenServer's: its own GRUB on a GPT, /boot beside a volume group, a swap file, cloud-init, netplan's enX0.
#[test]
#[ignore = "one of many guests, and CI has little time: make test-guests"]
fn ubuntus_installer_and_netplan() {
    let Some(guest) = recipe("ubuntu") else { return };
    let dir = scratch();
    let mut console = takes_a_newer_kernel(&guest, planned(&guest, dir.path(), &[]), DEBIANS_HOOKS);
    let seen = console.ok("cat /proc/cmdline; cloud-init status; networkctl --no-pager list | cat");
    assert!(seen.contains("guestlift.kept=1") && seen.contains("status: done") && seen.contains("enX0"), "{seen}");
}
