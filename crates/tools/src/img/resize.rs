//! `img resize`: gives an image another size.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::Preallocation;

use super::Entry;
use super::args::{ImageArgs, numbers, usage};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "resize", arguments: Resize::augment_args, run: |matches| run(Resize::from_arg_matches(matches)?) };

/// Give an image another size.
#[derive(Args)]
#[command(after_help = "Examples:\n  img resize disk.qcow2 +10G\n  img resize -f raw --shrink disk.raw 5G")]
struct Resize {
    #[command(flatten)]
    image: ImageArgs,
    /// Allow the image to get smaller: what is cut off is lost
    #[arg(long)]
    shrink: bool,
    /// Storage for the new part: off, metadata, falloc or full
    #[arg(long, value_name = "MODE")]
    preallocation: Option<String>,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The image
    filename: Option<OsString>,
    /// Its new size, or how much is added (+) or cut off (-)
    #[arg(value_name = "[+-]SIZE", allow_hyphen_values = true)]
    size: Option<String>,
    #[arg(hide = true)]
    extra: Vec<OsString>,
}

/// The new size, or what it is from the old one.
enum Change {
    To(u64),
    Grow(u64),
    Shrink(u64),
}

fn run(args: Resize) -> Result<ExitCode, Failure> {
    let (Some(file), Some(text)) = (&args.filename, &args.size) else {
        return Err(usage("resize", "Expecting image file name and size"));
    };
    if !args.extra.is_empty() {
        return Err(usage("resize", "Extra argument(s) in command line"));
    }
    args.image.check()?;
    let preallocation = match args.preallocation.as_deref() {
        None => Preallocation::Off,
        Some(mode) => mode.parse().map_err(|_| Failure::new(format!("Invalid preallocation mode '{mode}'")))?,
    };
    let size = |text| numbers::option_size("size", text);
    let change = match text.split_at_checked(1) {
        Some(("+", by)) => Change::Grow(size(by)?),
        Some(("-", by)) => Change::Shrink(size(by)?),
        _ => Change::To(size(text)?),
    };
    let mut image = args.image.image(file)?.open_edit(&common::formats())?;
    let old = image.size();
    let new = match change {
        Change::To(size) => Some(size),
        Change::Grow(by) => old.checked_add(by),
        Change::Shrink(by) => old.checked_sub(by),
    };
    let Some(new) = new.filter(|new| (1..=numbers::MAX).contains(new)) else { return Err(Failure::new("New image size must be positive")) };
    if new <= old && preallocation != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if new < old && !args.shrink {
        crate::img::warn("Use the --shrink option to perform a shrink operation.");
        return Err(Failure::new(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, \
             make sure there is no important data there.",
        ));
    }
    image.resize(new, preallocation)?;
    if !args.quiet {
        println!("Image resized.");
    }
    Ok(ExitCode::SUCCESS)
}
