//! `img commit`: writes what an image holds into the image below it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::commit::commit;
use imgcore::{Formats, Image, Reference};

use super::Entry;
use super::args::{CacheMode, ImageArgs, ImageSpec, numbers, only};
use crate::common::progress::{Bar, Limited};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "commit", arguments: Commit::augment_args, run: |matches| run(Commit::from_arg_matches(matches)?) };

const MAX_CHAIN: usize = 200;

/// Write what an image holds into the image below it, and empty it.
#[derive(Args)]
#[command(after_help = "Examples:\n  img commit overlay.qcow2\n  img commit -d overlay.qcow2\n  img commit -p -b base.qcow2 overlay.qcow2")]
struct Commit {
    #[command(flatten)]
    image: ImageArgs,
    /// Write into this image of the chain, not into the next one; the image is not emptied then
    #[arg(short, long, value_name = "FILE")]
    base: Option<String>,
    /// Do not empty the image: it is dropped anyway
    #[arg(short, long)]
    drop: bool,
    /// No more than so many bytes a second
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// Cache mode of the images
    #[arg(short = 't', long, value_name = "CACHE")]
    cache: Option<String>,
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

fn run(args: Commit) -> Result<ExitCode, Failure> {
    let rate = args.rate.as_deref().map_or(Ok(0), |text| numbers::size("rate limit", text, 0..=numbers::MAX))?;
    let name = only("commit", &args.files)?;
    args.image.check()?;
    CacheMode::parse(args.cache.as_deref(), "Invalid cache option")?;
    let formats = common::formats();
    let top = args.image.image(name)?;
    // The whole chain, opened once, shows what is wrong with it.
    let has_backing = top.open(&formats)?.backing().is_some();
    let mut overlay = top.clone().without_backing().open_edit(&formats)?;
    if !has_backing {
        return Err(Failure::new("Image does not have a backing file"));
    }
    let (between, base) = chain(&formats, &top, args.base.as_deref())?;
    let mut target = base.open_edit(&formats)?;
    let between: Vec<_> = between.into_iter().map(|layer| layer.without_backing().open(&formats)).collect::<Result<_, _>>()?;
    let layers: Vec<&dyn Image> = [&*overlay as &dyn Image].into_iter().chain(between.iter().map(|layer| &**layer)).collect();
    let bar = Bar::qemu(args.progress && !args.quiet);
    commit(&layers, &mut *target, &Limited::new(&bar, rate))?;
    drop(target);
    if !args.drop && args.base.is_none() {
        overlay.make_empty()?;
    }
    bar.finish();
    if !args.quiet {
        println!("Image committed.");
    }
    Ok(ExitCode::SUCCESS)
}

/// The images between `top` and the one that is written to, and that one.
fn chain(formats: &Formats, top: &ImageSpec, wanted: Option<&str>) -> Result<(Vec<ImageSpec>, ImageSpec), Failure> {
    let mut between = Vec::new();
    let mut image = top.clone();
    while between.len() < MAX_CHAIN {
        // What is being committed is locked already.
        let info = image.clone().without_backing().force_share(true).open(formats)?.info();
        let Some(target) = &info.backing_file else { break };
        let path = Reference { from: &info.file, target, role: "backing file" }.path()?;
        let found = wanted.is_none_or(|wanted| wanted == target || is_file(&image.path, wanted, &path));
        let next = ImageSpec::file(path, info.backing_format);
        if found {
            return Ok((between, next));
        }
        between.push(next.clone());
        image = next;
    }
    Err(Failure::new(format!("Did not find '{}' in the backing chain of '{}'", wanted.unwrap_or_default(), top.name)))
}

/// Whether `wanted`, as it stands or beside the image that names it, is the file `path`.
fn is_file(beside: &Path, wanted: &str, path: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    let beside: PathBuf = beside.parent().unwrap_or(Path::new("")).join(wanted);
    real(path).is_some_and(|path| [real(&beside), real(Path::new(wanted))].contains(&Some(path)))
}
