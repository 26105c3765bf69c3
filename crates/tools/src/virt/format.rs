//! `virt-format`: disks erased, and made blank ones with a partition, a volume group, a filesystem.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use guestfs::engine::Disk;
use guestfs::{lvm, volume};
use imgcore::{ImageMut, OpenOptions, TreeGate};

use super::Entry;
use super::disks::{EngineArgs, Kind, PartitionArg, one_partition, run as run_program};
use crate::common::{Failure, formats};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "format", arguments: Format::augment_args, run: |matches| run(&Format::from_arg_matches(matches)?) };

/// What old superblocks, tables and labels lie in, at either end of a disk.
const ENDS: u64 = 8 << 20;
const PIECE: u64 = 1 << 20;

/// Erase disks and make blank ones of them. All that is on them is lost.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-format -a disk.qcow2 --filesystem ext4\n  virt-format -a disk.img --partition=gpt --lvm=/dev/data/srv --filesystem xfs\n\n\
                        The disks must be there. They are changed at once and for good."
)]
struct Format {
    /// A disk to erase (may be repeated)
    #[arg(short, long, required = true, value_name = "FILE")]
    add: Vec<PathBuf>,
    /// Format of the images, instead of looking
    #[arg(long, value_name = "FMT", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    format: Option<String>,
    /// Make a filesystem: ext2, ext3, ext4, xfs, btrfs, vfat, ntfs or none
    #[arg(long, value_name = "FS", default_value = "none", value_parser = filesystem)]
    filesystem: OptionalKind,
    /// Make a partition that fills the disk
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_value = "auto", default_missing_value = "auto")]
    partition: PartitionArg,
    /// Make a logical volume: /dev/VG/LV without a name of its own; none for none
    #[arg(long, value_name = "/dev/VG/LV", num_args = 0..=1, require_equals = true, default_missing_value = "/dev/VG/LV")]
    lvm: Option<String>,
    /// The filesystem's label
    #[arg(long)]
    label: Option<String>,
    /// Write zeroes over all that is stored, so that nothing can be read any more
    #[arg(long)]
    wipe: bool,
    /// Let images name files below this folder (may be repeated)
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A filesystem or none: an option of an option would be a flag that may be missing.
#[derive(Clone, Copy)]
struct OptionalKind(Option<Kind>);

fn filesystem(text: &str) -> Result<OptionalKind, String> {
    match text {
        "none" => Ok(OptionalKind(None)),
        text => clap::ValueEnum::from_str(text, false).map(|kind| OptionalKind(Some(kind))),
    }
}

fn run(args: &Format) -> Result<ExitCode, Failure> {
    let kind = args.filesystem.0;
    if args.label.is_some() && kind.is_none() {
        return Err(Failure::new("--label needs --filesystem"));
    }
    let logical = args.lvm.as_deref().filter(|name| *name != "none").map(logical_name).transpose()?;
    // All are opened before the first is erased.
    let images = args.add.iter().map(|path| {
        let gate = TreeGate::new(path, args.allow_path.iter().cloned());
        // What is on a disk does not matter, nor whether it looks like another format's header.
        let format = args.format.as_deref().filter(|f| *f != "auto");
        let options = OpenOptions::new(&gate).format(format).exclusive();
        Ok(formats().open_mut(path, &options)?)
    });
    let images = images.collect::<Result<Vec<Arc<dyn ImageMut>>, Failure>>()?;
    for image in &images {
        erase(image.as_ref(), args.wipe)?;
        one_partition(image.as_ref(), args.partition, kind, logical.is_some())?;
        image.flush()?;
    }
    if kind.is_none() && logical.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut session = args.engine.start(images.iter().cloned().map(Disk::Writable).collect())?;
    for (position, _) in images.iter().enumerate() {
        let disk = format!("/dev/vd{}", volume::letters(position));
        let mut device = if args.partition == PartitionArg::None { disk } else { format!("{disk}1") };
        if let Some((group, name)) = &logical {
            // Each disk has a group of its own, and no two have one name.
            let group = if position == 0 { group.clone() } else { format!("{group}{}", position + 1) };
            let inside = session.name_inside(&device);
            for words in [
                &["pvcreate", "--yes", "-ff", &inside][..],
                &["vgcreate", &group, &inside],
                &["lvcreate", "--yes", "--wipesignatures", "n", "-l", "100%FREE", "-n", name, &group],
            ] {
                run_program(session.as_mut(), &lvm::command(words.iter().copied()), &[])?;
            }
            device = format!("/dev/{group}/{name}");
        }
        if let Some(kind) = kind {
            kind.make(session.as_mut(), &device, args.label.as_deref(), None)?;
        }
    }
    session.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// Group and name in `/dev/VG/LV`.
fn logical_name(text: &str) -> Result<(String, String), Failure> {
    let sound =
        |name: &&str| !name.is_empty() && !name.starts_with('-') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+_.-".contains(&b));
    let parts = text.strip_prefix("/dev/").and_then(|rest| rest.split_once('/')).filter(|(group, name)| sound(group) && sound(name));
    let (group, name) = parts.ok_or_else(|| Failure::new(format!("'{text}' is not /dev/GROUP/VOLUME")))?;
    Ok((group.into(), name.into()))
}

/// Takes away what would show through, or all.
fn erase(image: &dyn ImageMut, wipe: bool) -> Result<(), Failure> {
    let size = image.size();
    if wipe {
        let zeroes = vec![0; PIECE as usize];
        let mut stored = Vec::new();
        image.extents(0..size, &mut |extent| {
            if !extent.kind.reads_zero() {
                stored.push(extent.start..extent.start.saturating_add(extent.len).min(size));
            }
            ControlFlow::Continue(())
        })?;
        for range in stored {
            for at in range.clone().step_by(PIECE as usize) {
                image.write_at(&zeroes[..(range.end - at).min(PIECE) as usize], at)?;
            }
        }
    } else {
        let head = size.min(ENDS);
        image.zero_at(0, head)?;
        let tail = (size - head).min(ENDS);
        image.zero_at(size - tail, tail)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logical_volumes_have_two_names() {
        assert_eq!(logical_name("/dev/VG/LV").unwrap(), ("VG".into(), "LV".into()));
        for bad in ["VG/LV", "/dev/VG", "/dev//LV", "/dev/VG/", "/dev/a/b/c", "/dev/-a/b", "/dev/a b/c"] {
            assert!(logical_name(bad).is_err(), "{bad}");
        }
    }
}
