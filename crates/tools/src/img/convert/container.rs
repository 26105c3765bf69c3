//! Outputs that hold several disks: every source becomes a disk of its own.

use std::fs::File;
use std::io::{IsTerminal, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use imgcore::formats::{ContainerWriter, SourceDisk};
use imgcore::storage::{Appender, NewFile};
use imgcore::{Error, Formats, LocalGate, OpenOptions, copy};

use super::Convert;
use crate::common::Failure;
use crate::common::progress::Bar;
use crate::img::args::{parse_options, print_options, wants_help};

/// Makes a container by its `writer`, in a file or on the standard output (`-`).
pub(super) fn run(args: &Convert, formats: &Formats, writer: &dyn ContainerWriter) -> Result<ExitCode, Failure> {
    let format = &args.output_format;
    if wants_help(&args.options) {
        print_options(format, writer.options());
        return Ok(ExitCode::SUCCESS);
    }
    let Some((output, sources)) = args.files.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(Failure::new("name the images to convert and the output"));
    };
    for (given, flag) in [(args.no_create, "-n"), (args.compress, "-c"), (args.backing.is_some(), "-B")] {
        if given {
            return Err(Failure::new(format!("{flag} does not go with -O {format}; '-o help' lists its options")));
        }
    }
    let options = parse_options(&args.options)?;
    options.check_names(writer.options())?;
    let open = OpenOptions::new(&LocalGate).format(args.format.as_deref()).exclusive().force_share(args.force_share);
    let disk = |path: &PathBuf| {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(SourceDisk { name, image: formats.open(path, &open)? })
    };
    let disks = sources.iter().map(disk).collect::<Result<Vec<_>, Error>>()?;
    if let Some(source) = sources.iter().find(|source| super::same_file(source, output)) {
        return Err(Failure::new(format!("{}: is the source {} itself", output.display(), source.display())));
    }
    let threads = args.parallel.map_or(copy::Options::default().threads, |n| n as usize);
    if let Some(mut stream) = stream(output)? {
        writer.write(&disks, &options, threads, &mut stream, &Bar::qemu(false))?;
        return Ok(ExitCode::SUCCESS);
    }
    let bar = Bar::qemu(args.progress && !args.quiet);
    let file = NewFile::create(output)?;
    writer.write(&disks, &options, threads, &mut Appender::new(file.storage()), &bar)?;
    file.commit()?;
    bar.finish();
    Ok(ExitCode::SUCCESS)
}

/// The output where it is no file: the standard output (`-`), a pipe, a character device.
fn stream(output: &Path) -> Result<Option<File>, Failure> {
    if output != Path::new("-") {
        let there = std::fs::metadata(output).map(|m| m.file_type());
        return match there.is_ok_and(|t| t.is_fifo() || t.is_char_device()) {
            true => Ok(Some(File::options().write(true).open(output)?)),
            false => Ok(None),
        };
    }
    if stdout().is_terminal() {
        return Err(Failure::new("the output goes to a terminal: redirect it to a file or a pipe"));
    }
    // Without the buffer of the standard library, which looks for the ends of lines.
    Ok(Some(File::from(stdout().as_fd().try_clone_to_owned()?)))
}
