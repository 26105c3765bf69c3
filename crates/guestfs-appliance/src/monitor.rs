//! A running monitor, QEMU or our own: one process with what it works on.
//!
//! Nothing of it outlives the [`Monitor`]: the process dies with the thread that keeps it (which dies with us, even of
//! SIGKILL), its disks are served by us, and neither its sockets nor its files have names.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guestfs::{Error, Result};
use imgcore::ImageMut;
use imgcore::nbd::{self, Content, Export};
use rustix::process::{Pid, Signal, kill_process};

use crate::sys;

/// Bytes of console that are kept for a message.
const TAIL: usize = 8 << 10;
/// Lines of it that are shown.
const TAIL_LINES: usize = 30;

/// An appliance that cannot be had, where there is no console yet.
pub fn failure(what: impl Into<String>) -> Error {
    Error::Appliance { what: what.into(), console: String::new() }
}

/// A process to start, and what it works on.
pub struct Launch {
    /// What messages call it.
    pub name: &'static str,
    /// Its Debian package.
    pub package: &'static str,
    /// Program and arguments.
    pub command: Command,
    /// Sockets and files that it inherits under the numbers that they have here.
    pub inherited: Vec<OwnedFd>,
    /// The disks, served as long as the process runs.
    pub servers: Vec<nbd::Server>,
}

impl Launch {
    /// A process of this program, which works on nothing yet.
    pub fn new(name: &'static str, package: &'static str, program: impl AsRef<OsStr>) -> Self {
        Launch { name, package, command: Command::new(program), inherited: Vec::new(), servers: Vec::new() }
    }

    /// A pair of sockets: our end, and the number that the other has in the process.
    pub fn socket(&mut self) -> Result<(UnixStream, RawFd)> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| failure(format!("a pair of sockets: {e}")))?;
        let number = theirs.as_raw_fd();
        self.inherited.push(theirs.into());
        Ok((ours, number))
    }

    /// Serves a disk as the export `disk0`, `disk1`, …; returns that name, and the number of the socket to it.
    pub fn disk(&mut self, image: Arc<dyn ImageMut>) -> Result<(String, RawFd)> {
        let name = format!("disk{}", self.servers.len());
        let (ours, number) = self.socket()?;
        self.servers.push(nbd::serve_connected(ours, Export::new(name.as_str(), Content::Writable(image)))?);
        Ok((name, number))
    }

    /// Starts it; what it writes to its standard output is kept for messages.
    pub fn start(self) -> Result<Monitor> {
        let (monitor, stdin, stdout) = self.start_with_console()?;
        monitor.console.follow(stdout, stdin)?;
        Ok(monitor)
    }

    /// Starts it; the caller gets both ends of its console.
    pub fn start_with_console(mut self) -> Result<(Monitor, ChildStdin, ChildStdout)> {
        let failed = |e: io::Error| failure(format!("a temporary file in {}: {e}", std::env::temp_dir().display()));
        let errors = tempfile::tempfile().map_err(failed)?;
        let log = errors.try_clone().map_err(failed)?;
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        sys::die_with_parent(&mut self.command);
        self.inherited.into_iter().for_each(|fd| sys::inherit(&mut self.command, fd));
        let program = self.command.get_program().to_owned();
        let (started, exited) = keep(self.name, self.command)?;
        let Started { pid, stdin, stdout } = started.map_err(|e| cannot_start(program, self.package, &e))?;
        let console = Console::default();
        let monitor = Monitor { name: self.name, pid, exited, status: None, console, errors, servers: self.servers };
        Ok((monitor, stdin, stdout))
    }
}

/// Why a program did not start, and what to install where it is missing.
pub fn cannot_start(program: OsString, package: &str, error: &io::Error) -> Error {
    let program = program.to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => Error::Missing(format!("{program} is not installed: install the package {package}")),
        _ => failure(format!("cannot start {program}: {error}")),
    }
}

struct Started {
    pid: Pid,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

/// Spawns the process from a thread that waits for its end: the kernel's "parent died" means that very thread.
fn keep(name: &str, mut command: Command) -> Result<(io::Result<Started>, Receiver<ExitStatus>)> {
    let (started, start) = channel();
    let (ended, exited): (Sender<ExitStatus>, _) = channel();
    let keeper = move || {
        let spawned = command.spawn();
        // Ends of sockets that the process was given must not stay open here.
        drop(command);
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => return drop(started.send(Err(e))),
        };
        let pid = Pid::from_child(&child);
        let pipes = child.stdin.take().zip(child.stdout.take());
        let _ = started.send(pipes.map(|(stdin, stdout)| Started { pid, stdin, stdout }).ok_or(io::ErrorKind::BrokenPipe.into()));
        if let Ok(status) = child.wait() {
            let _ = ended.send(status);
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(keeper).map_err(|e| failure(format!("cannot start a thread: {e}")))?;
    let started = start.recv().map_err(|_| failure(format!("the thread of {name} ended")))?;
    Ok((started, exited))
}

/// A running monitor. Dropping it ends it.
pub struct Monitor {
    name: &'static str,
    pid: Pid,
    exited: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    console: Console,
    errors: File,
    servers: Vec<nbd::Server>,
}

impl Monitor {
    /// Its process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end; `None` when it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        if self.status.is_none() {
            match self.exited.recv_timeout(timeout) {
                Ok(status) => self.status = Some(status),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody could wait for it: then it is gone.
                Err(RecvTimeoutError::Disconnected) => self.status = Some(ExitStatus::default()),
            }
        }
        self.status
    }

    /// An error with all that is known of the machine's end.
    pub fn error(&mut self, what: &str) -> Error {
        let mut what = what.to_string();
        // A machine that is going down gets a moment to say why.
        if let Some(status) = self.wait(Duration::from_millis(200))
            && !status.success()
        {
            let why = if status.signal() == Some(libc::SIGSYS) { ", its sandbox's answer to a forbidden call" } else { "" };
            what = format!("{what} ({}: {status}{why})", self.name);
        }
        let mut errors = String::new();
        let _ = self.errors.rewind().and_then(|()| self.errors.read_to_string(&mut errors));
        let errors: Vec<&str> = errors.lines().filter(|l| !l.contains("terminating on signal")).collect();
        if !errors.is_empty() {
            what = format!("{what}: {}", errors.join("; "));
        }
        if let Some(e) = self.first_disk_error() {
            what = format!("{what}: {e}");
        }
        Error::Appliance { what, console: self.console() }
    }

    /// The first failure of a disk, of which the guest saw only an I/O error.
    pub fn first_disk_error(&self) -> Option<String> {
        self.servers.iter().find_map(nbd::Server::first_error)
    }

    /// What the console said last.
    pub fn console(&self) -> String {
        self.console.tail()
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        if self.wait(Duration::ZERO).is_none() {
            let _ = kill_process(self.pid, Signal::KILL);
            // SIGKILL takes even a stopped process.
            self.wait(Duration::from_secs(10));
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last of what came over a serial port.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// Collects in the background. The process's standard input is held open as long: it would see an end there.
    fn follow(&self, mut stdout: ChildStdout, stdin: ChildStdin) -> Result<()> {
        let kept = self.0.clone();
        let follower = move || {
            let _stdin = stdin;
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buf) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buf[..n]);
                let surplus = kept.len().saturating_sub(TAIL);
                kept.drain(..surplus);
            }
        };
        let spawned = std::thread::Builder::new().name("console".into()).spawn(follower);
        spawned.map(drop).map_err(|e| failure(format!("cannot start a thread: {e}")))
    }

    fn tail(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = kept.trim_ascii_end();
        let lines: Vec<String> = text.split(|b| *b == b'\n').map(|line| guestfs::show(line.trim_ascii_end())).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}
