//! Disks that GRUB was put on, started by a BIOS.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use guestfs::{Ext, FileType, GuestFs};
use imgcore::raw::Raw;
use imgcore::storage::MemStorage;
use imgcore::{Image, ImageMut, NoProgress, copy};

use super::{BootPlace, Configured, Grub, Menu, check_readable, install_files, order, starts_by_itself};
use crate::disk_build;
use crate::source::{Boot, Source, SourceDisk};
use crate::testing::MemFs;

const MIB: u64 = 1 << 20;
const UUID: &str = "11111111-2222-4333-8444-555555555555";
/// An image that is known not to start.
const UNFIT: &str = "/boot/vmlinuz-7.1.0-1-custom";

fn can_run() -> bool {
    let missing: Vec<_> = ["qemu-system-x86_64", "mke2fs", "grub-mkimage"]
        .into_iter()
        .filter(|tool| Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err())
        .collect();
    let reason = if missing.is_empty() { Grub::find(None).err().map(|e| e.to_string()) } else { Some(format!("{missing:?} are missing")) };
    if let Some(reason) = &reason {
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
    }
    reason.is_none()
}

/// Copies a tree in memory to the host.
fn write_tree(fs: &MemFs, from: &[u8], to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in fs.read_dir(from).unwrap() {
        let path = [from, &entry.name].concat();
        let host = to.join(String::from_utf8(entry.name).unwrap());
        match entry.kind {
            FileType::Directory => write_tree(fs, &[&path[..], b"/"].concat(), &host),
            _ => std::fs::write(host, fs.read(&path, 64 * MIB).unwrap()).unwrap(),
        }
    }
}

/// A filesystem with this tree, of as many bytes.
fn filesystem(fs: &MemFs, mke2fs: &[&str], size: u64) -> Arc<dyn Image> {
    let folder = tempfile::tempdir().unwrap();
    let (tree, file) = (folder.path().join("tree"), folder.path().join("img"));
    write_tree(fs, b"/", &tree);
    std::fs::File::create(&file).unwrap().set_len(size).unwrap();
    let status = Command::new("mke2fs").args(["-q", "-F", "-U", UUID]).args(mke2fs).arg("-d").arg(&tree).arg(&file).status().unwrap();
    assert!(status.success());
    let raw = Raw::create(Arc::new(MemStorage::new("memory", 0)), size).unwrap();
    raw.write_at(&std::fs::read(&file).unwrap(), 0).unwrap();
    Arc::new(raw)
}

fn source(target: &str, image: Arc<dyn Image>) -> Source {
    let disk = SourceDisk {
        target: target.into(),
        size: image.size(),
        image: Some(image),
        read_only: false,
        bootable: true,
        origin: "test".into(),
    };
    Source {
        name: "guest".into(),
        uuid: None,
        description: String::new(),
        memory_mib: 512,
        vcpus: 1,
        boot: Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false },
        disks: vec![disk],
        nics: Vec::new(),
        local_time: false,
        policy: Default::default(),
        warnings: Vec::new(),
        origin: "test".into(),
    }
}

/// Makes a disk of a guest's tree whose root was `target` on Xen.
fn made(mut fs: MemFs, target: &str, mke2fs: &[&str], expected: Configured) -> Raw {
    let grub = Grub::find(None).unwrap();
    // The layout follows from an image that is the same but for GRUB's files.
    let source_of = |fs: &MemFs| source(target, filesystem(fs, mke2fs, 16 * MIB));
    let layout = disk_build::compute(&source_of(&fs), &disk_build::examine(&source_of(&fs)).unwrap(), &Default::default()).unwrap();
    let disk = &layout.disks[0];
    let place = BootPlace::new(&layout, &disk.volumes[0], "/boot".into()).unwrap();
    let root = format!("UUID={UUID}");
    let menu_lst = (expected == Configured::MenuLst).then_some("menu.lst");
    let unfit = [UNFIT.to_string()];
    let menu = Menu { root: &root, options: "quiet console=ttyS0", kernel: None, unfit: &unfit, syslinux: None, menu_lst };
    let configured = install_files(&mut fs, &grub, &place, &menu).unwrap();
    assert_eq!(configured, expected);

    let target = Raw::create(Arc::new(MemStorage::new("disk", 0)), disk.size).unwrap();
    disk_build::build(&source_of(&fs), disk, &target, &copy::Options::default(), &NoProgress).unwrap();
    assert_eq!(starts_by_itself(&target).unwrap(), None);
    let before = imgcore::partition::read(&target).unwrap();
    grub.embed(&target, &place).unwrap();
    assert_eq!(imgcore::partition::read(&target).unwrap(), before);
    assert_eq!(starts_by_itself(&target).unwrap(), Some("GRUB 2"));
    target
}

/// Starts a disk and waits until `words` are on its serial line; what came until then.
fn boot(disk: &Raw, words: &str) -> String {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-M", "pc", "-m", "128", "-nographic", "-no-reboot", "-net", "none", "-drive"])
        .arg(format!("file={},if=virtio,format=raw", file.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut console = qemu.stdout.take().unwrap();
    let (send, receive) = channel();
    let reader = std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = console.read(&mut chunk) {
            if send.send(chunk[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(words) {
        match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => seen.extend(bytes),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    drop(receive);
    reader.join().unwrap();
    String::from_utf8_lossy(&seen).into_owned()
}

fn root() -> MemFs {
    MemFs::new().file("/etc/fstab", "").file("/etc/hosts", "").file("/bin/true", "")
}

#[test]
fn a_guest_without_a_boot_loader_starts_its_newest_kernel() {
    if !can_run() {
        return;
    }
    let kernels =
        ["6.1.0-9-amd64", "6.1.0-13-amd64", "5.10.0-30-amd64", "6.1.0-50-xen", "6.1.0-13-amd64.old", "2.6.26-2-amd64", "7.0.0-1-amd64"];
    let mut fs = root();
    for kernel in kernels {
        fs = fs.file(&format!("/boot/vmlinuz-{kernel}"), "no kernel");
        // The newest of all has no initrd, and is not chosen for that.
        if !kernel.starts_with('7') {
            fs = fs.file(&format!("/boot/initrd.img-{kernel}"), "no initrd");
        }
    }
    // As Gentoo's genkernel calls them, and with a release that is as long as Red Hat's.
    for release in ["6.1.0-14.9.2", "6.1.0-14.10.1", "6.1.0-14.10"] {
        for (name, text) in [("kernel", "no kernel"), ("initramfs", "no initrd")] {
            fs = fs.file(&format!("/boot/{name}-genkernel-x86_64-{release}.el9_4"), text);
        }
    }
    // Newer, and passed over.
    for release in ["2.6.26-2-xen-amd64", "6.1.0-70.el9.x86_64+debug", "6.1.0-70-amd64-dbg", "8.2.6.18-6-xen-686"] {
        for name in ["vmlinuz", "initrd.img"] {
            fs = fs.file(&format!("/boot/{name}-{release}"), "x");
        }
    }
    fs = fs.file(UNFIT, "x").file(&UNFIT.replace("vmlinuz", "initrd.img"), "x");
    let newest = "/boot/kernel-genkernel-x86_64-6.1.0-14.10.1.el9_4";
    assert_eq!(order::first(&fs, None, &[UNFIT.to_string()]).as_deref(), Some(newest));
    let disk = made(fs, "xvda2", &["-t", "ext4"], Configured::FindsKernels);
    let wanted = format!("Loading {newest} ...");
    let wanted = wanted.as_str();
    let console = boot(&disk, wanted);
    assert!(console.contains(wanted) && !console.contains("error:"), "{console}");
}

#[test]
fn a_guest_with_a_menu_lst_gets_its_menu() {
    if !can_run() {
        return;
    }
    let menu = "default 1\ntimeout 30\n\ntitle First entry\nroot (hd0,0)\nkernel /boot/vmlinuz-1 root=/dev/vda1 ro\n\ntitle Second entry\nroot (hd0,0)\nkernel /boot/vmlinuz-2\n";
    let disk = made(root().file("/boot/grub/menu.lst", menu), "xvda", &["-t", "ext3"], Configured::MenuLst);
    let console = boot(&disk, "Second entry");
    assert!(console.contains("First entry") && console.contains("Second entry"), "{console}");
}

#[test]
fn a_guest_with_a_grub_cfg_keeps_it_and_a_gpt_starts_too() {
    if !can_run() {
        return;
    }
    let cfg = "serial\nterminal_output serial\nmenuentry none { true }\necho The guest speaks from $root.\nsleep 100\n";
    let disk = made(root().file("/boot/grub/grub.cfg", cfg), "xvda7", &["-t", "ext4"], Configured::GrubCfg);
    assert!(matches!(imgcore::partition::read(&disk).unwrap().unwrap().kind, imgcore::partition::TableKind::Gpt));
    let console = boot(&disk, "The guest speaks from hd0,gpt7.");
    assert!(console.contains("The guest speaks from hd0,gpt7."), "{console}");
}

#[test]
fn missing_grub_is_told_with_its_package() {
    let message = Grub::find(Some(Path::new("/nowhere"))).unwrap_err().to_string();
    assert!(message.contains("install the package grub-pc-bin"), "{message}");
}

#[test]
fn disks_that_no_bios_starts_are_told_from_those_that_it_does() {
    let disk = |pieces: &[(u64, &[u8])]| {
        let raw = Raw::create(Arc::new(MemStorage::new("disk", 0)), 4 * MIB).unwrap();
        let partition = imgcore::partition::NewPartition {
            number: 1,
            start: MIB,
            len: MIB,
            purpose: imgcore::partition::Purpose::Linux,
            bootable: true,
            guid: Default::default(),
        };
        imgcore::partition::write_mbr(&raw, 1, &[partition]).unwrap();
        for (offset, bytes) in pieces {
            raw.write_at(bytes, *offset).unwrap();
        }
        raw
    };
    let words = b"GRUB \0Geom\0Hard Disk\0Read\0 Error";
    let legacy = [(0x3e, &[3, 2][..]), (0x44, &[1, 0, 0, 0]), (0x180, words)];
    let mbr = [(0x100, &b"Missing operating system"[..])];
    type Pieces<'a> = Vec<(u64, &'a [u8])>;
    let cases: [(Pieces<'_>, Option<&str>); 7] = [
        (vec![], None),
        (legacy.to_vec(), None),
        ([&legacy[..], &[(512, &[1])]].concat(), Some("GRUB legacy")),
        // A boot sector of GRUB 2 whose core image was never there, or is beyond the end.
        (vec![(0x5c, &[1]), (0x180, words)], None),
        (vec![(0x5c, &[0xff; 8]), (0x180, words)], None),
        (mbr.to_vec(), None),
        ([&mbr[..], &[(MIB, &[0xeb, 0x3c, 0x90]), (MIB + 510, &[0x55, 0xaa])]].concat(), Some("the active partition's")),
    ];
    for (number, (pieces, expected)) in cases.into_iter().enumerate() {
        assert_eq!(starts_by_itself(&disk(&pieces)).unwrap(), expected, "case {number}");
    }
}

#[test]
fn no_room_is_an_error_that_changes_nothing() {
    if !can_run() {
        return;
    }
    let raw = Raw::create(Arc::new(MemStorage::new("disk", 0)), 4 * MIB).unwrap();
    let mut partition = imgcore::partition::NewPartition {
        number: 1,
        start: 16 * 512,
        len: MIB,
        purpose: imgcore::partition::Purpose::Linux,
        bootable: true,
        guid: Default::default(),
    };
    imgcore::partition::write_mbr(&raw, 1, &[partition.clone()]).unwrap();
    let place = BootPlace {
        disk: 0,
        partition: Some(1),
        layers: Vec::new(),
        filesystem: "ext4".into(),
        uuid: Some(UUID.into()),
        boot_dir: "/boot".into(),
    };
    let message = Grub::find(None).unwrap().embed(&raw, &place).unwrap_err().to_string();
    assert!(message.starts_with("no room for GRUB"), "{message}");
    let mut sector = [0; 440];
    raw.read_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [0; 440]);

    // The 62 sectors of old disks are enough.
    partition.start = 63 * 512;
    imgcore::partition::write_mbr(&raw, 1, &[partition]).unwrap();
    Grub::find(None).unwrap().embed(&raw, &place).unwrap();
    assert_eq!(starts_by_itself(&raw).unwrap(), Some("GRUB 2"));
    let place = BootPlace { filesystem: "zfs_member".into(), ..place };
    assert!(Grub::find(None).unwrap().embed(&raw, &place).is_err());
}

#[test]
fn what_grub_cannot_read_is_told() {
    let missing = ["mke2fs", "grub-fstest"].into_iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    if let Some(missing) = missing {
        assert!(std::env::var_os("CI").is_none(), "{missing} is missing");
        eprintln!("skipped: {missing} is missing");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (tree, file) = (folder.path().join("tree"), folder.path().join("img"));
    write_tree(&MemFs::new().file("/boot/x", "hello"), b"/", &tree);
    let features = [
        "^has_journal",
        "metadata_csum_seed",
        "orphan_file",
        "large_dir",
        "verity",
        "mmp",
        "quota,project",
        "inline_data",
        "casefold",
        "ea_inode",
        "bigalloc",
    ];
    let mut told = Vec::new();
    for feature in features {
        std::fs::File::create(&file).unwrap().set_len(32 * MIB).unwrap();
        let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-O", feature, "-d"]).arg(&tree).arg(&file).output().unwrap();
        // An older mke2fs does not know the newest of them.
        if !made.status.success() {
            continue;
        }
        let grub = Command::new("grub-fstest").arg(&file).args(["cat", "/boot/x"]).output().unwrap();
        let raw = Raw::open(Arc::new(imgcore::storage::FileStorage::open(&file).unwrap())).unwrap();
        let verdict = check_readable(&raw, 0);
        assert!(grub.stdout.starts_with(b"hello") || verdict.is_err(), "GRUB cannot read {feature}");
        if let Err(error) = verdict {
            assert!(error.to_string().contains(&format!("'{feature}'")), "{error}");
            told.push(feature);
        }
    }
    assert_eq!(told, ["inline_data", "casefold", "ea_inode", "bigalloc"]);
}
