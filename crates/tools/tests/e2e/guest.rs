//! Real Xen guests from `scripts/make-guest`, and conversions of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A source guest, kept read only for all tests.
pub struct Guest {
    /// Its name and host name.
    pub name: String,
    /// Root's password.
    pub password: String,
    /// Its NIC's name.
    pub nic: String,
    /// That one's address.
    pub ip: String,
    /// And MAC address.
    pub mac: String,
    /// The xl configuration.
    pub cfg: PathBuf,
    /// Its disks, in the configuration's order.
    pub disks: Vec<PathBuf>,
}

/// The repository.
pub fn top() -> &'static Path {
    static TOP: OnceLock<PathBuf> = OnceLock::new();
    TOP.get_or_init(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there"))
}

/// The guest that `make-guest --suite SUITE --variant VARIANT` makes. `None`, said aloud, where it can't be made; in CI that is a failure.
pub fn guest(suite: &str, variant: &str) -> Option<Guest> {
    made_by("make-guest", &["--suite", suite, "--variant", variant])
}

/// The guest of a recipe in `tests/fixtures/guests`, as `recipe-guest NAME` makes it; `None` as for [`guest`].
pub fn recipe(name: &str) -> Option<Guest> {
    made_by("recipe-guest", &[name])
}

fn made_by(script: &str, args: &[&str]) -> Option<Guest> {
    let made = Command::new(top().join("scripts").join(script)).args(args).stderr(Stdio::piped()).output();
    let made = made.unwrap_or_else(|e| panic!("scripts/{script} does not start: {e}"));
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        assert!(std::env::var_os("CI").is_none(), "no guest {args:?}: {why}");
        eprintln!("skipped: no guest {args:?}: {why}");
        return None;
    }
    let dir = PathBuf::from(String::from_utf8(made.stdout).expect("a path").trim());
    let env = std::fs::read_to_string(dir.join("guest.env")).expect("guest.env");
    let values: BTreeMap<&str, &str> = env.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k, v.trim_matches('"'))).collect();
    Some(Guest {
        name: values["NAME"].into(),
        password: values["PASSWORD"].into(),
        // Guests that were made before some were called otherwise do not say it.
        nic: values.get("NIC").copied().unwrap_or("eth0").into(),
        ip: values["IP"].into(),
        mac: values["MAC"].into(),
        cfg: values["CFG"].into(),
        disks: values["DISKS"].split(' ').map(PathBuf::from).collect(),
    })
}

/// A program of ours, with the environment that all tests want.
pub fn v2v() -> Command {
    Command::new(env!("CARGO_BIN_EXE_v2v"))
}

/// Runs a command that has to end with success within `limit`, with `stdin` from a file or nothing.
pub fn run(command: &mut Command, stdin: Option<File>, limit: Duration) -> Output {
    let output = finish(command, stdin, limit);
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command to its end, whatever that is, but kills it and fails after `limit`.
pub fn finish(command: &mut Command, stdin: Option<File>, limit: Duration) -> Output {
    let stdin = stdin.map_or_else(Stdio::null, Stdio::from);
    let child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    let pid = child.id();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = wait.recv_timeout(limit).is_err();
        if late {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        late
    });
    let output = child.wait_with_output().expect("a child can be waited for");
    let _ = done.send(());
    assert!(!watchdog.join().expect("the watchdog ends"), "{command:?} did not end within {limit:?}");
    output
}

/// Runs a reference tool that has to agree.
pub fn tool<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &str, args: I) -> String {
    let mut command = Command::new(program);
    command.args(args).env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    String::from_utf8_lossy(&run(&mut command, None, Duration::from_secs(300)).stdout).into_owned()
}

/// What a source file contains: it must be the same afterwards.
pub fn sha256(files: &[PathBuf]) -> String {
    let started = Instant::now();
    let sums = tool("sha256sum", files);
    assert!(started.elapsed() < Duration::from_secs(300));
    sums
}

/// The outputs are sound to the reference tools: qemu-img check on each disk, and on each partition of the first the filesystem's own.
pub fn check_outputs(disks: &[PathBuf], scratch: &Path) {
    for disk in disks {
        tool("qemu-img", ["check".as_ref(), disk.as_os_str()]);
    }
    let raw = scratch.join("check.raw");
    tool("qemu-img", ["convert".as_ref(), "-O".as_ref(), "raw".as_ref(), disks[0].as_os_str(), raw.as_os_str()]);
    let table = tool("sfdisk", ["--json".as_ref(), raw.as_os_str()]);
    let table: serde_json::Value = serde_json::from_str(&table).expect("sfdisk writes JSON");
    let mut checked = 0;
    for partition in table["partitiontable"]["partitions"].as_array().expect("the first disk has partitions") {
        let start = partition["start"].as_u64().expect("a start") * 512;
        let device = format!("{}?offset={start}", raw.display());
        let kind = tool_output("blkid", &["-p", "-o", "value", "-s", "TYPE", "-O", &start.to_string(), &raw.to_string_lossy()]);
        let part = || {
            let (size, file) = (partition["size"].as_u64().expect("a size"), scratch.join("part.raw"));
            let dd =
                format!("dd if={} of={} bs=512 skip={} count={size} conv=sparse status=none", raw.display(), file.display(), start / 512);
            tool("sh", ["-c", &dd]);
            file
        };
        match kind.trim() {
            "xfs" => drop(tool("xfs_repair", ["-n".as_ref(), "-f".as_ref(), part().as_os_str()])),
            "btrfs" => drop(tool("btrfs", ["check".as_ref(), "--readonly".as_ref(), part().as_os_str()])),
            "crypto_LUKS" => drop(tool("cryptsetup", ["luksDump".as_ref(), part().as_os_str()])),
            // What is on these only the guest sees.
            "LVM2_member" | "linux_raid_member" => {}
            kind if kind.starts_with("ext") => drop(tool("e2fsck", ["-fn", device.as_str()])),
            _ => continue,
        }
        checked += 1;
    }
    assert!(checked > 0, "nothing is known on the first disk:\n{table}");
    let _ = std::fs::remove_file(scratch.join("part.raw"));
    std::fs::remove_file(raw).expect("the scratch file can be removed");
}

fn tool_output(program: &str, args: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output().expect("the tool starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The disks that a conversion of `name` wrote, in order.
pub fn outputs(dir: &Path, name: &str) -> Vec<PathBuf> {
    ('a'..='z').map(|c| dir.join(format!("{name}-vd{c}.qcow2"))).take_while(|p| p.exists()).collect()
}
