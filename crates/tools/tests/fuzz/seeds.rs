//! Seeds: real images, made by other programs where there is one.

use std::path::Path;
use std::process::Command;

/// Writes the seeds of a target into `folder`. False, said aloud, where what makes them is missing; a failure in CI.
pub fn make(target: &str, folder: &Path) -> bool {
    match target {
        "qcow2" => qemu(folder, "qcow2", &QCOW2),
        "vhd" => qemu(folder, "vpc", &["", "subformat=fixed", "force_size=on"]),
        "vhdx" => qemu(folder, "vhdx", &["", "block_size=1M", "subformat=fixed"]),
        "vmdk" => {
            let subformats =
                ["", "subformat=streamOptimized", "subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse", "adapter_type=lsilogic"];
            qemu(folder, "vmdk", &subformats)
        }
        "vdi" => qemu(folder, "vdi", &["", "static=on"]),
        "probed" => ["qcow2", "vpc", "vdi", "vmdk", "vhdx", "raw"].into_iter().all(|format| qemu(folder, format, &[""])),
        "xva" => appliances(folder, &["", "--checksum=xxhash", "--compress=gzip", "--cd", "--pretty"]),
        "xva-legacy" => appliances(folder, &["--legacy=tar"]),
        "partitions" => tables(folder),
        "nbd" => {
            sessions(folder);
            true
        }
        "appliance-host" => spoken(folder, guestfs_appliance::fuzzing::conversations().unwrap().0),
        "appliance-agent" => spoken(folder, guestfs_appliance::fuzzing::conversations().unwrap().1),
        filesystem => super::filesystems::make(filesystem, folder),
    }
}

const QCOW2: [&str; 9] = [
    "cluster_size=512",
    "cluster_size=4096,compat=0.10",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=4096,refcount_bits=64,lazy_refcounts=on",
    "cluster_size=65536,extended_l2=on",
    "cluster_size=4096,compression_type=zstd",
    "cluster_size=4096,preallocation=metadata",
    "cluster_size=16384,backing_file=below.raw,backing_fmt=raw",
    "cluster_size=8192,data_file=data.raw",
];

/// What one end of the appliance's port says: nobody but us speaks that protocol.
fn spoken(folder: &Path, words: Vec<u8>) -> bool {
    std::fs::write(folder.join("words"), words).unwrap();
    true
}

pub fn found(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "{tool} must be installed in CI");
        eprintln!("skipped: {tool} is not installed");
    }
    there
}

pub fn ok(program: &str, folder: &Path, arguments: &[&str]) {
    let out = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Images with some data, zeroes, and for qcow2 snapshots, bitmaps and compressed clusters.
fn qemu(folder: &Path, format: &str, options: &[&str]) -> bool {
    if !found("qemu-img") {
        return false;
    }
    let scratch = tempfile::tempdir().unwrap();
    let work = scratch.path();
    std::fs::write(work.join("below.raw"), [9; 8192]).unwrap();
    for (i, options) in options.iter().enumerate() {
        let name = format!("{format}{i}");
        let mut create = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            create.extend(["-o", options]);
        }
        create.extend([name.as_str(), "600k"]);
        ok("qemu-img", work, &create);
        let stream = options.contains("streamOptimized");
        if !stream {
            let writes = ["-c", "write -P 7 4k 20k", "-c", "write -P 8 300k 9k", "-c", "write -z 100k 64k"];
            ok("qemu-io", work, &[&["-f", format, &name][..], &writes].concat());
        }
        if format == "qcow2" && !options.contains("data_file") {
            if !options.contains("preallocation") {
                ok("qemu-io", work, &["-f", format, &name, "-c", "write -c -P 3 448k 64k"]);
            }
            if !options.contains("0.10") {
                ok("qemu-img", work, &["bitmap", "--add", &name, "dirty"]);
            }
            if !options.contains("refcount_bits=1") {
                ok("qemu-img", work, &["snapshot", "-c", "before", &name]);
            }
            ok("qemu-io", work, &["-f", format, &name, "-c", "write -P 5 8k 8k"]);
        }
        if stream {
            let from = work.join("from.raw");
            std::fs::write(&from, [vec![7; 70_000], vec![0; 400_000], vec![8; 9000]].concat()).unwrap();
            ok("qemu-img", work, &["convert", "-O", format, "-o", options, "from.raw", &name]);
        }
    }
    for entry in std::fs::read_dir(work).unwrap() {
        let entry = entry.unwrap();
        if entry.metadata().unwrap().len() < 16 << 20 {
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    true
}

fn appliances(folder: &Path, options: &[&str]) -> bool {
    if !found("python3") {
        return false;
    }
    let mkxva = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/mkxva");
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("a.raw"), [vec![1; 5000], vec![0; 50_000], vec![2; 400]].concat()).unwrap();
    std::fs::write(scratch.path().join("b.raw"), vec![3; 1024]).unwrap();
    for (i, option) in options.iter().enumerate() {
        let out = folder.join(format!("xva{i}"));
        let mut arguments = vec![mkxva, out.to_str().unwrap(), "a.raw", "b.raw", "--nic", "00:16:3e:00:00:01"];
        arguments.extend(Some(*option).filter(|o| !o.is_empty()));
        ok("python3", scratch.path(), &arguments);
    }
    true
}

/// An MBR with logical partitions, and a GPT.
fn tables(folder: &Path) -> bool {
    if !found("sfdisk") {
        return false;
    }
    let mbr = "label: dos\n,64K,83,*\n,64K,82\n,,E\n,32K,83\n,32K,83\n";
    let gpt = "label: gpt\nfirst-lba: 34\n,64K,L,*\n,64K,S\n,,U\n";
    for (name, script, size) in [("mbr", mbr, 2 << 20), ("gpt", gpt, 300 << 10)] {
        let disk = folder.join(name);
        std::fs::File::create(&disk).unwrap().set_len(size).unwrap();
        let file = folder.join("script");
        std::fs::write(&file, script).unwrap();
        let mut sfdisk = Command::new("sfdisk");
        let out =
            sfdisk.args(["-q", "--no-reread", "--no-tell-kernel"]).arg(&disk).stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
        assert!(out.status.success(), "sfdisk {name}: {}", String::from_utf8_lossy(&out.stderr));
        std::fs::remove_file(file).unwrap();
    }
    true
}

/// What clients of the NBD specification send: options, then requests.
fn sessions(folder: &Path) {
    let option = |number: u32, data: &[u8]| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat();
    let request = |flags: u16, kind: u16, offset: u64, len: u32, data: &[u8]| {
        let head = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &7u64.to_be_bytes()].concat();
        [&head[..], &offset.to_be_bytes(), &len.to_be_bytes(), data].concat()
    };
    let go = |name: &str| {
        option(7, &[&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &1u16.to_be_bytes(), &3u16.to_be_bytes()].concat())
    };
    let context = |number: u32| {
        let (name, query) = (&b"disk"[..], &b"base:allocation"[..]);
        option(number, &[&4u32.to_be_bytes()[..], name, &1u32.to_be_bytes(), &15u32.to_be_bytes(), query].concat())
    };
    let work = [
        request(0, 0, 512, 4096, &[]),
        request(0, 1, 1024, 512, &[7; 512]),
        request(1, 3, 0, 0, &[]),
        request(0, 4, 0, 65536, &[]),
        request(2, 6, 4096, 8192, &[]),
        request(0, 7, 0, 1 << 20, &[]),
        request(0, 2, 0, 0, &[]),
    ]
    .concat();
    let flags = 3u32.to_be_bytes();
    let modern = [&flags[..], &option(3, &[]), &option(8, &[]), &context(9), &context(10), &go("disk"), &work].concat();
    let plain = [&flags[..], &go("frozen"), &work].concat();
    let old = [&flags[..], &option(1, b"disk"), &work].concat();
    let end = [&flags[..], &option(99, b"?"), &option(2, &[])].concat();
    for (name, bytes) in [("modern", modern), ("plain", plain), ("old", old), ("end", end)] {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}
