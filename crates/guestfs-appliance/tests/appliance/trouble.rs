//! An appliance that hangs, dies, or is lied about; and a parent that is killed. Every one ends, soon, and leaves nothing.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use guestfs::engine::{Engine, Session};
use guestfs::{Error, GuestFs, GuestFsMut};
use guestfs_appliance::{Appliance, Limits, initramfs, locate};
use rustix::process::{Pid, Signal, kill_process, test_kill_process, test_kill_process_group};

use crate::common::*;

fn impatient() -> Appliance {
    let limits = Limits { silence: Duration::from_secs(4), boot: Duration::from_secs(40), ..Limits::default() };
    Appliance { limits, ..Appliance::new() }
}

fn message(error: Error) -> String {
    assert!(matches!(error, Error::Appliance { .. }), "{error}");
    error.to_string()
}

fn gone(pid: Pid) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if test_kill_process(pid).is_err() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Boots with `program` as /init.
fn boot_with(dir: &Path, init: &[u8], boot: Duration) -> Error {
    let archive = dir.join("initramfs");
    std::fs::write(&archive, initramfs::with_agent(init)).unwrap();
    let kernel = locate::files().unwrap().kernel;
    let limits = Limits { boot, ..Limits::default() };
    let files = Some(locate::Files { kernel, modules: None, initramfs: archive });
    Appliance { files, limits, templates: None, ..Appliance::new() }.boot(Vec::new()).map(drop).unwrap_err()
}

#[test]
fn a_stopped_machine_is_an_error_in_time_and_is_ended() {
    let session = impatient().boot(Vec::new()).unwrap();
    let pid = session.process();
    kill_process(pid, Signal::STOP).unwrap();
    let began = Instant::now();
    let error = message(session.lstat(b"/").unwrap_err());
    assert!(error.contains("does not answer"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(gone(pid));
    let again = message(session.lstat(b"/").unwrap_err());
    assert!(again.contains("gone"), "{again}");
}

#[test]
fn a_killed_machine_is_an_error_at_once() {
    let session = impatient().boot(Vec::new()).unwrap();
    kill_process(session.process(), Signal::KILL).unwrap();
    let error = message(session.lstat(b"/").unwrap_err());
    assert!(error.contains("died"), "{error}");
}

#[test]
fn a_panic_of_its_kernel_is_an_error_with_the_consoles_last_lines() {
    let dir = scratch();
    let error = message(boot_with(dir.path(), b"#!/no/such/interpreter\n", Duration::from_secs(40)));
    assert!(error.contains("died") && error.contains("console") && error.contains("No working init found"), "{error}");
}

#[test]
fn an_agent_that_never_speaks_is_an_error_within_the_deadline() {
    let dir = scratch();
    let began = Instant::now();
    let error = message(boot_with(dir.path(), &program(dir.path(), SILENT), Duration::from_secs(5)));
    assert!(error.contains("does not answer"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn an_agent_that_talks_nonsense_is_an_error() {
    let dir = scratch();
    let error = message(boot_with(dir.path(), &program(dir.path(), LIAR), Duration::from_secs(40)));
    assert!(error.contains("nonsense") && error.contains("no frame"), "{error}");
}

/// The name and the source of a bad agent.
type Source = (&'static str, &'static str);

const SILENT: Source = ("silent", "fn main() { loop { std::thread::sleep(std::time::Duration::from_secs(9)) } }");

/// It mounts /dev itself, and guesses the port's name there.
const LIAR: Source = (
    "liar",
    r#"
        use std::io::Write;
        fn main() {
            let dir = |d: &str| std::fs::create_dir_all(d).unwrap();
            dir("/dev");
            extern "C" { fn mount(a: *const i8, b: *const i8, c: *const i8, f: u64, d: *const i8) -> i32; }
            let dev = b"devtmpfs\0".as_ptr() as *const i8;
            unsafe { mount(dev, b"/dev\0".as_ptr() as *const i8, dev, 0, std::ptr::null()) };
            loop {
                for name in ["/dev/vport0p0", "/dev/vport0p1"] {
                    if let Ok(mut port) = std::fs::OpenOptions::new().write(true).open(name) {
                        loop { let _ = port.write_all(&[0xff; 4096]); }
                    }
                }
            }
        }"#,
);

/// A static program of one file: one of [`compile_all`], if that was done before.
fn program(dir: &Path, source: Source) -> Vec<u8> {
    let program = std::env::var_os(PROGRAMS).map_or_else(|| compile(dir, source), |folder| Path::new(&folder).join(source.0));
    std::fs::read(program).unwrap()
}

/// Names the folder of [`compile_all`].
pub const PROGRAMS: &str = "GUESTLIFT_TEST_PROGRAMS";

/// Compiles the agents that these tests need, for where a compiler is slow.
pub fn compile_all(dir: &Path) {
    for source in [SILENT, LIAR] {
        compile(dir, source);
    }
}

fn compile(dir: &Path, (name, text): Source) -> PathBuf {
    let (from, to) = (dir.join(format!("{name}.rs")), dir.join(name));
    std::fs::write(&from, text).unwrap();
    let flags = ["--edition", "2021", "-A", "warnings", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"];
    tool(&[&["rustc"], &flags[..], &[to.to_str().unwrap(), from.to_str().unwrap()]].concat());
    to
}

#[test]
fn missing_files_name_the_command_that_makes_them() {
    let files = locate::Files { kernel: "/nonexistent/vmlinux".into(), modules: None, initramfs: "/nonexistent/initramfs".into() };
    let error = Appliance { files: Some(files), ..Appliance::new() }.boot(Vec::new()).map(drop).unwrap_err();
    assert!(message(error).contains("/nonexistent/vmlinux"));
}

/// Run again by the test below as the parent that gets killed.
#[test]
fn parent_that_waits() {
    let Some(dir) = std::env::var_os("GUESTLIFT_TEST_PARENT").map(PathBuf::from) else { return };
    let disk = ext4(&dir, "disk", 16);
    let session = Appliance::new().boot(vec![read_only(&disk)]).unwrap();
    std::fs::write(dir.join("pid.new"), session.process().as_raw_nonzero().to_string()).unwrap();
    std::fs::rename(dir.join("pid.new"), dir.join("pid")).unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_killed_parent_leaves_no_process_and_no_socket() {
    let dir = scratch();
    let mut parent = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "trouble::parent_that_waits"])
        .env("GUESTLIFT_TEST_PARENT", dir.path())
        .env("TMPDIR", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid_file = dir.path().join("pid");
    let until = Instant::now() + Duration::from_secs(60);
    while !pid_file.exists() {
        assert!(Instant::now() < until, "the parent did not boot its appliance");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = Pid::from_raw(std::fs::read_to_string(&pid_file).unwrap().parse().unwrap()).unwrap();
    assert!(test_kill_process(pid).is_ok());
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(gone(pid), "QEMU outlived its parent");
    let left: Vec<_> = walk(dir.path()).into_iter().filter(|p| p.metadata().is_ok_and(|m| m.file_type().is_socket())).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// Run again by the test below as the parent that gets killed at work.
#[test]
fn parent_that_works() {
    let Some(disk) = std::env::var_os("GUESTLIFT_TEST_DISK").map(PathBuf::from) else { return };
    let work = || {
        let mut session = Appliance::new().boot(vec![writable(&disk), read_only(&disk)]).unwrap();
        session.mount("/dev/vda", b"/", "", "").unwrap();
        for _ in 0..20 {
            session.write(b"/file", &mut [7; 100_000].as_slice(), None).unwrap();
        }
        Session::shutdown(Box::new(session)).unwrap();
    };
    loop {
        work();
        std::fs::write(disk.with_extension("worked"), "").unwrap();
    }
}

#[test]
fn a_parent_killed_at_any_moment_leaves_nothing() {
    let dir = scratch();
    let tmp = dir.path().join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    let disk = ext4(dir.path(), "disk", 16);
    // Moments from before the machine starts until it works, and those in between that nobody thought of.
    let mut random = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    const ROUNDS: u64 = 16;
    for round in 0..ROUNDS {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let moment = Duration::from_micros(u64::from(random % 100_000) * (round + 1));
        let mut parent = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "trouble::parent_that_works"])
            .env("GUESTLIFT_TEST_DISK", &disk)
            .env("TMPDIR", &tmp)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_child(&parent);
        let until = Instant::now() + Duration::from_secs(60);
        // Killing those that would never have worked tells nothing.
        while round + 1 == ROUNDS && !disk.with_extension("worked").exists() {
            assert!(Instant::now() < until && parent.try_wait().unwrap().is_none(), "it does not work");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(moment);
        assert!(parent.try_wait().unwrap().is_none(), "it ended by itself before {moment:?}");
        parent.kill().unwrap();
        parent.wait().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while test_kill_process_group(group).is_ok() {
            assert!(Instant::now() < until, "a process outlived its parent, killed after {moment:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = walk(&tmp);
        assert!(left.is_empty(), "killed after {moment:?}: {left:?}");
    }
}

#[test]
fn a_dropped_session_leaves_no_process() {
    let session = Engine::start(&Appliance::new(), Vec::new(), false);
    drop(session);
    let session = Appliance::new().boot(Vec::new()).unwrap();
    let pid = session.process();
    drop(session);
    assert!(test_kill_process(pid).is_err());
}
