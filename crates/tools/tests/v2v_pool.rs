//! `v2v batch` on the guests of a pool: found, planned, copied while they run, and finished; against a XenServer on the loopback that breaks.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::batch::{Running, code, outcomes, page};
use common::small::tool;
use common::xenserver::{Host, PASSWORD, WEB, disk, noise, vm, watched};
use serde_json::{Value, json};

fn batch(host: &Host, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_v2v"));
    command.args(["batch", "plan.toml"]).args(arguments).current_dir(&host.dir).env_remove("GUESTLIFT_PASSWORD");
    command
}

fn run(host: &Host, arguments: &[&str]) -> Output {
    batch(host, arguments).output().unwrap()
}

/// Looks for guests, and gives the plan.
fn plan(host: &Host, more: &[&str]) -> String {
    let server = format!("root@{}", host.address());
    let ran = run(
        host,
        &[&["--from-xenserver", &server, "--ca", "ca.pem", "--password-file", "password", "-os", "out", "--option", "copy-only"], more]
            .concat(),
    );
    assert_eq!(code(&ran).0, 0, "{}", code(&ran).1);
    fs::read_to_string(host.dir.join("plan.toml")).unwrap()
}

/// Neither the password nor a session is in anything that a batch has written.
fn assert_secret(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() {
            assert_secret(&path);
        } else if !["password", "state.json", "log"].contains(&name.as_str()) || dir.parent().unwrap().ends_with("plan.state") {
            let bytes = fs::read(&path).unwrap();
            for secret in [PASSWORD, "OpaqueRef:"] {
                assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} is in {}", path.display());
            }
        }
    }
}

/// The part of a plan about one guest.
fn part<'a>(text: &'a str, name: &str) -> &'a str {
    let named = text.find(&format!("name = \"{name}\"\n")).unwrap_or_else(|| panic!("{name} is not in {text}"));
    let start = text[..named].rfind("\n\n").unwrap();
    let end = text[named..].find("\n\n").map_or(text.len(), |at| named + at);
    &text[start..end]
}

#[test]
fn the_guests_of_a_pool_become_a_plan() {
    let host = Host::usual();
    let text = plan(&host, &["--option", "format=raw", "--timeout", "9"]);
    assert_eq!(text.matches("[[guest]]").count(), 4, "{text}");
    assert!(!text.contains("emplate") && !text.contains("Control"), "{text}");
    let web = part(&text, "web");
    assert!(web.contains(&format!("source = \"https://root@{}/export?uuid={WEB}\"\nenabled = true\n", host.address())), "{web}");
    assert!(web.contains("# halted, 128 MiB of memory, 2 disks of 9.0"), "{web}");
    let live = part(&text, "live");
    assert!(live.contains("enabled = false") && live.contains("it runs: shut it down") && live.contains("'--phase copy'"), "{live}");
    for twin in ["twin", "twin-2"] {
        assert!(part(&text, twin).contains("# Cannot be converted as it is: it has no disks\n"), "{text}");
    }
    for setting in ["password-file = \"/", "ca = \"/", "timeout = \"9\"\n", "copy-only = true\n"] {
        assert!(text.contains(setting), "{setting} is not in {text}");
    }
    host.faults(json!({ "pause": 0.05 }));
    let (ran, seen) = watched(|| run(&host, &["-j", "2"]));
    assert_eq!(code(&ran).0, 0, "{}", code(&ran).1);
    assert!(!seen, "the password was in a process's arguments");
    host.assert_same("out/web-vda.raw", "a.img");
    host.assert_same("out/web-vdb.raw", "b.img");
    page(&host.dir, &["1 converted, 3 disabled"]);
    assert_secret(&host.dir);
    assert_eq!(host.calls("VM.snapshot"), 0);
}

#[test]
fn a_plan_of_running_guests_takes_snapshots_where_it_says_so() {
    let host = Host::usual();
    let files = fs::read_dir(&host.dir).unwrap().count();
    let text = plan(&host, &["--option", "format=raw", "--snapshot"]);
    assert!(
        text.contains("snapshot = true\n") && part(&text, "live").contains("# Warning: it runs: converted is a snapshot of it"),
        "{text}"
    );
    assert_eq!(code(&run(&host, &["-q"])), (0, String::new()));
    host.assert_same("out/live-vda.raw", "c.img");
    assert_eq!((host.calls("VM.snapshot"), host.calls("VM.destroy")), (1, 1));
    // The plan, its state, the page and the results, and no disk of a snapshot.
    assert_eq!(fs::read_dir(&host.dir).unwrap().count(), files + 4);
}

#[test]
fn a_pool_that_cannot_be_asked_leaves_no_plan() {
    let host = Host::usual();
    let refused = |server: &str, more: &[&str]| {
        let (status, said) = code(&run(&host, &[&["--from-xenserver", server, "-os", "out"], more].concat()));
        assert!(status == 2 && !host.dir.join("plan.toml").exists() && !said.contains(PASSWORD), "{said}");
        said
    };
    fs::write(host.dir.join("wrong"), "another\n").unwrap();
    let address = host.address();
    let said = refused(&address, &["--ca", "ca.pem", "--password-file", "wrong"]);
    assert!(said.contains("the password is not that of 'root'"), "{said}");
    let said = refused(&address, &["--ca", "expired.pem", "--password-file", "password"]);
    assert!(said.contains("its certificate is not known here"), "{said}");
    let said = refused(&format!("root:{PASSWORD}@{address}"), &[]);
    assert!(said.contains("holds a password") || said.contains("--password-file"), "{said}");
    let (status, said) = code(&run(&host, &["--ca", "ca.pem"]));
    assert!(status == 2 && said.contains("for a new plan"), "{said}");
}

/// What fails says so, and is whole the next time.
#[test]
fn what_breaks_in_a_batch_is_told_without_secrets_and_done_the_next_time() {
    let host = Host::usual();
    plan(&host, &["--option", "format=raw"]);
    host.faults(json!({ "redirect": ["*", format!("https://127.0.0.3:{}/export?{{query}}&session_id=OpaqueRef:1", host.port)] }));
    let (status, said) = code(&run(&host, &[]));
    assert!(status == 1 && said.contains("no host of its pool"), "{said}");
    fs::write(host.dir.join("password"), "another\n").unwrap();
    host.faults(json!({}));
    let (status, said) = code(&run(&host, &[]));
    assert!(status == 1 && said.contains("the password is not that of 'root'"), "{said}");
    page(&host.dir, &["the password is not that of 'root'", "What needs a person"]);
    assert!(!host.dir.join("out").exists());
    assert_secret(&host.dir);
    fs::write(host.dir.join("password"), PASSWORD).unwrap();
    assert_eq!(code(&run(&host, &["-q"])), (0, String::new()));
    assert_eq!(outcomes(&host.dir, "web"), ["failed", "failed", "done"]);
    host.assert_same("out/web-vda.raw", "a.img");
}

const GUESTS: [&str; 3] = ["db", "mail", "web"];

/// Three guests that run.
fn busy() -> Host {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    disk(path, "a.img", &[(0, &noise(3 << 20, 1)), (7 << 20, &noise(5632, 2))]);
    disk(path, "b.img", &[(0, &noise((2 << 20) + 512, 3))]);
    disk(path, "c.img", &[(0, &noise(2 << 20, 4))]);
    disk(path, "d.img", &[(0, &noise(2 << 20, 5)), (4 << 20, &noise(512, 6))]);
    let vms = json!([
        vm("web", WEB, "Running", &[("xvda", "a.img"), ("xvdb", "b.img")]),
        vm("db", "22222222-2222-3333-4444-555555555555", "Running", &[("xvda", "c.img")]),
        vm("mail", "33333333-2222-3333-4444-555555555555", "Running", &[("xvda", "d.img")]),
    ]);
    Host::with(path, vms, "host.pem").keep(dir)
}

fn power(state: &str) -> Value {
    GUESTS.iter().map(|name| ((*name).to_owned(), state.into())).collect::<serde_json::Map<_, _>>().into()
}

/// Where the guests are, by their names.
fn statuses(host: &Host) -> Vec<String> {
    let ran = Command::new(env!("CARGO_BIN_EXE_v2v")).args(["batch", "status", "plan.toml", "--json"]).current_dir(&host.dir).output();
    let status: Value = serde_json::from_slice(&ran.unwrap().stdout).unwrap();
    status["guests"].as_array().unwrap().iter().map(|g| g["status"].as_str().unwrap().to_owned()).collect()
}

fn exports(host: &Host) -> usize {
    host.log().iter().filter(|request| request["path"] == "/export").count()
}

/// Whether the results have the bytes of the guests' disks.
fn assert_results(host: &Host) {
    for (result, disk) in [("web-vda", "a"), ("web-vdb", "b"), ("db-vda", "c"), ("mail-vda", "d")] {
        assert_same(host, result, disk);
    }
}

fn assert_same(host: &Host, result: &str, disk: &str) {
    let [result, disk] = [format!("out/{result}.qcow2"), format!("{disk}.img")].map(|name| host.dir.join(name));
    tool("qemu-img", &["check", "-q", result.to_str().unwrap()]);
    tool("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", result.to_str().unwrap(), disk.to_str().unwrap()]);
}

#[test]
fn a_pool_is_copied_in_the_week_and_finished_at_the_weekend() {
    let host = busy();
    let files = fs::read_dir(&host.dir).unwrap().count();
    let text = plan(&host, &["--phase", "copy"]);
    assert_eq!(text.matches("enabled = true").count(), 3, "{text}");

    // Killed twice while disks are copied: what is copied stays, and the snapshots of the others are not forgotten.
    let copying = |event: &Value| event["event"] == "stage" && event["what"] == "Copying the disks";
    for copied in [0, 1] {
        host.faults(json!({ "pause": 0.05, "power": power("Running") }));
        let mut first = Running::start(batch(&host, &["--phase", "copy", "-j", "1"]));
        for _ in 0..copied {
            assert!(first.until(|e| e["event"] == "ended" && e["status"] == "copied"), "nothing was copied");
        }
        assert!(first.until(copying), "the batch ended before it was killed");
        first.signal("-KILL");
        first.end();
    }
    host.faults(json!({ "power": power("Running") }));
    let (status, said, _) = Running::start(batch(&host, &["--phase", "copy", "-j", "2"])).end();
    assert_eq!((status, statuses(&host)), (0, vec!["copied".to_owned(); 3]), "{said}");
    for guest in GUESTS {
        assert_eq!(outcomes(&host.dir, guest).iter().filter(|o| *o == "copied").count(), 1, "{guest} was copied twice");
    }
    assert_eq!(host.calls("VM.snapshot"), host.calls("VM.destroy") + 3);
    let before = exports(&host);
    let (status, _, events) = Running::start(batch(&host, &["--phase", "copy"])).end();
    assert_eq!((status, events.iter().filter(|e| e["event"] == "started").count()), (0, 0));
    page(&host.dir, &["3 copied", "Shut it down, and '--phase finish'"]);

    // They go on writing; nobody is finished who runs.
    disk(&host.dir, "a.img", &[(100, &[9; 1000]), ((7 << 20) + 5120, &[7; 512])]);
    disk(&host.dir, "d.img", &[(2 << 20, &noise(4096, 7))]);
    assert_eq!(code(&run(&host, &["--phase", "update", "-q"])), (0, String::new()));
    disk(&host.dir, "b.img", &[(2 << 20, &[6; 512])]);
    disk(&host.dir, "c.img", &[(512, &[0; 512])]);
    let (status, said) = code(&run(&host, &["--phase", "finish"]));
    assert!(status == 1 && said.contains("web is running: shut it down, then '--phase finish' fetches what has changed"), "{said}");
    assert!(fs::read_dir(host.dir.join("out")).unwrap().flatten().all(|e| e.path().is_dir()), "a running guest was converted");

    // Killed in the window, too: a difference is put onto the copy from its start.
    host.faults(json!({ "pause": 0.05, "power": power("Halted") }));
    let mut window = Running::start(batch(&host, &["--phase", "finish", "-j", "1"]));
    assert!(window.until(|e| e["event"] == "stage" && e["what"] == "Copying what has changed"));
    window.signal("-KILL");
    window.end();
    host.faults(json!({ "power": power("Halted") }));
    assert_eq!(code(&run(&host, &["--phase", "finish", "-q"])), (0, String::new()));
    assert_eq!(statuses(&host), ["done"; 3]);
    assert_results(&host);
    assert_eq!(exports(&host), before, "a disk came whole once more");
    assert_eq!(host.calls("VM.snapshot"), host.calls("VM.destroy"));
    let left = fs::read_dir(host.dir.join("out")).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert_eq!((left, fs::read_dir(&host.dir).unwrap().count()), (0, files + 4), "a copy or a snapshot is left");
    assert_secret(&host.dir);
}

#[test]
fn a_copy_is_used_by_a_batch_without_phases_and_forgotten_where_it_is_not_wanted() {
    let host = busy();
    let files = fs::read_dir(&host.dir).unwrap().count();
    let text = plan(&host, &["--phase", "copy"]);
    let without = |name: &str| text.replace(part(&text, name), &part(&text, name).replace("enabled = true", "enabled = false"));
    fs::write(host.dir.join("plan.toml"), without("mail")).unwrap();
    assert_eq!(code(&run(&host, &["--phase", "copy", "-q"])), (0, String::new()));
    assert_eq!(code(&run(&host, &["--phase", "update", "--again", "db", "-q"])), (0, String::new()));
    fs::write(host.dir.join("plan.toml"), &text).unwrap();
    host.faults(json!({ "power": power("Halted") }));

    // The one without a copy is not made to wait for hours in the window, unless that is asked for.
    let (status, said) = code(&run(&host, &["--phase", "finish"]));
    assert!(status == 1 && said.contains("mail: failed (0 s): there is no copy of its disks that could be finished"), "{said}");
    assert!(said.contains("without --phase it is converted in one go"), "{said}");
    assert_eq!(statuses(&host), ["done", "failed", "done"]);
    let (status, said) = code(&run(&host, &["--phase", "finish", "--again", "web"]));
    assert!(status == 1 && said.contains("web: it is converted already, and there is no copy"), "{said}");
    assert_eq!(statuses(&host), ["done", "failed", "done"]);
    let before = exports(&host);
    assert_eq!(code(&run(&host, &["-q"])), (0, String::new()));
    assert_eq!((statuses(&host), exports(&host)), (vec!["done".to_owned(); 3], before + 1));
    assert_results(&host);

    // Copied once more: two are finished without a word about phases, and one was copied in vain.
    fs::remove_dir_all(host.dir.join("out")).unwrap();
    fs::remove_dir_all(host.dir.join("plan.state")).unwrap();
    assert_eq!(code(&run(&host, &["--phase", "copy", "-q"])), (0, String::new()));
    let before = exports(&host);
    disk(&host.dir, "a.img", &[(0, &[1; 512])]);
    fs::write(host.dir.join("plan.toml"), without("mail")).unwrap();
    assert_eq!(code(&run(&host, &["-q"])), (0, String::new()));
    assert_eq!(exports(&host), before, "the copies were not used");
    assert_same(&host, "web-vda", "a");
    assert_eq!(
        (statuses(&host), host.calls("VM.snapshot")),
        (["done", "disabled", "done"].map(String::from).into(), host.calls("VM.destroy") + 1)
    );
    assert_eq!(code(&run(&host, &["--phase", "forget", "-q"])), (0, String::new()));
    assert_eq!(host.calls("VM.snapshot"), host.calls("VM.destroy"));
    assert!(fs::read_dir(host.dir.join("out")).unwrap().flatten().all(|e| e.path().is_file()), "the copy is left");
    assert_eq!(fs::read_dir(&host.dir).unwrap().count(), files + 4);
}
