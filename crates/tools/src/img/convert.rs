//! `img convert`: images into another format, or several into one.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use imgcore::copy::{self, copy_range};
use imgcore::storage::NewFile;
use imgcore::{Image, ImageMut, LocalGate, OpenOptions, Progress, size};

use super::Entry;
use super::args::{parse_options, print_help, wants_help};
use crate::common::progress::Bar;
use crate::common::{self, Failure};

mod container;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "convert", arguments: Convert::augment_args, run: |matches| run(Convert::from_arg_matches(matches)?) };

/// Convert images to another format; several become one, one behind the other, or the disks of one appliance (-O xva).
#[derive(Args)]
#[command(after_help = "Examples:\n  img convert -p -O qcow2 disk.raw disk.qcow2\n  img convert -O raw export.xva#Ref:10 disk.raw\n  \
                        img convert -O qcow2 -o cluster_size=2M part1.raw part2.raw disk.qcow2\n  img convert -n -O raw disk.qcow2 /dev/vg/disk\n  \
                        img convert -O xva -o name=web,memory=2G root.qcow2 data.raw web.xva")]
struct Convert {
    /// Format of the source; probed when not given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Format of the output
    #[arg(short = 'O', long, default_value = "raw", value_name = "FMT")]
    output_format: String,
    /// Options of the output's format ('-o help' lists them)
    #[arg(short, long, value_name = "OPTIONS")]
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
    /// Make holes of runs of zero bytes of this size; 0 stores everything
    #[arg(short = 'S', long, default_value = "4k", value_name = "SIZE")]
    sparse: String,
    /// Threads that read
    #[arg(short = 'm', long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: Option<u32>,
    /// Accepted as qemu-img does; the output is written in order all the same, which costs no time here
    #[arg(short = 'W', long)]
    out_of_order: bool,
    /// Write to an output that exists already
    #[arg(short = 'n', long)]
    no_create: bool,
    /// The existing output reads as zeroes everywhere (with -n)
    #[arg(long, requires = "no_create")]
    target_is_zero: bool,
    /// The output is a layer on top of this image: only what the source's own layer holds is copied
    #[arg(short = 'B', long, value_name = "FILE", conflicts_with = "no_create")]
    backing: Option<String>,
    /// Format of the image below the output
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Cache mode of the output. With 'unsafe' it is left to the host when the bytes reach the disk; with all others they are there at the end
    #[arg(short = 't', value_name = "CACHE", default_value = "unsafe",
          value_parser = ["none", "writeback", "unsafe", "directsync", "writethrough"])]
    cache: String,
    /// Accepted as qemu-img does: cache mode of the source
    #[arg(short = 'T', value_name = "CACHE", hide = true)]
    source_cache: Option<String>,
    /// Read the source even while another program writes it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The images to convert (FILE#DISK for a disk of a container), and the output as the last
    #[arg(required_unless_present = "options", num_args = 2.., value_name = "SOURCE... OUTPUT")]
    files: Vec<PathBuf>,
}

fn run(args: Convert) -> Result<ExitCode, Failure> {
    let formats = common::formats();
    if let Some(writer) = formats.container_writer(&args.output_format) {
        return container::run(&args, &formats, writer);
    }
    let driver = formats.driver(&args.output_format)?;
    if wants_help(&args.options) {
        print_help(driver, args.files.len() > 1);
        return Ok(ExitCode::SUCCESS);
    }
    let Some((output, sources)) = args.files.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(Failure::new("name the image to convert and the output"));
    };
    let open = OpenOptions::new(&LocalGate).format(args.format.as_deref()).exclusive().force_share(args.force_share);
    let sources: Vec<(&PathBuf, Arc<dyn Image>)> =
        sources.iter().map(|path| Ok((path, formats.open(path, &open)?))).collect::<Result<_, imgcore::Error>>()?;
    if let Some((source, _)) = sources.iter().find(|(source, _)| same_file(source, output)) {
        return Err(Failure::new(format!("{}: is the source {} itself", output.display(), source.display())));
    }
    let total = sources.iter().try_fold(0u64, |sum, (_, image)| sum.checked_add(image.size()));
    let total = total.ok_or_else(|| Failure::new("the images are too large to be put behind each other"))?;

    let mut options = copy::Options {
        sparse: size::parse(&args.sparse)?,
        only_top: args.backing.is_some(),
        compress: args.compress,
        ..copy::Options::default()
    };
    if let Some(threads) = args.parallel {
        options.threads = threads as usize;
    }
    let bar = Bar::qemu(args.progress && !args.quiet);
    if args.no_create {
        let target = formats.open_mut(output, &OpenOptions::new(&LocalGate).format(args.output_format.as_str()))?;
        if target.size() < total {
            let sizes = format!("{} bytes, and {total} are needed", target.size());
            return Err(Failure::new(format!("{}: the existing output is too small: it has {sizes}", output.display())));
        }
        options.target_is_zero = args.target_is_zero;
        copy_all(&sources, &*target, &options, &bar, total)?;
    } else {
        let mut create = parse_options(&args.options)?;
        for (name, value) in [("backing_file", &args.backing), ("backing_fmt", &args.backing_format)] {
            if let Some(value) = value {
                create = create.set(name, value);
            }
        }
        create.check(driver)?;
        let is_device = std::fs::metadata(output).is_ok_and(|m| m.file_type().is_block_device());
        // A new file is empty, unless a layer below shows through.
        options.target_is_zero = !is_device && create.get("backing_file").is_none();
        let file = NewFile::create(output)?;
        let target = driver.create(file.storage(), total, &create)?;
        copy_all(&sources, &*target, &options, &bar, total)?;
        drop(target);
        if args.cache == "unsafe" { file.commit_unsynced()? } else { file.commit()? }
    }
    bar.finish();
    Ok(ExitCode::SUCCESS)
}

fn copy_all(
    sources: &[(&PathBuf, Arc<dyn Image>)],
    target: &dyn ImageMut,
    options: &copy::Options,
    bar: &Bar,
    total: u64,
) -> Result<(), Failure> {
    bar.total(total);
    let mut at = 0;
    for (_, image) in sources {
        copy_range(&**image, 0..image.size(), target, at, options, &copy::Part(bar))?;
        at += image.size();
    }
    target.flush()?;
    Ok(())
}

/// Whether both names lead to one file. A source named as `FILE#DISK` is compared as it stands.
fn same_file(a: &Path, b: &Path) -> bool {
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
