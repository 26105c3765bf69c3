//! `img check`: whether an image's metadata is sound, and repairing it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, FromArgMatches, ValueEnum};
use imgcore::Error;
use imgcore::formats::{CheckReport, Repair};
use imgcore::storage::{FileStorage, undo};
use serde_json::Value;

use super::Entry;
use super::args::{CacheMode, ImageArgs, Output, only};
use crate::common::{self, Failure, json};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "check", arguments: Check::augment_args, run: |matches| run(Check::from_arg_matches(matches)?) };

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Leaks,
    All,
}

/// Check an image's metadata.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 sound, 1 the check failed, 2 corrupt, 3 leaked clusters only, 63 nothing to check in this format.\n\n\
                  Examples:\n  img check disk.qcow2\n  img check --output=json disk.qcow2\n  img check -r leaks disk.qcow2"
)]
struct Check {
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    image: ImageArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
    /// Repair leaked clusters, or all that can be repaired
    #[arg(short, long, value_enum, value_name = "WHAT")]
    repair: Option<Which>,
    /// Cache mode of the image
    #[arg(short = 'T', long, value_name = "MODE")]
    cache: Option<String>,
    /// Read the image even while it is in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Check) -> Result<ExitCode, Failure> {
    let name = only("check", &args.files)?;
    args.image.check()?;
    CacheMode::parse(args.cache.as_deref(), "Invalid source cache option")?;
    let formats = common::formats();
    let image = args.image.image(name)?.force_share(args.force_share);
    if args.repair.is_some() && !args.force_share && undo::recover(&image.path)? {
        eprintln!("{}: a change to it had been cut short; it was made what it was before that.", image.name);
        if formats.probe_storage(&FileStorage::open(&image.path)?)?.name() == "raw" {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let (storage, repair) = match args.repair {
        Some(_) if args.force_share => {
            let why = "force-share=on can only be used with read-only images";
            return Err(Failure::new(format!("Could not open '{}': {why}", image.name)));
        }
        None => (image.readable(&formats)?, Repair::None),
        Some(Which::Leaks) => (image.writable(&formats)?, Repair::Leaks),
        Some(Which::All) => (image.writable(&formats)?, Repair::All),
    };
    let format = match &image.format {
        Some(format) => formats.driver(format)?,
        None => formats.probe_storage(&*storage)?,
    };
    let report = match formats.check(storage, &image.options(), repair) {
        Err(Error::Unsupported { what, .. }) if what.starts_with("checking") => {
            return Err(Failure::new("This image format does not support checks").code(63));
        }
        result => result.map_err(|e| image.failure(&formats, e))?,
    };
    for message in &report.messages {
        eprintln!("{message}");
    }
    match args.output {
        _ if args.quiet => {}
        Output::Human => print!("{}", human(&report)),
        Output::Json => json::print(&as_json(&report, &image.name, format.name())),
    }
    Ok(ExitCode::from(match &report {
        r if r.corruptions > 0 => 2,
        r if r.check_errors > 0 => 1,
        r if r.leaks > 0 => 3,
        _ => 0,
    }))
}

fn human(report: &CheckReport) -> String {
    let mut out = String::new();
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        out += &format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\nDouble checking the fixed image now...\n",
            report.leaks_fixed, report.corruptions_fixed
        );
    }
    if report.corruptions + report.leaks + report.check_errors == 0 {
        out += "No errors were found on the image.\n";
    }
    if report.corruptions > 0 {
        out += &format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        );
    }
    if report.leaks > 0 {
        out +=
            &format!("\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n", report.leaks);
    }
    if report.check_errors > 0 {
        out += &format!("\n{} internal errors have occurred during the check.\n", report.check_errors);
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        out += &format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters)
        );
    }
    if report.image_end_offset > 0 {
        out += &format!("Image end offset: {}\n", report.image_end_offset);
    }
    out
}

fn as_json(report: &CheckReport, file: &str, format: &str) -> Value {
    // In qemu-img's order, and without what is zero, as there.
    let number = |number: u64| Some(number).filter(|number| *number > 0).map(Value::from);
    let fields = [
        ("image-end-offset", number(report.image_end_offset)),
        ("compressed-clusters", number(report.compressed_clusters)),
        ("total-clusters", number(report.total_clusters)),
        ("corruptions-fixed", number(report.corruptions_fixed)),
        ("corruptions", number(report.corruptions)),
        ("check-errors", Some(report.check_errors.into())),
        ("leaks-fixed", number(report.leaks_fixed)),
        ("leaks", number(report.leaks)),
        ("allocated-clusters", number(report.allocated_clusters)),
        ("filename", Some(file.into())),
        ("format", Some(format.into())),
        ("fragmented-clusters", number(report.fragmented_clusters)),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
