//! Starts QEMU: the only place of the project that does.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};
use std::sync::Arc;

use guestfs::Result;
use imgcore::ImageMut;

use crate::monitor::{Launch, Monitor, cannot_start, failure};

/// The program and the Debian package that has it.
const PROGRAM: &str = "qemu-system-x86_64";
pub const PACKAGE: &str = "qemu-system-x86";

/// What a machine is made of, collected before it starts.
pub struct Builder(Launch);

impl Builder {
    /// A machine without any default device.
    pub fn new() -> Self {
        let mut builder = Builder(Launch::new("QEMU", PACKAGE, program()));
        builder.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "guestlift"]);
        // Once started it needs no new process, no other identity and no obsolete call.
        builder.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        builder.args(["-accel", "tcg", "-cpu", "max", "-global", "virtio-mmio.force-legacy=false"]);
        builder.args(["-chardev", "stdio,id=serial0,signal=off", "-serial", "chardev:serial0"]);
        builder
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = A>) -> &mut Self {
        self.0.command.args(arguments.into_iter().map(Into::into));
        self
    }

    /// A file of this content without a name, which nobody need remove; returns the path by which QEMU finds it.
    pub fn file(&mut self, content: &[u8]) -> Result<PathBuf> {
        let failed = |e: io::Error| failure(format!("a temporary file in {}: {e}", std::env::temp_dir().display()));
        let mut file = tempfile::tempfile().map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        self.0.inherited.push(file.into());
        Ok(path)
    }

    /// Adds a character device that is a socket; returns our end of it.
    pub fn socket(&mut self, id: &str) -> Result<UnixStream> {
        let (ours, number) = self.inherited_socket()?;
        self.args(["-chardev".into(), format!("socket,id={id},fd={number}")]);
        Ok(ours)
    }

    /// A pair of sockets: our end, and the number that the other has in QEMU.
    pub fn inherited_socket(&mut self) -> Result<(UnixStream, RawFd)> {
        self.0.socket()
    }

    /// Serves a disk and adds it as the block node `disk0`, `disk1`, …; returns the node's name.
    pub fn disk(&mut self, image: Arc<dyn ImageMut>) -> Result<String> {
        let (node, number) = self.0.disk(image)?;
        let options = format!(
            "driver=nbd,node-name={node},export={node},read-only=off,discard=unmap,detect-zeroes=off,server.type=fd,server.str={number}"
        );
        self.args(["-blockdev", &options]);
        Ok(node)
    }

    /// Starts the machine; its console is kept for messages.
    pub fn start(self) -> Result<Monitor> {
        self.0.start()
    }

    /// Starts the machine; the caller gets both ends of its console.
    pub fn start_with_console(self) -> Result<(Monitor, ChildStdin, ChildStdout)> {
        self.0.start_with_console()
    }
}

/// What is started: GUESTLIFT_QEMU names another.
pub fn program() -> OsString {
    std::env::var_os("GUESTLIFT_QEMU").filter(|v| !v.is_empty()).unwrap_or_else(|| PROGRAM.into())
}

/// Where QEMU is; the error says what to install.
pub fn find() -> Result<PathBuf> {
    let program = program();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A name with a slash stands for itself, as when it is started.
    let named = Path::new(&program).components().count() > 1;
    let folders = if named { Vec::from([PathBuf::new()]) } else { std::env::split_paths(&path).collect() };
    let found = folders.into_iter().map(|folder| folder.join(&program)).find(|file| file.is_file());
    found.ok_or_else(|| cannot_start(program, PACKAGE, &io::ErrorKind::NotFound.into()))
}

/// A path as the value of a QEMU option, where a comma is written twice.
pub fn quoted(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
