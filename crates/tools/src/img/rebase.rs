//! `img rebase`: puts an image on top of another one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::{Error, Reference, rebase};

use super::Entry;
use super::args::{CacheMode, ImageArgs, ImageSpec, only, usage, why_not_open};
use crate::common::progress::Bar;
use crate::common::{self, Failure};

/// What QEMU calls formats besides: the ways to a file's bytes. An image may name one as the format of the image below it.
const PROTOCOLS: [&str; 3] = ["file", "host_device", "nbd"];

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "rebase", arguments: Rebase::augment_args, run: |matches| run(Rebase::from_arg_matches(matches)?) };

/// Change the image below an image.
///
/// The image reads as before: what the new image below has differently is written into it. With -u only the name is changed.
#[derive(Args)]
#[command(after_help = "Examples:\n  img rebase -p -b new-base.qcow2 -F qcow2 disk.qcow2\n  img rebase -b '' disk.qcow2\n  \
                        img rebase -u -b moved/base.qcow2 -F qcow2 disk.qcow2")]
struct Rebase {
    #[command(flatten)]
    image: ImageArgs,
    /// The new image below; none if empty
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the new image below
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Change the name only: for an image below that was moved
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Write what is written compressed
    #[arg(short, long)]
    compress: bool,
    /// Cache mode of the image
    #[arg(short = 't', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Cache mode of the images below
    #[arg(short = 'T', long, value_name = "CACHE")]
    backing_cache: Option<String>,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// Read the images below even while they are in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Rebase) -> Result<ExitCode, Failure> {
    let name = only("rebase", &args.files)?;
    if !args.backing_unsafe && args.backing.is_none() {
        return Err(usage("rebase", "Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    args.image.check()?;
    CacheMode::parse(args.cache.as_deref(), "Invalid cache option")?;
    CacheMode::parse(args.backing_cache.as_deref(), "Invalid source cache option")?;
    let formats = common::formats();
    let is_known = |format: &&str| PROTOCOLS.contains(format) || formats.driver(format).is_ok();
    if let Some(unknown) = args.backing_format.as_deref().filter(|format| !is_known(format)) {
        return Err(Failure::new(format!("Invalid format name: '{unknown}'")));
    }
    let spec = args.image.image(name)?;
    let spec = if args.backing_unsafe { spec.without_backing() } else { spec };
    let mut image = spec.open_edit(&formats)?;
    let backing = args.backing.as_deref().filter(|name| !name.is_empty());
    let cannot = |why: &str| Failure::new(format!("Could not change the backing file to '{}': {why}", backing.unwrap_or_default()));
    if image.info().format == "raw" {
        return Err(cannot("Operation not supported"));
    }
    if backing.is_some() && args.backing_format.is_none() {
        return Err(cannot("backing format must be specified"));
    }
    let bar = Bar::qemu(args.progress && !args.quiet);
    if !args.backing_unsafe {
        let below = match backing {
            None => None,
            Some(file) => {
                let new = below(&spec.path, file, args.backing_format.as_deref())?.force_share(args.force_share);
                let opened = formats.open(&new.path, &new.options());
                let failed = |e: Error| {
                    let failure = why_not_open(&new.path, new.format.as_deref(), &formats, e);
                    let message = format!("Could not open new backing file '{file}': {}", failure.message());
                    failure.reworded(message)
                };
                Some(opened.map_err(failed)?)
            }
        };
        rebase::prepare(&*image, below.as_deref(), args.compress, &bar)?;
        image.flush()?;
    }
    image.set_backing(backing, args.backing_format.as_deref().filter(|_| backing.is_some())).map_err(|error| match error {
        Error::Unsupported { .. } => cannot("Operation not supported"),
        error => error.into(),
    })?;
    bar.finish();
    Ok(ExitCode::SUCCESS)
}

/// The image that `file` names, as the image at `from` would find it.
fn below(from: &Path, file: &str, format: Option<&str>) -> Result<ImageSpec, Failure> {
    if file.starts_with("json:") {
        return ImageSpec::parse(OsStr::new(file), format, false);
    }
    let from = from.to_string_lossy();
    let path: PathBuf = Reference { from: &from, target: file, role: "backing file" }.path()?;
    Ok(ImageSpec::file(path, format.map(str::to_owned)))
}
