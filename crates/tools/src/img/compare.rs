//! `img compare`: whether two images hold the same bytes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::compare::{Found, Options, compare};

use super::Entry;
use super::args::{CacheMode, ImageSpec, check_objects, host_words, usage};
use crate::common::progress::Bar;
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "compare", arguments: Compare::augment_args, run: |matches| run(Compare::from_arg_matches(matches)?) };

/// Check if two images have the same content.
#[derive(Args)]
#[command(after_help = "Exit codes: 0 the same, 1 different, 2 an image cannot be opened, 3 it cannot be mapped, 4 it cannot be read.\n\n\
                        Examples:\n  img compare disk.raw disk.qcow2\n  img compare -s -f raw -F qcow2 a.raw b.qcow2")]
struct Compare {
    /// Format of the first image; found out when not given
    #[arg(short = 'f', long, value_name = "FMT")]
    a_format: Option<String>,
    /// Format of the second image
    #[arg(short = 'F', long, value_name = "FMT")]
    b_format: Option<String>,
    /// The images are given by keys, as driver=qcow2,file.filename=disk
    #[arg(long)]
    image_opts: bool,
    /// Sizes and allocation must be the same, too
    #[arg(short, long)]
    strict: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// Cache mode of the images
    #[arg(short = 'T', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Read the images even while they are in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// A secret and its like; nothing here needs one
    #[arg(long, value_name = "OBJDEF")]
    object: Vec<String>,
    /// The images
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Compare) -> Result<ExitCode, Failure> {
    let [a, b] = &args.files[..] else { return Err(usage("compare", "Expecting two image file names")) };
    differs(&args, a, b).map_err(|failure| if failure.exit_code() == 1 { failure.code(2) } else { failure })
}

fn differs(args: &Compare, a: &OsString, b: &OsString) -> Result<ExitCode, Failure> {
    if args.image_opts && (args.a_format.is_some() || args.b_format.is_some()) {
        return Err(Failure::new("--image-opts and --format are mutually exclusive"));
    }
    check_objects(&args.object)?;
    CacheMode::parse(args.cache.as_deref(), "Invalid source cache option")?;
    let formats = common::formats();
    let open = |name, format: &Option<String>| {
        ImageSpec::parse(name, format.as_deref(), args.image_opts)?.force_share(args.force_share).in_order().open(&formats)
    };
    let names = [a, b];
    let (a, b) = (open(a, &args.a_format)?, open(b, &args.b_format)?);
    let say = |text: String| {
        if !args.quiet {
            println!("{text}");
        }
    };
    if args.strict && a.size() != b.size() {
        say("Strict mode: Image size mismatch!".into());
        return Ok(ExitCode::from(1));
    }
    let bar = Bar::qemu(args.progress && !args.quiet);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let found = compare(&*a, &*b, Options { threads, strict: args.strict }, &bar);
    bar.finish();
    // qemu-img comes to speak of it once what both have is found to be the same.
    if a.size() != b.size() && found.offset() >= a.size().min(b.size()) {
        say("Warning: Image size mismatch!".into());
    }
    match found {
        Found::Same => {
            say("Images are identical.".into());
            Ok(ExitCode::SUCCESS)
        }
        Found::Content(offset) => {
            say(format!("Content mismatch at offset {offset}!"));
            Ok(ExitCode::from(1))
        }
        Found::Status(offset) => {
            say(format!("Strict mode: Offset {offset} block status mismatch!"));
            Ok(ExitCode::from(1))
        }
        Found::Unmapped(error) => Err(Failure::from(error).code(3)),
        Found::Unreadable(offset, error) => Err(unreadable(offset, names, error).code(4)),
    }
}

/// qemu-img's sentence, where the host failed.
fn unreadable(offset: u64, names: [&OsString; 2], error: imgcore::Error) -> Failure {
    match &error {
        imgcore::Error::Io { file, source, .. } if names.iter().any(|name| name.to_str() == Some(file)) => {
            Failure::new(format!("Error while reading offset {offset} of {file}: {}", host_words(source)))
        }
        _ => error.into(),
    }
}
