//! The appliance on KVM: our own monitor, a process that gets its disks and the agent's port as sockets and opens no file of the user's.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guestfs::Result;
use imgcore::ImageMut;
use rustix::process::{Signal, kill_process};

use crate::appliance::{Started, Wanted};
use crate::connection::Connection;
use crate::locate::Files;
use crate::monitor::Launch;
use crate::template::{Draft, Key, Template};

/// The kernel's command line has room for the names of so many.
pub const MAX_DISKS: usize = 40;

/// What our kernel is told besides what the monitor demands: to say nothing, and to make no devices that nobody uses.
const COMMAND_LINE: &str = "quiet nbd.nbds_max=0 loop.max_loop=0";

/// Places of a machine that is saved, or continues: the port's, the disks', and one for entropy.
const SAVED_PLACES: usize = 9;

/// Boots a machine by the monitor's program.
pub fn start(program: &Path, wanted: &Wanted) -> Result<Started> {
    launch(program, boot(wanted), &wanted.disks, 0)
}

/// What a template for this machine depends on; there is none with more disks than it has places for.
pub fn key(program: &Path, wanted: &Wanted) -> Result<Option<Key>> {
    if wanted.disks.len() > SAVED_PLACES - 2 {
        return Ok(None);
    }
    let mut key = Key::new("kvm", program, &wanted.files)?;
    key.add("machine", &format!("{} MiB, {SAVED_PLACES} places", wanted.memory_mib));
    key.add("command line", COMMAND_LINE);
    Ok(Some(key))
}

/// Boots a machine without disks until its agent waits, and lets the monitor save it.
pub fn save(program: &Path, wanted: &Wanted, draft: &Draft, patience: Duration) -> Result<()> {
    let arguments = [boot(wanted), vec!["--save".into(), folder(&draft.memory)]].concat();
    let Started { mut monitor, port, .. } = launch(program, arguments, &[], 0)?;
    let port = Connection::once_answered(port, patience).map_err(|e| monitor.error(&format!("a template cannot be saved: {e}")))?;
    // The monitor has set itself up for this signal, or its guest had not answered.
    let _ = kill_process(monitor.pid(), Signal::USR1);
    let saved = monitor.wait(patience).is_some_and(|status| status.success());
    drop(port);
    if saved { Ok(()) } else { Err(monitor.error("a template cannot be saved")) }
}

/// Continues a template with the disks that are wanted.
pub fn restore(program: &Path, wanted: &Wanted, template: &Template) -> Result<Started> {
    launch(program, vec!["--restore".into(), folder(&template.memory)], &wanted.disks, wanted.disks.len())
}

/// What a machine that boots is told.
fn boot(wanted: &Wanted) -> Vec<OsString> {
    let Files { kernel, initramfs, .. } = &wanted.files;
    let memory = wanted.memory_mib.to_string().into();
    [
        ["--memory".into(), memory],
        ["--append".into(), COMMAND_LINE.into()],
        ["--kernel".into(), absolute(kernel)],
        ["--initramfs".into(), absolute(initramfs)],
    ]
    .concat()
}

/// The folder of a template's file.
fn folder(file: &Path) -> OsString {
    absolute(file.parent().unwrap_or(file))
}

fn absolute(path: &Path) -> OsString {
    std::path::absolute(path).unwrap_or_else(|_| path.into()).into()
}

fn launch(program: &Path, arguments: Vec<OsString>, disks: &[Arc<dyn ImageMut>], late_disks: usize) -> Result<Started> {
    let mut launch = Launch::new("vmm-mini", "guestlift", program);
    // It needs nothing of ours, and panics without a backtrace, for which its sandbox would end it.
    launch.command.env_clear().current_dir("/").args(arguments).arg("--places").arg(SAVED_PLACES.to_string());
    let (port, number) = launch.socket()?;
    launch.command.arg("--port-fd").arg(number.to_string());
    for image in disks {
        let (_, number) = launch.disk(image.clone())?;
        launch.command.arg("--disk-fd").arg(number.to_string());
    }
    Ok(Started { monitor: launch.start()?, port, scsi: false, late_disks })
}
