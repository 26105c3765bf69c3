//! Starts QEMU: the only place of the project that does.
//!
//! A [`Qemu`] is one process with a private directory for its sockets. Nothing of it outlives the value: the
//! process dies with the thread that keeps it (which dies with us, even of SIGKILL), and the sockets lose their
//! names as soon as both ends have them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guestfs::{Error, Result};
use imgcore::nbd;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::sys;

/// The program and the Debian package that has it.
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// Bytes of console that are kept for a message.
const TAIL: usize = 8 << 10;
/// Lines of it that are shown.
const TAIL_LINES: usize = 30;

/// What a machine is made of, collected before it starts.
pub struct Builder {
    dir: TempDir,
    arguments: Vec<OsString>,
    servers: Vec<nbd::Server>,
}

/// Where the first serial port goes.
enum Serial {
    /// To [`Qemu::console`], for messages.
    Kept,
    /// To the caller.
    Handed,
}

impl Builder {
    /// A machine without any default device, and a private directory for its sockets.
    pub fn new() -> Result<Self> {
        let private = std::fs::Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix("guestlift-").permissions(private).tempdir().map_err(|e| {
            appliance(format!("cannot make a directory for the appliance's sockets in {}: {e}", std::env::temp_dir().display()), "")
        })?;
        let mut builder = Builder { dir, arguments: Vec::new(), servers: Vec::new() };
        builder.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "guestlift"]);
        // Once started it needs no new process, no other identity and no obsolete call.
        builder.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        builder.args(["-chardev", "stdio,id=serial0,signal=off", "-serial", "chardev:serial0"]);
        Ok(builder)
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = A>) -> &mut Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The private directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Serves a disk and adds it as the block node `disk0`, `disk1`, …; returns the node's name.
    pub fn disk(&mut self, content: nbd::Content) -> Result<String> {
        let node = format!("disk{}", self.servers.len());
        let socket = self.dir.path().join(format!("{node}.sock"));
        let read_only = if matches!(content, nbd::Content::ReadOnly(_)) { "on" } else { "off" };
        self.servers.push(nbd::serve(&nbd::Address::Unix(socket.clone()), vec![nbd::Export::new(node.as_str(), content)])?);
        let path = quoted(&socket);
        let options = format!(
            "driver=nbd,node-name={node},export={node},read-only={read_only},discard=unmap,detect-zeroes=off,server.type=unix,server.path={path}"
        );
        self.args(["-blockdev", &options]);
        Ok(node)
    }

    /// Starts the machine; its console is kept for messages.
    pub fn start(self) -> Result<Qemu> {
        self.spawn(Serial::Kept).map(|(qemu, _)| qemu)
    }

    /// Starts the machine; the caller gets both ends of its console.
    pub fn start_with_console(self) -> Result<(Qemu, ChildStdin, ChildStdout)> {
        let (qemu, ends) = self.spawn(Serial::Handed)?;
        let (stdin, stdout) = ends.ok_or_else(|| appliance("QEMU's console was not opened".into(), ""))?;
        Ok((qemu, stdin, stdout))
    }

    fn spawn(self, serial: Serial) -> Result<(Qemu, Option<(ChildStdin, ChildStdout)>)> {
        let failed = |e: io::Error| appliance(format!("a temporary file in {}: {e}", std::env::temp_dir().display()), "");
        let errors = tempfile::tempfile().map_err(failed)?;
        let log = errors.try_clone().map_err(failed)?;
        let mut command = Command::new(program());
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        sys::die_with_parent(&mut command);
        let (mut child, exited, pid) = keep(command)?;
        let console = Console::default();
        let mut ends = None;
        if let (Some(stdin), Some(stdout)) = (child.0.take(), child.1.take()) {
            match serial {
                Serial::Kept => console.follow(stdout, Some(stdin)),
                Serial::Handed => ends = Some((stdin, stdout)),
            }
        }
        Ok((Qemu { pid, exited, status: None, console, errors, servers: self.servers, dir: Some(self.dir) }, ends))
    }
}

fn program() -> OsString {
    std::env::var_os("GUESTLIFT_QEMU").filter(|v| !v.is_empty()).unwrap_or_else(|| PROGRAM.into())
}

/// Whether QEMU is there, and what to install where it is not.
pub fn check() -> Result<()> {
    let program = program();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A name with a slash stands for itself whatever folder it is joined to here, as when it is started.
    let named = Path::new(&program).components().count() > 1;
    if named && Path::new(&program).is_file() || !named && std::env::split_paths(&path).any(|folder| folder.join(&program).is_file()) {
        return Ok(());
    }
    Err(cannot_start(&program, &io::ErrorKind::NotFound.into()))
}

/// A path as the value of a QEMU option, where a comma is written twice.
pub fn quoted(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

type Pipes = (Option<ChildStdin>, Option<ChildStdout>);

/// Spawns the process from a thread that waits for its end: the kernel's "parent died" means that very thread.
fn keep(mut command: Command) -> Result<(Pipes, Receiver<ExitStatus>, Pid)> {
    let (started, start) = channel::<io::Result<(Pipes, Pid)>>();
    let (ended, exited): (Sender<ExitStatus>, _) = channel();
    let name = command.get_program().to_owned();
    let keeper = move || {
        let spawned = command.spawn();
        let mut child: Child = match spawned {
            Ok(child) => child,
            Err(e) => {
                let _ = started.send(Err(e));
                return;
            }
        };
        let _ = started.send(Ok(((child.stdin.take(), child.stdout.take()), Pid::from_child(&child))));
        if let Ok(status) = child.wait() {
            let _ = ended.send(status);
        }
    };
    std::thread::Builder::new().name("qemu".into()).spawn(keeper).map_err(|e| appliance(format!("cannot start a thread: {e}"), ""))?;
    match start.recv() {
        Ok(Ok((pipes, pid))) => Ok((pipes, exited, pid)),
        Ok(Err(e)) => Err(cannot_start(&name, &e)),
        Err(_) => Err(appliance("QEMU's thread ended".into(), "")),
    }
}

fn cannot_start(program: &OsStr, error: &io::Error) -> Error {
    let program = program.to_string_lossy();
    let what = match error.kind() {
        io::ErrorKind::NotFound => format!("{program} is not installed: install the package {PACKAGE}"),
        _ => format!("cannot start {program}: {error}"),
    };
    appliance(what, "")
}

fn appliance(what: String, console: &str) -> Error {
    Error::Appliance { what, console: console.into() }
}

/// A running QEMU.
pub struct Qemu {
    pid: Pid,
    exited: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    console: Console,
    errors: File,
    servers: Vec<nbd::Server>,
    dir: Option<TempDir>,
}

impl Qemu {
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

    /// Removes the directory with the sockets' names, once everything is connected.
    pub fn forget_sockets(&mut self) {
        self.dir = None;
    }

    /// Waits until it connects to `listener`, which is one of its sockets.
    pub fn accept(&mut self, listener: &UnixListener, timeout: Duration) -> Result<UnixStream> {
        let failed = |e: io::Error| appliance(format!("the appliance's socket: {e}"), "");
        listener.set_nonblocking(true).map_err(failed)?;
        let until = Instant::now() + timeout;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(failed)?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(failed(e)),
            }
            if self.wait(Duration::from_micros(500)).is_some() {
                return Err(self.error("QEMU ended at once"));
            }
            if Instant::now() > until {
                return Err(self.error("QEMU does not start up"));
            }
        }
    }

    /// An error with all that is known of the machine's end.
    pub fn error(&mut self, what: &str) -> Error {
        let mut what = what.to_string();
        // A machine that is going down gets a moment to say why.
        if let Some(status) = self.wait(Duration::from_millis(200))
            && !status.success()
        {
            what = format!("{what} (QEMU: {status})");
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
        appliance(what, &self.console.tail())
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

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last of what came over a serial port.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// Collects in the background. QEMU's standard input is held open as long: it would see an end there.
    fn follow(&self, mut stdout: ChildStdout, stdin: Option<ChildStdin>) {
        let kept = self.0.clone();
        let follower = move || {
            let _stdin = stdin;
            let mut buf = [0; 4096];
            while let Ok(n) = stdout.read(&mut buf) {
                if n == 0 {
                    return;
                }
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buf[..n]);
                let surplus = kept.len().saturating_sub(TAIL);
                kept.drain(..surplus);
            }
        };
        let _ = std::thread::Builder::new().name("console".into()).spawn(follower);
    }

    fn tail(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = kept.trim_ascii_end();
        let lines: Vec<String> = text.split(|b| *b == b'\n').map(|line| guestfs::show(line.trim_ascii_end())).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}
