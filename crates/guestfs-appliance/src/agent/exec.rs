//! Runs commands, in the guest's root or the appliance's own, and leaves nothing of them running.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, chroot, ioctl_tiocsctty, kill_process_group, pidfd_open, setsid, wait};

use super::failure::{Result, because, other};
use super::link::Exchange;
use super::mounts::{ROOT, STUBS};
use crate::protocol::{OUTPUT_LIMIT, Place, Reply};

/// Under this name the agent is the child that enters the guest's root and becomes the command.
const IN_GUEST: &str = "guestlift-exec-in-guest";
/// And under this one it stays in the appliance's root.
const HERE: &str = "guestlift-exec";

/// The same, and the standard input becomes the terminal that controls the command.
pub const ON_TERMINAL: &str = "guestlift-exec-on-terminal";

pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long killed processes may take to end.
const REAPING: Duration = Duration::from_secs(10);

/// What a command left.
pub struct Ran {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub timed_out: bool,
}

impl Ran {
    /// Sends the output, and makes the reply.
    pub fn tell(self, exchange: &mut Exchange<'_>) -> Result<Reply> {
        exchange.send_data(&self.stdout)?;
        exchange.send_data(&self.stderr)?;
        let (stdout, stderr) = (self.stdout.len() as u64, self.stderr.len() as u64);
        Ok(Reply::Ran { status: self.status, stdout, stderr, timed_out: self.timed_out })
    }
}

/// Runs a command to its end, or until `timeout` passed. Whatever it started is killed afterwards.
pub fn run(argv: &[Vec<u8>], env: &[(Vec<u8>, Vec<u8>)], stdin: Vec<u8>, place: Place, timeout: Duration) -> Result<Ran> {
    if argv.first().is_none_or(Vec::is_empty) {
        return Err(other("no program is named"));
    }
    let (name, path) = match place {
        Place::Guest => (IN_GUEST, format!("{STUBS}:{PATH}")),
        Place::Appliance => (HERE, PATH.to_string()),
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(argv.iter().map(|a| OsStr::from_bytes(a)));
    command.env_clear().env("PATH", path).env("LANG", "C").env("HOME", "/root");
    command.envs(env.iter().map(|(k, v)| (OsStr::from_bytes(k), OsStr::from_bytes(v))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| because("starting a process", e))?;

    let mut input = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A command need not read its input.
            let _ = input.as_mut().map(|pipe| pipe.write_all(&stdin));
        });
        let stdout = scope.spawn(move || last_bytes(stdout));
        let stderr = scope.spawn(move || last_bytes(stderr));
        let ended = wait_for(&mut child, timeout);
        end_everything();
        let (status, timed_out) = match ended? {
            Some(status) => (status, false),
            None => (child.wait()?, true),
        };
        reap();
        let joined = |thread: std::thread::ScopedJoinHandle<'_, Vec<u8>>| thread.join().unwrap_or_default();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Ran { status: code, stdout: joined(stdout), stderr: joined(stderr), timed_out })
    })
}

/// The status of a child that ended in time.
fn wait_for(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let timeout = Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: timeout.subsec_nanos().into() };
    let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))?;
    Ok(if ready > 0 { Some(child.wait()?) } else { None })
}

/// Kills every process but this one, which is the system's first: `kill(-1)` spares that.
pub fn end_everything() {
    if rustix::process::getpid() == Pid::INIT {
        let _ = kill_process_group(Pid::INIT, Signal::KILL);
    }
}

/// Takes the status of every process that was left to us. All were killed; one that is deep in the kernel may need
/// a moment, and one that hangs there is not waited for.
pub fn reap() {
    let until = Instant::now() + REAPING;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            _ => return,
        }
    }
}

/// The last bytes of a stream, [`OUTPUT_LIMIT`] at most.
fn last_bytes(stream: Option<impl Read>) -> Vec<u8> {
    let mut kept = VecDeque::new();
    let mut buf = vec![0; 64 << 10];
    let Some(mut stream) = stream else { return Vec::new() };
    loop {
        match stream.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(n) if n > 0 => {
                kept.extend(&buf[..n]);
                let surplus = kept.len().saturating_sub(OUTPUT_LIMIT);
                kept.drain(..surplus);
            }
            _ => return kept.into(),
        }
    }
}

/// If this process was started by [`run`], becomes the command and never returns.
pub fn become_command(args: &[OsString]) {
    let Some((name, argv)) = args.split_first() else { return };
    let Some(name @ (IN_GUEST | HERE | ON_TERMINAL)) = name.to_str() else { return };
    let Err(error) = exec(name, argv);
    let program = argv.first().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    eprintln!("{program}: {error}");
    std::process::exit(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
}

fn exec(name: &str, argv: &[OsString]) -> io::Result<Infallible> {
    setsid()?;
    match name {
        IN_GUEST => chroot(ROOT)?,
        ON_TERMINAL => ioctl_tiocsctty(io::stdin())?,
        _ => {}
    }
    std::env::set_current_dir("/")?;
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    Err(Command::new(program).args(args).exec())
}
