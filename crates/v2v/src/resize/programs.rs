//! Programs of the host that work in the appliance, and what their failures mean.

use guestfs::engine::{Command, GUEST_ROOT, Session};

use crate::{Error, Result};

/// Runs a program; one that does not end with 0 or `fine` is a failure in its own words.
pub fn run(session: &mut dyn Session, command: &Command, fine: &[i32]) -> Result<Vec<u8>> {
    let output = session.run_tool(command)?;
    if output.status == 0 || fine.contains(&output.status) {
        return Ok(output.stdout);
    }
    let words: Vec<String> = command.argv.iter().take(4).map(|w| guestfs::show(w)).collect();
    // Some tell their trouble on the one stream, some on the other; what they tell last matters most.
    let said = [output.stdout, output.stderr].concat();
    let lines: Vec<&[u8]> = said.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty()).collect();
    let last: Vec<String> = lines.iter().skip(lines.len().saturating_sub(6)).map(|l| guestfs::show(l.trim_ascii())).collect();
    Err(Error::Invalid(format!("{} failed ({}): {}", words.join(" "), output.status, last.join("; "))))
}

/// Does `work` while a filesystem is mounted, at the path that it is told.
pub fn mounted<T, E: From<guestfs::Error>>(
    session: &mut dyn Session,
    device: &str,
    kind: &str,
    work: impl FnOnce(&mut dyn Session, &str) -> Result<T, E>,
) -> Result<T, E> {
    // The driver that can write NTFS has another name than the filesystem, and trims it only when it may discard at any time;
    // FAT should not mind owners and modes.
    let (driver, options) = match kind {
        "ntfs" => ("ntfs3", "discard"),
        "vfat" => ("vfat", "quiet"),
        kind => (kind, ""),
    };
    session.mount(device, b"/", driver, options)?;
    let outcome = work(session, GUEST_ROOT);
    let unmounted = session.unmount_all();
    let outcome = outcome?;
    unmounted?;
    Ok(outcome)
}
