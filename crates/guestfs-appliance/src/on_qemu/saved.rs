//! Templates of the microvm: how one is saved, and continued.
//!
//! The machine's memory is a file that QEMU maps: shared with the machine that is saved, privately into those that
//! continue, so that they read from the host's page cache and share what they do not change. The rest, some 100 KiB, is
//! what QEMU migrates when it may ignore shared memory (`x-ignore-shared`); it goes over a socket. The machine that is
//! saved has no disks. One that continues finds its places for them filled, and its agent is told to look.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use guestfs::Result;
use serde_json::json;

use super::{MAX_VIRTIO_BLK, MICROVM, PORT_PLACE, add_disk, add_kernel, add_port, command_line, in_place};
use crate::appliance::{Started, Wanted};
use crate::connection::Connection;
use crate::monitor::failure;
use crate::qemu::{self, Builder};
use crate::qmp::Qmp;
use crate::template::{Draft, Key, PATIENCE, Template};

/// Largest state of processor and devices, in bytes.
const STATE_LIMIT: u64 = 16 << 20;

/// What a template for this machine depends on, if there can be one: with a distribution's kernel or behind a SCSI
/// adapter there is none.
pub fn key(wanted: &Wanted) -> Result<Option<Key>> {
    if wanted.files.modules.is_some() || wanted.disks.len() > MAX_VIRTIO_BLK {
        return Ok(None);
    }
    let mut key = Key::new("qemu", &qemu::find()?, &wanted.files)?;
    key.add("version", env!("CARGO_PKG_VERSION"));
    key.add("machine", &format!("{MICROVM} {} MiB", wanted.memory_mib));
    // The frequency is that of the host's boot.
    key.add("command line", &command_line(0));
    Ok(Some(key))
}

/// The board, with a file as its memory.
fn add_machine(builder: &mut Builder, wanted: &Wanted, memory: &Path, share: bool) {
    let (mib, file, share) = (wanted.memory_mib, qemu::quoted(memory), if share { "on" } else { "off" });
    builder.args(["-M".into(), format!("{MICROVM},memory-backend=memory"), "-m".into(), mib.to_string()]);
    builder.args(["-object".into(), format!("memory-backend-file,id=memory,size={mib}M,mem-path={file},share={share}")]);
}

/// Boots a machine without disks until its agent waits, and saves it.
pub fn save(wanted: &Wanted, draft: &Draft) -> Result<()> {
    let mut builder = Builder::new();
    add_machine(&mut builder, wanted, &draft.memory, true);
    add_kernel(&mut builder, wanted)?;
    let port = add_port(&mut builder, PORT_PLACE)?;
    let control = add_control(&mut builder)?;
    let mut monitor = builder.start()?;
    let saved = Connection::once_answered(port, wanted.limits.boot).and_then(|_port| migrate(control));
    // Nothing may change its memory from now on.
    let state = saved.map_err(|e| monitor.error(&format!("a template cannot be saved: {e}")))?;
    monitor.kill();
    fs::write(&draft.state, state).map_err(|e| failure(format!("{}: {e}", draft.state.display())))
}

/// QEMU's monitor, over a socket.
fn add_control(builder: &mut Builder) -> Result<UnixStream> {
    let control = builder.socket("control")?;
    builder.args(["-mon", "chardev=control,mode=control"]);
    Ok(control)
}

/// Takes the state of a running machine, which is stopped then.
fn migrate(control: UnixStream) -> io::Result<Vec<u8>> {
    let mut qmp = Qmp::new(control, PATIENCE)?;
    ignore_shared_memory(&mut qmp)?;
    let (ours, theirs) = UnixStream::pair()?;
    qmp.execute_with("getfd", json!({ "fdname": "state" }), &[theirs.as_fd()])?;
    drop(theirs);
    qmp.execute("migrate", json!({ "uri": "fd:state" }))?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let mut state = Vec::new();
    ours.take(STATE_LIMIT).read_to_end(&mut state)?;
    qmp.wait_for_migration()?;
    Ok(state)
}

fn ignore_shared_memory(qmp: &mut Qmp) -> io::Result<()> {
    let on = |capability| json!({ "capability": capability, "state": true });
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": [on("x-ignore-shared"), on("events")] }))
}

/// Continues a template with the disks that are wanted.
pub fn restore(wanted: &Wanted, template: &Template) -> Result<Started> {
    let mut builder = Builder::new();
    add_machine(&mut builder, wanted, &template.memory, false);
    builder.args(["-incoming", "defer"]);
    let port = add_port(&mut builder, PORT_PLACE)?;
    let control = add_control(&mut builder)?;
    let (state, number) = builder.inherited_socket()?;
    for (number, image) in (1..).zip(&wanted.disks) {
        add_disk(&mut builder, image, &in_place("virtio-blk", number))?;
    }
    let mut monitor = builder.start()?;
    let restored = feed(control, state, number, &template.state);
    restored.map_err(|e| monitor.error(&format!("a template cannot be restored: {e}")))?;
    Ok(Started { monitor, port, scsi: false, late_disks: wanted.disks.len() })
}

fn feed(control: UnixStream, mut socket: UnixStream, number: i32, file: &Path) -> io::Result<()> {
    let mut state = Vec::new();
    File::open(file)?.take(STATE_LIMIT).read_to_end(&mut state)?;
    let mut qmp = Qmp::new(control, PATIENCE)?;
    ignore_shared_memory(&mut qmp)?;
    qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{number}") }))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.write_all(&state)?;
    socket.shutdown(Shutdown::Write)?;
    qmp.wait_for_migration()
}
