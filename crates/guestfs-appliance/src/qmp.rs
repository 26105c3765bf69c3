//! QEMU's machine protocol (docs/interop/qmp-spec.rst): commands, their results, and events, each a JSON object.

use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// Longest object that QEMU sends us, in bytes.
const LONGEST: u64 = 1 << 20;

/// A connection to QEMU's monitor.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Opens it for commands. QEMU may be silent for `patience` at most, now and later.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command whose result says no more than that it succeeded.
    pub fn execute(&mut self, command: &str, arguments: Value) -> io::Result<()> {
        self.execute_with(command, arguments, &[])
    }

    /// The same, with descriptors for QEMU.
    pub fn execute_with(&mut self, command: &str, arguments: Value, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        let mut space = vec![std::mem::MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent = sendmsg(self.stream.get_ref(), &[IoSlice::new(line.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent != line.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        // Its greeting and events may come before.
        loop {
            let object = self.receive()?;
            if let Some(error) = object.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("it failed");
                return Err(io::Error::other(format!("{command}: {}", guestfs::show(why.as_bytes()))));
            }
            if object.get("return").is_some() {
                return Ok(());
            }
        }
    }

    /// Waits for the end of a migration that was begun with the capability `events`.
    pub fn wait_for_migration(&mut self) -> io::Result<()> {
        loop {
            let object = self.receive()?;
            let status = object.pointer("/data/status").and_then(Value::as_str).filter(|_| object["event"] == "MIGRATION");
            match status {
                Some("completed") => return Ok(()),
                Some("failed") => return Err(io::Error::other("the migration failed")),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}
