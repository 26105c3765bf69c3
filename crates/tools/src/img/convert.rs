//! `img convert`: images into another format, or several into one.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use imgcore::copy::{self, copy_range};
use imgcore::formats::{CreateOptions, FormatDriver, NewImage};
use imgcore::storage::NewFile;
use imgcore::{Error, Formats, Image, ImageMut, Joined, Progress};

use super::Entry;
use super::args::{
    CacheMode, ImageSpec, check_objects, check_options, host_words, numbers, parse_options, print_help, snapshot_name, wants_help,
};
use crate::common::progress::{Bar, Limited};
use crate::common::{self, Failure};

mod container;
mod keep;
mod salvage;
mod stream;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "convert", arguments: Convert::augment_args, run: |matches| run(Convert::from_arg_matches(matches)?) };

const MAX_SPARSE: u64 = 16 << 20;

/// Convert images to another format; several become one, one behind the other, or the disks of one appliance (-O xva).
#[derive(Args)]
#[command(after_help = "Examples:\n  img convert -p -O qcow2 disk.raw disk.qcow2\n  img convert -O raw export.xva#Ref:10 disk.raw\n  \
                        img convert -c -O qcow2 -o compression_type=zstd --level 9 disk.raw small.qcow2\n  \
                        img convert -O qcow2 -o cluster_size=2M part1.raw part2.raw disk.qcow2\n  img convert -n -O raw disk.qcow2 /dev/vg/disk\n  \
                        img convert -O qcow2 disk.vmdk - | ssh host 'cat > disk.qcow2'\n  \
                        img convert --keep-snapshots -O qcow2 disk.qcow2 copy.qcow2\n  \
                        img convert -O xva -o name=web,memory=2G root.qcow2 data.raw web.xva")]
struct Convert {
    /// Format of the sources; found out when not given
    #[arg(short, long = "source-format", alias = "format", value_name = "FMT")]
    format: Option<String>,
    /// The sources are given by keys, as driver=qcow2,file.filename=disk
    #[arg(long = "source-image-opts", alias = "image-opts")]
    image_opts: bool,
    /// Read this internal snapshot of the source: its id or name, also as snapshot.id=ID or snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Cache mode of the sources
    #[arg(short = 'T', long, value_name = "CACHE")]
    source_cache: Option<String>,
    /// Format of the output
    #[arg(short = 'O', long = "target-format", alias = "output-format", value_name = "FMT")]
    output_format: Option<String>,
    /// The output is given by keys; it must exist (-n)
    #[arg(long)]
    target_image_opts: bool,
    /// Options of the output's format ('-o help' lists them)
    #[arg(short, long = "target-options", alias = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Store the output compressed
    #[arg(short, long)]
    compress: bool,
    /// How hard to compress: 1 to 9 for zlib, 1 to 19 for zstd
    #[arg(long, value_name = "LEVEL", requires = "compress")]
    level: Option<String>,
    /// Make holes of runs of zero bytes of this size; 0 stores everything
    #[arg(short = 'S', long = "sparse-size", value_name = "SIZE")]
    sparse: Option<String>,
    /// Threads that read and compress
    #[arg(short = 'm', long, value_name = "NUMBER")]
    parallel: Option<String>,
    /// The same; the bytes written do not depend on it
    #[arg(long, value_name = "NUMBER")]
    threads: Option<String>,
    /// Accepted as qemu-img does; the output has the same layout all the same, which costs no time here
    #[arg(short = 'W', long = "oob-writes")]
    out_of_order: bool,
    /// Accepted as qemu-img does: the host copies what it can
    #[arg(short = 'C', long)]
    copy_range_offloading: bool,
    /// No more than so many bytes a second
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// Write to an output that exists already
    #[arg(short = 'n', long)]
    no_create: bool,
    /// The existing output reads as zeroes everywhere (with -n)
    #[arg(long)]
    target_is_zero: bool,
    /// The output is a layer on top of this image: only what the source's own layer holds is copied
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the image below the output
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Copy the persistent bitmaps as well
    #[arg(long)]
    bitmaps: bool,
    /// Leave out bitmaps that were not closed cleanly
    #[arg(long)]
    skip_broken_bitmaps: bool,
    /// Copy all internal snapshots as well; what they share is stored once
    #[arg(long)]
    keep_snapshots: bool,
    /// Write zeroes for what cannot be read, with a warning
    #[arg(long)]
    salvage: bool,
    /// Cache mode of the output. With 'unsafe', as without -t, it is left to the host when the bytes reach the disk; with all
    /// others they are there at the end
    #[arg(short = 't', long, value_name = "CACHE")]
    target_cache: Option<String>,
    /// Read the sources even while they are in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// A secret and its like; nothing here needs one
    #[arg(long, value_name = "OBJDEF")]
    object: Vec<String>,
    /// The images to convert (FILE#DISK for a disk of a container), and the output as the last ('-' for the standard output)
    #[arg(value_name = "SOURCE... OUTPUT")]
    files: Vec<OsString>,
}

impl Convert {
    /// Refuses what does not go together, in qemu-img's words.
    fn check(&self) -> Result<(), Failure> {
        check_objects(&self.object)?;
        for (wrong, message) in [
            (self.no_create && !self.options.is_empty(), "-o has no effect when skipping image creation"),
            (self.image_opts && self.format.is_some(), "--image-opts and --format are mutually exclusive"),
            (self.target_image_opts && self.output_format.is_some(), "--image-opts and --format are mutually exclusive"),
            (self.target_image_opts && !self.no_create, "--target-image-opts requires use of -n flag"),
            (self.skip_broken_bitmaps && !self.bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"),
            (self.copy_range_offloading && self.compress, "Cannot enable copy offloading when -c is used"),
            (self.copy_range_offloading && self.sparse.is_some(), "Cannot enable copy offloading when -S is used"),
            (self.copy_range_offloading && self.salvage, "Cannot use copy offloading in salvaging mode"),
            (self.target_is_zero && !self.no_create, "--target-is-zero requires use of -n flag"),
        ] {
            if wrong {
                return Err(Failure::new(message));
            }
        }
        CacheMode::parse(self.source_cache.as_deref(), "Invalid source cache option")?;
        Ok(())
    }

    fn format(&self) -> &str {
        self.output_format.as_deref().unwrap_or("raw")
    }

    /// The threads asked for.
    fn threads(&self) -> Result<Option<usize>, Failure> {
        let given = |text: &Option<String>, what, most| text.as_deref().map(|text| numbers::count(what, text, 1..=most)).transpose();
        let (parallel, threads) = (given(&self.parallel, "number of coroutines", 16)?, given(&self.threads, "number of threads", 64)?);
        Ok(threads.or(parallel).map(|n| n as usize))
    }

    /// A source, as it is named on the command line.
    fn source(&self, name: &OsStr) -> Result<ImageSpec, Failure> {
        let spec = ImageSpec::parse(name, self.format.as_deref(), self.image_opts)?.exclusive().force_share(self.force_share);
        match &self.snapshot {
            Some(text) => Ok(spec.snapshot(Some(snapshot_name(text)?))),
            None => Ok(spec),
        }
    }

    fn copy_options(&self) -> Result<copy::Options, Failure> {
        let mut options = copy::Options { compress: self.compress, ..copy::Options::default() };
        if let Some(text) = &self.sparse {
            let what = "buffer size for sparse output";
            options.sparse = numbers::size(what, text, 0..=numbers::MAX)?;
            if !options.sparse.is_multiple_of(512) || options.sparse > MAX_SPARSE {
                return Err(Failure::new(format!(
                    "Invalid {what} specified. Valid sizes are multiples of 512 up to {MAX_SPARSE}. Select 0 to disable sparse \
                     detection (fully allocates output)."
                )));
            }
        }
        if let Some(threads) = self.threads()? {
            options.threads = threads;
        }
        Ok(options)
    }

    /// The options of the new image.
    fn create_options(&self, driver: &dyn FormatDriver) -> Result<CreateOptions, Failure> {
        let mut create = parse_options(&self.options)?.without("size");
        for (name, value) in [("backing_file", &self.backing), ("backing_fmt", &self.backing_format), ("compression_level", &self.level)] {
            let Some(value) = value else { continue };
            if name == "backing_file" && driver.options().iter().all(|o| o.name != name) {
                return Err(Failure::new(format!("Backing file not supported for file format '{}'", driver.name())));
            }
            create = create.set(name, value);
        }
        check_options(&create, driver)?;
        if create.get("backing_file").is_some() && create.get("backing_fmt").is_none() {
            return Err(Failure::new("Use of backing file requires explicit backing format"));
        }
        if self.compress && create.get("preallocation").is_some_and(|mode| mode != "off") {
            return Err(Failure::new("Compression and preallocation not supported at the same time"));
        }
        Ok(create)
    }
}

fn run(args: Convert) -> Result<ExitCode, Failure> {
    let formats = common::formats();
    if let Some(writer) = formats.container_writer(args.format()) {
        return container::run(&args, &formats, writer);
    }
    let mut options = args.copy_options()?;
    let rate = args.rate.as_deref().map_or(Ok(0), |text| numbers::size("rate limit", text, 0..=numbers::MAX))?;
    args.check()?;
    let driver = formats.driver(args.format()).map_err(|_| Failure::new(format!("Unknown file format '{}'", args.format())));
    if wants_help(&args.options) {
        print_help(driver?, args.files.len() > 1);
        return Ok(ExitCode::SUCCESS);
    }
    let Some((output, names)) = args.files.split_last().filter(|(_, names)| !names.is_empty()) else {
        return Err(Failure::new("Must specify image file name"));
    };
    if names.len() > 1 && args.snapshot.is_some() {
        return Err(Failure::new("No support for concatenating multiple snapshot"));
    }
    let specs = names.iter().map(|name| args.source(name)).collect::<Result<Vec<_>, _>>()?;
    let sources = specs.iter().map(|spec| spec.clone().in_order().open_snapshot(&formats)).collect::<Result<Vec<_>, _>>()?;
    let driver = driver?;
    let cache = CacheMode::parse(args.target_cache.as_deref().or(Some("unsafe")), "Invalid cache option")?;
    let create = args.create_options(driver)?;
    if create.get("backing_file").is_some() && sources.len() > 1 {
        return Err(Failure::new("Having a backing file for the target makes no sense when concatenating multiple input images"));
    }
    options.only_top = create.get("backing_file").is_some();
    if args.bitmaps {
        match &sources[..] {
            [source] if source.info().format == "qcow2" => keep::check_bitmaps(&**source, args.skip_broken_bitmaps)?,
            [_] => return Err(Failure::new("Source lacks bitmap support")),
            _ => return Err(Failure::new("Copying bitmaps only possible with single source")),
        }
        if driver.name() != "qcow2" && !args.target_image_opts {
            return Err(Failure::new(format!("Format driver '{}' does not support bitmaps", driver.name())));
        }
    }
    if let Some(source) = names.iter().find(|source| same_file(source, output)) {
        let (output, source) = (output.display(), source.display());
        return Err(Failure::new(format!("{output}: error while converting {}: it is the source {source} itself", driver.name())));
    }
    let source = joined(sources, &args)?;
    let work = Work { args: &args, formats: &formats, driver, source: &*source, specs: &specs, output, options, create, cache };
    if let Some(out) = stream::open(Path::new(output))? {
        let bar = Bar::beside_output(args.progress && !args.quiet, "convert");
        stream::write(&args, driver, &*source, &work.create, out, &Limited::new(&bar, rate))?;
        bar.finish();
        return Ok(ExitCode::SUCCESS);
    }
    let bar = Bar::qemu(args.progress && !args.quiet);
    work.run(&Limited::new(&bar, rate))?;
    bar.finish();
    Ok(ExitCode::SUCCESS)
}

/// All sources as one image.
fn joined(mut sources: Vec<Arc<dyn Image>>, args: &Convert) -> Result<Arc<dyn Image>, Failure> {
    if args.salvage {
        let salvage = |image| Arc::new(salvage::Salvage { image, quiet: args.quiet }) as Arc<dyn Image>;
        sources = sources.into_iter().map(salvage).collect();
    }
    match sources.len() {
        1 => Ok(sources.remove(0)),
        _ => Ok(Arc::new(Joined::new(sources)?)),
    }
}

/// A conversion into a file or device.
struct Work<'a> {
    args: &'a Convert,
    formats: &'a Formats,
    driver: &'a dyn FormatDriver,
    source: &'a dyn Image,
    specs: &'a [ImageSpec],
    output: &'a OsStr,
    options: copy::Options,
    create: CreateOptions,
    cache: CacheMode,
}

impl Work<'_> {
    fn run(mut self, progress: &dyn Progress) -> Result<(), Failure> {
        if self.args.no_create {
            return self.into_existing(progress);
        }
        // A new file is empty, unless a layer below shows through.
        let covers = self.create.get("backing_file").is_some();
        if self.args.keep_snapshots {
            let ([spec], false, false) = (self.specs, covers, self.args.bitmaps) else {
                return Err(Failure::new("--keep-snapshots takes one source, and neither -B nor --bitmaps"));
            };
            self.options.target_is_zero = true;
            let (formats, output, create) = (self.formats, Path::new(self.output), &self.create);
            let file = keep::with_snapshots(formats, self.driver, spec, output, create, &self.options, progress)?;
            return self.finish(file);
        }
        if self.args.bitmaps {
            if self.driver.data_file(&self.create).is_some() {
                return Err(Failure::new("--bitmaps does not go with an external data file"));
            }
            let file = NewFile::create(self.output).map_err(|e| self.creating(e))?;
            self.options.target_is_zero = !file.storage().is_block_device() && !covers;
            let target = self.driver.create(file.storage(), self.source.size(), &self.create).map_err(|e| self.creating(e))?;
            self.copy(&*target, progress)?;
            target.flush()?;
            drop(target);
            keep::copy_bitmaps(self.source, &mut *keep::reopen(self.formats, self.driver, &file)?)?;
            return self.finish(file);
        }
        let image = NewImage::create(self.driver, self.output, self.source.size(), &self.create).map_err(|e| self.creating(e))?;
        self.options.target_is_zero = image.is_zero() && !covers;
        self.copy(&**image.image(), progress)?;
        if self.cache == CacheMode::Unsafe {
            image.commit_unsynced()?
        } else {
            image.commit()?
        }
        Ok(())
    }

    fn into_existing(mut self, progress: &dyn Progress) -> Result<(), Failure> {
        let format = if self.args.target_image_opts { None } else { Some(self.driver.name()) };
        let spec = ImageSpec::parse(self.output, format, self.args.target_image_opts)?;
        let target = spec.open_mut(self.formats)?;
        if target.size() < self.source.size() {
            return Err(Failure::new("output file is smaller than input file"));
        }
        self.options.target_is_zero = self.args.target_is_zero;
        self.copy(&*target, progress)?;
        target.flush()?;
        drop(target);
        if self.args.bitmaps {
            keep::copy_bitmaps(self.source, &mut *spec.open_edit(self.formats)?)?;
        }
        Ok(())
    }

    fn copy(&self, target: &dyn ImageMut, progress: &dyn Progress) -> Result<(), Failure> {
        if self.args.compress && target.compression().is_none() {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        copy_range(self.source, 0..self.source.size(), target, 0, &self.options, progress)?;
        Ok(())
    }

    fn finish(&self, file: NewFile) -> Result<(), Failure> {
        if self.cache == CacheMode::Unsafe {
            file.commit_unsynced()?
        } else {
            file.commit()?
        }
        Ok(())
    }

    /// qemu-img's message for an output that cannot be made.
    fn creating(&self, error: Error) -> Failure {
        let failure = Failure::from_ref(&error);
        let why = match &error {
            Error::Io { file, action: "create" | "open", source, .. } => format!("Could not create '{file}': {}", host_words(source)),
            Error::Locked { file, why } => format!("{why}\nIs another process using the image [{file}]?"),
            _ => failure.message().to_owned(),
        };
        let message = format!("{}: error while converting {}: {why}", self.output.display(), self.driver.name());
        failure.reworded(message)
    }
}

/// Whether both names lead to one file. A source named as `FILE#DISK` is compared as it stands.
fn same_file(a: &OsStr, b: &OsStr) -> bool {
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
