//! A guest that attacks the monitor, on a true KVM: see `attack/guest.rs`. The test makes the guest, and runs itself on a host that has
//! such a KVM.

#[path = "../../../tests/kvm-host/host.rs"]
mod host;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Names the guest's file to the test on the other host.
const GUEST: &str = "GUESTLIFT_ATTACK_GUEST";

/// Resets of each of the three devices, with four rings in each of their six queues before the next.
const ROUNDS: u64 = 420;
const RINGS: u64 = ROUNDS * 4 * (1 + 4 + 1);

/// Longer than anything takes: what has not ended by then hangs.
const DEADLINE: Duration = Duration::from_secs(200);

#[test]
fn a_guest_that_attacks_harms_itself_only() {
    if let Some(guest) = std::env::var_os(GUEST) {
        return attack(Path::new(&guest));
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = compile(folder.path());
    let mut on_kvm = host::host();
    on_kvm.args(["--deadline", "280"]).arg(std::env::current_exe().unwrap()).args(["--nocapture", "--exact"]);
    let done = on_kvm.arg("a_guest_that_attacks_harms_itself_only").env(GUEST, guest).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    println!("{said}");
}

/// Makes a kernel of `attack/guest.rs`.
fn compile(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attack");
    let guest = folder.join("attack");
    let link = ["-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,norelro", &format!("-Wl,-T,{}", source.join("guest.ld").display())];
    let done = Command::new(option_env!("RUSTC").unwrap_or("rustc"))
        .args(["--edition", "2024", "--crate-name", "attack", "-Copt-level=2", "-Cpanic=abort", "-Crelocation-model=static"])
        .args(link.map(|argument| format!("-Clink-arg={argument}")))
        .arg(source.join("guest.rs"))
        .arg("-o")
        .arg(&guest)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    guest
}

/// On the host with KVM.
fn attack(guest: &Path) {
    let since = Instant::now();
    let mut monitor = Monitor::start(guest, &format!("attack=1 seed=7 rounds={ROUNDS}"));
    // A host that reads, and says things, while its guest does anything to the channel.
    let mut stream = monitor.stream.try_clone().unwrap();
    std::thread::spawn(move || io::copy(&mut stream, &mut io::sink()));
    let mut stream = monitor.stream.try_clone().unwrap();
    std::thread::spawn(move || while stream.write_all(&[0x5a; 3000]).is_ok() {});
    assert_eq!(monitor.ending(), (Some(0), String::new()), "{}", monitor.said());
    for device in [2, 3, 4] {
        assert!(monitor.said().contains(&format!("attack: device {device} is well")), "{}", monitor.said());
    }
    assert!(monitor.said().contains(&format!("attack: {RINGS} rings survived")), "{}", monitor.said());
    println!("{RINGS} rings in {:?}", since.elapsed());

    let mut monitor = Monitor::start(guest, "attack=2");
    let (code, error) = monitor.ending();
    assert!(code == Some(1) && error.contains("triple fault"), "{code:?}: {error}");
    assert!(monitor.said().contains("about to crash"));
    println!("a triple fault: {error}");

    // Nobody reads: the guest waits, and the monitor keeps nothing.
    let mut monitor = Monitor::start(guest, "attack=3");
    monitor.wait_for("attack: floods");
    let before = monitor.resident();
    std::thread::sleep(Duration::from_secs(1));
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..64 {
        monitor.stream.read_exact(&mut bytes).unwrap();
    }
    let grown = monitor.resident().saturating_sub(before);
    assert!(grown < 4 << 20, "a flood made the monitor grow by {grown} bytes");
    // Nobody is there: the guest talks to itself, and the monitor has not ended.
    monitor.stream.shutdown(std::net::Shutdown::Both).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(monitor.process.try_wait().unwrap(), None);
    println!("a flood of 64 MiB: {grown} bytes of memory");
}

/// The program, in its sandbox, with all kinds of devices.
struct Monitor {
    process: Child,
    stream: UnixStream,
    serial: Arc<Mutex<Vec<u8>>>,
    _files: tempfile::TempDir,
}

impl Monitor {
    fn start(guest: &Path, command_line: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (disk, port) = (files.path().join("disk"), files.path().join("port"));
        std::fs::write(&disk, [0; 64 << 10]).unwrap();
        let listener = UnixListener::bind(&port).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_vmm-mini"))
            .args(["--memory", "64", "--places", "3", "--initramfs", "/dev/null", "--append", command_line])
            .args(["--kernel".as_ref(), guest, "--disk".as_ref(), &disk, "--port".as_ref(), &port])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let serial = Arc::<Mutex<Vec<u8>>>::default();
        let (mut output, kept) = (process.stdout.take().unwrap(), serial.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                kept.lock().unwrap().extend(&bytes[..len]);
            }
        });
        Monitor { process, stream, serial, _files: files }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.serial.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, words: &str) {
        let since = Instant::now();
        while !self.said().contains(words) {
            assert!(since.elapsed() < DEADLINE, "no {words:?} in {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its exit code (none by a signal) and what it had to complain about.
    fn ending(&mut self) -> (Option<i32>, String) {
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(since.elapsed() < DEADLINE, "it hangs; the guest said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut error = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        // The last of the output is on its way.
        std::thread::sleep(Duration::from_millis(100));
        (status.code(), error)
    }

    /// Bytes of its memory, and of the guest's as far as that has touched it.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
