//! Firmware, the target's machine, and guests that are only copied.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::booted::{self, CONVERSION, healthy, scratch};
use crate::console::Console;
use crate::guest::{Guest, finish, guest, recipe, run, tool, v2v};

/// As [`booted::converted`], with a domain that libvirt takes.
fn converted(guest: &Guest, cfg: &Path, dir: &Path, options: &[&str]) -> Vec<PathBuf> {
    let disks = booted::converted(guest, cfg, dir, options);
    tool("virt-xml-validate", [dir.join(format!("{}.xml", guest.name)).as_os_str(), "domain".as_ref()]);
    disks
}

/// The result started by its own script, logged in and sound.
fn started(guest: &Guest, dir: &Path, arguments: &[&str]) -> Console {
    let mut console = Console::of_script(&dir.join(format!("{}-run.sh", guest.name)), arguments);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, guest);
    console
}

/// The guest's configuration, changed.
fn configured(guest: &Guest, dir: &Path, change: impl FnOnce(String) -> String) -> PathBuf {
    let cfg = dir.join("changed.cfg");
    std::fs::write(&cfg, change(std::fs::read_to_string(&guest.cfg).expect("the configuration")))
        .expect("the scratch folder can be written");
    cfg
}

#[test]
fn uefi_whose_loader_only_the_old_firmware_knew() {
    let Some(guest) = recipe("uefi") else { return };
    let dir = scratch();
    let disks = converted(&guest, &guest.cfg, dir.path(), &["--check-boot"]);
    let xml = std::fs::read_to_string(dir.path().join(format!("{}.xml", guest.name))).expect("the domain");
    assert!(xml.contains("<os firmware=\"efi\">") && xml.contains("-nvram.fd</nvram>"), "{xml}");
    let raw = dir.path().join("uefi.raw");
    tool("qemu-img", ["convert".as_ref(), "-O".as_ref(), "raw".as_ref(), disks[0].as_os_str(), raw.as_os_str()]);
    tool("mdir", ["-i", &format!("{}@@1M", raw.display()), "::/EFI/BOOT/BOOTX64.EFI"]);
    let mut console = started(&guest, dir.path(), &["-snapshot"]);
    assert_eq!(console.ok("ls -d /sys/firmware/efi").trim(), "/sys/firmware/efi");
    assert!(dir.path().join(format!("{}-vars.fd", guest.name)).exists(), "the firmware's memory lies beside the disk");
}

#[test]
#[ignore = "firmware and new kernels in translation take minutes: make test-guests"]
fn a_pvh_guest_is_made_to_start_by_uefi_and_takes_new_kernels() {
    let Some(guest) = guest("bookworm", "pygrub") else { return };
    let dir = scratch();
    let cfg = configured(&guest, dir.path(), |cfg| format!("{cfg}\ntype = 'pvh'\n"));
    let disks = converted(&guest, &cfg, dir.path(), &["--firmware", "uefi"]);
    let raw = dir.path().join("uefi.raw");
    tool("qemu-img", ["convert".as_ref(), "-O".as_ref(), "raw".as_ref(), disks[0].as_os_str(), raw.as_os_str()]);
    tool("sgdisk", ["--verify".as_ref(), raw.as_os_str()]);
    let mut console = started(&guest, dir.path(), &[]);
    assert_eq!(console.ok("ls -d /sys/firmware/efi").trim(), "/sys/firmware/efi");
    // As a package brings one: a newer kernel's files, and what its scripts call.
    console.ok("cd /boot; for f in vmlinuz initrd.img config; do cp $f-*-amd64 $f-99.0-new; done; ls");
    let (output, code) = console.run("update-grub", Duration::from_secs(300));
    assert_eq!(code, 0, "{output}");
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, &guest);
    let cmdline = console.ok("cat /proc/cmdline");
    assert!(cmdline.contains("vmlinuz-99.0-new"), "{cmdline}");
    console.power_off();
}

#[test]
fn a_fully_virtual_guest_keeps_its_boot_loader_and_gets_a_new_mac() {
    let Some(guest) = guest("bookworm", "grub2") else { return };
    let dir = scratch();
    let cfg = configured(&guest, dir.path(), |cfg| cfg.replace("bootloader = 'pygrub'", "type = 'hvm'"));
    let disks = converted(&guest, &cfg, dir.path(), &["--mac", "0=52:54:00:99:00:01", "--bridge", "br7"]);
    let head = dir.path().join("head");
    tool("qemu-img", ["dd", "-O", "raw", "bs=512", "count=1", &of("if", &disks[0]), &of("of", &head)]);
    let mut own = std::fs::read(&guest.disks[0]).expect("the source");
    own.truncate(512);
    assert!(std::fs::read(&head).expect("the first sector") == own, "the guest's own boot sector changed");
    let mut console = started(&guest, dir.path(), &["-snapshot"]);
    assert_eq!(console.ok("cat /sys/class/net/eth0/address").trim(), "52:54:00:99:00:01");
}

fn of(key: &str, file: &Path) -> String {
    format!("{key}={}", file.display())
}

#[test]
fn windows_is_copied_only_and_gets_hardware_that_it_knows() {
    let dir = scratch();
    let disk = dir.path().join("win.img");
    std::fs::File::create(&disk).and_then(|f| f.set_len(64 << 20)).expect("the scratch folder can be written");
    let script = dir.path().join("script");
    std::fs::write(&script, "run\npart-disk /dev/sda mbr\nmkfs ntfs /dev/sda1\nmount /dev/sda1 /\nmkdir /Windows\n")
        .expect("the scratch folder");
    let script = std::fs::File::open(&script).expect("the script");
    run(Command::new(env!("CARGO_BIN_EXE_virt")).args(["shell", "-a"]).arg(&disk), Some(script), CONVERSION);
    let cfg = dir.path().join("win.cfg");
    let text = format!(
        "name = 'win'\ntype = 'hvm'\nmemory = 512\ndisk = [ '{},raw,hda,rw' ]\nvif = [ 'mac=00:16:3e:00:00:07' ]\n",
        disk.display()
    );
    std::fs::write(&cfg, text).expect("the scratch folder can be written");

    let refused = finish(v2v().arg(&cfg).arg("-os").arg(dir.path().join("out")), None, CONVERSION);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(
        message.contains("win: this is Windows (hda partition 1 has NTFS with a folder Windows)") && message.contains("--copy-only"),
        "{message}"
    );

    let out = dir.path().join("out");
    let copied = run(v2v().arg("--copy-only").arg(&cfg).arg("-os").arg(&out), None, CONVERSION);
    let message = String::from_utf8_lossy(&copied.stderr).into_owned();
    assert!(message.contains("without virtio's drivers"), "{message}");
    tool("qemu-img", ["compare".as_ref(), disk.as_os_str(), out.join("win-vda.qcow2").as_os_str()]);
    tool("virt-xml-validate", [out.join("win.xml").as_os_str(), "domain".as_ref()]);
    let xml = std::fs::read_to_string(out.join("win.xml")).expect("the domain");
    for part in ["bus=\"ide\"", "<model type=\"e1000\"/>", "<clock offset=\"localtime\">"] {
        assert!(xml.contains(part), "{part} is missing:\n{xml}");
    }
    // QEMU takes such a machine, and stays until it is ended.
    let mut qemu = Command::new(out.join("win-run.sh"));
    let mut qemu =
        qemu.env("ACCEL", "tcg").args(["-snapshot", "-S"]).stdin(std::process::Stdio::null()).spawn().expect("the script starts");
    std::thread::sleep(Duration::from_secs(5));
    let ended = qemu.try_wait().expect("QEMU can be waited for");
    let _ = qemu.kill();
    let _ = qemu.wait();
    assert!(ended.is_none(), "QEMU ended: {ended:?}");
}
