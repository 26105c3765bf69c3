//! `v2v -i xenserver` against a XenServer on the loopback that breaks: right errors or the right bytes, and nothing half-written.
//! And guests that run: what is refused, and what is converted in two phases.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::small::{Small, tool};
use common::xenserver::{Host, PASSWORD, WEB, disk, noise, vm, watched};
use serde_json::{Value, json};

const COPY: [&str; 6] = ["-os", "out", "-of", "raw", "--copy-only", "-q"];

fn copy<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [more, &COPY[..]].concat()
}

/// Whether the copy in `out` has the bytes of `web`'s disks.
fn assert_web(host: &Host) {
    host.assert_same("out/web-vda.raw", "a.img");
    host.assert_same("out/web-vdb.raw", "b.img");
    fs::remove_dir_all(host.dir.join("out")).unwrap();
}

#[test]
fn guests_are_listed() {
    let host = Host::usual();
    let table = host.ok(&[]);
    let row = table.lines().find(|line| line.starts_with("web ")).unwrap();
    assert!(row.contains(WEB) && row.contains("Halted") && row.contains("128 MiB") && row.contains("xvda 7.01 MiB, xvdb 2 MiB"), "{table}");
    assert!(!table.contains("template") && !table.contains("Control"), "{table}");
    let listed: Value = serde_json::from_str(&host.ok(&["--list", "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 4);
    assert_eq!(listed[3]["disks"][1]["size"], (2 << 20) + 512);
    assert_eq!(host.calls("session.logout"), 2);
}

#[test]
fn a_guest_is_converted_while_it_comes_and_its_password_is_seen_nowhere() {
    let small = Small::new();
    fs::rename(small.path("small.cfg"), small.path("small.txt")).unwrap();
    let vms = json!([vm("small", WEB, "Halted", &[("xvda2", "disk.img"), ("xvda1", "swap.img")])]);
    let host = Host::with(small.dir.path(), vms, "host.pem");
    // Slower in all than the silence that is allowed, though never silent for so long.
    host.faults(json!({ "pause": 0.1 }));
    let (output, seen) = watched(|| host.run(&["small", "-os", "out", "--report", "report.json", "-v", "--timeout", "1"]));
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    assert_eq!(small.names("out"), ["small-run.sh", "small-vda.qcow2", "small.xml"]);
    let report = fs::read_to_string(small.path("report.json")).unwrap();
    let domain = fs::read_to_string(small.path("out/small.xml")).unwrap();
    assert!(domain.contains(WEB) && report.contains("small on https://127.0.0.1"), "{report}");
    assert!(!seen, "the password was in a process's arguments");
    for text in [said, report, domain] {
        assert!(!text.contains(PASSWORD) && !text.contains("OpaqueRef"), "{text}");
    }
}

#[test]
fn wrong_names_and_passwords_are_told() {
    let host = Host::usual();
    let out = copy(&[]);
    for (guest, said) in [
        ("wbe", "has no guest called 'wbe': near that are 'web'"),
        ("mail", "has no guest called 'mail': 'v2v -i xenserver https://127.0.0.1"),
        ("twin", "several guests are called 'twin': say which by its UUID: 33333333-2222-3333-4444-555555555551, 3333"),
        ("live", "live is running: shut it down, or convert it from a snapshot with --snapshot"),
    ] {
        let message = host.fails(&[&[guest], &out[..]].concat());
        assert!(message.contains(said), "{message}");
    }
    let said = |command: &mut Command| String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
    let message = said(host.v2v(&copy(&["web", "--user", "admin"])).env("GUESTLIFT_PASSWORD", "x"));
    assert!(message.contains("the password is not that of 'admin'"), "{message}");
    let v2v = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_v2v"));
        command.args(arguments).args(["--ca", "ca.pem"]).args(COPY).current_dir(&host.dir).env_remove("GUESTLIFT_PASSWORD");
        command
    };
    let url = format!("https://root@{}/export?uuid={WEB}", host.address());
    let message = said(&mut v2v(&[&url]));
    assert!(message.contains("wants a password") && message.contains("--password-file FILE"), "{message}");
    let message = said(&mut v2v(&[&url.replace("root@", &format!("root:{PASSWORD}@"))]));
    assert!(message.contains("holds a password") && !message.contains(PASSWORD), "{message}");
    // The same address, and the password from the environment.
    assert!(v2v(&[&url]).env("GUESTLIFT_PASSWORD", PASSWORD).status().unwrap().success());
    assert_web(&host);
}

#[test]
fn certificates_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let vms = || json!([vm("web", WEB, "Halted", &[])]);
    let list = |host: &Host, ca: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_v2v"));
        command.args(["-i", "xenserver", &host.address(), "--password-file", "password"]).current_dir(&host.dir);
        let output = if ca.is_empty() { command.output() } else { command.args(["--ca", ca]).output() }.unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let host = Host::with(dir.path(), vms(), "host.pem");
    assert_eq!(list(&host, "ca.pem"), (true, String::new()));
    for ca in ["", "own.pem"] {
        let (_, said) = list(&host, ca);
        assert!(said.contains("its certificate is not known here") && said.contains("--ca 127.0.0.1.pem"), "{said}");
    }
    let (_, said) = list(&host, "password");
    assert!(said.contains("no certificate is in it") && !said.contains(PASSWORD), "{said}");
    drop(host);
    // The host's own, of another name, which calls itself an authority: known byte for byte.
    let own = tempfile::tempdir().unwrap();
    let host = Host::with(own.path(), vms(), "own.pem");
    assert_eq!(list(&host, "own.pem"), (true, String::new()));
    let (_, said) = list(&host, "");
    assert!(said.contains("its certificate is not known here"), "{said}");
    drop(host);
    let expired = tempfile::tempdir().unwrap();
    let host = Host::with(expired.path(), vms(), "expired.pem");
    let (_, said) = list(&host, "expired.pem");
    assert!(said.contains("its certificate has expired: renew it there"), "{said}");
    assert!(host.log().is_empty(), "something was asked over a connection that is not trusted");
}

#[test]
fn what_is_cut_begins_again_or_goes_on_and_is_never_half() {
    for framing in ["close", "length", "chunked"] {
        let fresh = Host::usual();
        fresh.faults(json!({ "framing": framing, "cut": [0, 4000000] }));
        fresh.ok(&copy(&["web"]));
        assert_web(&fresh);
        assert_eq!(fresh.log().iter().filter(|r| r["path"] == "/export").count(), 3, "{framing}");
        let never = Host::usual();
        never.faults(json!({ "framing": framing, "cut": [4000000, 3000000, 2000000] }));
        let said = never.fails(&copy(&["web"]));
        assert!(said.contains("web on https://127.0.0.1") && said.contains("asked for 3 times, and it never came whole"), "{said}");
    }
    let ranges = Host::usual();
    ranges.faults(json!({ "framing": "length", "ranges": true, "cut": [4000000, 500000] }));
    ranges.ok(&copy(&["web"]));
    assert_web(&ranges);
    let asked: Vec<_> = ranges.log().iter().filter(|r| r["path"] == "/export").map(|r| r["range"].clone()).collect();
    assert_eq!(asked, [Value::Null, "bytes=4000000-".into(), "bytes=4500000-".into()]);
    let moved = Host::usual();
    moved.faults(json!({ "cut": [3000000], "moved": true }));
    let said = moved.fails(&copy(&["web"]));
    assert!(said.contains("its disks are others now"), "{said}");
}

#[test]
fn a_host_that_says_nothing_is_given_up() {
    let host = Host::usual();
    for path in ["/jsonrpc", "/export"] {
        host.faults(json!({ "silent": path }));
        let said = host.fails(&copy(&["web", "--timeout", "1"]));
        assert!(said.contains("it has said nothing for 1 s"), "{said}");
    }
}

#[test]
fn redirects_lead_to_hosts_of_the_pool_only() {
    let host = Host::usual();
    let port = host.port;
    host.faults(json!({ "redirect": ["127.0.0.1", format!("https://127.0.0.2:{port}/export?{{query}}")] }));
    host.ok(&copy(&["web"]));
    assert_web(&host);
    let served = host.log().into_iter().rfind(|r| r["path"] == "/export").unwrap();
    assert_eq!((&served["host"], &served["session"]), (&"127.0.0.2".into(), &true.into()));
    for (location, wanted) in [
        (format!("http://127.0.0.2:{port}/export?{{query}}"), "redirects from https to http://127.0.0.2"),
        (format!("https://127.0.0.3:{port}/export?{{query}}&session_id=OpaqueRef:1"), "no host of its pool"),
        (format!("https://127.0.0.1:{port}/export?{{query}}"), "leads from host to host without end"),
    ] {
        host.faults(json!({ "redirect": ["*", location] }));
        let said = host.fails(&copy(&["web"]));
        assert!(said.contains(wanted), "{said}");
    }
    host.faults(json!({ "slave": true }));
    let output = Command::new(env!("CARGO_BIN_EXE_v2v"))
        .args(["-i", "xenserver", &format!("127.0.0.2:{port}"), "--list", "--ca", "ca.pem", "--password-file", "password"])
        .current_dir(&host.dir)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("web"), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_running_guest_is_exported_from_a_snapshot_that_is_gone_afterwards() {
    let host = Host::usual();
    let files = fs::read_dir(&host.dir).unwrap().count();
    let said =
        String::from_utf8(host.v2v(&["live", "--snapshot", "-os", "out", "-of", "raw", "--copy-only"]).output().unwrap().stderr).unwrap();
    assert!(said.contains("live was running: this is a snapshot of it"), "{said}");
    host.assert_same("out/live-vda.raw", "c.img");
    fs::remove_dir_all(host.dir.join("out")).unwrap();
    // One that fails leaves none either.
    host.faults(json!({ "cut": [10, 10, 10, 10] }));
    host.fails(&copy(&["live", "--snapshot"]));
    assert_eq!((host.calls("VM.snapshot"), host.calls("VM.destroy"), host.calls("VDI.destroy")), (2, 2, 2));
    // Apart from state.json's faults, nothing is there that was not before: the snapshots' disks are files.
    assert_eq!(fs::read_dir(&host.dir).unwrap().count(), files);
}

#[test]
fn exports_are_packed_where_the_host_can() {
    let host = Host::usual();
    for method in ["gzip", "zstd"] {
        host.ok(&copy(&["web", "--compress", method]));
        assert_web(&host);
        let query = host.log().into_iter().rfind(|r| r["path"] == "/export").unwrap()["query"].clone();
        assert!(query.as_str().unwrap().ends_with(&format!("&use_compression={method}")), "{query}");
    }
}

#[test]
fn a_server_s_guest_is_copied_while_it_runs_and_finished_by_the_difference() {
    let host = Host::usual();
    let files = fs::read_dir(&host.dir).unwrap().count();
    let phase = |name: &'static str| copy(&["web", "--phase", name]);
    host.faults(json!({ "power": { "web": "Running" } }));
    let said = host.fails(&phase("finish"));
    assert!(said.contains("no whole copy is there: '--phase copy' makes one"), "{said}");
    host.ok(&phase("copy"));
    // The guest goes on writing: in the first block, in a hole, and the last bytes of both disks.
    disk(&host.dir, "a.img", &[(100, &[9; 1000]), (5 << 20, &noise(70_000, 5)), ((7 << 20) + 5120, &[7; 512])]);
    let said = String::from_utf8(host.run(&phase("finish")).stderr).unwrap();
    assert!(said.contains("web is running: shut it down, then '--phase finish' fetches what has changed"), "{said}");
    host.ok(&phase("copy"));
    assert_eq!((host.calls("VM.snapshot"), host.calls("VM.destroy")), (2, 1));
    disk(&host.dir, "a.img", &[((2 << 20) + 4096, &[0; 8192]), (100, &[8; 10])]);
    disk(&host.dir, "b.img", &[(2 << 20, &[6; 512])]);
    // The difference is cut off each time, and the copy is as good as before.
    host.faults(json!({ "power": { "web": "Halted" }, "cut": [null, 3000000, 2500000, 2000000] }));
    let said = String::from_utf8(host.run(&phase("finish")).stderr).unwrap();
    assert!(said.contains("disk xvda of web on https://127.0.0.1") && said.contains("asked for 3 times"), "{said}");
    assert!(!host.dir.join("out/web.xml").exists());
    host.faults(json!({ "power": { "web": "Halted" } }));
    // A rehearsal leaves it as well.
    host.ok(&["web", "--phase", "finish", "-os", "out", "-o", "null", "--copy-only", "-q"]);
    assert!(host.dir.join("out/web.copy/state.json").exists());
    host.ok(&phase("finish"));
    let mut names: Vec<_> = fs::read_dir(host.dir.join("out")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["web-run.sh", "web-vda.raw", "web-vdb.raw", "web.xml"]);
    assert_web(&host);
    assert_eq!(host.calls("VM.destroy"), 2);
    // It came whole once: all else were differences.
    assert_eq!(host.log().iter().filter(|r| r["path"] == "/export").count(), 1);
    assert_eq!(fs::read_dir(&host.dir).unwrap().count(), files);

    // One that is not wanted after all.
    host.ok(&phase("copy"));
    host.ok(&phase("forget"));
    assert_eq!(fs::read_dir(&host.dir).unwrap().count(), files + 1);
    assert_eq!(fs::read_dir(host.dir.join("out")).unwrap().count(), 0);
}

#[test]
fn a_copy_of_files_follows_what_changes_and_becomes_the_result() {
    let small = Small::new();
    let run = |arguments: &[&str]| {
        let output = small.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["small.cfg", "-os", "out", "--phase", "copy"]).contains("Copied the disks to out/small.copy"));
    fs::write(small.path("motd"), "written later\n").unwrap();
    let root = small.path("disk.img");
    tool("debugfs", &["-w", "-R", &format!("write {} /etc/motd", small.path("motd").display()), root.to_str().unwrap()]);
    assert!(run(&["small.cfg", "-os", "out", "--phase", "copy"]).contains("what has changed since the last copy"));
    run(&["small.cfg", "-os", "out", "--phase", "finish"]);
    assert_eq!(small.names("out"), ["small-run.sh", "small-vda.qcow2", "small.xml"]);
    tool("qemu-img", &["check", "-q", small.path("out/small-vda.qcow2").to_str().unwrap()]);
    let motd =
        Command::new(env!("CARGO_BIN_EXE_virt")).args(["cat", "-a", "out/small-vda.qcow2", "/etc/motd"]).current_dir(&small.dir).output();
    assert_eq!(String::from_utf8_lossy(&motd.unwrap().stdout), "written later\n");
}

#[test]
fn what_lies_above_a_copied_image_is_all_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    disk(dir.path(), "disk.raw", &[(0, &noise(3 << 20, 1)), ((5 << 20) + 512, &noise(512, 2))]);
    tool("qemu-img", &["convert", "-O", "qcow2", &path("disk.raw"), &path("base.qcow2")]);
    let v2v = |guest: &str, phase: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_v2v"));
        command
            .args([
                "-i",
                "disk",
                guest,
                "--disk",
                &format!("xvda={guest}"),
                "-on",
                "web",
                "-os",
                "out",
                "-of",
                "raw",
                "--copy-only",
                "-q",
                "--phase",
                phase,
            ])
            .current_dir(&dir);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(v2v("base.qcow2", "copy").1, "");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", &path("child.qcow2")]);
    tool("qemu-io", &["-c", "write -P 7 1000k 100k", "-c", "write -z 2M 64k", "-c", "write -P 9 5243392 512", &path("child.qcow2")]);
    // What is read of the base now would be wrong, and it is not: its first cluster's place in the copy stays as it was copied.
    let modified = fs::metadata(path("base.qcow2")).unwrap().modified().unwrap();
    let good = fs::read(path("base.qcow2")).unwrap();
    let mut bad = good.clone();
    let at = bad.windows(16).position(|w| w == &noise(16, 1)[..]).unwrap();
    bad[at..at + 16].fill(0xee);
    fs::write(path("base.qcow2"), &bad).unwrap();
    fs::File::options().write(true).open(path("base.qcow2")).unwrap().set_modified(modified).unwrap();
    assert_eq!(v2v("child.qcow2", "finish"), (true, String::new()));
    fs::write(path("base.qcow2"), &good).unwrap();
    tool("qemu-img", &["compare", "-q", "-f", "raw", &path("out/web-vda.raw"), &path("child.qcow2")]);
    // A disk of another size is not the one that was copied.
    fs::remove_dir_all(path("out")).unwrap();
    assert_eq!(v2v("disk.raw", "copy").1, "");
    fs::File::options().write(true).open(path("disk.raw")).unwrap().set_len(8 << 20).unwrap();
    let (_, said) = v2v("disk.raw", "finish");
    assert!(said.contains("it has other disks than the copy in out/web.copy") && said.contains("8388608 bytes now"), "{said}");
}

#[test]
fn a_domain_that_runs_is_refused() {
    let small = Small::new();
    let xl = small.path("xl");
    fs::write(&xl, "#!/bin/sh\n[ \"$1 $2\" = 'domid small' ] && echo 7\n").unwrap();
    fs::set_permissions(&xl, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", small.dir.path().display(), std::env::var("PATH").unwrap());
    let run = |arguments: &[&str]| small.v2v().args(arguments).env("PATH", &path).output().unwrap();
    let refused = run(&["--plan", "small.cfg"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("small: runs on this host, as domain 7"), "{said}");
    assert!(run(&["--plan", "small.cfg", "--force"]).status.success());
    fs::write(&xl, "#!/bin/sh\nexit 1\n").unwrap();
    assert!(run(&["--plan", "small.cfg"]).status.success());
}

#[test]
fn a_device_that_is_in_use_is_refused() {
    let small = Small::new();
    let attached = Command::new("losetup").args(["--show", "-f"]).arg(small.path("disk.img")).output();
    let Ok(attached) = attached.map(|output| String::from_utf8(output.stdout).unwrap()).map(|name| name.trim().to_owned()) else {
        panic!("losetup is missing: it is part of util-linux")
    };
    if attached.is_empty() {
        eprintln!("skipped: no loop device can be had here");
        assert!(std::env::var_os("CI").is_none(), "loop devices are needed in CI");
        return;
    }
    let run = |more: &[&str]| {
        small
            .run(&[&["--plan", "-i", "disk", &attached, "--disk", &format!("xvda2={attached}"), "--disk", "xvda1=swap.img"], more].concat())
    };
    let free = run(&[]);
    let holder = rustix::fs::open(&*attached, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL, rustix::fs::Mode::empty()).unwrap();
    let (held, forced) = (run(&[]), run(&["--force"]));
    drop(holder);
    tool("losetup", &["-d", &attached]);
    for allowed in [free, forced] {
        assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));
    }
    let said = String::from_utf8_lossy(&held.stderr);
    assert!(!held.status.success() && said.contains("is in use on this host"), "{said}");
}

#[test]
fn a_plan_names_guests_of_a_server() {
    let host = Host::usual();
    let plan = format!(
        "[defaults]\nout = \"out\"\nformat = \"raw\"\ncopy-only = true\npassword-file = \"password\"\nca = \"ca.pem\"\n\
         [[guest]]\nname = \"web\"\nsource = \"https://root@{}/export?uuid={WEB}\"\n",
        host.address()
    );
    fs::write(host.dir.join("plan.toml"), plan).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_v2v")).args(["batch", "plan.toml", "-q"]).current_dir(&host.dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in ["plan.html", "plan.state/web/report.json", "plan.state/web/log.txt"] {
        assert!(!fs::read_to_string(host.dir.join(file)).unwrap().contains(PASSWORD), "{file}");
    }
    assert_web(&host);
}
