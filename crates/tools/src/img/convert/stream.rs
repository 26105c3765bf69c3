//! Outputs that are written from their first byte to their last: the standard output, pipes.

use std::fs::File;
use std::io::{IsTerminal, Write, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use imgcore::formats::{CreateOptions, FormatDriver};
use imgcore::{Error, Image, Progress};

use super::Convert;
use crate::common::Failure;
use crate::img::args::host_words;

/// The output where it is no file: the standard output (`-`), a pipe, a character device.
pub(super) fn open(output: &Path) -> Result<Option<File>, Failure> {
    if output != Path::new("-") {
        let there = std::fs::metadata(output).map(|m| m.file_type());
        if !there.is_ok_and(|t| t.is_fifo() || t.is_char_device()) {
            return Ok(None);
        }
        let opened = File::options().write(true).open(output);
        return opened.map(Some).map_err(|e| Failure::new(format!("Could not open '{}': {}", output.display(), host_words(&e))));
    }
    if stdout().is_terminal() {
        return Err(Failure::new("the output goes to a terminal: redirect it to a file or a pipe"));
    }
    // Without the buffer of the standard library, which looks for the ends of lines.
    Ok(Some(File::from(stdout().as_fd().try_clone_to_owned()?)))
}

/// Writes `source` in one pass.
pub(super) fn write(
    args: &Convert,
    driver: &dyn FormatDriver,
    source: &dyn Image,
    options: &CreateOptions,
    mut out: File,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    for (given, what) in [
        (args.compress && driver.name() == "qcow2", "-c"),
        (args.no_create, "-n"),
        (options.get("backing_file").is_some(), "-B"),
        (args.bitmaps, "--bitmaps"),
        (args.keep_snapshots, "--keep-snapshots"),
    ] {
        if given {
            return Err(Failure::new(format!("{what} does not go with an output that is written in one pass: name a file")));
        }
    }
    driver.write_stream(source, options, &mut out, progress)?;
    out.flush().map_err(|e| Error::io("the output", "write", None, e))?;
    Ok(())
}
