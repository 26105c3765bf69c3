//! `v2v -i xenserver` against a XenServer on the loopback that breaks: right errors or the right bytes, and nothing half-written.

mod common;

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::small::Small;
use common::xenserver::{Host, PASSWORD, WEB, vm};
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
    let (done, seen) = (AtomicBool::new(false), AtomicBool::new(false));
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                    seen.fetch_or(line.windows(PASSWORD.len()).any(|w| w == PASSWORD.as_bytes()), Ordering::Relaxed);
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        let output = host.run(&["small", "-os", "out", "--report", "report.json", "-v", "--timeout", "1"]);
        done.store(true, Ordering::Relaxed);
        output
    });
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    assert_eq!(small.names("out"), ["small-run.sh", "small-vda.qcow2", "small.xml"]);
    let report = fs::read_to_string(small.path("report.json")).unwrap();
    let domain = fs::read_to_string(small.path("out/small.xml")).unwrap();
    assert!(domain.contains(WEB) && report.contains("small on https://127.0.0.1"), "{report}");
    assert!(!seen.load(Ordering::Relaxed), "the password was in a process's arguments");
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
