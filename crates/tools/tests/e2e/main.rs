//! Real guests of xen-create-image, converted by the real programs and booted in QEMU: what a person does, with nothing replaced.

mod booted;
mod console;
mod guest;
mod mechanisms;
mod packages;
mod planned;
mod updated;
mod xen;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use booted::{CONVERSION, boots, convert, healthy, scratch};
use console::{Console, Hardware, Writes};
use guest::{Guest, check_outputs, finish, guest, outputs, run, sha256, top, v2v};

#[test]
fn bookworm_by_its_cfg_boots_twice_and_with_another_kernel() {
    let Some(guest) = guest("bookworm", "pygrub") else { return };
    let dir = scratch();
    let before = sha256(&guest.disks);
    convert(&guest.cfg, dir.path());
    assert_eq!(before, sha256(&guest.disks), "the source changed");
    let disks = outputs(dir.path(), &guest.name);
    assert_eq!(disks.len(), 1, "one bootable disk");
    for file in ["xml".into(), "run.sh".to_owned()] {
        let path = dir.path().join(format!("{}{}{file}", guest.name, if file == "xml" { "." } else { "-" }));
        assert!(path.exists(), "{} is missing", path.display());
    }
    check_outputs(&disks, dir.path());

    let deb = run(Command::new(top().join("scripts/fetch-deb")).args(["bookworm", "linux-image-cloud-amd64"]), None, CONVERSION);
    let deb = PathBuf::from(String::from_utf8(deb.stdout).expect("a path").trim());
    let size = deb.metadata().expect("the package is there").len();
    let version = deb.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("linux-image-")).expect("a kernel package");
    let version = version.split('_').next().expect("a version").to_owned();

    let hardware = Hardware { disks, extra: Some(&deb), agent: None, macs: vec![&guest.mac], writes: Writes::Kept };
    let mut console = Console::start(&hardware);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, &guest);
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, &guest);

    console.ok(&format!("head -c {size} /dev/vdb >/root/kernel.deb"));
    let (output, code) = console.run("DEBIAN_FRONTEND=noninteractive dpkg -i /root/kernel.deb", Duration::from_secs(600));
    // The package depends on nothing that matters here; dpkg configures it unless its hooks fail.
    assert_eq!(code, 0, "{output}");
    let menu = console.ok("cat /boot/grub/menu.lst /boot/grub/grub.cfg 2>/dev/null; true");
    assert!(menu.contains(&version), "the boot menu has no {version}:\n{menu}");
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, &guest);
    println!("after installing {version} the guest runs {}", console.ok("uname -r").trim());
    console.power_off();
    check_outputs(&hardware.disks, dir.path());
}

/// Wraps the guest's disks as an XVA, root first, as XenServer's positions 0 and 1.
fn mkxva(guest: &Guest, out: &Path, options: &[&str]) {
    let mut command = Command::new(top().join("scripts/mkxva"));
    command.args(["--name", &guest.name, "--nic", &guest.mac]).args(options).arg(out);
    // Chunks come in string order of the ids: Ref:10, the root, before Ref:2.
    for (disk, reference) in guest.disks.iter().zip([10, 2]) {
        command.arg(format!("{},ref={reference}", disk.display()));
    }
    run(&mut command, None, CONVERSION);
}

#[test]
fn trixie_as_a_modern_xva_over_stdin() {
    let Some(guest) = guest("trixie", "pygrub") else { return };
    let dir = scratch();
    let xva = dir.path().join("guest.xva");
    mkxva(&guest, &xva, &["--keep-alive", "7", "--checksum", "xxhash"]);
    let out = dir.path().join("out");
    let stdin = File::open(&xva).expect("the XVA was written");
    std::fs::remove_file(&xva).expect("the XVA can be unlinked while it is open");
    run(v2v().args(["--from", "xen", "--to", "kvm", "-", "-os"]).arg(&out), Some(stdin), CONVERSION);
    let disks = outputs(&out, &guest.name);
    check_outputs(&disks, dir.path());
    let mut console = boots(&guest, disks);
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, &guest);
}

#[test]
fn bullseye_as_a_legacy_xva_directory() {
    let Some(guest) = guest("bullseye", "pygrub") else { return };
    let dir = scratch();
    let xva = dir.path().join("guest.xva");
    mkxva(&guest, &xva, &["--legacy", "dir"]);
    let out = dir.path().join("out");
    // The old form has no MAC addresses that a guest keeps: nothing is said of eth0's.
    convert(&xva, &out);
    let disks = outputs(&out, &guest.name);
    check_outputs(&disks, dir.path());
    // Customized before its first start: a new name, password and key, and something left for it to do.
    let key = dir.path().join("key.pub");
    std::fs::write(&key, "ssh-ed25519 AAAAC3 somebody\n").expect("the key can be written");
    let mut customize = Command::new(env!("CARGO_BIN_EXE_virt"));
    customize.args(["customize", "--hostname", "customized", "--root-password", "password:new secret", "--firstboot-command"]);
    customize.arg("echo ran > /root/first").arg("--ssh-inject").arg(format!("root:file:{}", key.display())).arg("-a").arg(&disks[0]);
    run(&mut customize, None, CONVERSION);
    check_outputs(&disks, dir.path());
    let guest = Guest { name: "customized".into(), password: "new secret".into(), ..guest };
    let mut console = boots(&guest, disks);
    let seen = console.ok("cat /root/first /root/.ssh/authorized_keys; stat -c %a /root/.ssh; hostname");
    assert_eq!(seen.trim().lines().collect::<Vec<_>>(), ["ran", "ssh-ed25519 AAAAC3 somebody", "700", "customized"]);
}

#[test]
fn a_guest_without_a_kernel_by_keyed_and_phy_disks() {
    let Some(guest) = guest("bookworm", "hostkernel") else { return };
    let dir = scratch();
    let cfg = std::fs::read_to_string(&guest.cfg).expect("the configuration");
    let (before, after) = cfg.split_once("disk        = [").expect("xen-create-image's cfg");
    let (_, after) = after.split_once(']').expect("the end of the list");
    let (root, swap) = (guest.disks[0].display(), guest.disks[1].display());
    let cfg_path = dir.path().join("keyed.cfg");
    let disks = format!("disk = [ 'phy:{swap},xvda1,w', 'format=raw, vdev=xvda2, access=rw, target={root}' ]");
    std::fs::write(&cfg_path, format!("{before}{disks}{after}")).expect("the scratch directory can be written");
    let out = dir.path().join("out");
    convert(&cfg_path, &out);
    let disks = outputs(&out, &guest.name);
    check_outputs(&disks, dir.path());
    boots(&guest, disks);
}

#[test]
fn a_whole_disk_filesystem() {
    let Some(guest) = guest("bookworm", "wholedisk") else { return };
    let dir = scratch();
    convert(&guest.cfg, dir.path());
    let disks = outputs(dir.path(), &guest.name);
    check_outputs(&disks, dir.path());
    boots(&guest, disks);
}

#[test]
fn a_partitioned_disk_without_a_boot_sector() {
    let Some(guest) = guest("bookworm", "partitioned") else { return };
    let dir = scratch();
    convert(&guest.cfg, dir.path());
    let disks = outputs(dir.path(), &guest.name);
    check_outputs(&disks, dir.path());

    // Its root larger, its swap elsewhere, and all that is free given back: it starts as before.
    let larger = dir.path().join("larger.qcow2");
    let virt = || Command::new(env!("CARGO_BIN_EXE_virt"));
    let size = ["resize", "-q", "--size", "+1G", "--expand", "/dev/sda1", "--output-format", "qcow2"];
    run(virt().args(size).arg(&disks[0]).arg(&larger), None, CONVERSION);
    run(virt().args(["sparsify", "-q", "--in-place"]).arg(&larger), None, CONVERSION);
    check_outputs(std::slice::from_ref(&larger), dir.path());
    let mut console = boots(&guest, vec![larger]);
    let size = console.ok("df --output=size -m / | tail -1");
    assert!(size.trim().parse::<u64>().is_ok_and(|mib| mib > 2800), "the root has {size} MiB");
}

#[test]
fn plans_name_what_conversions_change() {
    for (suite, variant) in [("bookworm", "hostkernel"), ("bookworm", "wholedisk"), ("bookworm", "partitioned"), ("trixie", "pygrub")] {
        let Some(guest) = guest(suite, variant) else { continue };
        let dir = scratch();
        convert(&guest.cfg, dir.path());
        planned::as_planned(&guest, &[], &outputs(dir.path(), &guest.name));
    }
}

#[test]
fn a_dirty_journal_is_replayed() {
    let Some(guest) = guest("bookworm", "dirty") else { return };
    let dir = scratch();
    let before = sha256(&guest.disks);
    convert(&guest.cfg, dir.path());
    assert_eq!(before, sha256(&guest.disks), "the source changed");
    let disks = outputs(dir.path(), &guest.name);
    check_outputs(&disks, dir.path());
    let mut console = boots(&guest, disks);
    assert_eq!(console.ok("cat /etc/motd").trim(), "written late");
    assert_eq!(console.ok("ls /var/lib/late | wc -l").trim(), "199");
    assert_eq!(console.ok("cat /var/lib/late/file-200").trim(), "line 200");
}

#[test]
fn a_killed_conversion_leaves_nothing_whole() {
    let Some(guest) = guest("bookworm", "pygrub") else { return };
    let dir = scratch();
    let whole = dir.path().join("whole");
    let started = std::time::Instant::now();
    convert(&guest.cfg, &whole);
    let full = started.elapsed();
    // At moments from the beginning to the end, wherever that falls on a busy machine.
    let mut killed = None;
    for tenth in 1..10 {
        let out = dir.path().join(format!("out-{tenth}"));
        let mut child =
            v2v().args(["--quiet", "--from", "xen", "--to", "kvm"]).arg(&guest.cfg).arg("-os").arg(&out).spawn().expect("v2v starts");
        std::thread::sleep(full * tenth / 10);
        let ended = child.try_wait().expect("v2v can be waited for");
        let _ = child.kill();
        let _ = child.wait();
        if out.join(format!("{}.xml", guest.name)).exists() {
            // The signal came after its last file: that marks a whole result.
            let disks = outputs(&out, &guest.name);
            assert_eq!(disks.len(), 1, "killed at {tenth}0 %");
            check_outputs(&disks, dir.path());
        } else if ended.is_none() {
            killed = Some(out);
        }
    }
    // The next run is not disturbed by what was left, and leaves nothing of it.
    let out = killed.expect("a conversion was killed while it ran");
    convert(&guest.cfg, &out);
    assert_eq!(outputs(&out, &guest.name).len(), 1);
    let names: Vec<_> = std::fs::read_dir(&out).expect("the output").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(names.len(), 3, "a disk, an XML and a script, and nothing else: {names:?}");
}

#[test]
fn broken_sources_are_clear_errors() {
    let dir = scratch();
    let write = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("the scratch directory can be written");
        path
    };
    let zeroes = vec![0; 4 << 20];
    let empty_disk = write("zero.img", &zeroes);
    let mut cut = b"QFI\xfb\0\0\0\x03".to_vec();
    cut.resize(60, 0xff);
    let cut_qcow2 = write("cut.qcow2", &cut);
    let mut huge = vec![0; 64 << 10];
    huge[0x438] = 0x53;
    huge[0x439] = 0xef;
    huge[0x404..0x438].fill(0xff);
    let bad_ext4 = write("bad.ext4", &huge);
    let cfg = |disk: &Path| format!("name = 'x'\nbootloader = 'pygrub'\nmemory = 64\ndisk = [ 'file:{},xvda2,w' ]\n", disk.display());
    let cases = [
        write("zero.cfg", cfg(&empty_disk).as_bytes()),
        write("cut.cfg", cfg(&cut_qcow2).as_bytes()),
        write("ext4.cfg", cfg(&bad_ext4).as_bytes()),
        write("absent.cfg", cfg(&dir.path().join("absent.img")).as_bytes()),
        write("syntax.cfg", b"name = 'x\ndisk = [ 'a,b', \n"),
        write("not-an.xva", &[zeroes.as_slice(), b"rubbish"].concat()),
        dir.path().join("no-such-file.cfg"),
    ];
    for source in cases {
        let out = dir.path().join("out");
        let output = finish(v2v().args(["--from", "xen", "--to", "kvm"]).arg(&source).arg("-os").arg(&out), None, Duration::from_secs(60));
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{}: {message}", source.display());
        assert!(!message.contains("panicked"), "{}: {message}", source.display());
        assert!(message.len() > 20, "{}: says nothing", source.display());
        let left = std::fs::read_dir(&out).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{}: left something in the output directory", source.display());
    }
}

#[test]
fn the_boot_check_says_where_a_disk_stops() {
    use std::sync::Arc;

    use imgcore::{Overlay, raw::Raw, storage::FileStorage};

    let check = |disk: &Path, patience| {
        let base = Arc::new(Raw::open(Arc::new(FileStorage::open(disk).expect("the disk opens"))).expect("raw"));
        let spec = guestfs::machine::MachineSpec {
            memory_mib: 512,
            vcpus: 1,
            disks: vec![Arc::new(Overlay::in_memory(base))],
            macs: vec!["00:16:3e:77:00:10".into()],
            uefi: false,
            emulated: false,
        };
        let mut console = Vec::new();
        let runner = guestfs_appliance::Appliance::new();
        let report = ::v2v::bootcheck::check(&runner, &spec, patience, &mut |bytes| console.extend_from_slice(bytes)).expect("QEMU starts");
        (report, String::from_utf8_lossy(&console).into_owned())
    };
    use ::v2v::bootcheck::Stage;

    // The source as it is: no boot sector at all.
    let Some(source) = guest("bookworm", "partitioned") else { return };
    let (report, console) = check(&source.disks[0], Duration::from_secs(120));
    assert!(!report.booted && report.stage == Stage::Firmware, "{report:?}\n{console}");
    // With a boot loader, but root= names a device of Xen.
    let Some(source) = guest("bookworm", "grub2") else { return };
    let (report, console) = check(&source.disks[0], Duration::from_secs(180));
    assert!(!report.booted, "{report:?}\n{console}");
    assert!(report.stage >= Stage::BootLoader, "{report:?}\n{console}");
}
