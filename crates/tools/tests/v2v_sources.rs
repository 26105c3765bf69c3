//! `v2v` on storage repositories and on OVF packages: chains that Xen Orchestra's library made, volumes that LVM made, disks that qemu-img
//! packed, archives that Python's tarfile wrote.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::small::{Small, failure, success, tool};
use guestfs::engine::{Command, Disk, Engine};
use guestfs_appliance::Appliance;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

const BASE: &str = "0b4cd4c2-6e6b-4f2a-9d0a-3f1f0d6b8a11";
const MIDDLE: &str = "5d2f7c8e-1f1b-4e0d-8a59-6c9e5b1f2a33";
const LEAF: &str = "7f1a9a34-58a4-4a4b-8f13-0d2b6c1e9c55";
/// Made of the small guest's filesystem.
const ROOT: &str = "11111111-0000-4000-8000-000000000001";
const SWAP: &str = "22222222-0000-4000-8000-000000000002";
const QCOW_BASE: &str = "33333333-0000-4000-8000-000000000003";
const QCOW_LEAF: &str = "44444444-0000-4000-8000-000000000004";
const GROUP: &str = "VG_XenStorage-d4b0c2aa-0000-4000-8000-00000000000a";

/// Unpacks the chains of `tests/fixtures/vhd-chains`, and gives the sha256 of what a guest saw.
fn chains(small: &Small) -> String {
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/vhd-chains/chains.tar.gz");
    tool("tar", &["-C", small.dir.path().to_str().unwrap(), "-xzf", archive]);
    fs::read_to_string(small.path("file/sha256")).unwrap().trim().to_owned()
}

/// The sha256 of the disk that `v2v --copy-only` makes.
fn copied(small: &Small, arguments: &[&str]) -> String {
    success(&small.run(&[&["--copy-only", "-q", "-of", "raw", "-os", "copied", "-on", "web", "--force"], arguments].concat()));
    let disk = small.names("copied").into_iter().find(|n| n.ends_with(".raw")).unwrap();
    sha256(&small.path("copied").join(disk))
}

fn sha256(path: &Path) -> String {
    tool("sha256sum", &[path.to_str().unwrap()])[..64].to_owned()
}

#[test]
fn a_chain_of_a_file_repository_to_its_last_byte() {
    let small = Small::new();
    let expected = chains(&small);
    let leaf = format!("file/{LEAF}.vhd");
    assert_eq!(copied(&small, &[&leaf]), expected);
    assert_eq!(copied(&small, &["-i", "sr", "file", "--vdi", LEAF]), expected);
    // The leaf is the only VDI of it that is nobody's parent.
    assert_eq!(copied(&small, &["file"]), expected);
    // In a folder of devices, as a group's in /dev.
    assert_eq!(copied(&small, &[&format!("lvm/VHD-{LEAF}")]), expected);
    // The snapshot before it is another disk.
    assert_ne!(copied(&small, &["file", "--vdi", MIDDLE]), expected);

    let plan = small.run(&["--plan", "--json", "--copy-only", "-q", &leaf, "--memory", "2G", "--vcpus", "3"]);
    let plan: serde_json::Value = serde_json::from_str(&success(&plan)).unwrap();
    assert_eq!((plan["guest"]["memory_mib"].as_u64(), plan["guest"]["vcpus"].as_u64()), (Some(2048), Some(3)), "{plan}");

    fs::remove_file(small.path(&format!("file/{MIDDLE}.vhd"))).unwrap();
    let message = failure(&small.run(&["--copy-only", "-os", "none", &leaf]));
    assert!(message.contains(&format!("{LEAF}.vhd: its parent")) && message.contains(&format!("{MIDDLE}.vhd, VHD-{MIDDLE}")), "{message}");
    assert!(!small.path("none").exists());
    let message = failure(&small.run(&["--copy-only", "-os", "none", "file", "--vdi", MIDDLE]));
    assert!(message.contains("has no VDI") && message.contains(LEAF), "{message}");
}

/// A snapshot is copied while its child is written to; then the child alone is read, and the sum is that of the whole chain.
#[test]
fn a_child_of_a_copied_vhd_makes_the_copy_what_the_chain_is() {
    let small = Small::new();
    let expected = chains(&small);
    let phase = |vdi: &str, phase: &str| {
        success(&small.run(&[
            "-i",
            "sr",
            "file",
            "--vdi",
            vdi,
            "--copy-only",
            "-q",
            "-of",
            "raw",
            "-os",
            "out",
            "-on",
            "web",
            "--phase",
            phase,
        ]));
    };
    phase(MIDDLE, "copy");
    // What is read of the chain's base from now on is wrong.
    let base = small.path(&format!("file/{BASE}.vhd"));
    let mut bytes = fs::read(&base).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].iter_mut().for_each(|b| *b = !*b);
    fs::write(&base, &bytes).unwrap();
    phase(LEAF, "finish");
    assert_eq!(sha256(&small.path("out/web-vda.raw")), expected);
    assert!(!small.path("out/web.copy").exists());
    assert_ne!(copied(&small, &["file", "--vdi", LEAF]), expected, "the base's change is not seen at all");
}

/// A physical volume with these files in volumes of a repository, made by LVM in an appliance. What lay in the volumes before is noise.
fn repository(small: &Small, files: &[(String, PathBuf)]) -> PathBuf {
    const SLOT: u64 = 64;
    let (pv, all) = (small.path("pv.img"), small.path("files.img"));
    fs::File::create(&pv).unwrap().set_len(512 << 20).unwrap();
    fs::File::create(&all).unwrap().set_len(files.len() as u64 * (SLOT << 20)).unwrap();
    for (slot, (_, file)) in files.iter().enumerate() {
        let seek = format!("seek={}", slot as u64 * SLOT);
        tool(
            "dd",
            &[&format!("if={}", file.display()), &format!("of={}", all.display()), "bs=1M", &seek, "conv=notrunc,sparse", "status=none"],
        );
    }
    let disk = |path: &Path| Disk::Writable(Arc::new(Raw::open(Arc::new(FileStorage::open_writable(path).unwrap())).unwrap()));
    let mut session = Engine::start(&Appliance::new(), vec![disk(&pv), disk(&all)], true).unwrap_or_else(|e| panic!("{e}"));
    let mut run = |line: &str| {
        let words = line.split(' ').map(|w| {
            if w == "SETTINGS" {
                "activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0} devices{use_devicesfile=0}"
            } else {
                w
            }
        });
        let output = session.run_tool(&Command::new(words)).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(output.status, 0, "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // XenServer keeps 10 MiB for metadata.
    run("lvm pvcreate --config SETTINGS -q --metadatasize 10M /dev/vda");
    run(&format!("lvm vgcreate --config SETTINGS -q {GROUP} /dev/vda"));
    for (slot, (name, file)) in files.iter().enumerate() {
        let bytes = file.metadata().unwrap().len();
        let mib = bytes.div_ceil(4 << 20) * 4;
        run(&format!("lvm lvcreate --config SETTINGS -qq -y -Wn -Zn -L {mib}m -n {name} {GROUP}"));
        let device = format!("/dev/{GROUP}/{name}");
        run(&format!("dd if=/dev/urandom of={device} bs=1M count={mib} status=none"));
        let skip = slot as u64 * (SLOT << 20);
        run(&format!(
            "dd if=/dev/vdb of={device} bs=1M iflag=skip_bytes,count_bytes skip={skip} count={bytes} conv=notrunc,fsync status=none"
        ));
    }
    run(&format!("lvm vgchange --config SETTINGS -q -a n {GROUP}"));
    session.shutdown().unwrap();
    fs::remove_file(all).unwrap();
    pv
}

#[test]
fn volumes_of_a_repository_that_nobody_has_activated() {
    let small = Small::new();
    let expected = chains(&small);
    let path = |name: &str| small.path(name).to_str().unwrap().to_owned();
    tool("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", &path("disk.img"), &path("root.vhd")]);
    // Backing files are named as on the Xen host.
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &path("disk.img"), &path("base.qcow2")]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &path("base.qcow2"), "-F", "qcow2", &path("leaf.qcow2")]);
    tool("qemu-io", &["-c", "write -q -P 7 20M 64k", &path("leaf.qcow2")]);
    tool("qemu-img", &["convert", "-O", "raw", &path("leaf.qcow2"), &path("leaf.raw")]);
    tool(
        "qemu-img",
        &["rebase", "-u", "-f", "qcow2", "-b", &format!("/dev/{GROUP}/QCOW2-{QCOW_BASE}"), "-F", "qcow2", &path("leaf.qcow2")],
    );
    let mut files: Vec<(String, PathBuf)> = [BASE, MIDDLE, LEAF].map(|u| (format!("VHD-{u}"), small.path(&format!("lvm/VHD-{u}")))).into();
    files.push((format!("VHD-{ROOT}"), small.path("root.vhd")));
    files.push((format!("LV-{SWAP}"), small.path("swap.img")));
    files.push((format!("QCOW2-{QCOW_BASE}"), small.path("base.qcow2")));
    files.push((format!("QCOW2-{QCOW_LEAF}"), small.path("leaf.qcow2")));
    // What the pool called them, as sm's srmetadata.py writes it.
    let record = |uuid: &str, name: &str, snapshot: u8| {
        let first = format!("<vdi><name_label>{name}</name_label><name_description></name_description>");
        format!("{first:<512}{:<512}", format!("<deleted>0</deleted><uuid>{uuid}</uuid><is_a_snapshot>{snapshot}</is_a_snapshot></vdi>"))
    };
    let names = [record(ROOT, "web&apos;s root", 0), record(SWAP, "web swap", 0), record(QCOW_LEAF, "before", 1)].concat();
    fs::write(small.path("MGT"), format!("{:<2048}{names}", format!("XSSM:{:<10}:1:2", 2048 + names.len()))).unwrap();
    files.push(("MGT".to_owned(), small.path("MGT")));
    let pv = repository(&small, &files);
    let before = sha256(&pv);
    assert_eq!(copied(&small, &["pv.img", "--vdi", LEAF]), expected);
    assert_eq!(copied(&small, &["-i", "sr", "pv.img", "--vdi", &format!("xvda={QCOW_LEAF}")]), sha256(&small.path("leaf.raw")));

    let message = failure(&small.run(&["pv.img", "-os", "out"]));
    for uuid in [LEAF, ROOT, SWAP, QCOW_LEAF] {
        assert!(message.contains(uuid), "{message}");
    }
    assert!(message.contains("48 MiB  web's root\n") && message.contains("  before (a snapshot)"), "{message}");
    assert!(!message.contains(BASE) && !message.contains(QCOW_BASE) && message.contains("xe vm-disk-list"), "{message}");

    let (root, swap) = (format!("xvda2={ROOT}"), format!("xvda1={SWAP}"));
    let arguments =
        ["pv.img", "--vdi", &root, "--vdi", &swap, "-on", "small", "-os", "out", "--memory", "256", "--mac", "0=00:16:3e:00:00:01"];
    success(&small.run(&arguments));
    assert_eq!(small.names("out"), ["small-run.sh", "small-vda.qcow2", "small.xml"]);
    let xml = fs::read_to_string(small.path("out/small.xml")).unwrap();
    assert!(xml.contains("<memory unit=\"MiB\">256<") && xml.contains("00:16:3e:00:00:01"), "{xml}");
    tool("qemu-img", &["check", &path("out/small-vda.qcow2")]);
    assert_eq!(sha256(&pv), before, "the source changed");
}

/// An OVF descriptor of the small guest's two disks, an OVA of it with a manifest, and the folder of the same.
fn package(small: &Small) {
    let path = |name: &str| small.path(name).to_str().unwrap().to_owned();
    fs::create_dir(small.path("ovf")).unwrap();
    for (source, target) in [("disk.img", "ovf/web-disk1.vmdk"), ("swap.img", "ovf/web-disk2.vmdk")] {
        tool("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", &path(source), &path(target)]);
    }
    let disk = |n: u32, size: u64| {
        (
            format!("<File ovf:href=\"web-disk{n}.vmdk\" ovf:id=\"file{n}\"/>"),
            format!(
                "<Disk ovf:capacity=\"{size}\" ovf:capacityAllocationUnits=\"byte * 2^20\" ovf:diskId=\"vmdisk{n}\" ovf:fileRef=\"file{n}\" \
                 ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/>"
            ),
            format!(
                "<Item><rasd:AddressOnParent>{n}</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/vmdisk{n}</rasd:HostResource>\
                 <rasd:InstanceID>1{n}</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>"
            ),
        )
    };
    let ((file1, disk1, item1), (file2, disk2, item2)) = (disk(1, 48), disk(2, 4));
    let descriptor = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\">\n\
         <References>{file1}{file2}</References><DiskSection><Info/>{disk1}{disk2}</DiskSection>\n\
         <VirtualSystem ovf:id=\"web\"><Info/><Name>web</Name><VirtualHardwareSection><Info/>\
         <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>\
         <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>\
         <rasd:VirtualQuantity>384</rasd:VirtualQuantity></Item>{item1}{item2}\
         <Item><rasd:Address>00:50:56:01:02:03</rasd:Address><rasd:Connection>VM Network</rasd:Connection><rasd:ResourceType>10</rasd:ResourceType></Item>\
         </VirtualHardwareSection></VirtualSystem></Envelope>\n"
    );
    fs::write(small.path("ovf/web.ovf"), descriptor).unwrap();
    archive(small, "ovf", "web.ova", "sha256");
}

/// Packs a folder as VMware does: the descriptor, the manifest, the disks.
fn archive(small: &Small, folder: &str, ova: &str, kind: &str) {
    let script = "import hashlib, os, sys, tarfile\n\
                  folder, ova, kind = sys.argv[1:]\n\
                  names = [n for n in sorted(os.listdir(folder), key=lambda n: (not n.endswith('.ovf'), n)) if not n.endswith('.mf')]\n\
                  sums = ['%s(%s)= %s\\n' % (kind.upper(), n, hashlib.new(kind, open(os.path.join(folder, n), 'rb').read()).hexdigest()) for n in names]\n\
                  open(os.path.join(folder, 'web.mf'), 'w').writelines(sums)\n\
                  with tarfile.open(ova, 'w', format=tarfile.USTAR_FORMAT) as tar:\n\
                  \x20   for n in names[:1] + ['web.mf'] + names[1:]: tar.add(os.path.join(folder, n), n)\n";
    tool("python3", &["-c", script, small.path(folder).to_str().unwrap(), small.path(ova).to_str().unwrap(), kind]);
}

#[test]
fn an_ova_is_read_in_place_and_checked() {
    let small = Small::new();
    package(&small);
    let plan = small.run(&["--plan", "--json", "-q", "web.ova"]);
    let plan: serde_json::Value = serde_json::from_str(&success(&plan)).unwrap();
    let guest = &plan["guest"];
    assert_eq!((&guest["memory_mib"], &guest["vcpus"], &guest["macs"][0]), (&384.into(), &2.into(), &"00:50:56:01:02:03".into()), "{plan}");
    assert!(guest["system"].as_str().unwrap().starts_with("Debian GNU/Linux 12"), "{plan}");

    for source in ["web.ova", "ovf/web.ovf", "ovf"] {
        success(&small.run(&["--copy-only", "-q", "-of", "raw", "-os", "out", "--force", source]));
        let disks: Vec<_> = small.names("out").into_iter().filter(|n| n.ends_with(".raw")).collect();
        assert_eq!(disks.len(), 2, "{source}");
        for (disk, original) in disks.iter().zip(["disk.img", "swap.img"]) {
            assert_eq!(sha256(&small.path("out").join(disk)), sha256(&small.path(original)), "{source}: {disk}");
        }
    }

    // Packed again by the exporter, and with the other kind of checksum.
    let path = |name: &str| small.path(name).to_str().unwrap().to_owned();
    tool("gzip", &["-9", "-n", "-k", &path("ovf/web-disk1.vmdk")]);
    fs::rename(small.path("ovf/web-disk1.vmdk.gz"), small.path("ovf/web-disk1.vmdk")).unwrap();
    let descriptor = fs::read_to_string(small.path("ovf/web.ovf")).unwrap();
    let packed = descriptor.replace("ovf:id=\"file1\"/>", "ovf:id=\"file1\" ovf:compression=\"gzip\"/>");
    fs::write(small.path("ovf/web.ovf"), packed).unwrap();
    archive(&small, "ovf", "gzip.ova", "sha1");
    for source in ["gzip.ova", "ovf/web.ovf"] {
        success(&small.run(&["--copy-only", "-q", "-of", "raw", "-os", "out", "--force", source]));
        assert_eq!(sha256(&small.path("out/web-vda.raw")), sha256(&small.path("disk.img")), "{source}");
    }

    // One byte of a disk, or the end, got lost on the way.
    let whole = fs::read(small.path("web.ova")).unwrap();
    let at = whole.len() - 4096;
    let damaged = [&whole[..at], &[whole[at] ^ 1], &whole[at + 1..]].concat();
    for (bytes, error) in [(&damaged[..], "has not the checksum that it was exported with"), (&whole[..whole.len() / 2], "was cut off")] {
        fs::write(small.path("bad.ova"), bytes).unwrap();
        let message = failure(&small.run(&["--copy-only", "-os", "bad", "bad.ova"]));
        assert!(message.contains(error), "{message}");
        assert!(!small.path("bad").exists());
    }
}
