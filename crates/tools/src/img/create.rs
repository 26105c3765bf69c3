//! `img create`: an empty image, or one on top of another.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use imgcore::storage::NewFile;
use imgcore::{Gate, LocalGate, OpenOptions, Reference, size};

use super::Entry;
use super::args::{options_help, parse_options};
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
    /// The new image
    #[arg(required_unless_present = "options")]
    filename: Option<PathBuf>,
    /// Size: bytes, or with k, M, G, T, P or E
    size: Option<String>,
}

fn run(args: Create) -> Result<ExitCode, Failure> {
    let formats = common::formats();
    let driver = formats.driver(&args.format)?;
    if options_help(&args.options, driver) {
        return Ok(ExitCode::SUCCESS);
    }
    let Some(path) = &args.filename else { return Err(Failure::new("name the new image")) };
    let mut options = parse_options(&args.options)?;
    for (name, value) in [("backing_file", &args.backing), ("backing_fmt", &args.backing_format)] {
        if let Some(value) = value {
            options = options.set(name, value);
        }
    }
    let wanted = match (&args.size, options.get("size")) {
        (Some(text), _) => Some(size::parse(text)?),
        (None, Some(text)) => Some(size::parse(text)?),
        (None, None) => None,
    };
    let options = options.without("size");
    options.check(driver)?;
    let below = match options.get("backing_file") {
        Some(file) if !args.backing_unsafe => Some(backing_size(path, file, options.get("backing_fmt"))?),
        _ => None,
    };
    let Some(bytes) = wanted.or(below) else {
        return Err(Failure::new(format!("{}: Image creation needs a size parameter", path.display())));
    };
    if !args.quiet {
        let mut line = format!("Formatting '{}', fmt={}", path.display(), driver.name());
        for (name, value) in driver.effective_options(bytes, &options)? {
            let _ = write!(line, " {name}={value}");
        }
        println!("{line}");
    }
    let file = NewFile::create(path)?;
    driver.create(file.storage(), bytes, &options)?.flush()?;
    file.commit()?;
    Ok(ExitCode::SUCCESS)
}

/// Opens the image below once, to be sure that it is there and for its size.
fn backing_size(path: &Path, file: &str, format: Option<&str>) -> Result<u64, Failure> {
    let from = path.to_string_lossy();
    let storage = LocalGate.open(&Reference { from: &from, target: file, role: "backing file" })?;
    let formats = common::formats();
    let Some(format) = format else {
        let detected = formats.probe_storage(&*storage)?.name();
        return Err(Failure::new(format!("{}: Backing file specified without backing format", path.display()))
            .hint(format!("detected format of {detected}: say '-F {detected}' if you know that to be right")));
    };
    let options = OpenOptions::new(&LocalGate).format(format);
    Ok(formats.open_storage(Arc::clone(&storage), &options)?.size())
}
