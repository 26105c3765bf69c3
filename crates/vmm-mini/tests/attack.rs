//! A guest that attacks the monitor, on a true KVM: see `attack/guest.rs`. The test makes the guest, and runs itself on a host that has
//! such a KVM.

#[path = "../../../tests/kvm-host/host.rs"]
mod host;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use imgcore::raw::Raw;
use imgcore::storage::MemStorage;
use vmm_mini::virtio::blk::Block;
use vmm_mini::virtio::console::Console;
use vmm_mini::virtio::rng::Rng;
use vmm_mini::{Config, Devices, Ending, Error, Machine};

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
    let mut boot = Boot::new(guest, &format!("attack=1 seed=7 rounds={ROUNDS}"));
    // A host that reads, and says things, while its guest does anything to the channel.
    let mut stream = boot.stream.try_clone().unwrap();
    std::thread::spawn(move || io::copy(&mut stream, &mut io::sink()));
    let mut stream = boot.stream.try_clone().unwrap();
    std::thread::spawn(move || while stream.write_all(&[0x5a; 3000]).is_ok() {});
    let ending = boot.ending();
    let said = boot.said();
    assert!(matches!(ending, Ok(Ending::PowerOff)), "{ending:?}\n{said}");
    for device in [2, 3, 4] {
        assert!(said.contains(&format!("attack: device {device} is well")), "{said}");
    }
    assert!(said.contains(&format!("attack: {RINGS} rings survived")), "{said}");
    println!("{RINGS} rings in {:?}", since.elapsed());

    let mut boot = Boot::new(guest, "attack=2");
    let ending = boot.ending();
    assert!(matches!(ending, Err(Error::Crashed { .. })), "{ending:?}");
    assert!(boot.said().contains("about to crash"));
    println!("a triple fault: {}", ending.unwrap_err());

    // Nobody reads: the guest waits, and the monitor keeps nothing.
    let mut boot = Boot::new(guest, "attack=3");
    boot.wait_for("attack: floods");
    let before = resident();
    std::thread::sleep(Duration::from_secs(1));
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..64 {
        boot.stream.read_exact(&mut bytes).unwrap();
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "a flood made the monitor grow by {grown} bytes");
    // Nobody is there: the guest talks to itself, and has not ended.
    boot.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(boot.ended.recv_timeout(Duration::from_millis(300)).is_err());
    println!("a flood of 64 MiB: {grown} bytes of memory");
}

/// Bytes of this process's own memory, the guest's not counted where it has not touched it.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A machine with all kinds of devices, running the guest.
struct Boot {
    stream: UnixStream,
    serial: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<Result<Ending, Error>>,
}

struct Serial(Arc<Mutex<Vec<u8>>>);

impl Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Boot {
    fn new(guest: &Path, command_line: &str) -> Self {
        let (stream, port) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let image = Arc::new(Raw::create(Arc::new(MemStorage::new("disk", 0)), 64 << 10).unwrap());
        let serial = Arc::default();
        let devices = Devices {
            places: vec![Some(Box::new(Block::new(image, "attacked"))), Some(Box::new(Console::new(port))), Some(Box::new(Rng::new()))],
            serial: Box::new(Serial(Arc::clone(&serial))),
        };
        let config = Config {
            kernel: File::open(guest).unwrap(),
            initramfs: File::open("/dev/null").unwrap(),
            command_line: command_line.into(),
            memory_mib: 64,
            devices,
        };
        let mut machine = Machine::new(config).unwrap();
        let (end, ended) = mpsc::channel();
        std::thread::spawn(move || end.send(machine.run()));
        Boot { stream, serial, ended }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.serial.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, words: &str) {
        let since = Instant::now();
        while !self.said().contains(words) {
            assert!(since.elapsed() < DEADLINE, "{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ending(&mut self) -> Result<Ending, Error> {
        self.ended.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("the guest has not ended; it said:\n{}", self.said()))
    }
}
