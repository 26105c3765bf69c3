//! Whether a guest runs on this host: its domain is there, or its disk is in use.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::{Error, Result};

/// What tells the number of a domain, on a Xen host: that of today, and that of Xen up to 4.4.
const TOOLSTACKS: [&str; 2] = ["xl", "xm"];
const NEXT: &str = "shut it down first, or take it as it is with --force, as after a power cut";

/// Refuses a guest whose domain runs here.
pub fn check_domain(name: &str) -> Result<()> {
    if name.starts_with('-') {
        return Ok(());
    }
    for program in TOOLSTACKS {
        let asked = Command::new(program).args(["domid", name]).stdin(Stdio::null()).stderr(Stdio::null()).output();
        // Where there is no such program, or no Xen, nothing runs.
        let Ok(output) = asked else { continue };
        let number = String::from_utf8_lossy(&output.stdout).trim().parse::<u32>();
        if let (true, Ok(number)) = (output.status.success(), number) {
            return Err(Error::Invalid(format!("{name}: runs on this host, as domain {number} ('{program} list'): {NEXT}")));
        }
    }
    Ok(())
}

/// Refuses a block device that is mounted, part of a volume group, or opened by somebody who wants it alone.
pub fn check_device(path: &Path) -> Result<()> {
    if !fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device()) {
        return Ok(());
    }
    match open(path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::BUSY) => {
            Err(Error::Invalid(format!("{}: is in use on this host (mounted, or a running guest's disk): {NEXT}", path.display())))
        }
        // Whatever else is wrong with it shows when it is read.
        _ => Ok(()),
    }
}
