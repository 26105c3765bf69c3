//! The program `v2v` on a guest of a few MiB: its plan, its outputs, what it refuses, and what is left when it is stopped.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::small::{ROOT_UUID, Small, failure, success, tool};

fn sums(small: &Small) -> String {
    tool("sha256sum", &[small.path("disk.img").to_str().unwrap(), small.path("swap.img").to_str().unwrap()])
}

const RESULT: [&str; 3] = ["small-run.sh", "small-vda.qcow2", "small.xml"];

#[test]
fn a_plan_shows_every_change_and_makes_none() {
    let small = Small::new();
    let before = (sums(&small), small.names("."));
    let plan = success(&small.run(&["--plan", "small.cfg"]));
    assert_eq!(before, (sums(&small), small.names(".")));
    for wanted in [
        "Guest small (Xen configuration small.cfg)",
        "Debian GNU/Linux 12 (bookworm)",
        "new partition table (MBR)",
        "vda1   was xvda1  swap, 4 MiB, made anew",
        "--- a/etc/fstab\n+++ b/etc/fstab",
        "-/dev/xvda2 / ext4 defaults 0 1",
        &format!("+UUID={ROOT_UUID} / ext4 defaults 0 1"),
        "--- a/boot/grub/menu.lst",
    ] {
        assert!(plan.contains(wanted), "{wanted:?} is not in:\n{plan}");
    }
    let json: serde_json::Value = serde_json::from_str(&success(&small.run(&["--plan", "--json", "-q", "small.cfg"]))).unwrap();
    assert_eq!(json["guest"]["macs"][0], "00:16:3e:00:00:01");
    assert_eq!(json["disks"][0]["volumes"][1]["uuid"], ROOT_UUID);
    assert!(json["files"].as_array().unwrap().iter().any(|f| f["path"] == "/etc/fstab" && f["kind"] == "changed"));
}

#[test]
fn a_filesystem_that_the_guest_cannot_mount_either_is_no_obstacle() {
    let small = Small::new();
    let (root, data) = (small.path("disk.img"), small.path("data.img"));
    tool("mke2fs", &["-q", "-t", "ext4", data.to_str().unwrap(), "8M"]);
    let fstab = small.path("fstab");
    fs::write(&fstab, "/dev/xvda2 / ext4 defaults 0 1\n/dev/xvdb /missing ext4 noauto 0 0\n").unwrap();
    for command in ["rm /etc/fstab".to_string(), format!("write {} /etc/fstab", fstab.display())] {
        tool("debugfs", &["-w", "-R", &command, root.to_str().unwrap()]);
    }
    let config = format!("disk = [ 'file:{},xvda2,w', 'file:{},xvdb,w' ]", root.display(), data.display());
    small.config("small.cfg", &config);
    let output = small.run(&["small.cfg", "-os", "out"]);
    success(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/missing on /dev/vdb is not mounted"), "{said}");
}

#[test]
fn a_conversion_writes_three_files_and_replaces_none() {
    let small = Small::new();
    let before = sums(&small);
    let said =
        success(&small.run(&["--from", "xen", "--to", "kvm", "small.cfg", "-os", "out", "--bridge", "xenbr0:br7", "--report", "r.json"]));
    assert_eq!(before, sums(&small));
    assert_eq!(small.names("out"), RESULT);
    assert!(said.contains("virsh define") && said.contains("small-run.sh -snapshot"), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(small.path("r.json")).unwrap()).unwrap();
    assert_eq!(report["name"], "small");
    assert!(report["timings"].as_array().unwrap().iter().any(|t| t["stage"] == "Copying the disks"));
    let xml = fs::read_to_string(small.path("out/small.xml")).unwrap();
    assert!(xml.contains("<source bridge=\"br7\"/>") && xml.contains("<mac address=\"00:16:3e:00:00:01\"/>"), "{xml}");
    tool("xmllint", &["--noout", small.path("out/small.xml").to_str().unwrap()]);
    tool("sh", &["-n", small.path("out/small-run.sh").to_str().unwrap()]);
    tool("qemu-img", &["check", small.path("out/small-vda.qcow2").to_str().unwrap()]);

    let message = failure(&small.run(&["small.cfg", "-os", "out"]));
    assert!(message.contains("is there already; --force replaces it"), "{message}");
    assert_eq!(small.names("out"), RESULT);
    success(&small.run(&["small.cfg", "-os", "out", "--force"]));
    assert_eq!(small.names("out"), RESULT);

    let message = failure(&small.run(&["out/small-vda.qcow2", "-os", "out", "-on", "small", "--force"]));
    assert!(message.contains("the result would replace its own source"), "{message}");
    assert_eq!(small.names("out"), RESULT);

    success(&small.run(&["small.cfg", "-os", "out", "-of", "raw", "-oa", "preallocated", "-on", "other"]));
    let raw = small.path("out/other-vda.raw");
    let table: serde_json::Value = serde_json::from_str(&tool("sfdisk", &["--json", raw.to_str().unwrap()])).unwrap();
    let root = &table["partitiontable"]["partitions"][1];
    assert_eq!(root["type"], "83");
    let root = format!("{}?offset={}", raw.display(), root["start"].as_u64().unwrap() * 512);
    tool("e2fsck", &["-fn", &root]);
    assert!(tool("debugfs", &["-R", "cat /etc/fstab", &root]).starts_with(&format!("UUID={ROOT_UUID} / ext4")));
}

/// Kills conversions at moments spread over their time: whatever is left never looks like a result.
#[test]
fn a_killed_conversion_leaves_no_result() {
    let small = Small::new();
    let start = Instant::now();
    success(&small.run(&["small.cfg", "-os", "whole"]));
    let full = start.elapsed();
    let mut killed = 0;
    for twelfth in 0..12 {
        let mut child = small.v2v().args(["small.cfg", "-q", "-os", "out"]).spawn().unwrap();
        std::thread::sleep(full * twelfth / 12);
        let ended = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        child.wait().unwrap();
        if ended {
            let _ = fs::remove_dir_all(small.path("out"));
            continue;
        }
        killed += 1;
        let left: Vec<_> = small.names("out").into_iter().filter(|n| !n.starts_with('.')).collect();
        assert!(!left.contains(&"small.xml".to_owned()), "killed after {twelfth}/12: {left:?}");
    }
    assert!(killed > 3, "conversions were too fast to be killed");
    success(&small.run(&["small.cfg", "-os", "out", "--force"]));
    assert_eq!(small.names("out"), RESULT, "what the killed ones left is still there");
}

#[test]
fn an_interrupted_conversion_cleans_up() {
    let small = Small::new();
    let child = small.v2v().args(["small.cfg", "-os", "out"]).stderr(Stdio::piped()).spawn().unwrap();
    // Once its folder is there, it listens.
    let start = Instant::now();
    while small.names("out").is_empty() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(2));
    }
    tool("kill", &["-INT", &child.id().to_string()]);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stopped; nothing was left behind"));
    assert!(!small.path("out").exists());
}

#[test]
fn errors_name_the_guest_the_place_and_what_to_do() {
    let small = Small::new();
    small.config("no-disk.cfg", "disk = [ 'file:/nonexistent/x.img,xvda2,w' ]");
    small.config("program.cfg", "vif = os.name");
    fs::write(small.path("not-xen.xml"), "<domain type='kvm'><name>x</name></domain>").unwrap();
    fs::write(small.path("zero.img"), vec![0; 1 << 20]).unwrap();
    for (arguments, wanted) in [
        (&["none.cfg", "-os", "out"][..], "none.cfg: cannot open: No such file"),
        (
            &["no-disk.cfg", "-os", "out"],
            "no-disk.cfg:6: disk xvda2: /nonexistent/x.img is not there; copy it there, or say where it is with --disk xvda2=FILE",
        ),
        (&["program.cfg", "-os", "out"], "program.cfg:6: cannot read 'os.name'"),
        (&["not-xen.xml", "-os", "out"], "not-xen.xml:1: the domain is of type 'kvm', not 'xen'"),
        (&["zero.img", "-os", "out"], "no operating system was found"),
        (&["small.cfg", "-os", "out", "-i", "vmx"], "-i vmx: no such input"),
        (&["small.cfg", "-os", "out", "-on", "a/b"], "-on 'a/b': names are letters"),
        (&["small.cfg", "-os", "out", "--root", "/dev/xvda7"], "there is no operating system on /dev/xvda7"),
        (&["small.cfg", "-os", "out", "--kernel-package", "none.deb"], "none.deb: cannot read: No such file"),
        (&["small.cfg", "-os", "small.cfg"], "small.cfg: cannot create"),
    ] {
        let message = failure(&small.run(arguments));
        assert!(message.contains(wanted), "{arguments:?}: {wanted:?} is not in {message:?}");
        assert!(!Path::new(&small.path("out")).exists(), "{arguments:?} left something");
    }
}
