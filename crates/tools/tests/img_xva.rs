//! `img convert -O xva` against xva-img, tar, gzip, zstd, an XML-RPC parser, and the rules of XenServer's importer.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MIB: usize = 1 << 20;

struct Bench {
    folder: tempfile::TempDir,
}

/// Whether a tool can be run here; says so when not, and fails where everything must be installed.
fn have(tool: &str) -> bool {
    let there = Command::new(tool).arg("--help").output().is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "{tool} must be installed in CI");
        eprintln!("skipped: {tool} is not installed");
    }
    there
}

impl Bench {
    /// Three disks: of 300 KiB, of 10 MiB and a sector, of 5 MiB.
    fn new() -> Self {
        let bench = Bench { folder: tempfile::tempdir().unwrap() };
        let disk = |name: &str, size: usize, parts: &[(usize, usize)]| {
            let mut bytes = vec![0; size];
            for (at, len) in parts {
                bytes[*at..at + len]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, b)| *b = ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8 | 1);
            }
            std::fs::write(bench.path(name), bytes).unwrap();
        };
        disk("small.raw", 300 << 10, &[(1000, 50)]);
        disk("root.raw", 10 * MIB + 512, &[(0, 100), (3 * MIB, MIB), (7 * MIB - 10, 20)]);
        disk("data.raw", 5 * MIB, &[(3 * MIB + 9, 4096)]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn run(&self, program: &str, line: &str) -> Output {
        Command::new(program).args(line.split_whitespace()).current_dir(self.folder.path()).output().unwrap()
    }

    fn ok(&self, program: &str, line: &str) -> Vec<u8> {
        let output = self.run(program, line);
        assert!(output.status.success(), "{program} {line}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn img(&self, line: &str) -> String {
        String::from_utf8(self.ok(env!("CARGO_BIN_EXE_img"), line)).unwrap()
    }

    fn refused(&self, line: &str) -> String {
        let output = self.run(env!("CARGO_BIN_EXE_img"), line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Takes an archive as xen-api's `stream_vdi.ml` does: the disks in the order of their ids as strings, the names of a
    /// disk rising as strings, each chunk followed by its checksum, and gaps of the length of the archive's first chunk.
    fn import(&self, archive: &[u8], sizes: &[(&str, usize)]) -> Vec<Vec<u8>> {
        let mut members = tar_members(archive).into_iter();
        assert_eq!(members.next().unwrap().0, "ova.xml");
        let mut sorted = sizes.to_vec();
        sorted.sort();
        let mut first = None;
        let mut disks = Vec::new();
        for (id, size) in sorted {
            let mut disk = vec![0; size];
            let (mut at, mut last) = (0, String::from("-1"));
            while at < size {
                let (name, data) = members.next().expect("a chunk");
                let suffix = name.strip_prefix(&format!("{id}/")).unwrap_or_else(|| panic!("{name} is not of {id}")).to_string();
                assert!(suffix > last, "{suffix} after {last}");
                let gap = suffix.parse::<i64>().unwrap() - last.parse::<i64>().unwrap() - 1;
                let first = *first.get_or_insert(data.len());
                at += gap as usize * first;
                disk[at..at + data.len()].copy_from_slice(data);
                at += data.len();
                let (sum_name, sum) = members.next().expect("a checksum");
                let program = match sum_name.strip_prefix(&name).unwrap() {
                    ".checksum" => "sha1sum",
                    ".xxhash" => "xxhsum",
                    other => panic!("{other}"),
                };
                // sha1sum is everywhere; the reader of this project verifies the other kind.
                if program == "sha1sum" {
                    std::fs::write(self.path("chunk"), data).unwrap();
                    assert_eq!(self.ok(program, "chunk")[..40], *sum, "{name}");
                } else {
                    assert!(sum.len() == 16 && sum.iter().all(|d| d.is_ascii_digit() || (b'A'..=b'F').contains(d)), "{sum:?}");
                }
                last = suffix;
            }
            disks.push(disk);
        }
        assert!(members.next().is_none());
        disks
    }
}

fn tar_members(archive: &[u8]) -> Vec<(String, &[u8])> {
    let mut members = Vec::new();
    let mut at = 0;
    while archive[at] != 0 {
        let field =
            |from: usize, to: usize| String::from_utf8(archive[at + from..at + to].split(|b| *b == 0).next().unwrap().into()).unwrap();
        let size = usize::from_str_radix(&field(124, 136), 8).unwrap();
        assert_eq!((archive[at + 156], &archive[at + 257..at + 512]), (0, &[0; 255][..]), "a V7 header");
        members.push((field(0, 100), &archive[at + 512..at + 512 + size]));
        at += 512 + size.next_multiple_of(512);
    }
    assert!(archive[at..] == [0; 1024], "two blocks of zeroes");
    members
}

const DISKS: [(&str, usize, &str); 3] =
    [("Ref:3", 10 * MIB + 512, "root.raw"), ("Ref:4", 300 << 10, "small.raw"), ("Ref:5", 5 * MIB, "data.raw")];

#[test]
fn xva_img_and_the_importer_s_rules_give_the_disks_back() {
    let bench = Bench::new();
    for kind in ["sha1", "xxhash"] {
        bench.img(&format!("convert -O xva -o checksum={kind} small.raw root.raw data.raw out.xva"));
        let imported = bench.import(&bench.read("out.xva"), &DISKS.map(|(id, size, _)| (id, size)));
        for ((id, _, file), bytes) in DISKS.iter().zip(imported) {
            assert!(bytes == bench.read(file), "{id}");
            bench.img(&format!("convert out.xva#{id} back.raw"));
            assert!(bench.read("back.raw") == bench.read(file), "{id}");
        }
    }
    // Chunks of zeroes are left out, the first and the last are not.
    let listed = String::from_utf8(bench.ok("tar", "tf out.xva")).unwrap();
    let chunks: Vec<_> = listed.lines().filter(|l| l.starts_with("Ref:5/") && !l.contains('.')).collect();
    assert_eq!(chunks, ["Ref:5/00000000", "Ref:5/00000003", "Ref:5/00000004"]);
    if !have("xva-img") {
        return;
    }
    bench.img("convert -O xva small.raw root.raw data.raw out.xva");
    std::fs::create_dir(bench.path("unpacked")).unwrap();
    bench.ok("tar", "xf out.xva -C unpacked");
    for (id, _, file) in DISKS {
        bench.ok("xva-img", &format!("disk-export unpacked/{id}/ {id}.raw"));
        assert!(bench.read(&format!("{id}.raw")) == bench.read(file), "{id}");
    }
}

#[test]
fn the_same_bytes_come_out_of_pipes_and_of_any_number_of_threads() {
    let bench = Bench::new();
    for options in ["", "-o compression=gzip", "-o compression=zstd,compression_level=9", "-o version=0.1"] {
        bench.img(&format!("convert -O xva {options} -m 1 root.raw data.raw out.xva"));
        let piped = bench.ok(env!("CARGO_BIN_EXE_img"), &format!("convert -O xva {options} -m 7 root.raw data.raw -"));
        assert!(bench.read("out.xva") == piped, "{options}");
    }
    bench.img("convert -O xva -p root.raw out.xva");
    for (compression, unpack) in [("gzip", "gzip -dc"), ("zstd", "zstd -dc")] {
        bench.img(&format!("convert -O xva -o compression={compression} root.raw packed"));
        std::fs::rename(bench.path("packed"), bench.path("packed.gz")).unwrap();
        let (program, flags) = unpack.split_once(' ').unwrap();
        if have(program) {
            assert!(bench.ok(program, &format!("{flags} packed.gz")) == bench.read("out.xva"), "{compression}");
        }
        bench.img("convert --spool . packed.gz#Ref:3 back.raw");
        assert!(bench.read("back.raw") == bench.read("root.raw"));
    }
}

#[test]
fn records_are_whole_and_lead_to_each_other() {
    let bench = Bench::new();
    if !have("python3") {
        return;
    }
    let options = "name=it's_<&>,memory=1536M,vcpus=3,boot=pv,kernel=/boot/vmlinuz,ramdisk=/boot/initrd,args=ro,mac=00:16:3E:00:00:01/00:16:3e:00:00:02";
    bench.img(&format!("convert -O xva -o {options} small.raw root.raw out.xva"));
    // Python's parser of XML-RPC, and the look-ups of xen-api's import.ml.
    let script = r#"
import sys, tarfile, xmlrpc.client
xml = tarfile.open(sys.argv[1]).extractfile("ova.xml").read().decode()
root = xmlrpc.client.loads("<params><param>" + xml + "</param></params>")[0][0]
version = root["version"]
assert (int(version["xapi_major"]), int(version["export_vsn"])) == (1, 2), version
by = {o["id"]: o for o in root["objects"]}
assert len(by) == len(root["objects"])
of = lambda cls: [o["snapshot"] for o in root["objects"] if o["class"] == cls]
vm, = of("VM")
assert vm["name_label"] == "it's_<&>" and int(vm["memory_static_max"]) == 1536 << 20 and vm["VCPUs_max"] == "3", vm
assert (vm["PV_kernel"], vm["PV_ramdisk"], vm["PV_args"], vm["PV_bootloader"]) == ("/boot/vmlinuz", "/boot/initrd", "ro", "")
assert (vm["HVM_boot_policy"], vm["domain_type"], vm["power_state"]) == ("", "pv", "Halted") and "parent" in vm
assert vm["is_a_template"] is False and vm["HVM_shadow_multiplier"] == 1.0
for vbd in of("VBD"):
    assert by[vbd["VM"]]["class"] == "VM" and vbd["type"] == "Disk" and vbd["mode"] == "RW"
    vdi = by[vbd["VDI"]]
    assert vdi["class"] == "VDI" and by[vdi["snapshot"]["SR"]]["snapshot"]["content_type"] == "user"
    print(vbd["userdevice"], vbd["bootable"], vdi["snapshot"]["name_label"], vdi["snapshot"]["virtual_size"])
for vif in of("VIF"):
    assert by[vif["VM"]]["class"] == "VM" and by[vif["network"]]["class"] == "network"
    print(vif["device"], vif["MAC"], by[vif["network"]]["snapshot"]["bridge"])
assert [i for v in ("VBDs", "VIFs") for i in vm[v]] == [i for i in by if by[i]["class"] == "VBD"][::-1] + [i for i in by if by[i]["class"] == "VIF"]
uuids = [o["snapshot"]["uuid"] for o in root["objects"]]
import uuid
assert len(set(uuids)) == len(uuids) and all(uuid.UUID(u).version == 5 for u in uuids)
"#;
    std::fs::write(bench.path("look.py"), script).unwrap();
    let seen = String::from_utf8(bench.ok("python3", "look.py out.xva")).unwrap();
    let expected = "1 False root.raw 10486272\n0 True small.raw 307200\n0 00:16:3e:00:00:01 xenbr0\n1 00:16:3e:00:00:02 xenbr0\n";
    assert_eq!(seen, expected);
    let info = bench.img("info out.xva");
    for line in ["machine: it's_<&> (paravirtual, 1536 MiB of memory, 3 processors)", "drive: 0 of it's_<&>: Ref:4, boots from it"] {
        assert!(info.contains(line), "{info}");
    }
}

#[test]
fn legacy_archives_hold_gzips_of_whole_disks() {
    let bench = Bench::new();
    bench.img("convert -O xva -o version=0.1,name=old,boot=pv,args=ro root.raw data.raw out.xva");
    let info = bench.img("info out.xva");
    assert!(info.contains("kind: legacy") && info.contains("machine: old (paravirtual, 1024 MiB of memory, 1 processors)"), "{info}");
    bench.ok("tar", "xf out.xva");
    for (device, file) in [("xvda", "root.raw"), ("xvdb", "data.raw")] {
        assert!(bench.ok("gzip", &format!("-dc {device}/chunk-000000000.gz")) == bench.read(file));
        bench.img(&format!("convert out.xva#{device} back.raw"));
        assert!(bench.read("back.raw") == bench.read(file));
    }
}

#[test]
fn a_disk_is_cut_into_gzips_of_a_billion_bytes() {
    let bench = Bench::new();
    let disk = std::fs::File::create(bench.path("big.raw")).unwrap();
    disk.set_len(1_000_010_240).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, b"beyond", 1_000_000_000).unwrap();
    bench.img("convert -O xva -o version=0.1,compression_level=1 big.raw out.xva");
    bench.ok("tar", "xf out.xva");
    assert_eq!(bench.ok("sh", "-c gzip$IFS-dc<xvda/chunk-000000000.gz|wc$IFS-c"), b"1000000000\n");
    let second = bench.ok("gzip", "-dc xvda/chunk-000000001.gz");
    assert!(second.len() == 10_240 && second.starts_with(b"beyond"));
    assert_eq!(std::fs::read_dir(bench.path("xvda")).unwrap().count(), 2);
}

#[test]
fn an_empty_disk_of_terabytes_is_an_archive_of_two_chunks() {
    let bench = Bench::new();
    std::fs::File::create(bench.path("empty.raw")).unwrap().set_len(8 << 40).unwrap();
    bench.img("convert -O xva empty.raw out.xva");
    assert_eq!(String::from_utf8(bench.ok("tar", "tf out.xva")).unwrap().lines().filter(|l| !l.contains('.')).count(), 2);
    // The importer compares names as strings: there are only eight digits.
    std::fs::File::create(bench.path("empty.raw")).unwrap().set_len(100_000_001 << 20).unwrap_or_default();
    if std::fs::metadata(bench.path("empty.raw")).unwrap().len() > 100_000_000 << 20 {
        assert!(bench.refused("convert -O xva empty.raw out2.xva").contains("eight digits"));
    }
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    std::fs::write(bench.path("nothing.raw"), "").unwrap();
    for (line, message) in [
        ("-o checksum=md5 root.raw out", "none of sha1, xxhash"),
        ("-o compression=xz root.raw out", "none of none, gzip, zstd"),
        ("-o compression=gzip,compression_level=10 root.raw out", "from 1 to 9"),
        ("-o compression_level=1 root.raw out", "needs compression"),
        ("-o version=0.1,checksum=sha1 root.raw out", "does not go with version=0.1"),
        ("-o version=0.1,boot=uefi root.raw out", "boot=bios"),
        ("-o version=3 root.raw out", "none of 2, 0.1"),
        ("-o boot=efi root.raw out", "none of bios, uefi, pv, pvh"),
        ("-o kernel=/boot/x root.raw out", "boot=pv"),
        ("-o boot=pv,ramdisk=/boot/x root.raw out", "needs kernel="),
        ("-o mac=1:2 root.raw out", "mac=1:2"),
        ("-o vcpus=0 root.raw out", "vcpus=0"),
        ("-o memory=5 root.raw out", "memory=5"),
        ("-o nonsense=1 root.raw out", "Invalid parameter 'nonsense'"),
        ("-c root.raw out", "-c does not go with -O xva"),
        ("nothing.raw out", "nothing.raw: a disk of 0 bytes"),
        ("root.raw missing.raw out", "missing.raw"),
        ("root.raw root.raw", "is the source"),
        ("root.raw /dev/full", "cannot write at offset 0x"),
    ] {
        let said = bench.refused(&format!("convert -O xva {line}"));
        assert!(said.contains(message), "{line}: {said}");
    }
    let mut names: Vec<_> = std::fs::read_dir(bench.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["data.raw", "nothing.raw", "root.raw", "small.raw"]);
    assert!(Path::new("/dev/full").exists());
}

#[test]
fn options_are_listed() {
    let bench = Bench::new();
    let help = bench.img("convert -O xva -o help");
    assert!(help.starts_with("Supported xva options:") && help.contains("checksum=<sha1|xxhash>"), "{help}");
}
