//! `virt-sparsify`: free space of a guest's filesystems given back to the host, in a copy or in place.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use guestfs::engine::{Command, Disk};
use guestfs::volume::{Place, Volume};
use guestfs::{Error, Volumes, free};
use imgcore::partition::Table;
use imgcore::{Image, ImageMut, OpenOptions, Overlay, TreeGate, copy, size};

use self::holes::{FreeMap, Holes, Traced};
use super::Entry;
use super::disks::{EngineArgs, Target, mounted, open_source, run as run_program, single};
use crate::common::progress::Bar;
use crate::common::{Failure, formats};
use crate::img::args::{check_options, parse_options};

mod holes;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "sparsify", arguments: Sparsify::augment_args, run: |matches| run(&Sparsify::from_arg_matches(matches)?) };

/// Filesystems whose free space the appliance's kernel gives back. That of ext2, ext3, ext4 and swap is found without it.
const TRIMMED: [&str; 4] = ["xfs", "btrfs", "vfat", "ntfs"];
/// What lies at the edges of a disk and between partitions may be somebody's: so much is left alone.
const MARGIN: u64 = 1 << 20;
/// A smaller part of a file than this is not given back.
const LEAST: u64 = 4096;
/// libguestfs's exit code where discarding is impossible.
const NO_DISCARD: u8 = 3;

/// Make a disk image smaller on the host, by the free space of the filesystems in it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-sparsify disk.qcow2 small.qcow2\n  virt-sparsify --convert qcow2 --compress disk.img small.qcow2\n  \
                        virt-sparsify --in-place disk.qcow2\n\n\
                        A copy leaves the input as it is. --in-place changes the image itself, at once and for good; the guest must be off.\n\
                        Free are: what ext2, ext3, ext4, XFS, btrfs, FAT and NTFS do not use, what volume groups of LVM have not given to a\n\
                        volume, the content of swaps, and what lies between partitions. Filesystems that must be checked first are left alone."
)]
struct Sparsify {
    /// Change the image itself
    #[arg(long, alias = "inplace", conflicts_with_all = ["convert", "compress", "options"])]
    in_place: bool,
    /// Format of the output; that of the input without it
    #[arg(long, value_name = "FMT")]
    convert: Option<String>,
    /// Store the output compressed
    #[arg(long)]
    compress: bool,
    /// Options of the output's format ('img create -f FMT -o help x' lists them)
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Leave a filesystem or a volume group alone (may be repeated)
    #[arg(long, value_name = "FS|VG")]
    ignore: Vec<String>,
    /// Throw away all that is in a partition or logical volume (may be repeated)
    #[arg(long, value_name = "DEVICE")]
    zero: Vec<String>,
    /// Format of the input, instead of looking
    #[arg(long, value_name = "FMT")]
    format: Option<String>,
    /// Print nothing but errors and warnings
    #[arg(short, long)]
    quiet: bool,
    /// Let the input name files below this folder (may be repeated)
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
    /// For scripts: temporary files are nameless ones in $TMPDIR
    #[arg(long, hide = true, value_name = "PLACE")]
    tmp: Option<String>,
    /// For scripts: room is looked for when it is known how much is needed
    #[arg(long, hide = true, value_name = "ACTION")]
    check_tmpdir: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// The disk that is read, or changed with --in-place
    indisk: PathBuf,
    /// The copy
    #[arg(required_unless_present = "in_place", conflicts_with = "in_place")]
    outdisk: Option<PathBuf>,
}

/// What can be given back.
#[derive(Default)]
struct Found {
    map: FreeMap,
    /// Volumes whose filesystems the kernel has to be asked for.
    trimmed: Vec<Volume>,
}

fn run(args: &Sparsify) -> Result<ExitCode, Failure> {
    match &args.outdisk {
        Some(output) => args.copy(output)?,
        None => args.in_place()?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Sparsify {
    fn copy(&self, output: &Path) -> Result<(), Failure> {
        let source = open_source(&self.indisk, self.format.as_deref(), &self.allow_path)?;
        let formats = formats();
        let format = self.convert.as_deref().unwrap_or(source.info().format);
        let driver = formats.driver(format).map_err(|e| Failure::from(e).hint("choose the output's format with --convert"))?;
        let create = parse_options(&self.options)?;
        check_options(&create, driver)?;
        if self.compress && driver.name() != "qcow2" {
            return Err(Failure::new(format!("--compress is for qcow2 only, and not for {}", driver.name())));
        }
        if self.indisk.canonicalize().ok().zip(output.canonicalize().ok()).is_some_and(|(a, b)| a == b) {
            return Err(Failure::new(format!("{}: is the input itself", output.display())).hint("--in-place changes the input"));
        }
        let before = source.info().actual_size;
        let found = self.look(source.clone())?;
        let mut source = source;
        if !found.trimmed.is_empty() {
            // What the kernel does to them stays in a layer that nobody sees.
            let overlay = Arc::new(Overlay::in_folder(source, std::env::temp_dir())?);
            self.trim(overlay.clone(), &found.trimmed)?;
            source = overlay;
        }
        let source = Holes { inner: source, free: found.map.into_sorted() };
        let new = Target::new(driver.name(), create).create(output, source.size())?;
        let bar = Bar::terminal("copy");
        let options = copy::Options { target_is_zero: true, compress: self.compress, ..copy::Options::default() };
        copy::copy(&source, new.image().as_ref(), &options, &bar)?;
        bar.finish();
        new.image().flush()?;
        let after = new.image().info().actual_size;
        new.commit()?;
        self.report(before, after);
        Ok(())
    }

    fn in_place(&self) -> Result<(), Failure> {
        let gate = TreeGate::new(&self.indisk, self.allow_path.iter().cloned());
        let options = OpenOptions::new(&gate).format(self.format.as_deref().filter(|f| *f != "auto")).exclusive();
        let image: Arc<dyn ImageMut> = formats().open_mut(&self.indisk, &options)?;
        let info = image.info();
        if !matches!(info.format, "raw" | "qcow2") {
            let failure =
                Failure::new(format!("{}: an image of the format {} gives nothing back in place", self.indisk.display(), info.format));
            return Err(failure.hint("make a copy: virt-sparsify INDISK OUTDISK").code(NO_DISCARD));
        }
        let found = self.look(image.clone())?;
        if !found.trimmed.is_empty() {
            self.trim(image.clone(), &found.trimmed)?;
        }
        let unit = image.hole_unit().max(LEAST);
        for range in found.map.into_sorted() {
            for held in stored(image.as_ref(), range)? {
                let (start, end) = (held.start.next_multiple_of(unit), held.end / unit * unit);
                if start < end {
                    image.discard(start, end - start)?;
                }
            }
        }
        image.flush()?;
        self.report(info.actual_size, image.info().actual_size);
        Ok(())
    }

    fn report(&self, before: Option<u64>, after: Option<u64>) {
        if let (Some(before), Some(after), false) = (before, after, self.quiet) {
            println!("{} were on the host, {} are now.", size::human(before), size::human(after));
        }
    }

    /// Finds what nothing uses.
    fn look(&self, image: Arc<dyn Image>) -> Result<Found, Failure> {
        let volumes = Volumes::open(single(Arc::new(Traced(image.clone()))))?;
        for name in self.ignore.iter().chain(&self.zero) {
            let group = self.ignore.contains(name) && volumes.groups.iter().any(|g| g.name == *name);
            if !group && volumes.volumes.iter().all(|v| v.device != *name) {
                let there: Vec<&str> = volumes.volumes.iter().map(|v| v.device.as_str()).collect();
                return Err(Failure::new(format!("there is no {name}")).hint(format!("there are {}", there.join(", "))));
            }
        }
        let mut found = Found::default();
        for volume in &volumes.volumes {
            self.look_into(&volumes, volume, &mut found)?;
        }
        for group in volumes.groups.iter().filter(|g| !self.ignore.contains(&g.name)) {
            for (physical, range) in &group.free {
                let Some(volume) = volumes.volumes.get(physical.position) else { continue };
                add(volumes.image(volume)?.as_ref(), range.clone(), &mut found.map)?;
            }
        }
        for complaint in &volumes.complaints {
            self.warn(complaint);
        }
        if let Some(Some(table)) = volumes.tables.first() {
            gaps(table, image.size()).for_each(|gap| found.map.add(gap));
        }
        Ok(found)
    }

    fn look_into(&self, volumes: &Volumes, volume: &Volume, found: &mut Found) -> Result<(), Failure> {
        let known_place = matches!(volume.place, Place::Disk { .. } | Place::Logical { .. });
        let (Some(content), true, false) = (&volume.content, known_place, self.ignore.contains(&volume.device)) else { return Ok(()) };
        let image = match volumes.image(volume) {
            Ok(image) => image,
            Err(e) => {
                self.warn(&format!("{}: left as it is: {e}", volume.device));
                return Ok(());
            }
        };
        if self.zero.contains(&volume.device) {
            return add(image.as_ref(), 0..volume.len, &mut found.map);
        }
        let mut outcome = Ok(());
        let visited = free::visit(content, &image, &mut |range| {
            if outcome.is_ok() {
                outcome = add(image.as_ref(), range, &mut found.map);
            }
        });
        outcome?;
        match visited {
            Ok(()) => {}
            Err(Error::Unsupported { .. }) if TRIMMED.contains(&content.kind) => found.trimmed.push(volume.clone()),
            // What holds no files has no free space.
            Err(Error::Unsupported { .. }) if !volume.is_filesystem() => {}
            Err(e) => self.warn(&format!("{}: left as it is: {e}", volume.device)),
        }
        Ok(())
    }

    /// Has the kernel discard what filesystems do not use.
    fn trim(&self, image: Arc<dyn ImageMut>, volumes: &[Volume]) -> Result<(), Failure> {
        let names: Vec<&str> = volumes.iter().map(|v| v.device.as_str()).collect();
        self.engine.say(format!("The appliance finds the free space of {}.", names.join(", ")));
        let mut session = self.engine.start(vec![Disk::Writable(image.clone())])?;
        Volumes::open(single(image))?.activate(session.as_mut())?;
        for volume in volumes {
            let trimmed = mounted(session.as_mut(), &volume.appliance_device(), volume.kind(), |session, root| {
                run_program(session, &Command::new(["fstrim", root]), &[])
            });
            if let Err(failure) = trimmed {
                self.warn(&format!("{}: left as it is: {}", volume.device, failure.message()));
            }
        }
        Ok(session.shutdown()?)
    }

    fn warn(&self, what: &str) {
        eprintln!("virt-sparsify: warning: {what}");
    }
}

/// Adds what lies in `range` of a volume, wherever that is on the disk.
fn add(volume: &dyn Image, range: Range<u64>, map: &mut FreeMap) -> Result<(), Failure> {
    volume.extents(range, &mut |extent| {
        if let Some(at) = extent.host_offset {
            map.add(at..at.saturating_add(extent.len));
        }
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// What lies between and behind partitions, less a margin: boot loaders like to be there, and some keep notes at a disk's end.
fn gaps(table: &Table, disk: u64) -> impl Iterator<Item = Range<u64>> {
    // The boot records of logical partitions lie in the gaps of an extended one, which so counts as full.
    let mut ends: Vec<Range<u64>> = table.partitions.iter().filter(|p| !p.is_logical()).map(|p| p.start..p.end()).collect();
    ends.sort_by_key(|r| r.start);
    ends.push(disk..disk);
    let mut last = None;
    ends.into_iter().filter_map(move |range| {
        let before: u64 = last.replace(range.end.max(last.unwrap_or(0)))?;
        let gap = before.saturating_add(MARGIN)..range.start.saturating_sub(MARGIN);
        (gap.start < gap.end).then_some(gap)
    })
}

/// The parts of `range` that this image itself stores.
fn stored(image: &dyn ImageMut, range: Range<u64>) -> Result<Vec<Range<u64>>, Failure> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    image.extents(range, &mut |extent| {
        let end = extent.start.saturating_add(extent.len);
        if extent.depth == 0 && !extent.kind.reads_zero() {
            match parts.last_mut() {
                Some(last) if last.end == extent.start => last.end = end,
                _ => parts.push(extent.start..end),
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use imgcore::partition::{Guid, NewPartition, Purpose, TableKind};

    use super::*;

    #[test]
    fn gaps_keep_their_margins() {
        let part = |number, start: u64, len: u64| {
            let new = NewPartition {
                number,
                start: start << 20,
                len: len << 20,
                purpose: Purpose::Linux,
                bootable: false,
                guid: Guid::default(),
            };
            new.partition(TableKind::Gpt).unwrap()
        };
        let table = Table::new(TableKind::Gpt, String::new(), vec![part(1, 40, 10), part(2, 1, 10), part(3, 52, 10)]);
        assert_eq!(gaps(&table, 100 << 20).collect::<Vec<_>>(), [12 << 20..39 << 20, 63 << 20..99 << 20]);
        assert_eq!(gaps(&Table::new(TableKind::Mbr, String::new(), Vec::new()), 100 << 20).count(), 0);
    }
}
