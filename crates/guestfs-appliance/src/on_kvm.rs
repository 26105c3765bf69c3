//! The appliance on KVM: our own monitor, a process that gets its disks and the agent's port as sockets and opens no file of the user's.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use guestfs::Result;
use imgcore::nbd::{self, Content, Export};

use crate::appliance::{Started, Wanted};
use crate::monitor::{Launch, failure};

/// The kernel's command line has room for the names of so many.
pub const MAX_DISKS: usize = 40;

/// What our kernel is told besides what the monitor demands: to say nothing, and to make no devices that nobody uses.
const COMMAND_LINE: &str = "quiet nbd.nbds_max=0 loop.max_loop=0";

/// Boots a machine by the monitor's program.
pub fn start(program: &Path, wanted: &Wanted) -> Result<Started> {
    let mut command = Command::new(program);
    // It needs nothing of ours, and panics without a backtrace, for which its sandbox would end it.
    command.env_clear().current_dir("/");
    command.arg("--memory").arg(wanted.memory_mib.to_string()).args(["--append", COMMAND_LINE]);
    command.arg("--kernel").arg(std::path::absolute(&wanted.files.kernel).unwrap_or_else(|_| wanted.files.kernel.clone()));
    command.arg("--initramfs").arg(std::path::absolute(&wanted.files.initramfs).unwrap_or_else(|_| wanted.files.initramfs.clone()));
    let mut inherited = Vec::new();
    let mut give = |option: &str| -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| failure(format!("a pair of sockets: {e}")))?;
        let theirs = OwnedFd::from(theirs);
        command.arg(option).arg(theirs.as_raw_fd().to_string());
        inherited.push(theirs);
        Ok(ours)
    };
    let port = give("--port-fd")?;
    let mut servers = Vec::new();
    for (number, image) in wanted.disks.iter().enumerate() {
        let export = Export::new(format!("disk{number}"), Content::Writable(image.clone()));
        servers.push(nbd::serve_connected(give("--disk-fd")?, export)?);
    }
    let launch = Launch { name: "vmm-mini", package: "guestlift", command, inherited, servers };
    Ok(Started { monitor: launch.start()?, port, scsi: false, late_disks: 0 })
}
