//! `virt-resize`: a copy of a disk on which partitions, and what is in them, have other sizes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgAction, Args, FromArgMatches, ValueEnum};
use guestfs::engine::Disk;
use guestfs::volume::Volume;
use guestfs::{Volumes, probe};
use imgcore::copy::{self, copy_range};
use imgcore::formats::NewImage;
use imgcore::{Image, ImageMut, Overlay, Progress, partition, size};

use v2v::resize::Unfit;
use v2v::resize::boot::{self, Moved};
use v2v::resize::contents::{Job, Method};
use v2v::resize::plan::{self, Flexible, Piece, Plan, Wishes};

use super::Entry;
use super::disks::{EngineArgs, Target, open_source, parse_size, random, run as run_program, single};
use crate::common::Failure;
use crate::common::progress::Bar;

mod names;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "resize", arguments: Resize::augment_args, run: |matches| run(&Resize::from_arg_matches(matches)?) };

/// Copy a disk and make it, its partitions and what is in them larger or smaller. The input is never changed.
#[derive(Args)]
#[command(after_help = "Examples:\n  virt-resize --size 20G --expand /dev/sda1 old.qcow2 new.qcow2\n  \
                        virt-resize --size +5G --resize /dev/sda1=+200M --expand /dev/sda5 old.img new.img\n  \
                        virt-resize --expand /dev/sda2 --LV-expand /dev/vg/root old.img /dev/vg0/new\n  \
                        virt-resize --size 4G --shrink /dev/sda2 old.img small.img\n\n\
                        OUTDISK may be there already: its size and format are taken from it, and it is replaced when all is done.\n\
                        Filesystems are shrunk in a throw-away layer before they are copied: ext2, ext3, ext4, btrfs, NTFS, LVM's volumes.\n\
                        A partition keeps its number, type, ids and name. A disk without partitions is called /dev/sda.")]
struct Resize {
    /// The partition that gets all room that is left over
    #[arg(long, value_name = "PART", conflicts_with = "shrink")]
    expand: Option<String>,
    /// The partition that shrinks until all fits
    #[arg(long, value_name = "PART")]
    shrink: Option<String>,
    /// Give a partition this size: 2G, 90%, +1G, -10% (may be repeated)
    #[arg(long, value_name = "PART=SIZE")]
    resize: Vec<String>,
    /// The same, even if what lies at its end is lost (may be repeated)
    #[arg(long, value_name = "PART=SIZE")]
    resize_force: Vec<String>,
    /// Leave a partition out; logical ones behind it get other numbers (may be repeated)
    #[arg(long, value_name = "PART")]
    delete: Vec<String>,
    /// Do not copy what is in a partition (may be repeated)
    #[arg(long, value_name = "PART")]
    ignore: Vec<String>,
    /// At last, make a logical volume fill its group, and its filesystem fill it (may be repeated)
    #[arg(long = "LV-expand", visible_alias = "lv-expand", visible_alias = "lvexpand", alias = "LVexpand", value_name = "LOGVOL")]
    lv_expand: Vec<String>,
    /// Size of the output: 20G, or +5G more than the input's. Needed where OUTDISK is not there yet
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Format of the input, instead of looking
    #[arg(long, value_name = "FMT")]
    format: Option<String>,
    /// Format of the output, instead of looking; raw for a new one
    #[arg(long, value_name = "FMT")]
    output_format: Option<String>,
    /// Partitions that move start at a multiple of so many sectors
    #[arg(long, value_name = "SECTORS", default_value = "128", value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    alignment: u32,
    /// Whether the first partition moves to the alignment; 'auto' never does, since boot loaders mind
    #[arg(long, value_enum, default_value = "auto")]
    align_first: AlignFirst,
    /// Leave the boot loader before the first partition out
    #[arg(long)]
    no_copy_boot_loader: bool,
    /// Leave filesystems and the like as large as they are
    #[arg(long)]
    no_expand_content: bool,
    /// Make no partition of what is left over
    #[arg(long)]
    no_extra_partition: bool,
    /// Store zeroes, too
    #[arg(long)]
    no_sparse: bool,
    /// Resize NTFS even if it wants to be checked
    #[arg(long)]
    ntfsresize_force: bool,
    /// What to do about a larger partition with a filesystem that cannot grow
    #[arg(long, value_enum, default_value = "warn")]
    unknown_filesystems: Unknown,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long, visible_alias = "dryrun")]
    dry_run: bool,
    /// Print nothing but errors and warnings
    #[arg(short, long)]
    quiet: bool,
    /// As -v
    #[arg(short, long, action = ArgAction::SetTrue)]
    debug: bool,
    /// Let the input name files below this folder (may be repeated)
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    /// The disk that is read
    indisk: PathBuf,
    /// The disk that is made
    outdisk: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AlignFirst {
    Auto,
    Never,
    Always,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unknown {
    Ignore,
    Warn,
    Error,
}

/// What happens to one partition.
struct Fate<'a> {
    piece: &'a Piece,
    volume: Option<&'a Volume>,
    copied: bool,
    shrink: Option<Job>,
    grow: Option<Job>,
}

impl Fate<'_> {
    fn kind(&self) -> &'static str {
        self.volume.map_or("", Volume::kind)
    }
}

fn run(args: &Resize) -> Result<ExitCode, Failure> {
    let source = open_source(&args.indisk, args.format.as_deref(), &args.allow_path)?;
    let target = Target::look(&args.outdisk, &args.indisk, args.output_format.as_deref())?;
    let new_size = match (&args.size, target.size) {
        (Some(text), _) => parse_size(text, source.size())?,
        (None, Some(size)) => size,
        (None, None) => {
            return Err(Failure::new(format!("{}: is not there, and no size is given", args.outdisk.display()))
                .hint("say --size 20G, or --size +5G"));
        }
    };
    let volumes = Volumes::open(single(source.clone()))?;
    let table = volumes.tables.first().and_then(Option::as_ref);
    let old_len = |number: u32| match table {
        Some(table) => table.partitions.iter().find(|p| p.number == number).map(|p| p.len),
        None => Some(source.size()),
    };
    let wishes = args.wishes(old_len)?;
    let plan = match table {
        Some(table) => plan::compute(table, new_size, &wishes, random()?),
        None => plan::whole_disk(source.size(), new_size, &wishes),
    };
    let plan = plan.map_err(unfit)?;
    let fates = args.fates(&plan, &volumes)?;
    let lvs = args.logical(&volumes)?;
    for warning in volumes.tables.iter().flatten().flat_map(|t| &t.warnings) {
        eprintln!("virt-resize: warning: {}: {warning}", args.indisk.display());
    }
    if !args.quiet {
        report(args, &plan, &fates, new_size);
    }
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let source = args.shrunk(source, &fates)?;
    let new = target.create(&args.outdisk, new_size)?;
    let bar = Bar::terminal("copy");
    args.copy(source.as_ref(), &new, &plan, &fates, &bar)?;
    bar.finish();
    let image = new.image().as_ref();
    if let Some(table) = &plan.table {
        partition::write(image, table)?;
    }
    let moved: Vec<Moved<'_>> = fates.iter().filter(|f| f.copied).map(|f| Moved { piece: f.piece, kind: f.kind() }).collect();
    for doubt in boot::mend(image, &moved)? {
        eprintln!("virt-resize: warning: {doubt}");
    }
    args.grow(&new, &volumes, &fates, &lvs)?;
    new.commit()?;
    if !args.quiet {
        println!(
            "Resize operation completed with no errors.  Before deleting the old disk,\ncarefully check that the resized disk boots and works correctly."
        );
    }
    Ok(ExitCode::SUCCESS)
}

impl Resize {
    fn wishes(&self, old_len: impl Fn(u32) -> Option<u64>) -> Result<Wishes, Failure> {
        let sizes = self.resize.iter().chain(&self.resize_force).map(|text| {
            let (number, text) = names::assignment(text)?;
            let old = old_len(number).ok_or_else(|| Failure::new(format!("there is no partition {number}")))?;
            Ok((number, names::new_size(text, old)?.next_multiple_of(512)))
        });
        let flexible = match (&self.expand, &self.shrink) {
            (Some(text), _) => Some((names::number(text)?, Flexible::Expand)),
            (None, Some(text)) => Some((names::number(text)?, Flexible::Shrink)),
            (None, None) => None,
        };
        let sizes = sizes.collect::<Result<Vec<_>, Failure>>()?;
        let deleted = numbers(&self.delete)?;
        let mut named: Vec<u32> = sizes.iter().map(|(n, _)| *n).chain(flexible.map(|f| f.0)).chain(deleted.iter().copied()).collect();
        named.sort_unstable();
        if let Some((twice, _)) = named.iter().zip(named.iter().skip(1)).find(|(a, b)| a == b) {
            return Err(Failure::new(format!(
                "/dev/sda{twice} is named twice: it can be resized, expanded, shrunk or deleted, but only one of these"
            )));
        }
        Ok(Wishes {
            sizes,
            flexible,
            deleted,
            extra: !self.no_extra_partition,
            alignment: u64::from(self.alignment) * 512,
            align_first: self.align_first == AlignFirst::Always,
        })
    }

    /// What happens to each partition. All that cannot be done is found here, before anything is.
    fn fates<'a>(&self, plan: &'a Plan, volumes: &'a Volumes) -> Result<Vec<Fate<'a>>, Failure> {
        let ignored = numbers(&self.ignore)?;
        let forced = self.resize_force.iter().map(|text| Ok(names::assignment(text)?.0)).collect::<Result<Vec<_>, Failure>>()?;
        if let Some(number) = ignored.iter().find(|n| plan.pieces.iter().all(|p| p.number != **n)) {
            return Err(Failure::new(format!("there is no partition {number} that could be ignored")));
        }
        let fate = |piece: &'a Piece| {
            let volume =
                volumes.volumes.iter().find(|v| v.disk() == Some(0) && v.partition.as_ref().map_or(0, |p| p.number) == piece.number);
            let copied = !ignored.contains(&piece.number) && !piece.is_extended;
            let mut fate = Fate { piece, volume, copied, shrink: None, grow: None };
            if copied && piece.new_len() < piece.old_len() && !forced.contains(&piece.number) {
                fate.shrink = self.shrinking(piece, volume)?;
            }
            if piece.new_len() != piece.old_len() && fate.kind() == "linux_raid_member" && copied && !forced.contains(&piece.number) {
                let name = device("/dev/sda", piece.number);
                return Err(Failure::new(format!("{name}: is a member of an array, which may be described at its end"))
                    .hint(format!("--resize-force {name}=SIZE does it all the same")));
            }
            if copied && piece.new_len() != piece.old_len() {
                fate.grow = self.growing(piece, volume)?;
            }
            Ok(fate)
        };
        plan.pieces.iter().map(fate).collect()
    }

    /// How the content of a partition that gets smaller is made to fit, if it does not yet.
    fn shrinking(&self, piece: &Piece, volume: Option<&Volume>) -> Result<Option<Job>, Failure> {
        let name = device("/dev/sda", piece.number);
        let Some(content) = volume.and_then(|v| v.content.as_ref()) else {
            return Err(Failure::new(format!("{name}: what it holds is unknown, and its end would be cut off"))
                .hint(format!("--resize-force {name}=SIZE does it all the same")));
        };
        let method = Method::of(content);
        let fits = content.size.is_some_and(|size| size <= piece.new_len()) && method != Some(Method::PhysicalVolume);
        match method {
            _ if fits => Ok(None),
            // It is made anew where it will be.
            Some(Method::Swap) => Ok(None),
            Some(method) if method.shrinks() => {
                Ok(Some(Job { device: device("/dev/vda", piece.number), method, content: content.clone(), len: piece.new_len() }))
            }
            _ => Err(Failure::new(format!("{name}: {} cannot shrink", content.kind))
                .hint("a copy of its files on a smaller filesystem can be made with virt-tar-out and virt-make-fs")),
        }
    }

    /// How the content of a partition is made to fill it. A swap is made anew when its partition got smaller, too.
    fn growing(&self, piece: &Piece, volume: Option<&Volume>) -> Result<Option<Job>, Failure> {
        let Some(content) = volume.and_then(|v| v.content.as_ref()).filter(|_| !self.no_expand_content) else { return Ok(None) };
        let grows = piece.new_len() > piece.old_len();
        match Method::of(content) {
            Some(method) if grows || method == Method::Swap => {
                Ok(Some(Job { device: device("/dev/vda", piece.new_number), method, content: content.clone(), len: piece.new_len() }))
            }
            Some(_) => Ok(None),
            None if !grows || self.unknown_filesystems == Unknown::Ignore => Ok(None),
            None => {
                let name = device("/dev/sda", piece.number);
                let what = format!("there is no way to make the {} on {name} larger", content.kind);
                if self.unknown_filesystems == Unknown::Error {
                    return Err(Failure::new(what));
                }
                eprintln!("virt-resize: warning: {what}: it keeps its size");
                Ok(None)
            }
        }
    }

    /// The logical volumes that are to grow.
    fn logical<'a>(&self, volumes: &'a Volumes) -> Result<Vec<&'a Volume>, Failure> {
        let logical = |v: &&Volume| v.disk().is_none();
        let find = |name: &String| {
            volumes.volumes.iter().filter(logical).find(|v| v.device == *name).ok_or_else(|| {
                let there: Vec<&str> = volumes.volumes.iter().filter(logical).map(|v| v.device.as_str()).collect();
                let failure = Failure::new(format!("there is no logical volume {name}"));
                if there.is_empty() { failure } else { failure.hint(format!("there are {}", there.join(", "))) }
            })
        };
        self.lv_expand.iter().map(find).collect()
    }

    /// The source with what must get smaller, smaller: in a layer above it that nobody sees.
    fn shrunk(&self, source: Arc<dyn Image>, fates: &[Fate<'_>]) -> Result<Arc<dyn Image>, Failure> {
        let jobs: Vec<&Job> = fates.iter().filter_map(|f| f.shrink.as_ref()).collect();
        if jobs.is_empty() {
            return Ok(source);
        }
        let overlay = Arc::new(Overlay::in_folder(source, std::env::temp_dir())?);
        let mut session = self.engine.start(vec![Disk::Writable(overlay.clone())])?;
        for job in jobs {
            self.say(&format!("{} shrinks to {} with {}", job.device, size::human(job.len), job.method.program()));
            job.shrink(session.as_mut(), self.ntfsresize_force).map_err(|e| self.ntfs_hint(job, e))?;
        }
        session.shutdown()?;
        for fate in fates.iter().filter(|f| f.shrink.is_some()) {
            let now = probe::probe(overlay.as_ref(), fate.piece.old.start, fate.piece.old_len()).and_then(|c| c.size);
            if now.is_some_and(|now| now > fate.piece.new_len()) {
                return Err(Failure::new(format!("{} did not shrink", device("/dev/sda", fate.piece.number))));
            }
        }
        Ok(overlay)
    }

    fn copy(&self, source: &dyn Image, new: &NewImage, plan: &Plan, fates: &[Fate<'_>], progress: &dyn Progress) -> Result<(), Failure> {
        let mut options = copy::Options { target_is_zero: true, ..copy::Options::default() };
        if self.no_sparse {
            options.sparse = 0;
        }
        let mut moves = Vec::new();
        if let (Some(_), false) = (&plan.table, self.no_copy_boot_loader) {
            // Up to the first partition, wherever that is now.
            let first = plan.pieces.iter().flat_map(|p| [p.old.start, p.new.start]).min().unwrap_or(0);
            moves.push((0..first.min(source.size()), 0));
            // The code of an extended partition's boot record, should there be any.
            moves.extend(
                fates.iter().filter(|f| f.piece.is_extended).map(|f| (f.piece.old.start..f.piece.old.start + 512, f.piece.new.start)),
            );
        }
        let copied = fates.iter().filter(|f| f.copied).map(|f| f.piece);
        moves.extend(copied.map(|p| (p.old.start..p.old.start + p.old_len().min(p.new_len()), p.new.start)));
        progress.total(moves.iter().map(|(range, _)| range.end - range.start).sum());
        for (range, at) in moves {
            copy_range(source, range, new.image().as_ref(), at, &options, &copy::Part(progress))?;
        }
        Ok(())
    }

    /// Makes what is in larger partitions larger, on the new disk.
    fn grow(&self, new: &NewImage, volumes: &Volumes, fates: &[Fate<'_>], lvs: &[&Volume]) -> Result<(), Failure> {
        let jobs: Vec<&Job> = fates.iter().filter_map(|f| f.grow.as_ref()).collect();
        if jobs.is_empty() && lvs.is_empty() {
            return Ok(());
        }
        let image: Arc<dyn ImageMut> = new.image().clone();
        let mut session = self.engine.start(vec![Disk::Writable(image)])?;
        for job in jobs {
            self.say(&format!("{} is made to fill {} with {}", job.device, size::human(job.len), job.method.program()));
            job.grow(session.as_mut(), self.ntfsresize_force).map_err(|e| self.ntfs_hint(job, e))?;
        }
        if !lvs.is_empty() {
            volumes.activate(session.as_mut())?;
        }
        for lv in lvs {
            let name = lv.device.as_str();
            // 5: there was no room left.
            run_program(session.as_mut(), &guestfs::lvm::command(["lvextend", "-l", "+100%FREE", name]), &[5])?;
            let words = ["lvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "lv_size", name];
            let len = run_program(session.as_mut(), &guestfs::lvm::command(words), &[])?;
            let len = String::from_utf8_lossy(&len).trim().parse().unwrap_or(lv.len);
            let content = lv.content.clone().filter(|_| !self.no_expand_content);
            if let Some((content, method)) = content.and_then(|c| Method::of(&c).map(|m| (c, m))) {
                self.say(&format!("{name} is filled with {}", method.program()));
                Job { device: name.into(), method, content, len }.grow(session.as_mut(), self.ntfsresize_force)?;
            }
        }
        Ok(session.shutdown()?)
    }

    fn ntfs_hint(&self, job: &Job, error: v2v::Error) -> Failure {
        let failure = Failure::from(error);
        if job.method == Method::Ntfs && !self.ntfsresize_force {
            return failure.hint("start Windows and shut it down, or use --ntfsresize-force");
        }
        failure
    }

    fn say(&self, line: &str) {
        if self.debug {
            eprintln!("{line}");
        } else {
            self.engine.say(line);
        }
    }
}

fn unfit(error: Unfit) -> Failure {
    let failure = Failure::new(error.message);
    match error.hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn numbers(names: &[String]) -> Result<Vec<u32>, Failure> {
    names.iter().map(|name| names::number(name)).collect()
}

fn device(disk: &str, number: u32) -> String {
    if number == 0 { disk.into() } else { format!("{disk}{number}") }
}

/// What will be done, in libguestfs's sentences where it has any.
fn report(args: &Resize, plan: &Plan, fates: &[Fate<'_>], new_size: u64) {
    println!("Summary of changes:\n");
    for fate in fates {
        let piece = fate.piece;
        let name = device("/dev/sda", piece.number);
        let what = if piece.number == 0 { "disk" } else { "partition" };
        let mut text = if piece.old_len() == piece.new_len() {
            format!("{name}: This {what} will be left alone.")
        } else {
            format!("{name}: This {what} will be resized from {} to {}.", size::human(piece.old_len()), size::human(piece.new_len()))
        };
        if piece.old.start != piece.new.start {
            text += &format!("  It moves from offset {} to {}.", size::human(piece.old.start), size::human(piece.new.start));
        }
        if piece.new_number != piece.number {
            text += &format!("  It becomes {}.", device("/dev/sda", piece.new_number));
        }
        if !fate.copied && !piece.is_extended {
            text += "  Its content is not copied.";
        }
        for (job, way) in [(&fate.shrink, "shrunk"), (&fate.grow, "expanded")] {
            if let Some(job) = job {
                let way = if job.method == Method::Swap { "made anew" } else { way };
                text += &format!("  The {} on {name} will be {way} using the '{}' method.", job.content.kind, job.method.program());
            }
        }
        println!("{text}\n");
    }
    for name in &args.delete {
        println!("{name}: This partition will be deleted.\n");
    }
    for name in &args.lv_expand {
        println!("{name}: This logical volume will be expanded to maximum size.\n");
    }
    if let Some(extra) = &plan.extra {
        println!("There is a surplus of {}.  An extra partition will be created for the surplus.\n", size::human(extra.end - extra.start));
    } else if plan.surplus > 0 && plan.surplus * 100 > new_size {
        println!("There is a surplus of {}.  It will be left unused.\n", size::human(plan.surplus));
    }
}
