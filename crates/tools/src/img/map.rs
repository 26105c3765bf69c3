//! `img map`: where each part of an image lies.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::{Extent, ExtentKind};

use super::Entry;
use super::args::{ImageArgs, Output, numbers, only};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "map", arguments: Map::augment_args, run: |matches| run(Map::from_arg_matches(matches)?) };

/// Show where the parts of an image lie, in it and in the images below.
#[derive(Args)]
#[command(after_help = "Examples:\n  img map disk.qcow2\n  img map --output=json --start-offset 1G --max-length 64M disk.qcow2")]
struct Map {
    #[command(flatten)]
    image: ImageArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
    /// Begin here
    #[arg(long, value_name = "OFFSET", default_value = "0")]
    start_offset: String,
    /// Show no more than so many bytes
    #[arg(long, value_name = "LENGTH")]
    max_length: Option<String>,
    /// Read the image even while it is in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Map) -> Result<ExitCode, Failure> {
    let start = numbers::size("start offset", &args.start_offset, 0..=numbers::MAX)?;
    let length = args.max_length.as_deref().map_or(Ok(numbers::MAX), |text| numbers::size("max length", text, 0..=numbers::MAX))?;
    let image = args.image.image(only("map", &args.files)?)?.force_share(args.force_share).open(&common::formats())?;
    let start = start.min(image.size());
    let end = start.saturating_add(length).min(image.size());
    let mut printer = Printer { output: args.output, first: true, failure: None };
    let mut pending: Option<Extent> = None;
    match args.output {
        Output::Human => println!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to"),
        Output::Json => print!("["),
    }
    image.extents(start..end, &mut |extent| {
        match &mut pending {
            Some(before) if joins(before, &extent) => before.len += extent.len,
            _ => {
                if let Some(done) = pending.replace(extent) {
                    printer.print(&done);
                }
            }
        }
        if printer.failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(last) = pending
        && printer.failure.is_none()
    {
        printer.print(&last);
    }
    if let Some(failure) = printer.failure {
        return Err(failure);
    }
    if args.output == Output::Json {
        println!("]");
    }
    Ok(ExitCode::SUCCESS)
}

fn joins(before: &Extent, next: &Extent) -> bool {
    before.kind == next.kind
        && before.depth == next.depth
        && before.file == next.file
        && before.host_offset.map(|offset| offset + before.len) == next.host_offset
}

struct Printer {
    output: Output,
    first: bool,
    failure: Option<Failure>,
}

impl Printer {
    fn print(&mut self, extent: &Extent) {
        match (self.output, extent.host_offset, &extent.file) {
            (Output::Json, offset, _) => self.print_json(extent, offset),
            (Output::Human, Some(offset), Some(file)) if extent.kind == ExtentKind::Data => {
                println!("{:<16}{:<16}{:<16}{file}", hex(extent.start), hex(extent.len), hex(offset));
            }
            (Output::Human, None, _) if !extent.kind.reads_zero() => {
                self.failure =
                    Some(Failure::new("File contains external, encrypted or compressed clusters.").hint("'--output=json' shows them all"));
            }
            (Output::Human, ..) => {}
        }
    }

    fn print_json(&mut self, extent: &Extent, offset: Option<u64>) {
        if !std::mem::take(&mut self.first) {
            println!(",");
        }
        let Extent { start, len, kind, depth, .. } = extent;
        let (zero, present) = (kind.reads_zero(), *kind != ExtentKind::Unallocated);
        let offset = offset.map_or(String::new(), |offset| format!(", \"offset\": {offset}"));
        print!(
            "{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \"data\": {}, \"compressed\": {}{offset}}}",
            !zero,
            *kind == ExtentKind::Compressed
        );
    }
}

/// As C's `%#x`, which gives zero no prefix.
fn hex(number: u64) -> String {
    if number == 0 { "0".into() } else { format!("{number:#x}") }
}
