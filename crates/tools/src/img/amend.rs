//! `img amend`: changes what creation options had set.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};

use super::Entry;
use super::args::{CacheMode, ImageArgs, parse_options, print_amend_help, usage, wants_help};
use crate::common::progress::Bar;
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "amend", arguments: Amend::augment_args, run: |matches| run(Amend::from_arg_matches(matches)?) };

/// Change format-specific options of an image.
#[derive(Args)]
#[command(after_help = "Examples:\n  img amend -o compat=1.1 old.qcow2\n  img amend -o lazy_refcounts=on,refcount_bits=32 disk.qcow2")]
struct Amend {
    #[command(flatten)]
    image: ImageArgs,
    /// The options and their new values ('-o help' lists them)
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Cache mode of the image
    #[arg(short = 't', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Accepted as qemu-img does; nothing here is dangerous enough to need it
    #[arg(long)]
    force: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Amend) -> Result<ExitCode, Failure> {
    if args.options.is_empty() {
        return Err(usage("amend", "Must specify options (-o)"));
    }
    args.image.check()?;
    let formats = common::formats();
    if let (Some(format), true) = (&args.image.format, wants_help(&args.options)) {
        let driver = formats.driver(format).map_err(|_| Failure::new(format!("Unknown file format '{format}'")))?;
        return print_amend_help(driver).map(|()| ExitCode::SUCCESS);
    }
    let [name] = &args.files[..] else { return Err(Failure::new("Expecting one image file name")) };
    CacheMode::parse(args.cache.as_deref(), "Invalid cache option")?;
    let mut image = args.image.image(name)?.open_edit(&formats)?;
    let driver = formats.driver(image.info().format)?;
    if wants_help(&args.options) {
        return print_amend_help(driver).map(|()| ExitCode::SUCCESS);
    }
    if driver.amend_options().is_empty() {
        return Err(Failure::new(format!("Format driver '{}' does not support option amendment", driver.name())));
    }
    let options = parse_options(&args.options)?;
    let bar = Bar::qemu(args.progress && !args.quiet);
    image.amend(&options, &bar)?;
    bar.finish();
    Ok(ExitCode::SUCCESS)
}
