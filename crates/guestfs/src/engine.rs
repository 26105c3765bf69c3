//! The seam to the appliance: what a session in a small virtual machine can do with disks.
//!
//! `guestfs-appliance` implements it; `v2v` and the tools are handed an [`Engine`].

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use imgcore::{Image, ImageMut};

use crate::{GuestFsMut, Result, Unpack};

/// Where programs of the appliance find the guest's tree, as far as it is mounted.
pub const GUEST_ROOT: &str = "/guest";

/// A disk for the appliance. It sees them in order as `/dev/vda`, `/dev/vdb`, …
#[derive(Clone)]
pub enum Disk {
    /// Writes go to a throw-away overlay.
    ReadOnly(Arc<dyn Image>),
    /// Writes go to the image.
    Writable(Arc<dyn ImageMut>),
}

/// Starts appliances.
pub trait Engine: Send + Sync {
    /// Boots an appliance with these disks. `tools` also attaches the second image, with mkfs, fsck and the like.
    fn start(&self, disks: Vec<Disk>, tools: bool) -> Result<Box<dyn Session>>;

    /// Says what a start would lack (a program, the kernel, the agent), before long work is done for nothing.
    fn check(&self) -> Result<()>;
}

/// A command for the guest's root or the appliance's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// More environment, beside a plain PATH, LANG=C and HOME=/root.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

impl Command {
    /// A command of these words, without input.
    pub fn new<W: AsRef<[u8]>>(argv: impl IntoIterator<Item = W>) -> Self {
        Command { argv: argv.into_iter().map(|w| w.as_ref().to_vec()).collect(), env: Vec::new(), stdin: Vec::new() }
    }
}

/// What a command left. Output is cut to its last MiB each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + n when signal n ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// What a person does at a [`Terminal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TerminalInput {
    /// Types.
    Keys(Vec<u8>),
    /// Makes the window larger or smaller.
    Size(TerminalSize),
}

/// A window's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// A terminal that a program of the appliance is shown on.
pub trait Terminal: Sync {
    /// Its size now.
    fn size(&self) -> TerminalSize;
    /// Shows what the program writes.
    fn show(&self, output: &[u8]) -> std::io::Result<()>;
    /// Waits for what the person does; `None` when that was to end the program, or after [`stop`](Terminal::stop).
    fn next(&self) -> Option<TerminalInput>;
    /// The program has ended: who waits for the person waits no longer.
    fn stop(&self);
}

/// The port on the appliance's loopback where programs of a guest find a [`Relay`], while a command runs that is given one.
pub const RELAY_PORT: u16 = 3128;

/// Takes connections that programs of a guest make. The appliance has no network but this.
pub trait Relay: Send + Sync {
    /// Serves one connection to its end; each has a thread of its own. The other end is as hostile as the guest.
    fn serve(&self, connection: UnixStream);
}

/// What a running appliance does besides files.
pub trait GuestExec {
    /// Runs a command in the mounted guest's root, with /proc, /sys, /dev in place.
    fn run(&mut self, command: &Command) -> Result<Output>;
    /// The same; what its programs connect to at [`RELAY_PORT`] of 127.0.0.1 is carried to `relay`.
    fn run_relayed(&mut self, command: &Command, relay: Arc<dyn Relay>) -> Result<Output>;
    /// Runs a program of the tools image in the appliance itself.
    fn run_tool(&mut self, command: &Command) -> Result<Output>;
    /// Gives the appliance those of these programs that the host has.
    fn lend(&mut self, programs: &[&str]) -> Result<()>;
    /// Runs a program that was [lent](GuestExec::lend) on a terminal, and gives its exit code. The guest's tree is at
    /// `/sysroot`. Afterwards nothing is mounted any more.
    fn run_on_terminal(&mut self, command: &Command, terminal: &dyn Terminal) -> Result<i32>;
}

/// A booted appliance: the guest's tree once something is mounted, and what else it can do.
pub trait Session: GuestFsMut + GuestExec + Send {
    /// Mounts a device of the appliance (`/dev/vda1`) at a path of the guest's tree; `filesystem` empty means any.
    fn mount(&mut self, device: &str, path: &[u8], filesystem: &str, options: &str) -> Result<()>;
    /// Unmounts everything, in order.
    fn unmount_all(&mut self) -> Result<()>;
    /// Copies a whole block device's range in the appliance's kernel view: reads.
    fn read_device(&mut self, device: &str, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Writes to a block device.
    fn write_device(&mut self, device: &str, offset: u64, data: &[u8]) -> Result<()>;
    /// Makes the kernel read a device's partition table again.
    fn reread_partitions(&mut self, device: &str) -> Result<()>;
    /// Block devices with their sizes in bytes, partitions included.
    fn devices(&mut self) -> Result<Vec<(String, u64)>>;
    /// Makes the files that `fill` hands over below a directory of the guest, in that order. Files that are in the way are
    /// replaced and missing directories made. No name and no link leads to a change outside of the directory.
    fn unpack(&mut self, directory: &[u8], fill: &mut dyn FnMut(&mut dyn Unpack) -> Result<()>) -> Result<()>;
    /// Unmounts, writes everything out and powers off. Only after `Ok` is what was written surely on the images.
    fn shutdown(self: Box<Self>) -> Result<()>;
    /// What a device that is called `/dev/vda1` here is called by programs inside.
    fn name_inside(&self, device: &str) -> String;
    /// As a [`crate::GuestFs`], where a shared reference is wanted.
    fn as_fs(&self) -> &dyn crate::GuestFs;
}
