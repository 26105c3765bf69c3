//! One conversion as a process of its own, and what it says while it works.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

/// No event is longer; what is, is none of ours.
const LINE_LIMIT: usize = 1 << 20;
/// How long a stop may go unnoticed.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What a conversion says: one line of JSON each on its standard output, with `--events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A part of the work begins.
    Stage {
        /// Its name.
        what: String,
    },
    /// How far that part is.
    Progress {
        /// Of 100.
        percent: u8,
    },
    /// What the user should look at.
    Warning {
        /// In words.
        what: String,
    },
    /// The conversion ends without a result.
    Failed {
        /// Why.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// Starts the program that converts one guest.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// Where it runs.
    pub folder: PathBuf,
}

impl Program {
    /// Runs it to its end, and gives `seen` what it says. `lock` is held until it has ended, even if this process ends before;
    /// `log` gets its standard error. With `stop` it is asked to end, which it does by itself.
    ///
    /// The kernel kills it when the calling thread ends.
    pub fn run(
        &self,
        arguments: &[OsString],
        lock: File,
        log: File,
        stop: &AtomicBool,
        seen: &mut dyn FnMut(Event),
    ) -> io::Result<ExitStatus> {
        let mut child = self.command(arguments).stdin(lock).stdout(Stdio::piped()).stderr(log).spawn()?;
        let outcome = watch(&mut child, stop, seen);
        if outcome.is_err() {
            let _ = child.kill();
        }
        let status = child.wait()?;
        outcome.map(|()| status)
    }

    /// Runs it to its end, and gives its standard output up to `limit` bytes and the end of its standard error.
    pub fn output(&self, arguments: &[OsString], limit: u64) -> io::Result<(ExitStatus, Vec<u8>, String)> {
        let mut errors = tempfile::tempfile()?;
        let mut child = self.command(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone()?).spawn()?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(limit).read_to_end(&mut output)?;
        }
        let status = child.wait()?;
        let said = tail(&mut errors, 16 << 10)?;
        Ok((status, output, said))
    }

    fn command(&self, arguments: &[OsString]) -> Command {
        let mut command = Command::new(&self.path);
        // A group of its own: Ctrl-C is for this process, which ends the others in an orderly way.
        command.arg(format!("--parent={}", getpid().as_raw_pid())).args(arguments).current_dir(&self.folder).process_group(0);
        command
    }
}

/// The end of a file, as text.
pub fn tail(file: &mut File, limit: u64) -> io::Result<String> {
    use std::io::{Seek, SeekFrom};
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn watch(child: &mut Child, stop: &AtomicBool, seen: &mut dyn FnMut(Event)) -> io::Result<()> {
    let Some(mut stdout) = child.stdout.take() else { return Ok(()) };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (mut line, mut buffer, mut asked) = (Vec::new(), vec![0; 64 << 10], false);
    loop {
        if stop.load(Ordering::Relaxed) && !asked {
            asked = true;
            // It was not waited for yet: the number is still its own.
            if let Some(pid) = pid {
                kill_process(pid, Signal::TERM)?;
            }
        }
        let mut fds = [PollFd::new(&stdout, PollFlags::IN)];
        match poll(&mut fds, Some(&LOOK)) {
            // Something that it has started may have its output still.
            Ok(0) if child.try_wait()?.is_some() => return Ok(()),
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let read = match stdout.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        for byte in buffer.iter().take(read) {
            match *byte {
                b'\n' => {
                    if let Ok(event) = serde_json::from_slice(&line) {
                        seen(event);
                    }
                    line.clear();
                }
                byte if line.len() < LINE_LIMIT => line.push(byte),
                _ => {}
            }
        }
    }
}

/// How a process ended, in words, for one that did not say it itself.
pub fn ending(status: ExitStatus, log: &Path) -> String {
    let log = log.display();
    match (status.code(), status.signal()) {
        (_, Some(9)) => format!("the conversion was killed (signal 9), perhaps for want of memory; what it said is in {log}"),
        (_, Some(signal)) => format!("the conversion crashed with signal {signal}; what it said is in {log}"),
        (Some(code), _) => format!("the conversion ended with exit code {code} and no word; what it said is in {log}"),
        _ => format!("the conversion ended; what it said is in {log}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn run(script: &str, stop: &AtomicBool) -> (ExitStatus, Vec<Event>, Duration) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        // Written by another process: one that this one starts meanwhile would hold it open for writing, and it could not be run.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        assert!(Command::new("sh").args(["-c", write, "sh", script]).arg(&path).status().unwrap().success());
        let program = Program { path, folder: dir.path().into() };
        let mut events = Vec::new();
        let start = Instant::now();
        let mut hear = |event| {
            // Nobody is stopped before what a test says first.
            stop.store(event == Event::Stage { what: "stop".into() }, Ordering::Relaxed);
            events.push(event);
        };
        let status = program.run(&[], tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap(), stop, &mut hear).unwrap();
        (status, events, start.elapsed())
    }

    #[test]
    fn what_is_said_is_heard() {
        let (status, events, _) = run(
            "echo '{\"event\":\"stage\",\"what\":\"Copying\"}'; echo noise; printf '{\"event\":\"progress\",'; sleep 0.1; echo '\"percent\":7}'; exit 3",
            &AtomicBool::new(false),
        );
        assert_eq!(status.code(), Some(3));
        assert_eq!(events, [Event::Stage { what: "Copying".into() }, Event::Progress { percent: 7 }]);
    }

    #[test]
    fn a_stop_is_passed_on_and_a_forgotten_grandchild_is_no_obstacle() {
        let (status, _, took) =
            run("trap 'exit 5' TERM; sleep 30 & echo '{\"event\":\"stage\",\"what\":\"stop\"}'; wait", &AtomicBool::new(false));
        assert_eq!(status.code(), Some(5));
        assert!(took < Duration::from_secs(10), "{took:?}");
        let (status, _, took) = run("sleep 20 & exit 0", &AtomicBool::new(false));
        assert!(status.success() && took < Duration::from_secs(10), "{took:?}");
    }
}
