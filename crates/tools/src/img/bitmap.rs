//! `img bitmap`: the persistent dirty bitmaps of an image.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};
use imgcore::{BitmapInfo, Error};

use super::Entry;
use super::args::{ImageArgs, ImageSpec, numbers};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "bitmap", arguments: Bitmap::augment_args, run: |matches| run(Bitmap::from_arg_matches(matches)?, matches) };

/// Change the persistent bitmaps of an image. Several changes are made in their order.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  img bitmap --add -g 128k disk.qcow2 backup\n  img bitmap --merge other --disable disk.qcow2 backup\n  \
                        img bitmap --merge backup -b old.qcow2 -F qcow2 new.qcow2 backup"
)]
struct Bitmap {
    #[command(flatten)]
    image: ImageArgs,
    /// Add the bitmap; writes will be recorded in it
    #[arg(long)]
    add: bool,
    /// Bytes that one bit of an added bitmap stands for
    #[arg(short, long, value_name = "SIZE")]
    granularity: Option<String>,
    /// Drop the bitmap
    #[arg(long)]
    remove: bool,
    /// Mark everything in the bitmap as clean
    #[arg(long)]
    clear: bool,
    /// Record writes in the bitmap
    #[arg(long)]
    enable: bool,
    /// Record writes in the bitmap no more
    #[arg(long)]
    disable: bool,
    /// Mark what is dirty in this bitmap
    #[arg(long, value_name = "BITMAP")]
    merge: Vec<String>,
    /// The image that has the merged bitmap, if another
    #[arg(short = 'b', long, value_name = "FILE")]
    source_file: Option<OsString>,
    /// Format of that image
    #[arg(short = 'F', long, value_name = "FMT")]
    source_format: Option<String>,
    /// The image, and the bitmap's name
    #[arg(value_names = ["FILENAME", "BITMAP"], num_args = 0..)]
    words: Vec<OsString>,
}

/// One change, by its flag; a merge has the number of its value.
type Change = (usize, &'static str, usize);

/// The changes asked for, in their order.
fn changes(matches: &ArgMatches) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for name in ["add", "remove", "clear", "enable", "disable", "merge"] {
        if matches.value_source(name) == Some(ValueSource::CommandLine) {
            let places = matches.indices_of(name).into_iter().flatten();
            changes.extend(places.enumerate().map(|(number, place)| (place, name, number)));
        }
    }
    changes.sort();
    changes
}

fn run(args: Bitmap, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let granularity = args.granularity.as_deref().map(|text| numbers::size("granularity", text, 1..=numbers::MAX)).transpose()?;
    let changes = changes(matches);
    if changes.is_empty() {
        return Err(Failure::new("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"));
    }
    for (given, needed, message) in [
        (granularity.is_some(), args.add, "granularity only supported with --add"),
        (args.source_file.is_some(), !args.merge.is_empty(), "Merge bitmap source file only supported with --merge"),
        (args.source_format.is_some(), args.source_file.is_some(), "-F only supported with -b"),
    ] {
        if given && !needed {
            return Err(Failure::new(message));
        }
    }
    let [file, name] = &args.words[..] else { return Err(Failure::new("Expecting filename and bitmap name")) };
    let name = name.to_string_lossy();
    let formats = common::formats();
    let mut image = args.image.image(file)?.open_edit(&formats)?;
    let (own, size) = (image.info().format, image.size());
    let source = match &args.source_file {
        None => None,
        Some(file) => Some(ImageSpec::parse(file, args.source_format.as_deref(), false)?.without_backing().open(&formats)?),
    };
    for (_, change, number) in changes {
        let failed = |why: String| Failure::new(format!("Operation {change} on bitmap {name} failed: {why}"));
        let bitmaps = image.bitmaps().map_err(|_| failed(format!("Can't store persistent bitmaps in {own}: Operation not supported")))?;
        if change == "add" {
            if bitmaps.list().iter().any(|b| b.name == name) {
                return Err(failed(format!("Bitmap already exists: {name}")));
            }
            if granularity.is_some_and(|g| !g.is_power_of_two() || !(512..=1 << 31).contains(&g)) {
                return Err(failed("Granularity must be power of 2 and at least 512".into()));
            }
        } else {
            find(&bitmaps.list(), &name).map_err(&failed)?;
        }
        let done = match change {
            "add" => bitmaps.add(&name, granularity),
            "remove" => bitmaps.remove(&name),
            "clear" => bitmaps.clear(&name),
            "enable" => bitmaps.set_recording(&name, true),
            "disable" => bitmaps.set_recording(&name, false),
            _ => {
                let merged = args.merge.get(number).map_or("", String::as_str);
                let known = source.as_ref().map_or_else(|| bitmaps.list(), |source| source.info().bitmaps);
                find(&known, merged).map_err(&failed)?;
                let (ours, theirs) = (size, source.as_ref().map_or(size, |source| source.size()));
                check_sizes(theirs, ours).map_err(&failed)?;
                let dirty = source.as_ref().map_or_else(|| bitmaps.dirty(merged), |source| source.dirty_ranges(merged));
                dirty.and_then(|ranges| bitmaps.mark(&name, &ranges))
            }
        };
        done.map_err(|error: Error| failed(error.to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses to bring together the bitmaps of images of different sizes.
pub(super) fn check_sizes(source: u64, destination: u64) -> Result<(), String> {
    if source == destination {
        return Ok(());
    }
    Err(format!("Bitmaps are of different sizes (destination size is {destination}, source size is {source}) and can't be merged"))
}

fn find(bitmaps: &[BitmapInfo], name: &str) -> Result<(), String> {
    if bitmaps.iter().any(|b| b.name == name) { Ok(()) } else { Err(format!("Dirty bitmap '{name}' not found")) }
}
