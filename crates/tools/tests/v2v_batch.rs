//! `v2v batch`: many small guests, killed and stopped and gone on with; plans, bounds, reports, and other engines.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::batch::{Running, code, outcomes, page};
use common::have;
use common::small::{ROOT_UUID, Small, tool};
use serde_json::Value;

/// Guests called `g00`, `g01`, … over the same disks, and a plan for them.
fn guests(count: usize) -> Small {
    let small = Small::new();
    fs::create_dir(small.path("xen")).unwrap();
    for i in 0..count {
        small.config(&format!("xen/g{i:02}.cfg"), &format!("name = 'g{i:02}'\n"));
    }
    small
}

fn plan(small: &Small, more: &[&str]) -> String {
    let output = small.run(&[&["batch", "plan.toml", "--from-dir", "xen", "-os", "out"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(small.path("plan.toml")).unwrap()
}

fn start(small: &Small, arguments: &[&str]) -> Running {
    let mut command = small.v2v();
    command.args(["batch", "plan.toml"]).args(arguments);
    Running::start(command)
}

/// Waits until a process that is stopped has got SIGTERM.
fn wait_for_term(process: &str) {
    let status = format!("/proc/{process}/status");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(&status).unwrap();
        let pending = text.lines().find_map(|l| l.strip_prefix("ShdPnd:")).unwrap().trim();
        if u64::from_str_radix(pending, 16).unwrap() & 1 << (15 - 1) != 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{process} was not asked to end: {pending}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The most guests that were at work at the same time.
fn most_at_a_time(events: &[Value]) -> usize {
    let mut running = BTreeSet::new();
    let mut most = 0;
    for event in events {
        match event["event"].as_str().unwrap() {
            "started" => running.insert(event["guest"].to_string()),
            "ended" => running.remove(&event["guest"].to_string()),
            _ => continue,
        };
        most = most.max(running.len());
    }
    most
}

/// The results in `out`, each with what tells it from another of the same name. Whatever is there is whole.
fn results(small: &Small) -> BTreeMap<String, (u64, i64)> {
    let mut found = BTreeMap::new();
    for name in small.names("out").iter().filter_map(|n| n.strip_suffix(".xml")) {
        for file in [format!("{name}-vda.qcow2"), format!("{name}-run.sh")] {
            assert!(small.path("out").join(&file).exists(), "{name}.xml is there without {file}");
        }
        tool("qemu-img", &["check", "-q", small.path(&format!("out/{name}-vda.qcow2")).to_str().unwrap()]);
        let meta = fs::metadata(small.path(&format!("out/{name}.xml"))).unwrap();
        found.insert(name.to_owned(), (meta.ino(), meta.mtime_nsec()));
    }
    found
}

#[test]
fn twenty_guests_are_converted_once_each_though_the_batch_is_killed_three_times() {
    let small = guests(20);
    let text = plan(&small, &["--option", "bridge=xenbr0:br7"]);
    assert_eq!(text.matches("[[guest]]").count(), 20, "{text}");
    assert_eq!(text.matches("enabled = true").count(), 20, "{text}");
    assert!(text.contains("Debian GNU/Linux 12 (bookworm)"), "{text}");

    let ended = |event: &Value| event["event"] == "ended";
    let stage = |what: &'static str| move |event: &Value| event["event"] == "stage" && event["what"] == what;
    let mut before = BTreeMap::new();
    for (kill, jobs) in [(0, "4"), (1, "2"), (2, "3")] {
        let mut batch = start(&small, &["-j", jobs]);
        // While the first ones begin; in the middle of a change after some have ended; just when one comes to its end.
        let there = match kill {
            0 => batch.until(stage("Copying the disks")),
            1 => (0..4).all(|_| batch.until(ended)) && batch.until(stage("Changing the guest")),
            _ => (0..5).all(|_| batch.until(ended)) && batch.until(stage("Writing everything out")),
        };
        assert!(there, "the batch ended before it was killed");
        assert!(most_at_a_time(&batch.events) <= jobs.parse().unwrap());
        batch.signal("-KILL");
        let (code, ..) = batch.end();
        assert_eq!(code, -1);
        let now = results(&small);
        assert!(before.iter().all(|(name, id)| now.get(name) == Some(id)), "a finished guest was converted again");
        before = now;
    }
    assert!(before.len() >= 9, "{before:?}");

    let (code, said, events) = start(&small, &["-j", "4"]).end();
    assert_eq!(code, 0, "{said}");
    assert!(most_at_a_time(&events) <= 4);
    assert!(events.iter().any(|e| e["event"] == "summary" && e["done"] == 20));
    let all = results(&small);
    assert_eq!(all.len(), 20);
    assert!(before.iter().all(|(name, id)| all.get(name) == Some(id)), "a finished guest was converted again");
    let left: Vec<_> = small.names("out").into_iter().filter(|n| n.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
    let mut cut_off = 0;
    for name in all.keys() {
        let outcomes = outcomes(small.dir.path(), name);
        assert_eq!(outcomes.iter().filter(|o| *o == "done").count(), 1, "{name}: {outcomes:?}");
        assert_eq!(outcomes.last().unwrap(), "done");
        cut_off += outcomes.len() - 1;
        let disk = small.path(&format!("out/{name}-vda.qcow2"));
        let fstab = tool(env!("CARGO_BIN_EXE_virt"), &["cat", "-a", disk.to_str().unwrap(), "/etc/fstab"]);
        assert!(fstab.starts_with(&format!("UUID={ROOT_UUID} / ext4")), "{name}: {fstab}");
        assert!(fs::read_to_string(small.path(&format!("out/{name}.xml"))).unwrap().contains("<source bridge=\"br7\"/>"));
    }
    assert!(cut_off >= 3, "the kills hit nothing");
    let finished = start(&small, &[]).end();
    assert_eq!((finished.0, finished.2.iter().filter(|e| e["event"] == "started").count()), (0, 0));
    let status: Value = serde_json::from_slice(&small.run(&["batch", "status", "plan.toml", "--json"]).stdout).unwrap();
    assert_eq!((&status["summary"]["done"], &status["guests"][19]["status"]), (&20.into(), &"done".into()));
    page(small.dir.path(), &[]);
}

/// A guest of its own whose system calls itself something nasty.
fn nasty(small: &Small) {
    let (disk, release) = (small.path("nasty.img"), small.path("release"));
    fs::copy(small.path("disk.img"), &disk).unwrap();
    fs::write(&release, "ID=debian\nPRETTY_NAME=\"</td><script>alert('x')</script>&\"\n").unwrap();
    for command in ["rm /etc/os-release".to_owned(), format!("write {} /etc/os-release", release.display())] {
        tool("debugfs", &["-w", "-R", &command, disk.to_str().unwrap()]);
    }
    let more = format!("name = '<b onclick=x>nasty</b>'\ndisk = [ 'file:{},xvda2,w' ]\n", disk.display());
    small.config("xen/nasty.cfg", &more);
}

#[test]
fn one_that_fails_stops_no_other_and_the_report_tells() {
    let small = guests(2);
    nasty(&small);
    small.config("xen/no-disk.cfg", "name = 'no-disk'\ndisk = [ 'file:/nonexistent/x.img,xvda2,w' ]");
    small.config("xen/twin.cfg", "name = 'g00'");
    fs::write(small.path("xen/README"), "not a guest\n").unwrap();
    let text = plan(&small, &["--option", "check-boot=1"]);
    assert!(text.contains("Cannot be converted as it is: ") && text.contains("/nonexistent/x.img is not there"), "{text}");
    assert!(text.contains("name = \"g00-2\"\n") && text.contains("1 other files were passed over"), "{text}");
    assert_eq!((text.matches("enabled = true").count(), text.matches("enabled = false").count()), (4, 1), "{text}");

    // A person's edits: the one without a disk is tried, one is too large for any disk, one is not asked for.
    let text = text.replace("enabled = false", "enabled = true").replace("name = \"g01\"", "name = \"g01\"\ncheck-boot = false");
    let text = text.replace("name = \"g00-2\"", "name = \"huge\"\ncheck-boot = false").replace("name = \"g00\"\n", "name = \"other\"\n");
    let huge = text.find("\"huge\"").unwrap();
    let at = huge + text[huge..].find("data = ").unwrap();
    let line = text[at..].lines().next().unwrap().to_owned();
    let text = format!("{}{}", &text[..at], text[at..].replacen(&line, "data = \"900P\"", 1));
    let other = text.find("\"other\"").unwrap();
    let text = format!("{}{}", &text[..other], text[other..].replacen("enabled = true", "enabled = false", 1));
    fs::write(small.path("plan.toml"), &text).unwrap();

    let (status, said, events) = start(&small, &[]).end();
    assert_eq!(status, 1, "{said}");
    let of = |guest: &str| {
        events.iter().find(|e| e["event"] == "ended" && e["guest"] == guest).unwrap_or_else(|| panic!("{guest}: {events:#?}"))
    };
    assert_eq!(of("g01")["status"], "done");
    assert_eq!(of("no-disk")["status"], "failed");
    assert!(of("no-disk")["message"].as_str().unwrap().contains("/nonexistent/x.img is not there"));
    assert!(of("huge")["message"].as_str().unwrap().starts_with("no room in "));
    let name = "b-onclick-x-nasty--b";
    assert_eq!(of(name)["status"], "no-boot", "no boot takes a second only");
    assert!(small.path(&format!("out/{name}.xml")).exists());
    assert!(!events.iter().any(|e| e["guest"] == "other"));
    let shown = [
        "</td><script>alert('x')</script>&",
        "What needs a person",
        "no room in",
        "The console's last lines",
        "/etc/fstab",
        "Copying the disks",
    ];
    page(small.dir.path(), &shown);

    // What is finished stays; what failed is tried again; the page comes from the state alone.
    let (status, _, events) = start(&small, &["-q"]).end();
    assert_eq!(status, 1);
    let started: BTreeSet<_> = events.iter().filter(|e| e["event"] == "started").map(|e| e["guest"].as_str().unwrap()).collect();
    assert_eq!(started, BTreeSet::from(["no-disk"]));
    fs::remove_file(small.path("plan.html")).unwrap();
    assert!(small.run(&["batch", "report", "plan.toml"]).status.success());
    page(small.dir.path(), &shown);
    let status = small.run(&["batch", "status", "plan.toml"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&status.stdout).contains("1 converted, 1 converted but not booting, 2 failed, 1 disabled"));

    let before = results(&small);
    let (_, said, events) = start(&small, &["--again", "g01"]).end();
    let again: Vec<_> = events.iter().filter(|e| e["event"] == "ended" && e["guest"] == "g01").map(|e| e["status"].clone()).collect();
    assert_eq!(again, ["done"], "{said}");
    let after = results(&small);
    assert!(before["g01"] != after["g01"] && before[name] == after[name]);
}

#[test]
fn a_batch_is_stopped_and_only_one_works_on_a_plan() {
    let small = guests(3);
    plan(&small, &["-j", "2"]);
    let mut batch = start(&small, &[]);
    assert!(batch.until(|e| e["event"] == "stage" && e["what"] == "Copying the disks"));
    // However fast conversions are, nothing goes on meanwhile.
    batch.signal("-STOP");
    let conversions = batch.conversions();
    tool("kill", &[&["-STOP"], conversions.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
    let (status, said) = code(&small.run(&["batch", "plan.toml"]));
    assert_eq!(status, 2);
    assert!(said.contains("another batch is at work on this plan"), "{said}");
    batch.signal("-INT");
    batch.signal("-CONT");
    for conversion in &conversions {
        wait_for_term(conversion);
        tool("kill", &["-CONT", conversion]);
    }
    let (status, said, events) = batch.end();
    assert_eq!(status, 130, "{said}");
    let begun: Vec<_> = events.iter().filter(|e| e["event"] == "started").map(|e| e["guest"].as_str().unwrap().to_owned()).collect();
    assert!(begun.len() <= 2);
    assert!(small.names("out").iter().all(|n| !n.starts_with('.')), "{:?}", small.names("out"));
    results(&small);
    assert!(begun.iter().any(|g| outcomes(small.dir.path(), g) == ["interrupted"]));
    assert_eq!(start(&small, &[]).end().0, 0);
    assert_eq!(results(&small).len(), 3);
}

#[test]
fn wrong_plans_are_refused_with_their_line() {
    let small = guests(1);
    let good = "[defaults]\nout = \"out\"\n[[guest]]\nname = \"g00\"\nsource = \"xen/g00.cfg\"\n";
    for (text, wanted) in [
        ("[defaults]\nout = \n", "plan.toml:2: "),
        (&good.replace("out = ", "format = \"vmdk\"\nout = "), "plan.toml:4: guest 'g00': invalid value 'vmdk' for '--format <FORMAT>'"),
        (&good.replace("out = ", "plan = true\nout = "), "plan.toml:2: a guest has no 'plan'"),
        (&good.replace("out = ", "disk = [\"root=x\"]\nout = "), "plan.toml:4: guest 'g00': --disk root=x: 'root' is no name of a disk"),
        (&format!("{good}{}", good.replace("[defaults]\nout = \"out\"\n", "")), "plan.toml:6: the guest of line 3 is called 'g00' as well"),
    ] {
        fs::write(small.path("plan.toml"), text).unwrap();
        let (status, said) = code(&small.run(&["batch", "plan.toml"]));
        assert!(status == 2 && said.contains(wanted), "{wanted:?} is not in {said:?}");
    }
    assert!(!small.path("plan.state").exists() && !small.path("out").exists());
    let (status, said) = code(&small.run(&["batch", "none.toml"]));
    assert!(status == 2 && said.contains("none.toml: cannot read: No such file"), "{said}");
    let (status, said) = code(&small.run(&["batch", "plan.toml", "--from-dir", "xen", "-os", "out"]));
    assert!(status == 2 && said.contains("plan.toml: is there already"), "{said}");
    // A guest of that name is a path like any other.
    fs::copy(small.path("small.cfg"), small.path("batch")).unwrap();
    assert!(small.run(&["./batch", "--plan", "-q"]).status.success());
}

/// A program of the test's on the PATH.
fn stand_in(small: &Small, name: &str, script: &str) -> String {
    let dir = small.path("bin");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

#[test]
fn results_go_to_libvirt_or_nowhere() {
    let small = guests(1);
    // It keeps what it is told, and refuses until it may.
    let path = stand_in(
        &small,
        "virsh",
        "echo \"$@\" >> virsh.log\n[ \"$4\" = define ] || exit 1\n[ -e may ] || { echo 'error: no connection' >&2; exit 1; }",
    );
    let run = |arguments: &[&str]| small.v2v().env("PATH", &path).args(arguments).output().unwrap();
    plan(&small, &["--option", "output=libvirt", "--option", "connect=test:///default"]);
    let (status, said) = code(&run(&["batch", "plan.toml"]));
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("the guest is converted, but 'virsh define") && said.contains("failed: no connection"), "{said}");
    let before = results(&small);
    fs::write(small.path("may"), "").unwrap();
    let (status, said) = code(&run(&["batch", "plan.toml"]));
    assert_eq!(status, 0, "{said}");
    assert_eq!(before, results(&small), "handing over again needs no second conversion");
    let out = small.path("out").canonicalize().unwrap();
    let log = fs::read_to_string(small.path("virsh.log")).unwrap();
    assert_eq!(log.lines().last().unwrap(), format!("-q -c test:///default define {}/g00.xml", out.display()));

    let (status, said) = code(&run(&["xen/g00.cfg", "-o", "libvirt", "-oc", "qemu:///x", "-os", "out", "-on", "single"]));
    assert_eq!(status, 0, "{said}");
    let log = fs::read_to_string(small.path("virsh.log")).unwrap();
    assert_eq!(log.lines().last().unwrap(), "-q -c qemu:///x define out/single.xml");

    // As on Xen, where /etc/xen/auto names it.
    let auto = small.path("xen/auto");
    fs::create_dir(&auto).unwrap();
    std::os::unix::fs::symlink("../g00.cfg", auto.join("g00.cfg")).unwrap();
    let (status, said) = code(&run(&["xen/g00.cfg", "-o", "libvirt", "-oc", "qemu:///x", "-os", "out", "-on", "again"]));
    assert!(status == 1 && said.contains("'virsh autostart again' failed"), "{said}");
    let log = fs::read_to_string(small.path("virsh.log")).unwrap();
    assert_eq!(log.lines().last().unwrap(), "-q -c qemu:///x autostart again");
    fs::remove_dir_all(auto).unwrap();

    let before = small.names(".");
    let output = run(&["xen/g00.cfg", "-o", "null", "--report", "rehearsal.json"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("nothing was kept"), "{}", code(&output).1);
    let after: Vec<_> = small.names(".").into_iter().filter(|n| !before.contains(n)).collect();
    assert_eq!(after, ["rehearsal.json"]);
    fs::write(small.path("plan.toml"), "[[guest]]\nname = \"rehearsed\"\nsource = \"xen/g00.cfg\"\noutput = \"null\"\n").unwrap();
    assert_eq!(code(&run(&["batch", "plan.toml"])).0, 0);
    assert_eq!(outcomes(small.dir.path(), "rehearsed"), ["done"]);
}

/// What libvirt's own parser says to a result: its test driver takes what it can parse.
#[test]
fn libvirt_itself_takes_a_result() {
    if !have("virsh") {
        return;
    }
    let small = guests(1);
    let run = |uri: &str, name: &str| small.run(&["xen/g00.cfg", "-o", "libvirt", "-oc", uri, "-os", "out", "-on", name]);
    let (status, said) = code(&run("test:///default", "web"));
    assert_eq!(status, 0, "{said}");
    let (status, said) = code(&run("test:///nonexistent.xml", "db"));
    assert!(status == 1 && said.contains("out/db.xml: the guest is converted, but 'virsh define out/db.xml' failed: "), "{said}");
    assert!(small.path("out/db.xml").exists());
}

#[test]
fn the_tasks_of_a_cluster_do_the_same_work() {
    let small = guests(3);
    let text = plan(&small, &[]);
    fs::write(
        small.path("plan.toml"),
        format!("{text}\n[slurm]\noptions = [\"--partition=short\"]\n[kubernetes]\nimage = \"v2v:1\"\nclaim = \"guests\"\n"),
    )
    .unwrap();
    // Runs the script it gets for each number, as Slurm's nodes would; each is begun twice, as after a node was lost.
    let path = stand_in(
        &small,
        "sbatch",
        "echo \"$@\" >> sbatch.log; env >> sbatch.log; cat > job.sh\ncase \"$*\" in *--array=0-2%*) for i in 0 1 2 0; do SLURM_ARRAY_TASK_ID=$i sh job.sh >&2; done ;; *) sh job.sh >&2 ;; esac\necho 77",
    );
    let output = small
        .v2v()
        .env("PATH", &path)
        .env("GUESTLIFT_PASSWORD", "geheim")
        .args(["batch", "plan.toml", "--runner", "slurm"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", code(&output).1);
    assert!(code(&output).1.contains("Slurm's job 77 has 3 tasks"), "{}", code(&output).1);
    let log = fs::read_to_string(small.path("sbatch.log")).unwrap();
    assert!(!log.contains("geheim"), "Slurm was told the password");
    assert!(
        log.contains("--requeue") && log.contains("--dependency=afterany:77") && log.matches("--partition=short").count() == 2,
        "{log}"
    );
    assert_eq!(results(&small).len(), 3);
    assert!((0..3).all(|i| outcomes(small.dir.path(), &format!("g{i:02}")) == ["done"]));
    page(small.dir.path(), &["3 converted"]);
    let output = small.v2v().env("PATH", &path).args(["batch", "plan.toml", "--runner", "slurm"]).output().unwrap();
    assert!(code(&output).1.contains("Nothing is left to do: 3 converted"));

    fs::remove_dir_all(small.path("plan.state")).unwrap();
    fs::remove_dir_all(small.path("out")).unwrap();
    let output = small.run(&["batch", "plan.toml", "--runner", "kubernetes"]);
    let manifest: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", code(&output).1));
    assert_eq!((&manifest["kind"], &manifest["spec"]["completions"]), (&"Job".into(), &3.into()));
    let command = manifest["spec"]["template"]["spec"]["containers"][0]["command"].as_array().unwrap();
    let command: Vec<_> = command.iter().map(|c| c.as_str().unwrap()).collect();
    let bin = Path::new(env!("CARGO_BIN_EXE_v2v")).parent().unwrap();
    let pod = Command::new(command[0])
        .args(&command[1..])
        .env("JOB_COMPLETION_INDEX", "2")
        .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert!(pod.status.success(), "{}", code(&pod).1);
    assert_eq!(results(&small).keys().collect::<Vec<_>>(), ["g02"]);
}

/// A Slurm cluster of two nodes on this machine, while it lives.
struct Cluster(tempfile::TempDir);

impl Cluster {
    fn start() -> Self {
        let cluster = Cluster(tempfile::tempdir().unwrap());
        cluster.script(&["start"]);
        cluster
    }

    /// `scripts/slurm-here WHAT DIR …`. Its output goes to a file: the daemons that it leaves behind would hold a pipe open.
    fn script(&self, arguments: &[&str]) {
        let (what, more) = arguments.split_first().unwrap();
        let log = fs::File::create(self.0.path().join("script.log")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/slurm-here");
        let mut command = Command::new(script);
        command.arg(what).arg(self.0.path()).args(more).stdout(log.try_clone().unwrap()).stderr(log);
        let said = || fs::read_to_string(self.0.path().join("script.log")).unwrap();
        assert!(command.status().unwrap().success(), "slurm-here {arguments:?}: {}", said());
    }

    fn command(&self, mut command: Command) -> Command {
        command.env("SLURM_CONF", self.0.path().join("slurm.conf"));
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script(&["stop"]);
    }
}

/// What the conversions have done to each guest, and the domains that came of it.
fn what_was_done(small: &Small) -> BTreeMap<String, (Vec<Value>, String)> {
    let guest = |name: &String| {
        let report: Value = serde_json::from_slice(&fs::read(small.path(&format!("plan.state/{name}/report.json"))).unwrap()).unwrap();
        let parts = ["disks", "boot_loader", "steps", "files", "commands", "outputs", "warnings"].map(|part| report[part].clone());
        (name.clone(), (parts.into(), fs::read_to_string(small.path(&format!("out/{name}.xml"))).unwrap()))
    };
    results(small).keys().map(guest).collect()
}

#[test]
#[ignore = "starts a Slurm cluster, which needs root and slurmctld, slurmd and munge; takes minutes"]
fn a_real_slurm_does_the_same_as_one_machine_though_a_node_is_lost() {
    let small = guests(12);
    plan(&small, &["-j", "2"]);
    assert!(small.run(&["batch", "plan.toml", "-q"]).status.success());
    let alone = what_was_done(&small);
    for folder in ["out", "plan.state"] {
        fs::remove_dir_all(small.path(folder)).unwrap();
    }
    let cluster = Cluster::start();
    let mut command = cluster.command(small.v2v());
    let ran = command.args(["batch", "plan.toml", "--runner", "slurm"]).output().unwrap();
    assert!(ran.status.success(), "{}", code(&ran).1);
    let start = Instant::now();
    let wait = |what: &str, reached: &dyn Fn(&Value) -> bool| {
        loop {
            let status: Value = serde_json::from_slice(&small.run(&["batch", "status", "plan.toml", "--json"]).stdout).unwrap();
            if reached(&status) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(900), "{what}: {status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let on_second =
        || !cluster.command(Command::new("squeue")).args(["-h", "-w", "n2", "-t", "running"]).output().unwrap().stdout.is_empty();
    wait("no task ran on the second node", &|status| status["summary"]["running"].as_u64() >= Some(1) && on_second());
    cluster.script(&["lose", "n2"]);
    wait("the plan was not finished", &|status| status["summary"]["done"] == 12);
    let all: Vec<_> = (0..12).map(|i| outcomes(small.dir.path(), &format!("g{i:02}"))).collect();
    assert!(all.iter().all(|o| o.iter().filter(|o| *o == "done").count() == 1), "{all:?}");
    assert!(all.iter().any(|o| o.len() == 2), "the lost node had nothing to do: {all:?}");
    let clustered = what_was_done(&small);
    assert_eq!(clustered.len(), 12);
    for (name, done) in &alone {
        assert_eq!(clustered.get(name), Some(done), "{name}");
    }
}
