//! `img create`: an empty image, or one on top of another.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use imgcore::formats::{CreateOptions, NewImage};
use imgcore::{Formats, Gate, LocalGate, OpenOptions, Reference, Storage};

use super::Entry;
use super::args::{check_objects, check_options, host_words, numbers, parse_options, print_help, usage, wants_help, why_not_open};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "create", arguments: Create::augment_args, run: |matches| run(Create::from_arg_matches(matches)?) };

/// Create an image file.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  img create disk.raw 10G\n  img create -f qcow2 -o cluster_size=2M disk.qcow2 1T\n  img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2"
)]
struct Create {
    /// Format of the new image
    #[arg(short, long, default_value = "raw", value_name = "FMT")]
    format: String,
    /// Options of the format ('-o help' lists them)
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Make the new image a layer on top of this one
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the image below
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Do not open the image below; a size is needed then
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    /// A secret and its like; nothing here needs one
    #[arg(long, value_name = "OBJDEF")]
    object: Vec<String>,
    /// The new image, and its size: bytes, or with k, M, G, T, P or E
    #[arg(value_names = ["FILENAME", "SIZE"], num_args = 0..)]
    words: Vec<OsString>,
}

fn run(args: Create) -> Result<ExitCode, Failure> {
    check_objects(&args.object)?;
    let formats = common::formats();
    let driver = formats.driver(&args.format).map_err(|_| Failure::new(format!("Unknown file format '{}'", args.format)));
    let (name, size) = match &args.words[..] {
        [] if wants_help(&args.options) => {
            print_help(driver?, false);
            return Ok(ExitCode::SUCCESS);
        }
        [] => return Err(usage("create", "Expecting image file name")),
        [name] => (name, None),
        [name, size] => (name, Some(numbers::size("image size", &size.to_string_lossy(), 0..=numbers::MAX)?)),
        [_, _, extra, ..] => return Err(usage("create", &format!("Unexpected argument: {}", extra.to_string_lossy()))),
    };
    let file = name.to_string_lossy();
    if wants_help(&args.options) {
        print_help(driver?, true);
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = parse_options(&args.options)?;
    // qemu-img begins what follows with the new file's name.
    let named = |failure: Failure| {
        let message = format!("{file}: {}", failure.message());
        failure.reworded(message)
    };
    let driver = driver.map_err(named)?;
    for (name, value) in [("backing_file", &args.backing), ("backing_fmt", &args.backing_format)] {
        if let Some(value) = value {
            if driver.options().iter().all(|o| o.name != name) {
                let what = if name == "backing_file" { "Backing file" } else { "Backing file format" };
                return Err(named(Failure::new(format!("{what} not supported for file format '{}'", driver.name()))));
            }
            options = options.set(name, value);
        }
    }
    let wanted = match (size, options.get("size")) {
        (Some(_), Some(_)) => return Err(named(Failure::new("The image size must be specified only once"))),
        (size, None) => size,
        (None, Some(text)) => Some(numbers::option_size("size", text).map_err(named)?),
    };
    let options = options.without("size");
    check_options(&options, driver).map_err(named)?;
    let below = below(&formats, name, &options, args.backing_unsafe, wanted.is_some()).map_err(named)?;
    let Some(bytes) = wanted.or(below) else { return Err(named(Failure::new("Image creation needs a size parameter"))) };
    let shown = driver.effective_options(bytes, &options).map_err(|e| named(e.into()))?;
    if !args.quiet {
        let mut line = format!("Formatting '{file}', fmt={}", driver.name());
        for (name, value) in shown {
            let _ = write!(line, " {name}={value}");
        }
        println!("{line}");
    }
    NewImage::create(driver, name, bytes, &options).and_then(NewImage::commit).map_err(|e| named(creating(e)))?;
    Ok(ExitCode::SUCCESS)
}

/// Says why a file could not be made as qemu-img does.
fn creating(error: imgcore::Error) -> Failure {
    let failure = Failure::from_ref(&error);
    match &error {
        imgcore::Error::Io { file, action: "create", source, .. } => {
            failure.reworded(format!("Could not create '{file}': {}", host_words(source)))
        }
        _ => failure,
    }
}

/// Opens the image below, if there is to be one, to be sure that it is there and for its size.
fn below(formats: &Formats, name: &OsStr, options: &CreateOptions, unchecked: bool, sized: bool) -> Result<Option<u64>, Failure> {
    let (file, format) = (options.get("backing_file"), options.get("backing_fmt"));
    if let Some(unknown) = format.filter(|format| formats.driver(format).is_err()) {
        return Err(Failure::new(format!("Unknown driver '{unknown}'\nCould not open backing image.")));
    }
    // An empty name stands for none.
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    if name.to_str() == Some(file) {
        return Err(Failure::new("Error: Trying to create an image with the same filename as the backing file"));
    }
    if unchecked && sized {
        return Ok(None);
    }
    let from = name.to_string_lossy();
    let reference = Reference { from: &from, target: file, role: "backing file" };
    let path = reference.path()?;
    let opened = LocalGate.open(&reference).and_then(|storage: Arc<dyn Storage>| {
        let probed = formats.probe_storage(&*storage)?.name();
        let image = formats.open_storage(storage, &OpenOptions::new(&LocalGate).format(format))?;
        Ok((probed, image.size()))
    });
    match opened {
        Err(_) if unchecked => Ok(None),
        Err(error) => {
            let failure = why_not_open(&path, format, formats, error);
            let text = format!("{}\nCould not open backing image.", failure.message());
            Err(failure.reworded(text))
        }
        Ok((probed, _)) if format.is_none() => {
            Err(Failure::new(format!("Backing file specified without backing format\nDetected format of {probed}.")))
        }
        Ok((_, size)) => Ok(Some(size)),
    }
}
