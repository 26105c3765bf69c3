//! `img measure`: how large the file of a new image would get.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use serde_json::Value;

use super::Entry;
use super::args::{ImageArgs, Output, check_options, numbers, parse_options, snapshot_name};
use crate::common::{self, Failure, json};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "measure", arguments: Measure::augment_args, run: |matches| run(Measure::from_arg_matches(matches)?) };

/// Calculate how large the file of a new image gets.
#[derive(Args)]
#[command(after_help = "Examples:\n  img measure -O qcow2 --size 100G\n  img measure --output=json -O qcow2 -o cluster_size=2M disk.raw")]
struct Measure {
    #[command(flatten)]
    image: ImageArgs,
    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    target_format: String,
    /// Options of the new image's format
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Measure an empty image of this size
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Measure this internal snapshot of the source
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
    /// Read the image even while it is in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Measure an image with this one's content
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Measure) -> Result<ExitCode, Failure> {
    let size = args.size.as_deref().map(|text| numbers::size("image size", text, 0..=numbers::MAX)).transpose()?;
    let file = match (&args.files[..], size) {
        ([_, _, ..], _) => return Err(Failure::new("At most one filename argument is allowed.")),
        ([], _) if args.image.image_opts || args.image.format.is_some() || args.snapshot.is_some() => {
            return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
        }
        ([], None) => return Err(Failure::new("Either --size N or one filename must be specified.")),
        ([_], Some(_)) => return Err(Failure::new("--size N cannot be used together with a filename.")),
        (files, _) => files.first(),
    };
    let formats = common::formats();
    let source = match file {
        None => None,
        Some(name) => {
            let snapshot = args.snapshot.as_deref().map(snapshot_name).transpose()?;
            Some(args.image.image(name)?.snapshot(snapshot).force_share(args.force_share).open_snapshot(&formats)?)
        }
    };
    let Ok(driver) = formats.driver(&args.target_format) else {
        return Err(Failure::new(format!("Unknown file format '{}'", args.target_format)));
    };
    let options = parse_options(&args.options)?;
    if let Err(failure) = check_options(&options, driver) {
        let message = format!("{}\nimg: Invalid options for file format '{}'", failure.message(), driver.name());
        return Err(failure.reworded(message));
    }
    let size = source.as_ref().map_or(size.unwrap_or_default(), |image| image.size());
    let measured = match driver.measure(size, source.as_deref(), &options) {
        Err(imgcore::Error::Unsupported { .. }) => {
            return Err(Failure::new(format!("Block driver '{}' does not support size measurement", driver.name())));
        }
        measured => measured?,
    };
    match args.output {
        Output::Human => {
            println!("required size: {}\nfully allocated size: {}", measured.required, measured.fully_allocated);
            if let Some(bytes) = measured.bitmaps {
                println!("bitmaps size: {bytes}");
            }
        }
        Output::Json => {
            let sizes =
                [("bitmaps", measured.bitmaps), ("required", Some(measured.required)), ("fully-allocated", Some(measured.fully_allocated))];
            let fields = sizes.into_iter().filter_map(|(name, bytes)| Some((name.to_owned(), Value::from(bytes?))));
            json::print(&fields.collect::<Value>());
        }
    }
    Ok(ExitCode::SUCCESS)
}
