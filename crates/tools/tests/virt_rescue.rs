//! `virt rescue` at a terminal, which this test is the other end of.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

const PATIENCE: Duration = Duration::from_secs(120);

/// A disk that is one filesystem.
fn disk(folder: &Path) {
    std::fs::create_dir_all(folder.join("tree/etc")).unwrap();
    std::fs::write(folder.join("tree/etc/motd"), "hello from the guest\n").unwrap();
    let line = "truncate -s 32M disk.img && mke2fs -q -F -t ext4 -d tree disk.img";
    let made = Command::new("sh").args(["-c", line]).current_dir(folder).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").status().unwrap();
    assert!(made.success());
}

/// A program on a terminal.
struct Session {
    child: Child,
    keys: File,
    slave: OwnedFd,
    shown: Receiver<Vec<u8>>,
    text: String,
}

impl Session {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        tcsetwinsize(&master, Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt"));
        command.args(["rescue", "-a", "disk.img"]).args(args).current_dir(folder).env("TERM", "xterm");
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end()).process_group(0);
        let child = command.spawn().unwrap();
        drop(command);
        let keys = File::from(master);
        let (sender, shown) = channel();
        let mut screen = keys.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buf) {
                if sender.send(buf[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Session { child, keys, slave: slave.into(), shown, text: String::new() }
    }

    /// Waits until the terminal shows a text; gives all up to there, and forgets it.
    fn until(&mut self, wanted: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(wanted) {
                let rest = self.text.split_off(at + wanted.len());
                return std::mem::replace(&mut self.text, rest);
            }
            match self.shown.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => panic!("no {wanted:?} in {:?}", self.text),
            }
        }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.slave.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Waits for its end; the terminal is as it was.
    fn ended(mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it does not end: {:?}", self.text);
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(!self.is_raw(), "the terminal was restored");
        status.code()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn motd(folder: &Path) -> String {
    let args = ["cat", "-a", "disk.img", "-m", "/dev/sda", "/etc/motd"];
    String::from_utf8(Command::new(env!("CARGO_BIN_EXE_virt")).args(args).current_dir(folder).output().unwrap().stdout).unwrap()
}

#[test]
fn a_person_repairs_a_guest_and_gets_the_terminal_back() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let mut session = Session::start(dir.path(), &["-m", "/dev/sda"]);
    session.until("><rescue> ");
    assert!(session.is_raw());
    session.type_keys("ls /sysroot/etc; cat /sysroot/etc/motd; tty; stty size\r");
    let shown = session.until("><rescue> ");
    for wanted in ["motd", "hello from the guest", "/dev/pts/", "33 99"] {
        assert!(shown.contains(wanted), "{wanted} in {shown:?}");
    }
    // A new size of the window gets through, and a key's signal reaches the program in front.
    tcsetwinsize(&session.keys, Winsize { ws_row: 44, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    assert!(Command::new("kill").args(["-WINCH", &session.child.id().to_string()]).status().unwrap().success());
    session.type_keys("sleep 1000\r");
    session.until("sleep 1000");
    std::thread::sleep(Duration::from_millis(300));
    session.type_keys("\u{3}");
    session.until("><rescue> ");
    session.type_keys("stty size\r");
    session.until("44 111");
    // Mounts of one's own are undone, and what runs in the background is ended.
    session.type_keys("echo changed > /sysroot/etc/motd; mkdir /x; mount --bind /sysroot/etc /x; sleep 1000 & exit 7\r");
    assert_eq!(session.ended(), Some(7));
    assert_eq!(motd(dir.path()), "changed\n");
    let check = Command::new("e2fsck")
        .args(["-fn", "disk.img"])
        .current_dir(dir.path())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn with_ro_nothing_is_kept_and_the_escape_key_and_signals_end_it() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let before = std::fs::read(dir.path().join("disk.img")).unwrap();
    let mut session = Session::start(dir.path(), &["--ro"]);
    session.until("><rescue> ");
    session.type_keys("mount /dev/vda /sysroot && echo gone > /sysroot/etc/motd && cat /sysroot/etc/motd\r");
    session.until("gone\r\n");
    session.type_keys("\u{1d}?");
    session.until("Behind the escape key");
    session.type_keys("\u{1d}q");
    assert_ne!(session.ended(), Some(0));
    assert!(std::fs::read(dir.path().join("disk.img")).unwrap() == before);

    let mut session = Session::start(dir.path(), &["--ro", "-m", "/dev/sda"]);
    session.until("><rescue> ");
    assert!(Command::new("kill").arg(session.child.id().to_string()).status().unwrap().success());
    session.ended();
    assert!(std::fs::read(dir.path().join("disk.img")).unwrap() == before);
}

#[test]
fn a_script_may_type_as_well() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_virt"));
    command.args(["rescue", "-a", "disk.img", "-m", "/dev/sda"]).current_dir(dir.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"cat /sysroot/etc/motd\rexit 3\r").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("hello from the guest"));
}
