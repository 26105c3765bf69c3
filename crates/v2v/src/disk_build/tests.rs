//! Layouts of the sources that exist, and disks built from them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use imgcore::raw::Raw;
use imgcore::storage::MemStorage;
use imgcore::{Image, ImageMut, NoProgress, copy};

use super::{DiskContents, Options, build, compute, examine, moves};
use crate::layout::{Layout, Table, TargetDisk, Volume};
use crate::source::{Boot, Source, SourceDisk};

const MIB: u64 = 1 << 20;
const SWAP_UUID: &str = "8b0d5f6e-1c2a-4e3b-9f00-0123456789ab";
const ROOT_UUID: &str = "11111111-2222-4333-8444-555555555555";
const DATA_UUID: &str = "22222222-2222-4333-8444-555555555555";

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
        eprintln!("skipped: {tool} is missing");
    }
    found
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn image(bytes: &[u8]) -> Arc<dyn Image> {
    let raw = Raw::create(Arc::new(MemStorage::new("memory", 0)), bytes.len() as u64).unwrap();
    raw.write_at(bytes, 0).unwrap();
    Arc::new(raw)
}

/// An ext4 filesystem with these files in it.
fn ext4(size: u64, uuid: &str, files: &[(&str, &str)]) -> Arc<dyn Image> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let file = folder.path().join("img");
    std::fs::File::create(&file).unwrap().set_len(size).unwrap();
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-U", uuid, "-L", "label", "-d"]).arg(&tree).arg(&file));
    image(&std::fs::read(&file).unwrap())
}

fn root(fstab: &str) -> Arc<dyn Image> {
    ext4(12 * MIB + 512, ROOT_UUID, &[("etc/fstab", fstab), ("etc/hosts", "127.0.0.1 localhost\n"), ("bin/true", "")])
}

fn swap() -> Arc<dyn Image> {
    let mut bytes = vec![0xee; 5 * MIB as usize];
    bytes[..4096].copy_from_slice(&super::swap::header(5 * MIB, Some(SWAP_UUID), Some("sw")).unwrap());
    image(&bytes)
}

fn source(disks: Vec<(&str, Arc<dyn Image>)>) -> Source {
    let disk = |(target, image): (&str, Arc<dyn Image>)| SourceDisk {
        target: target.into(),
        size: image.size(),
        image: Some(image),
        read_only: false,
        bootable: false,
        origin: format!("{target}.img"),
    };
    Source {
        name: "guest".into(),
        uuid: None,
        description: String::new(),
        memory_mib: 512,
        vcpus: 1,
        boot: Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false },
        disks: disks.into_iter().map(disk).collect(),
        nics: Vec::new(),
        local_time: false,
        policy: Default::default(),
        warnings: Vec::new(),
        origin: "test".into(),
    }
}

fn layout_of(source: &Source) -> crate::Result<Layout> {
    compute(source, &examine(source)?, &Options::default())
}

/// Source device, target device, partition, target offset, length, made anew.
type Row<'a> = (&'a str, &'a str, Option<u32>, u64, u64, bool);

fn rows<'a>(disk: &'a TargetDisk) -> Vec<Row<'a>> {
    let row = |v: &'a Volume| (v.source_device.as_str(), v.target_device.as_str(), v.partition, v.target_offset, v.len, v.recreate);
    disk.volumes.iter().map(row).collect()
}

fn names(layout: &Layout) -> Vec<(String, &str)> {
    layout.volumes().map(|v| (v.source_device.clone(), v.target_device.as_str())).collect()
}

fn build_file(source: &Source, disk: &TargetDisk, path: &Path) -> Vec<u8> {
    let target = Raw::create(Arc::new(MemStorage::new("target", 0)), disk.size).unwrap();
    let options = copy::Options { target_is_zero: true, ..copy::Options::default() };
    build(source, disk, &target, &options, &NoProgress).unwrap();
    let mut bytes = vec![0; disk.size as usize];
    target.read_at(&mut bytes, 0).unwrap();
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn partitions_of_xen_tools_become_one_disk_that_reference_tools_accept() {
    if !["sfdisk", "e2fsck", "mke2fs", "blkid"].iter().all(|tool| has(tool)) {
        return;
    }
    let source = source(vec![("xvda2", root("/dev/xvda2 / ext4 defaults 0 1\n")), ("xvda1", swap())]);
    let layout = layout_of(&source).unwrap();
    let [disk] = &layout.disks[..] else { panic!("{layout:?}") };
    assert_eq!((disk.device.as_str(), disk.table, disk.size), ("vda", Table::NewMbr, 19 * MIB));
    let expected = [("xvda1", "vda1", Some(1), MIB, 5 * MIB, true), ("xvda2", "vda2", Some(2), 6 * MIB, 12 * MIB + 512, false)];
    assert_eq!(rows(disk), expected);
    assert_eq!(moves(disk).len(), 1);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let bytes = build_file(&source, disk, &path);
    let dump = run(Command::new("sfdisk").arg("-d").arg(&path));
    for part in ["1 : start=        2048, size=       10240, type=82", "2 : start=       12288, size=       24577, type=83, bootable"] {
        assert!(dump.contains(part), "{part} is missing in {dump}");
    }
    let fs = folder.path().join("fs");
    std::fs::write(&fs, &bytes[6 * MIB as usize..][..12 * MIB as usize + 512]).unwrap();
    run(Command::new("e2fsck").arg("-fn").arg(&fs));
    std::fs::write(&fs, &bytes[MIB as usize..][..5 * MIB as usize]).unwrap();
    let swap = run(Command::new("blkid").args(["-p", "-o", "export"]).arg(&fs));
    assert!(swap.contains(&format!("UUID={SWAP_UUID}")) && swap.contains("LABEL=sw") && swap.contains("TYPE=swap"), "{swap}");
    assert!(bytes[MIB as usize + 4096..][..4096].iter().all(|b| *b == 0), "old pages are not kept");
    assert!(bytes == build_file(&source, disk, &path), "the same bytes again");
}

#[test]
fn a_root_on_a_whole_disk_moves_into_a_partition_and_other_disks_stay() {
    let source = source(vec![("xvda", root("")), ("xvdb", swap()), ("xvdc", ext4(8 * MIB, DATA_UUID, &[("data", "x")]))]);
    let layout = layout_of(&source).unwrap();
    assert_eq!(layout.disks.iter().map(|d| d.table).collect::<Vec<_>>(), [Table::NewMbr, Table::Keep { disk: 1 }, Table::Keep { disk: 2 }]);
    assert_eq!(rows(&layout.disks[0]), [("xvda", "vda1", Some(1), MIB, 12 * MIB + 512, false)]);
    assert_eq!(rows(&layout.disks[1]), [("xvdb", "vdb", None, 0, 5 * MIB, true)]);
    assert_eq!(rows(&layout.disks[2]), [("xvdc", "vdc", None, 0, 8 * MIB, false)]);
    assert_eq!((moves(&layout.disks[1]).len(), moves(&layout.disks[2])[0].len), (0, 8 * MIB));

    let folder = tempfile::tempdir().unwrap();
    let bytes = build_file(&source, &layout.disks[1], &folder.path().join("swap"));
    assert!(bytes[4096..].iter().all(|b| *b == 0) && bytes[4086..4096] == *b"SWAPSPACE2");
}

#[test]
fn the_disk_with_boot_becomes_the_first_which_alone_a_bios_starts() {
    let by_name = |fstab: &str, boot: &str| {
        let boot_fs = ext4(8 * MIB, DATA_UUID, &[("grub/menu.lst", "x")]);
        let source = source(vec![("xvda", swap()), ("xvdb1", root(fstab)), (boot, boot_fs)]);
        names(&layout_of(&source).unwrap()).into_iter().map(|(old, new)| (old, new.to_string())).collect::<Vec<_>>()
    };
    let expected = |order: [(&str, &str); 3]| order.map(|(old, new)| (old.to_string(), new.to_string()));
    assert_eq!(by_name("", "xvdc"), expected([("xvdb1", "vda1"), ("xvda", "vdb"), ("xvdc", "vdc")]));
    for spec in ["/dev/xvdc1", &format!("UUID={DATA_UUID}")] {
        let fstab = format!("/dev/xvdb1 / ext4 defaults 0 1\n{spec} /boot ext4 defaults 0 2\n");
        assert_eq!(by_name(&fstab, "xvdc1"), expected([("xvdc1", "vda1"), ("xvda", "vdb"), ("xvdb1", "vdc1")]), "{spec}");
    }
}

#[test]
fn root_and_boot_on_a_disk_each_become_partitions_of_one() {
    let boot = || ext4(8 * MIB, DATA_UUID, &[("grub/menu.lst", "x")]);
    let fstab = format!("/dev/xvda / ext4 defaults 0 1\nUUID={DATA_UUID} /boot ext4 defaults 0 2\n");
    let source = source(vec![("xvda", root(&fstab)), ("xvdb", swap()), ("xvdc", boot())]);
    let layout = layout_of(&source).unwrap();
    assert_eq!(names(&layout), [("xvda".into(), "vda1"), ("xvdc".into(), "vda2"), ("xvdb".into(), "vdb")]);
    assert_eq!((layout.disks[0].table, layout.disks[1].table), (Table::NewMbr, Table::Keep { disk: 1 }));
    let offsets = |alignment| {
        let layout = compute(&source, &examine(&source).unwrap(), &Options { alignment, ..Options::default() }).unwrap();
        layout.disks[0].volumes.iter().map(|v| v.target_offset).collect::<Vec<_>>()
    };
    assert_eq!(offsets(MIB), [MIB, 14 * MIB]);
    assert_eq!(offsets(4 * MIB), [4 * MIB, 20 * MIB]);
    assert_eq!(offsets(MIB / 16), [MIB, 13 * MIB + MIB / 16]);
    let kept = compute(&source, &examine(&source).unwrap(), &Options { keep: true, ..Options::default() }).unwrap();
    assert_eq!(names(&kept), [("xvdc".into(), "vda"), ("xvda".into(), "vdb"), ("xvdb".into(), "vdc")]);
}

#[test]
fn what_inspection_found_says_where_to_start_from() {
    // Nothing in these can be read here, as in physical volumes.
    let blank = || image(&[0; MIB as usize]);
    let source = source(vec![("xvda", swap()), ("xvdb", blank()), ("xvdc", blank())]);
    let of = |boot: &[usize], root: &[usize]| {
        let places = Some(super::Places { boot: boot.to_vec(), root: root.to_vec() });
        let layout = compute(&source, &examine(&source).unwrap(), &Options { places, ..Options::default() }).unwrap();
        names(&layout).into_iter().map(|(old, new)| format!("{old} {new}")).collect::<Vec<_>>()
    };
    // The first disk of a volume group with /boot gets a table; the others need none.
    assert_eq!(of(&[1, 2], &[1, 2]), ["xvdb vda1", "xvda vdb", "xvdc vdc"]);
    assert_eq!(of(&[2], &[1, 2]), ["xvdc vda1", "xvda vdb", "xvdb vdc"]);
}

#[test]
fn a_disk_with_a_table_stays_as_it_is() {
    let made = source(vec![("sda2", root("")), ("sda1", swap())]);
    let folder = tempfile::tempdir().unwrap();
    let bytes = build_file(&made, &layout_of(&made).unwrap().disks[0], &folder.path().join("disk"));
    for target in ["xvda", "0"] {
        let source = source(vec![(target, image(&bytes))]);
        let layout = layout_of(&source).unwrap();
        assert_eq!(layout.disks[0].table, Table::Keep { disk: 0 });
        let expected = [("xvda1", "vda1", Some(1), MIB, 5 * MIB, false), ("xvda2", "vda2", Some(2), 6 * MIB, 12 * MIB + 512, false)];
        assert_eq!(rows(&layout.disks[0]), expected);
        assert_eq!(layout.disks[0].volumes[1].uuid.as_deref(), Some(ROOT_UUID));
        assert!(build_file(&source, &layout.disks[0], &folder.path().join("copy")) == bytes);
    }
}

#[test]
fn partitions_of_a_table_move_where_one_grows_or_all_are_aligned() {
    if !has("sfdisk") {
        return;
    }
    // As disks were partitioned before 2010: the first begins at sector 63.
    let root_fs = root("/dev/xvda1 / ext4 defaults 0 1\n");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut bytes = vec![0; 24 * MIB as usize];
    root_fs.read_at(&mut bytes[63 * 512..][..12 * MIB as usize], 0).unwrap();
    swap().read_at(&mut bytes[13 * MIB as usize..][..5 * MIB as usize], 0).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let script = "label: dos\nlabel-id: 0x1a2b3c4d\nstart=63, size=24577, type=83, bootable\nstart=26624, size=10240, type=82\n";
    let mut child = Command::new("sfdisk").arg("-q").arg(&path).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let source = source(vec![("xvda", image(&std::fs::read(&path).unwrap()))]);

    let grow =
        |by| Some(crate::grow::Growth { disk: 0, start: 63 * 512, by, root: 0, method: crate::resize::contents::Method::Ext, group: None });
    let made = |options: Options| {
        let layout = compute(&source, &examine(&source).unwrap(), &options).unwrap();
        let bytes = build_file(&source, &layout.disks[0], &path);
        for volume in layout.volumes() {
            let (old, new) = (volume.source_offset, volume.target_offset as usize);
            let mut expected = vec![0; volume.len as usize];
            source.disks[0].image.as_ref().unwrap().read_at(&mut expected, old).unwrap();
            assert!(bytes[new..][..expected.len()] == expected, "what is in {} moved with it", volume.target_device);
        }
        let dump = run(Command::new("sfdisk").arg("-d").arg(&path));
        assert!(dump.contains("label-id: 0x1a2b3c4d"), "{dump}");
        let rows = dump.lines().filter_map(|l| l.split_once("start=")).map(|(_, rest)| rest.replace(' ', ""));
        rows.collect::<Vec<_>>()
    };
    let aligned = Options { realign: true, ..Options::default() };
    assert_eq!(made(Options::default()), ["63,size=24577,type=83,bootable", "26624,size=10240,type=82"]);
    assert_eq!(made(Options { grow: grow(4 * MIB), ..Options::default() }), ["63,size=32769,type=83,bootable", "34816,size=10240,type=82"]);
    assert_eq!(made(aligned.clone()), ["2048,size=24577,type=83,bootable", "28672,size=10240,type=82"]);
    assert_eq!(made(Options { grow: grow(4 * MIB), ..aligned }), ["2048,size=32769,type=83,bootable", "36864,size=10240,type=82"]);
}

#[test]
fn positions_without_names_are_matched_to_fstab() {
    let data = || ext4(8 * MIB, DATA_UUID, &[("data", "x")]);
    let two = "/dev/xvda1 none swap sw 0 0\n/dev/xvda2 / ext4 noatime 0 1\nproc /proc proc defaults 0 0\n";
    let source_two = source(vec![("0", root(two)), ("1", swap())]);
    assert_eq!(names(&layout_of(&source_two).unwrap()), [("xvda1".into(), "vda1"), ("xvda2".into(), "vda2")]);

    let three = format!("{two}/dev/xvda3 /srv ext4 defaults 0 2\n");
    let source_three = source(vec![("2", data()), ("1", swap()), ("0", root(&three))]);
    assert_eq!(names(&layout_of(&source_three).unwrap()), [("xvda1".into(), "vda1"), ("xvda2".into(), "vda2"), ("xvda3".into(), "vda3")]);

    // By UUID: nothing to match, the positions are the names.
    let uuids = format!("UUID={ROOT_UUID} / ext4 defaults 0 1\nUUID={SWAP_UUID} none swap sw 0 0\n");
    let source_uuids = source(vec![("0", root(&uuids)), ("1", swap())]);
    assert_eq!(names(&layout_of(&source_uuids).unwrap()), [("xvda".into(), "vda1"), ("xvdb".into(), "vdb")]);

    // Whole disks by name, as the positions say.
    let whole =
        "/dev/xvda / ext4 defaults 0 1\n/dev/xvdb none swap sw 0 0\n/dev/xvdc /srv ext4 defaults 0 2\n/dev/xvdd /srv2 ext4 defaults 0 2\n";
    let source_whole = source(vec![("0", root(whole)), ("1", swap()), ("2", data()), ("3", data())]);
    let expected = [("xvda".into(), "vda1"), ("xvdb".into(), "vdb"), ("xvdc".into(), "vdc"), ("xvdd".into(), "vdd")];
    assert_eq!(names(&layout_of(&source_whole).unwrap()), expected);
}

#[test]
fn what_cannot_be_matched_is_asked_for() {
    let data = || ext4(8 * MIB, DATA_UUID, &[("data", "x")]);
    let fstab = "/dev/xvda2 / ext4 noatime 0 1\n/dev/xvda3 /a ext4 defaults 0 2\n/dev/xvda4 /b ext4 defaults 0 2\n";
    for disks in [
        vec![("0", root(fstab)), ("1", data()), ("2", data())],
        vec![("0", data()), ("1", data())],
        vec![("0", root(fstab)), ("1", root(fstab))],
        vec![("0", root("/dev/xvda2 / ext4 defaults 0 1\n")), ("1", data())]
            .into_iter()
            .rev()
            .map(|(_, i)| i)
            .zip(["0", "1"])
            .map(|(i, n)| (n, i))
            .collect(),
    ] {
        let message = layout_of(&source(disks)).unwrap_err().to_string();
        assert!(message.contains("Say what the guest called them with --disk, for instance --disk xvda2=0"), "{message}");
    }
}

#[test]
fn contradicting_names_are_refused() {
    let found = |size| DiskContents { size, table: None, volumes: vec![super::Found { len: size, ..super::Found::default() }] };
    for targets in [["xvda", "xvda1"], ["xvda1", "sda1"], ["xvda", "sda"], ["xvda1", "xvda0"], ["xvda1", "xvda128"], ["xvda1", "cciss"]] {
        let source = source(targets.iter().map(|t| (*t, image(&[0; 512]))).collect());
        let contents = [found(512), found(512)];
        assert!(compute(&source, &contents, &Options::default()).is_err(), "{targets:?}");
    }
    let source = source(vec![("xvda1", image(&[0; 512])), ("xvda2", image(&[0; 512]))]);
    assert!(compute(&source, &[found(u64::MAX), found(u64::MAX)], &Options::default()).is_err());
    assert!(compute(&source, &[], &Options::default()).is_err());
}

#[test]
fn a_gpt_where_an_mbr_does_not_do() {
    let found = |size| DiskContents { size, table: None, volumes: vec![super::Found { len: size, ..super::Found::default() }] };
    let source_of = |a, b| source(vec![(a, image(&[0; 512])), (b, image(&[0; 512]))]);
    for (names, sizes) in [(["xvda1", "xvda5"], [MIB, MIB]), (["xvda1", "xvda2"], [2 << 40, MIB])] {
        let layout = compute(&source_of(names[0], names[1]), &sizes.map(found), &Options::default()).unwrap();
        let disk = &layout.disks[0];
        assert_eq!((disk.table, disk.volumes[0].target_offset), (Table::NewGpt, 2 * MIB));
        assert_eq!(disk.size, 2 * MIB + sizes[0] + sizes[1] + MIB);
    }
    if has("sgdisk") {
        let source = source(vec![("xvda5", swap()), ("xvda1", swap())]);
        let layout = layout_of(&source).unwrap();
        let folder = tempfile::tempdir().unwrap();
        build_file(&source, &layout.disks[0], &folder.path().join("disk"));
        let print = run(Command::new("sgdisk").args(["-v", "-p"]).arg(folder.path().join("disk")));
        for part in [
            "No problems found",
            "   1            4096           14335   5.0 MiB     8200",
            "   5           14336",
            "   6            2048            4095   1024.0 KiB  EF02",
        ] {
            assert!(print.contains(part), "{part} is missing in {print}");
        }
    }
}

#[test]
fn kept_volumes_stay_disks() {
    let source = source(vec![("xvda2", root("")), ("xvda1", swap())]);
    let layout = compute(&source, &examine(&source).unwrap(), &Options { keep: true, ..Options::default() }).unwrap();
    assert_eq!(names(&layout), [("xvda1".into(), "vda"), ("xvda2".into(), "vdb")]);
    assert!(layout.disks.iter().all(|d| matches!(d.table, Table::Keep { .. }) && d.volumes[0].partition.is_none()));
}

#[test]
fn beside_a_disk_with_a_table_data_disks_go_by_their_position() {
    let mut table = vec![0; 4 * MIB as usize];
    table[446..462].copy_from_slice(&[&[0, 0, 0, 0, 7, 0, 0, 0][..], &2048u32.to_le_bytes(), &2048u32.to_le_bytes()].concat());
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    let data = || image(&vec![0x11; MIB as usize]);
    let source = source(vec![("0", image(&table)), ("1", data()), ("2", data())]);
    let layout = layout_of(&source).unwrap();
    let devices: Vec<_> = layout.disks.iter().map(|d| d.device.as_str()).collect();
    assert_eq!(devices, ["vda", "vdb", "vdc"]);
    assert!(names(&layout).iter().any(|(source, target)| (source.as_str(), *target) == ("xvdc", "vdc")), "{:?}", names(&layout));
}
