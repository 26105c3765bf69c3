//! Every case that an XVA reader must pass, against archives of `scripts/mkxva`.

mod common;

use std::process::Command;

use common::{MIB, Scene, check, disk, extents, stream};
use imgcore::ExtentKind;
use xva::{Boot, Options, Role, Xva};

/// Two disks whose string order is not their order in `ova.xml`: one with a short tail, one of whole chunks.
fn two_disks() -> Scene {
    Scene::new(&[(disk(1, 5 * MIB + 300_000, MIB), ",ref=10,device=xvda2"), (disk(2, 4 * MIB, MIB), ",ref=2,device=xvda1,ro")])
}

#[test]
fn every_form_gives_the_same_disks() {
    let scene = two_disks();
    let expected = [("Ref:10", &scene.disks[0][..]), ("Ref:2", &scene.disks[1][..])];
    for (i, options) in [
        "",
        "--checksum xxhash --keep-alive 2",
        "--checksum none",
        "--keep-alive 1 --keep-zero",
        "--tail padded --checksum xxhash",
        "--pretty --typed",
        "--tar ustar --dangling --cd",
        "--tar pax --checksum xxhash",
        "--tar gnu --keep-alive 3 --tail padded",
        "--export-vsn 0",
        "--export-vsn 1",
        "--compress gzip --keep-alive 2",
        "--chunk 65536 --checksum xxhash",
    ]
    .iter()
    .enumerate()
    {
        eprintln!("mkxva {options}");
        let path = scene.make(&format!("{i}.xva"), options);
        let xva = check(&path, &Options::default(), &expected);
        assert_eq!(xva.appliance().disks.len(), 2, "a CD is no disk");
        let drives: Vec<_> = xva.appliance().vms[0].drives.iter().map(|d| (d.device.as_str(), d.bootable, d.read_only)).collect();
        assert_eq!(drives, [("xvda1", false, true), ("xvda2", true, false)]);
        assert_eq!(xva.appliance().warnings.is_empty(), *options != "--checksum none");
        if options.contains("gzip") {
            let spooled = Options { spool: Some(scene.dir.path().into()) };
            check(&path, &spooled, &expected);
        }
    }
    let folder = scene.make("folder", "--extracted --checksum xxhash --keep-alive 2");
    assert_eq!(check(&folder, &Options::default(), &expected).wrapping(), "folder");
}

#[test]
fn zstd_streams_and_spools() {
    let scene = two_disks();
    let path = scene.make("z.xva", "--compress zstd");
    let e = Xva::open(&path, &Options::default()).err().unwrap().to_string();
    assert!(e.contains("--spool DIR"), "{e}");
    check(&path, &Options { spool: Some(scene.dir.path().into()) }, &[("Ref:10", &scene.disks[0]), ("Ref:2", &scene.disks[1])]);
    let e = Xva::open(&path, &Options { spool: Some("/nonexistent".into()) }).err().unwrap().to_string();
    assert!(e.starts_with("/nonexistent: cannot spool into"), "{e}");
}

#[test]
fn chunks_left_out_are_zero_extents_and_nothing_else_is() {
    let scene = two_disks();
    let xva = Xva::open(scene.make("x.xva", "--keep-alive 3"), &Options::default()).unwrap();
    let m = MIB as u64;
    use ExtentKind::{Data, Zero};
    let found = extents(&*xva.disk_by_id("Ref:10").unwrap());
    assert_eq!(found, [(0, m, Data), (m, 2 * m, Zero), (3 * m, m, Data), (4 * m, m, Data), (5 * m, 300_000, Data)]);
    let mut offsets = Vec::new();
    let image = xva.disk_by_id("Ref:10").unwrap();
    let file = std::fs::read(scene.path("x.xva")).unwrap();
    image
        .extents(100..4 * m + 5, &mut |e| {
            if let Some(at) = e.host_offset {
                assert_eq!(file[at as usize..][..e.len as usize], scene.disks[0][e.start as usize..][..e.len as usize]);
                offsets.push(e.start);
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(offsets, [100, 3 * m, 4 * m]);
}

#[test]
fn a_wrong_checksum_names_entry_and_offset() {
    let scene = two_disks();
    for (options, bad, entry, at) in [
        ("", 2, "Ref:10/00000004", 4 * MIB),
        ("--checksum xxhash", 1, "Ref:10/00000003", 3 * MIB),
        ("--checksum xxhash --compress gzip", 1, "Ref:10/00000003", 3 * MIB),
        ("--export-vsn 0", 1, "Ref:10/00000003", 3 * MIB),
    ] {
        let path = scene.make("bad.xva", &format!("{options} --bad-checksum {bad}"));
        let streamed = stream(&std::fs::read(&path).unwrap()).unwrap_err().to_string();
        assert!(streamed.contains("wrong checksum") && streamed.contains(entry), "{streamed}");
        let xva = Xva::open(&path, &Options::default()).unwrap();
        let image = xva.disk_by_id("Ref:10").unwrap();
        let e = image.read_at(&mut [0; 10], at as u64 + 5).unwrap_err().to_string();
        assert!(e.contains("bad.xva") && e.contains("wrong checksum") && e.contains(entry) && e.contains(&format!("byte {at} ")), "{e}");
        assert!(options.contains("gzip") || e.contains("at offset 0x"), "{e}");
        // Other chunks are sound; the disk as a whole is not.
        image.read_at(&mut [0; 10], 0).unwrap();
        assert!(xva.verify(&imgcore::NoProgress).unwrap_err().to_string().contains(entry));
    }
    let path = scene.make("missing.xva", "--missing-checksum 1");
    for e in [stream(&std::fs::read(&path).unwrap()).unwrap_err(), Xva::open(&path, &Options::default()).unwrap().disk(0).err().unwrap()] {
        assert!(e.to_string().contains("00000003 has no checksum"), "{e}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let scene = two_disks();
    for (options, what) in [("--drop-last", "truncated: its chunks end with"), ("--metadata-only", "metadata only")] {
        let path = scene.make("short.xva", options);
        let e = stream(&std::fs::read(&path).unwrap()).unwrap_err().to_string();
        assert!(e.contains(what), "{e}");
        let xva = Xva::open(&path, &Options::default()).unwrap();
        let e = xva.disk_by_id("Ref:10").err().unwrap().to_string();
        assert!(e.contains(what), "{e}");
    }
    let e = Xva::open(scene.make("cut.xva", "--truncate 2000000"), &Options::default()).err().unwrap().to_string();
    assert!(e.contains("truncated: the archive stops here"), "{e}");
    let e = Xva::open(scene.make("cut.gz", "--truncate 200000 --compress gzip"), &Options::default()).err().unwrap().to_string();
    assert!(e.contains("truncated"), "{e}");
    let xva = Xva::open(scene.make("whole.xva", ""), &Options::default()).unwrap();
    let e = xva.disk_by_id("Ref:3").err().unwrap().to_string();
    assert!(e.ends_with("holds no disk 'Ref:3'; it has Ref:10, Ref:2"), "{e}");
}

#[test]
fn machines_are_described() {
    let scene = two_disks();
    let vm = |options: &str| Xva::open(scene.make("m.xva", options), &Options::default()).unwrap().appliance().clone();
    let a = vm("--name web --memory 768 --vcpus 3 --nic 00:16:3E:00:00:01,bridge=xenbr7,network=lan --nic 00:16:3e:00:00:02 --args quiet");
    let m = &a.vms[0];
    assert_eq!((m.name.as_str(), m.memory, m.vcpus, a.product.as_str()), ("web", 768 << 20, 3, "XCP-ng 8.2.0"));
    assert_eq!((m.nics[0].mac.as_str(), m.nics[0].bridge.as_str(), m.nics[0].network.as_str()), ("00:16:3E:00:00:01", "xenbr7", "lan"));
    assert_eq!(m.nics.len(), 2);
    let pv = |bootloader: Option<&str>, kernel: Option<&str>, ramdisk: Option<&str>, args: &str| Boot::Pv {
        bootloader: bootloader.map(Into::into),
        kernel: kernel.map(Into::into),
        ramdisk: ramdisk.map(Into::into),
        args: args.into(),
        pvh: false,
    };
    assert_eq!(m.boot, pv(Some("pygrub"), None, None, "quiet"));
    for options in ["", "--no-domain-type"] {
        let a = vm(&format!("{options} --boot kernel --kernel /boot/vmlinuz --ramdisk /boot/initrd"));
        assert_eq!(a.vms[0].boot, pv(None, Some("/boot/vmlinuz"), Some("/boot/initrd"), ""));
        assert_eq!(a.vms[0].dom0_files(), ["/boot/vmlinuz", "/boot/initrd"]);
        assert_eq!(vm(&format!("{options} --boot hvm")).vms[0].boot, Boot::Hvm { uefi: false, secure_boot: false });
        assert_eq!(vm(&format!("{options} --boot uefi")).vms[0].boot, Boot::Hvm { uefi: true, secure_boot: false });
    }
    assert!(vm("--template").vms[0].template);
    assert!(vm("--snapshot").main_vms()[0].snapshot);
}

#[test]
fn the_memory_of_a_suspended_machine_is_no_disk() {
    let scene = two_disks();
    let memory = scene.path("memory");
    std::fs::write(&memory, disk(3, 2 * MIB + 17, MIB)).unwrap();
    for id in [1, 9999] {
        let path = scene.make("s.xva", &format!("--suspend {},ref={id}", memory.display()));
        let xva = check(&path, &Options::default(), &[("Ref:10", &scene.disks[0]), ("Ref:2", &scene.disks[1])]);
        assert!(xva.appliance().vms[0].suspended);
        assert_eq!(xva.appliance().vms[0].drives.len(), 2);
        assert_eq!(xva.appliance().disks.iter().filter(|d| d.role == Role::Suspend).count(), 1);
    }
}

#[test]
fn legacy_folders_and_archives() {
    let scene = Scene::new(&[(disk(1, 5 * MIB + 300_000, MIB), ",device=xvda"), (disk(2, 4 * MIB, MIB), ",device=xvdb,ro")]);
    let expected = [("xvda", &scene.disks[0][..]), ("xvdb", &scene.disks[1][..])];
    for (i, options) in
        ["", "--legacy-chunk 1000000", "--legacy-chunk 1500000 --no-dash", "--tar ustar", "--compress gzip --legacy-chunk 2000000"]
            .iter()
            .enumerate()
    {
        if !options.contains("--compress") {
            check(&scene.make(&format!("{i}.d"), &format!("--legacy dir {options}")), &Options::default(), &expected);
        }
        let xva = check(&scene.make(&format!("{i}.xva"), &format!("--legacy tar {options}")), &Options::default(), &expected);
        let vm = &xva.appliance().vms[0];
        assert_eq!(
            vm.drives.iter().map(|d| (d.device.as_str(), d.bootable, d.read_only)).collect::<Vec<_>>(),
            [("xvda", true, false), ("xvdb", false, true)]
        );
    }
    let a =
        Xva::open(scene.make("two.d", "--legacy dir --name one --another-vm two --no-is-hvm --memory 64"), &Options::default()).unwrap();
    let names: Vec<_> = a.appliance().main_vms().iter().map(|v| v.name.clone()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(a.appliance().vms[0].boot, Boot::Hvm { uefi: false, secure_boot: false }, "without is_hvm it is fully virtual");
    assert_eq!(a.appliance().vms[0].memory, 64 << 20);

    // Damage to a chunk shows when its end is read, a missing chunk at once.
    let dir = scene.make("bad.d", "--legacy dir --legacy-chunk 1000000");
    let chunk = dir.join("xvda/chunk-000000002.gz");
    let mut raw = std::fs::read(&chunk).unwrap();
    let at = raw.len() - 6;
    raw[at] ^= 1;
    std::fs::write(&chunk, &raw).unwrap();
    let xva = Xva::open(&dir, &Options::default()).unwrap();
    let e = xva.disk(0).and_then(|d| d.read_at(&mut vec![0; 1_000_000], 2_000_000)).unwrap_err().to_string();
    assert!(e.contains("chunk 2") && e.contains("checksum"), "{e}");
    std::fs::remove_file(&chunk).unwrap();
    let e = Xva::open(&dir, &Options::default()).unwrap().disk(0).err().unwrap().to_string();
    assert!(e.contains("chunk 2 is missing"), "{e}");
}

#[test]
fn links_out_of_a_folder_are_refused() {
    let scene = two_disks();
    let dir = scene.make("d", "--extracted");
    let chunk = dir.join("Ref:10/00000003");
    std::fs::remove_file(&chunk).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &chunk).unwrap();
    assert!(Xva::open(&dir, &Options::default()).err().unwrap().to_string().contains("is a link"));
    std::fs::remove_dir_all(dir.join("Ref:10")).unwrap();
    std::os::unix::fs::symlink("/etc", dir.join("Ref:10")).unwrap();
    assert!(Xva::open(&dir, &Options::default()).err().unwrap().to_string().contains("not a folder"));
}

#[test]
fn xva_img_extracts_the_same() {
    if Command::new("xva-img").arg("-v").output().is_err() {
        return common::skip("xva-img is not installed");
    }
    let scene = two_disks();
    for options in ["", "--keep-alive 2", "--keep-zero"] {
        let path = scene.make("x.xva", options);
        let folder = scene.path("unpacked");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        assert!(Command::new("tar").arg("-xf").arg(&path).arg("--no-same-permissions").arg("-C").arg(&folder).status().unwrap().success());
        let xva = Xva::open(&path, &Options::default()).unwrap();
        for id in ["Ref:10", "Ref:2"] {
            let raw = scene.path("out.raw");
            let made = Command::new("xva-img").arg("disk-export").arg(format!("{}/{id}/", folder.display())).arg(&raw).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            assert!(std::fs::read(&raw).unwrap() == common::read_whole(&*xva.disk_by_id(id).unwrap()).unwrap(), "{options}: {id}");
        }
    }
}
