//! `img` against qemu-img: the same arguments give the same output and exit code.

#![allow(missing_docs)]

use std::path::Path;
use std::process::Command;

fn have(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        eprintln!("skipped: {tool} is not installed");
        assert!(std::env::var_os("CI").is_none(), "{tool} must be installed in CI");
    }
    there
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(program: &str, args: &[&str], folder: &Path) -> Ran {
    let out = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr) }
}

const IMG: &str = env!("CARGO_BIN_EXE_img");

fn ok(program: &str, args: &[&str], folder: &Path) -> String {
    let ran = run(program, args, folder);
    assert_eq!(ran.code, 0, "{program} {args:?}: {}{}", ran.out, ran.err);
    ran.out
}

/// Both programs on the same arguments: equal exit code and standard output (as JSON where it is that).
fn agree(args: &[&str], folder: &Path) {
    let (ours, theirs) = (run(IMG, args, folder), run("qemu-img", args, folder));
    assert_eq!(ours.code, theirs.code, "{args:?}: {}{}", ours.err, theirs.err);
    match serde_json::from_str::<serde_json::Value>(&theirs.out) {
        Ok(value) => assert_eq!(serde_json::from_str::<serde_json::Value>(&ours.out).unwrap(), value, "{args:?}"),
        Err(_) => assert_eq!(ours.out, theirs.out, "{args:?}"),
    }
}

/// A folder of images of all kinds, made by qemu-img.
fn images() -> Option<tempfile::TempDir> {
    if !have("qemu-img") || !have("qemu-io") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let make = |args: &str| ok("qemu-img", &args.split(' ').collect::<Vec<_>>(), folder);
    std::fs::create_dir(folder.join("sub")).unwrap();
    std::fs::write(folder.join("odd.raw"), b"four").unwrap();
    make("create -q -f raw base.raw 3M");
    ok("qemu-io", &["-f", "raw", "-c", "write -P 1 1M 64k", "base.raw"], folder);
    make("create -q -f qcow2 -b ../base.raw -F raw sub/mid.qcow2");
    make("create -q -f qcow2 -b sub/mid.qcow2 -F qcow2 top.qcow2 4M");
    ok("qemu-io", &["-c", "write -P 2 0 128k", "-c", "write -z 2M 64k", "-c", "write -P 4 3M 100k", "top.qcow2"], folder);
    make("create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 100M");
    make("create -q -f qcow2 -o preallocation=metadata,lazy_refcounts=on,refcount_bits=32 pre.qcow2 20M");
    make("create -q -f qcow2 -o extended_l2=on ext.qcow2 20M");
    ok("qemu-io", &["-c", "write -P 2 3k 9k", "-c", "write -z 1M 4k", "ext.qcow2"], folder);
    make("create -q -f qcow2 -o data_file=data.raw,data_file_raw=on external.qcow2 2M");
    make("create -q -f qcow2 -o compression_type=zstd zstd.qcow2 2M");
    ok("qemu-io", &["-c", "write -c -P 3 256k 64k", "-c", "write -P 3 320k 64k", "zstd.qcow2"], folder);
    std::fs::copy(folder.join("top.qcow2"), folder.join("snap.qcow2")).unwrap();
    make("snapshot -c first snap.qcow2");
    make("snapshot -c second_with_a_long_name snap.qcow2");
    ok("qemu-io", &["-c", "write -P 9 64k 64k", "snap.qcow2"], folder);
    ok("qemu-img", &["bitmap", "--add", "top.qcow2", "b0"], folder);
    Some(dir)
}

const ALL: [&str; 10] = [
    "base.raw",
    "odd.raw",
    "sub/mid.qcow2",
    "top.qcow2",
    "v2.qcow2",
    "pre.qcow2",
    "ext.qcow2",
    "external.qcow2",
    "zstd.qcow2",
    "snap.qcow2",
];

#[test]
fn info_map_and_check_say_the_same() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    for file in ALL {
        // Bitmaps are counted by the check, but not listed.
        if file != "top.qcow2" {
            agree(&["info", file], folder);
            agree(&["info", "--output=json", file], folder);
            agree(&["info", "--backing-chain", file], folder);
            agree(&["info", "--backing-chain", "--output", "json", file], folder);
        }
        // qemu-img looks for holes under preallocated clusters, and shows where unallocated subclusters would lie.
        let mapped_alike = !["pre.qcow2", "ext.qcow2"].contains(&file);
        if mapped_alike {
            agree(&["map", "--output=json", file], folder);
            agree(&["map", file], folder);
        }
        if file != "odd.raw" && mapped_alike {
            agree(&["map", "--output=json", "--start-offset", "100k", "--max-length=1M", file], folder);
        }
        agree(&["check", file], folder);
        agree(&["check", "--output=json", file], folder);
        agree(&["check", "-q", file], folder);
    }
    for args in
        [&["info", "nope"][..], &["check", "nope"], &["map", "nope"], &["info"], &["nonsense"], &["check", "-f", "qcow2", "base.raw"]]
    {
        agree(args, folder);
    }
}

#[test]
fn disks_of_several_files_are_described_alike() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for subformat in ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"] {
        let options = format!("subformat={subformat}");
        ok("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &options, "a.vmdk", "3G"], folder);
        for args in
            [&["info", "a.vmdk"][..], &["info", "--output=json", "a.vmdk"], &["check", "a.vmdk"], &["check", "--output=json", "a.vmdk"]]
        {
            agree(args, folder);
        }
    }
    ok("qemu-img", &["create", "-q", "-f", "vmdk", "a.vmdk", "3G"], folder);
    ok("qemu-img", &["create", "-q", "-f", "vmdk", "-b", "a.vmdk", "-F", "vmdk", "b.vmdk"], folder);
    ok("qemu-img", &["create", "-q", "-f", "vhdx", "c.vhdx", "3G"], folder);
    for args in
        [&["info", "b.vmdk"][..], &["info", "--backing-chain", "b.vmdk"], &["map", "b.vmdk"], &["info", "c.vhdx"], &["check", "c.vhdx"]]
    {
        agree(args, folder);
    }
}

#[test]
fn created_images_are_the_same() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let made = [
        "-f raw x 10M",
        "x 1000",
        "-f qcow2 x 1G",
        "-f qcow2 x 1000",
        "-f qcow2 -o cluster_size=512 x 10M",
        "-f qcow2 x -o compat=0.10 10M",
        "-f qcow2 -o preallocation=metadata,cluster_size=4k x 5M",
        "-f qcow2 -o lazy_refcounts=on,refcount_bits=1 x 1T",
        "-f qcow2 -o compression_type=zstd x 3G",
        "-q -f qcow2 x 1M",
        "-f qcow2 -b base.raw -F raw x",
        "-f qcow2 -b base.raw -F raw x 10M",
        "-f qcow2 -u -b nowhere.raw -F raw x 1M",
        "-f qcow2 -o size=1M x",
        "-f qcow2 -o cluster_size=2M x 1T",
        "-f vhdx x 1000",
        "-f vhdx -o block_size=1M,log_size=3M,block_state_zero=off x 3G",
        "-f vmdk x 3G",
        "-f vmdk -o adapter_type=lsilogic,subformat=streamOptimized x 3G",
    ];
    let refused = [
        "-f qcow2 x",
        "-f qcow2 -o cluster_size=1000 x 1M",
        "-f qcow2 -o compat=9 x 1M",
        "-f qcow2 -o refcount_bits=3 x 1M",
        "-f qcow2 -o compat=0.10,refcount_bits=1 x 1M",
        "-f nope x 1M",
        "-f qcow2 -b base.raw x",
        "-f qcow2 -b nowhere.raw -F raw x",
        "-f qcow2 -o nope=1 x 1M",
        "-f qcow2 x 1Q",
        "-f qcow2 /nonexistent/x 1M",
        "-f qcow2 -o cluster_size=512 x 1P",
    ];
    ok("qemu-img", &["create", "-q", "-f", "raw", "base.raw", "3M"], folder);
    for line in made {
        let args: Vec<&str> = std::iter::once("create").chain(line.split(' ')).collect();
        let theirs = run("qemu-img", &args, folder);
        let info = |text: String| {
            text.lines()
                .filter(|l| !["disk size", "file length", "cid: "].iter().any(|part| l.contains(part)))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let their_info = info(run("qemu-img", &["info", "x"], folder).out);
        std::fs::remove_file(folder.join("x")).unwrap();
        let ours = run(IMG, &args, folder);
        assert_eq!((ours.code, &ours.out), (theirs.code, &theirs.out), "{line}: {}", ours.err);
        assert_eq!(info(run("qemu-img", &["info", "x"], folder).out), their_info, "{line}");
        if line.contains("qcow2") && !line.contains("nowhere") {
            ok("qemu-img", &["check", "x"], folder);
        }
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2, "{line}");
        std::fs::remove_file(folder.join("x")).unwrap();
    }
    for line in refused {
        let args: Vec<&str> = std::iter::once("create").chain(line.split(' ')).collect();
        let ours = run(IMG, &args, folder);
        assert_eq!(ours.code, 1, "{line}");
        assert_eq!(run("qemu-img", &args, folder).code, 1, "{line}");
        assert!(ours.err.starts_with("img: ") || ours.err.contains("error"), "{line}: {}", ours.err);
        let _ = std::fs::remove_file(folder.join("x"));
    }
}

/// One damaged place, and what both programs find.
#[test]
fn damage_is_counted_alike_and_repaired() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    let good = std::fs::read(folder.join("snap.qcow2")).unwrap();
    let number = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let (l1, refcount_table) = (number(40), number(48));
    let l2 = number(l1) & 0xff_ffff_ffff_fe00;
    let counts = number(refcount_table);
    let cases: &[(&str, usize, &[u8])] = &[
        ("a count too high", counts + 5 * 2, &[0, 7]),
        ("a count too low", counts + 4 * 2, &[0, 0]),
        ("a leak", counts + 40 * 2, &[0, 1]),
        ("data without its copied flag", l2 + 8, &[0]),
        ("data at an odd place", l2 + 8 + 6, &[0x12]),
        ("data past the end", l2 + 8 + 2, &[0x7f]),
        ("two clusters in one place", l2 + 8, &good[l2..l2 + 8]),
        ("an L2 table past the end", l1 + 2, &[0x7f]),
        ("an L2 table without its copied flag", l1, &[0]),
        ("a refcount block past the end", refcount_table + 2, &[0x7f]),
        ("a refcount block at an odd place", refcount_table + 6, &[0x02]),
    ];
    for (name, at, bytes) in cases {
        let mut bad = good.clone();
        bad[*at..*at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.join("bad.qcow2"), &bad).unwrap();
        let (ours, theirs) = (run(IMG, &["check", "bad.qcow2"], folder), run("qemu-img", &["check", "bad.qcow2"], folder));
        // qemu-img gives up where a refcount block cannot be read.
        if !name.starts_with("a refcount block") {
            assert_eq!(ours.code, theirs.code, "{name}: {}\n{}", ours.err, theirs.err);
            assert_eq!(ours.out, theirs.out, "{name}: {}\n{}", ours.err, theirs.err);
        }
        // What can be repaired is sound afterwards, to qemu-img too.
        let repaired = run(IMG, &["check", "-r", "all", "bad.qcow2"], folder);
        if !name.contains("past the end") && !name.contains("odd place") || name.contains("block") {
            assert_eq!(repaired.code, 0, "{name}: {}{}", repaired.out, repaired.err);
            ok("qemu-img", &["check", "bad.qcow2"], folder);
        }
    }
    std::fs::write(folder.join("bad.qcow2"), &good).unwrap();
    let mut leaky = good.clone();
    leaky[counts + 5 * 2 + 1] += 1;
    std::fs::write(folder.join("bad.qcow2"), &leaky).unwrap();
    assert_eq!(run(IMG, &["check", "bad.qcow2"], folder).code, 3);
    assert_eq!(run(IMG, &["check", "-r", "leaks", "bad.qcow2"], folder).code, 0);
    ok("qemu-img", &["check", "bad.qcow2"], folder);
}
