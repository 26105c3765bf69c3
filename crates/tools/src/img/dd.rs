//! `img dd`: a part of an image, counted in blocks, as a new image.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::NoProgress;
use imgcore::copy::{self, copy_range};
use imgcore::formats::{CreateOptions, NewImage};

use super::Entry;
use super::args::{ImageArgs, could_not_create, numbers};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "dd", arguments: Dd::augment_args, run: |matches| run(Dd::from_arg_matches(matches)?) };

const MAX_BLOCK: u64 = i32::MAX as u64;

/// Copy blocks of an image to a new one, with conversion of the format.
#[derive(Args)]
#[command(after_help = "Examples:\n  img dd if=disk.qcow2 of=disk.raw\n  img dd -O qcow2 bs=1M skip=1 count=100 if=disk.raw of=part.qcow2")]
struct Dd {
    #[command(flatten)]
    image: ImageArgs,
    /// Format of the output
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    output_format: String,
    /// Read the image even while it is in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// if=INPUT of=OUTPUT, and bs=SIZE (512), count=BLOCKS (all), skip=BLOCKS (0)
    #[arg(value_name = "NAME=VALUE")]
    operands: Vec<OsString>,
}

#[derive(Default)]
struct Operands<'a> {
    input: Option<&'a OsStr>,
    output: Option<&'a OsStr>,
    block: Option<u64>,
    count: Option<u64>,
    skip: u64,
}

impl<'a> Operands<'a> {
    fn parse(words: &'a [OsString]) -> Result<Self, Failure> {
        use std::os::unix::ffi::OsStrExt;
        let mut operands = Operands::default();
        for word in words {
            let bytes = word.as_bytes();
            let (name, value) = match bytes.iter().position(|b| *b == b'=') {
                Some(at) => (&bytes[..at], OsStr::from_bytes(&bytes[at + 1..])),
                None => (bytes, OsStr::new("")),
            };
            let text = value.to_string_lossy();
            match name {
                b"if" => operands.input = Some(value),
                b"of" => operands.output = Some(value),
                b"bs" => operands.block = Some(numbers::size("bs", &text, 1..=MAX_BLOCK)?),
                b"count" => operands.count = Some(numbers::count("count", &text, 0..=numbers::MAX)?),
                b"skip" => operands.skip = numbers::count("skip", &text, 0..=numbers::MAX)?,
                other => return Err(Failure::new(format!("unrecognized operand {}", String::from_utf8_lossy(other)))),
            }
        }
        Ok(operands)
    }
}

fn run(args: Dd) -> Result<ExitCode, Failure> {
    args.image.check()?;
    let operands = Operands::parse(&args.operands)?;
    let (Some(input), Some(output)) = (operands.input, operands.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    let formats = common::formats();
    let source = args.image.image(input)?.force_share(args.force_share).open(&formats)?;
    let Ok(driver) = formats.driver(&args.output_format) else { return Err(Failure::new("Unknown file format")) };

    let block = operands.block.unwrap_or(512);
    let end = operands.count.map_or(source.size(), |count| count.saturating_mul(block).min(source.size()));
    // `count` counts from the beginning, as in qemu-img.
    let start = operands.skip.saturating_mul(block);
    if start > source.size() {
        crate::img::warn(&format!("{}: cannot skip to specified offset", input.display()));
    }
    let range = start.min(end)..end;
    let size = range.end - range.start;

    let target = NewImage::create(driver, output, size, &CreateOptions::new()).map_err(|e| could_not_create(output, e))?;
    let options = copy::Options { target_is_zero: target.is_zero(), ..copy::Options::default() };
    copy_range(&*source, range, &**target.image(), 0, &options, &NoProgress)?;
    target.commit()?;
    Ok(ExitCode::SUCCESS)
}
