//! A XenServer on the loopback (tests/fixtures/xenserver/server.py) with guests and faults, and `v2v` against it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::small::tool;

/// What must appear nowhere.
pub const PASSWORD: &str = "geheim-Xq7";
pub const WEB: &str = "11111111-2222-3333-4444-555555555555";

/// The server, and the folder that it and `v2v` work in.
pub struct Host {
    pub dir: PathBuf,
    pub port: u16,
    server: Child,
    _own: Option<tempfile::TempDir>,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Bytes that do not repeat, and are the same each time.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(len).collect()
}

/// Makes key and certificates in `dir`: `ca.pem`, `host.pem` which it signed for 127.0.0.1 and .2, `own.pem` which the host signed itself, for
/// another name and as an authority, as XenServers do; `expired.pem` of that kind.
fn certificates(dir: &Path) {
    fs::write(dir.join("ca.cnf"), "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nx509_extensions=x\n[p]\ncommonName=supplied\n[x]\nbasicConstraints=CA:TRUE\n")
        .unwrap();
    fs::write(dir.join("index"), "").unwrap();
    fs::write(dir.join("serial"), "01\n").unwrap();
    fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1,IP:127.0.0.2\n").unwrap();
    let script = "set -e
        key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
        openssl req -x509 $key -keyout ca.key -out ca.pem -days 2 -subj /CN=authority
        openssl req $key -keyout host.key -out host.csr -subj /CN=xen1
        openssl x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out host.pem
        openssl req -x509 -key host.key -out own.pem -days 2 -subj /CN=xen1
        openssl ca -batch -notext -config ca.cnf -selfsign -keyfile host.key -in host.csr -out expired.pem \
            -startdate 20200101000000Z -enddate 20200102000000Z";
    let output = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Host {
    /// One with these guests, whose certificate an authority signed.
    pub fn new(vms: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::with(dir.path(), vms, "host.pem").keep(dir)
    }

    /// Keeps its folder as long as itself.
    pub fn keep(mut self, dir: tempfile::TempDir) -> Self {
        self._own = Some(dir);
        self
    }

    /// One in this folder with this certificate.
    pub fn with(dir: &Path, vms: Value, certificate: &str) -> Self {
        certificates(dir);
        let state = json!({
            "user": "root", "password": PASSWORD, "cert": certificate, "key": "host.key", "log": "log", "vms": vms,
        });
        fs::write(dir.join("state.json"), state.to_string()).unwrap();
        fs::write(dir.join("log"), "").unwrap();
        fs::write(dir.join("password"), format!("{PASSWORD}\n")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/xenserver/server.py");
        let mut server =
            Command::new("python3").args([script, "state.json"]).current_dir(dir).stdout(Stdio::piped()).spawn().expect("python3");
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Host { dir: dir.to_owned(), port: port.trim().parse().expect("the server's port"), server, _own: None }
    }

    /// Two disks whose sizes are no multiples of anything, one with a hole, one shut down and one running guest of them, and what is no guest.
    pub fn usual() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        disk(path, "a.img", &[(0, &noise(3 << 20, 1)), (7 << 20, &noise(5632, 2))]);
        disk(path, "b.img", &[(0, &noise((2 << 20) + 512, 3))]);
        disk(path, "c.img", &[(0, &noise(1 << 20, 4))]);
        let vms = json!([
            vm("web", WEB, "Halted", &[("xvda", "a.img"), ("xvdb", "b.img")]),
            vm("live", "22222222-2222-3333-4444-555555555555", "Running", &[("xvda", "c.img")]),
            vm("twin", "33333333-2222-3333-4444-555555555551", "Halted", &[]),
            vm("twin", "33333333-2222-3333-4444-555555555552", "Halted", &[]),
            { "name": "Debian template", "uuid": "44444444-2222-3333-4444-555555555555", "power_state": "Halted", "template": true },
            { "name": "Control domain", "uuid": "55555555-2222-3333-4444-555555555555", "power_state": "Running", "dom0": true },
        ]);
        Self::with(path, vms, "host.pem").keep(dir)
    }

    /// What goes wrong from now on.
    pub fn faults(&self, faults: Value) {
        let mut state: Value = serde_json::from_slice(&fs::read(self.dir.join("state.json")).unwrap()).unwrap();
        state["faults"] = faults;
        fs::write(self.dir.join("new"), state.to_string()).unwrap();
        fs::rename(self.dir.join("new"), self.dir.join("state.json")).unwrap();
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `v2v -i xenserver HOST` with the password in a file and the authority known.
    pub fn v2v(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_v2v"));
        command.stdin(Stdio::null()).current_dir(&self.dir).env_remove("GUESTLIFT_PASSWORD");
        command.args(["-i", "xenserver", &self.address()]).args(arguments);
        command.args(["--ca", "ca.pem", "--password-file", "password"]);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.v2v(arguments).output().unwrap()
    }

    /// Runs it, expects that it fails without leaving anything, and gives what it said.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!self.dir.join("out").exists(), "something was left behind: {said}");
        assert!(!said.contains(PASSWORD) && !said.contains("OpaqueRef"), "{said}");
        said
    }

    /// Runs it, and gives its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The requests that the server got.
    pub fn log(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.dir.join("log")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How often this method of the API was called.
    pub fn calls(&self, method: &str) -> usize {
        self.log().iter().filter(|request| request["method"] == method).count()
    }

    pub fn assert_same(&self, a: &str, b: &str) {
        tool("cmp", &[self.dir.join(a).to_str().unwrap(), self.dir.join(b).to_str().unwrap()]);
    }
}

/// Does something, and tells whether the password was in any process's arguments meanwhile.
pub fn watched<T>(work: impl FnOnce() -> T) -> (T, bool) {
    let (done, seen) = (AtomicBool::new(false), AtomicBool::new(false));
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                    seen.fetch_or(line.windows(PASSWORD.len()).any(|w| w == PASSWORD.as_bytes()), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        outcome
    });
    (outcome.unwrap_or_else(|panic| resume_unwind(panic)), seen.into_inner())
}

pub fn vm(name: &str, uuid: &str, power_state: &str, disks: &[(&str, &str)]) -> Value {
    let disks: Vec<_> = disks
        .iter()
        .map(|(device, file)| json!({ "device": device, "file": file, "uuid": format!("aaaaaaaa-{}-{}", device, file.trim_end_matches(".img")) }))
        .collect();
    json!({ "name": name, "uuid": uuid, "power_state": power_state, "disks": disks })
}

/// Writes a disk with holes.
pub fn disk(dir: &Path, name: &str, parts: &[(u64, &[u8])]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().create(true).truncate(false).write(true).open(dir.join(name)).unwrap();
    for (offset, bytes) in parts {
        file.write_all_at(bytes, *offset).unwrap();
    }
}
