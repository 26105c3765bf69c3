//! Going on in the background once the mount is there: the program starts itself again, and ends when that says so.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use crate::common::Failure;

/// Set for the process that stays: it says on its standard output that the mount is there.
const WORKER: &str = "GUESTLIFT_MOUNT_WORKER";

/// Whether this is the process that stays.
pub(super) fn is_worker() -> bool {
    std::env::var_os(WORKER).is_some()
}

/// Starts the process that stays, with the same arguments, and waits until its mount is there.
pub(super) fn start() -> Result<ExitCode, Failure> {
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(WORKER, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut worker = command.spawn().map_err(|e| Failure::new(format!("cannot go into the background: {e}")).hint("use --no-fork"))?;
    let mut said = Vec::new();
    if let Some(mut from) = worker.stdout.take() {
        from.read_to_end(&mut said)?;
    }
    if said.is_empty() {
        // It said why.
        let code = worker.wait()?.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.filter(|code| *code != 0).map_or(ExitCode::FAILURE, ExitCode::from));
    }
    Ok(ExitCode::SUCCESS)
}

/// Leaves the terminal.
pub(super) fn detach() -> Result<(), Failure> {
    // The leader of a group can't; then nothing ties it to the terminal either but its signals, which may end it.
    let _ = rustix::process::setsid();
    Ok(std::env::set_current_dir("/")?)
}

/// Tells the waiting process that the mount is there, and gives up what was shared with it.
pub(super) fn ready() -> Result<(), Failure> {
    let mut out = std::io::stdout();
    out.write_all(b"1").and_then(|()| out.flush())?;
    let null: File = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
