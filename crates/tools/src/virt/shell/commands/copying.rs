//! Commands that carry files between this machine and the guest.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Command;
use crate::common::Failure;
use crate::virt::show::read_file;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["upload"],
        usage: "LOCALFILE PATH",
        help: "copy a file of this machine (or - for the standard input) to a file of the guest",
        run: |shell, a| {
            let mut content = local_input(a.word(0))?;
            Ok(shell.guest()?.tree_mut()?.write(a.path(1)?, &mut content, None)?)
        },
    },
    Command {
        names: &["download"],
        usage: "PATH LOCALFILE",
        help: "copy a file of the guest to a file of this machine (or - for the standard output)",
        run: |shell, a| {
            let path = a.path(0)?;
            if a.word(1) == b"-" {
                let (guest, out) = shell.parts()?;
                return read_file(guest.fs()?, path, &mut |piece| out.bytes(piece));
            }
            let fs = shell.guest()?.fs()?;
            fs.stat(path)?;
            let mut file = local_output(a.word(1))?;
            read_file(fs, path, &mut |piece| Ok(file.write_all(piece)?))?;
            Ok(file.flush()?)
        },
    },
];

fn local_input(name: &[u8]) -> Result<Box<dyn Read>, Failure> {
    if name == b"-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let path = Path::new(OsStr::from_bytes(name));
    Ok(Box::new(std::fs::File::open(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?))
}

pub(super) fn local_output(name: &[u8]) -> Result<std::fs::File, Failure> {
    let path = Path::new(OsStr::from_bytes(name));
    std::fs::File::create(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}
