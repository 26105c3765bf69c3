//! Outputs that hold several disks: every source becomes a disk of its own.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use imgcore::formats::{ContainerWriter, SourceDisk};
use imgcore::storage::{Appender, NewFile};
use imgcore::{Formats, copy};

use super::{Convert, stream};
use crate::common::Failure;
use crate::common::progress::Bar;
use crate::img::args::{parse_options, print_options, wants_help};

/// Makes a container by its `writer`, in a file or on the standard output (`-`).
pub(super) fn run(args: &Convert, formats: &Formats, writer: &dyn ContainerWriter) -> Result<ExitCode, Failure> {
    let format = args.format();
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
    let disk = |source: &OsString| {
        let spec = args.source(source)?;
        let name = spec.path.file_name().unwrap_or(spec.path.as_os_str()).to_string_lossy().into_owned();
        Ok(SourceDisk { name, image: spec.open(formats)? })
    };
    let disks = sources.iter().map(disk).collect::<Result<Vec<_>, Failure>>()?;
    if let Some(source) = sources.iter().find(|source| super::same_file(source, output)) {
        return Err(Failure::new(format!("{}: is the source {} itself", Path::new(output).display(), Path::new(source).display())));
    }
    let threads = args.threads()?.unwrap_or(copy::Options::default().threads);
    if let Some(mut stream) = stream::open(Path::new(output))? {
        let bar = Bar::beside_output(args.progress && !args.quiet, "convert");
        writer.write(&disks, &options, threads, &mut stream, &bar)?;
        bar.finish();
        return Ok(ExitCode::SUCCESS);
    }
    let bar = Bar::qemu(args.progress && !args.quiet);
    let file = NewFile::create(output)?;
    writer.write(&disks, &options, threads, &mut Appender::new(file.storage()), &bar)?;
    file.commit()?;
    bar.finish();
    Ok(ExitCode::SUCCESS)
}
