//! `virt-make-fs`: a disk image with the files of a folder or of a tar archive.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::engine::Disk;
use imgcore::formats::CreateOptions;
use imgcore::size;

use self::input::Input;
use self::survey::Survey;
use super::Entry;
use super::disks::{EngineArgs, Kind, PartitionArg, Target, mounted, one_partition, table_overhead};
use crate::common::Failure;

mod input;
mod survey;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "make-fs", arguments: MakeFs::augment_args, run: |matches| run(&MakeFs::from_arg_matches(matches)?) };

const FLOPPY: u64 = 1440 << 10;
/// The size of a disk is a multiple of it.
const UNIT: u64 = 64 << 10;
/// How often a size that was reckoned too small is raised.
const TRIES: usize = 4;

/// Make a disk image with a filesystem that has the files of a folder or of a tar archive.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-make-fs files/ disk.img\n  virt-make-fs --type ext4 --format qcow2 --size +200M --label data backup.tar.zst disk.qcow2\n  \
                        virt-make-fs --type vfat --partition=mbr -- files/ stick.img\n\n\
                        Archives may be compressed by gzip, xz or zstd. Owners (as numbers), modes, times, hard links, holes and attributes are kept,\n\
                        so far as the filesystem has them. Without --size the disk is as large as the files need."
)]
struct MakeFs {
    /// The filesystem
    #[arg(short, long, value_enum, default_value = "ext2")]
    r#type: Kind,
    /// The disk's size: 2G; or so much free besides the files: +200M
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    size: Option<String>,
    /// The image's format
    #[arg(short = 'F', long, value_name = "FMT", default_value = "raw")]
    format: String,
    /// The filesystem's label
    #[arg(long)]
    label: Option<String>,
    /// Put the filesystem into a partition
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "mbr")]
    partition: PartitionArg,
    /// Make a floppy disk: 1440K, --partition=mbr, --type vfat
    #[arg(long, conflicts_with_all = ["size", "partition", "type"])]
    floppy: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// A folder or a tar archive
    input: PathBuf,
    /// The image that is made
    output: PathBuf,
}

fn run(args: &MakeFs) -> Result<ExitCode, Failure> {
    let input = Input::open(&args.input)?;
    let (kind, table) = if args.floppy { (Kind::Vfat, PartitionArg::Mbr) } else { (args.r#type, args.partition) };
    let mut survey = Survey::default();
    input.hand_over(kind, &mut survey)?;
    let fixed = match &args.size {
        _ if args.floppy => Some(FLOPPY),
        Some(text) if !text.starts_with('+') => Some(size::parse(text)?),
        _ => None,
    };
    let more = args.size.as_deref().and_then(|text| text.strip_prefix('+')).map_or(Ok(0), size::parse)?;
    let reckoned = survey.size(kind, more).saturating_add(table_overhead(table)).next_multiple_of(UNIT);
    let mut bytes = fixed.unwrap_or(reckoned);
    for _ in 1..TRIES {
        match args.make(&input, kind, table, bytes, survey.inodes()) {
            Err(failure) if fixed.is_none() && failure.message().contains("No space left on device") => {
                bytes = (bytes + bytes / 4).next_multiple_of(UNIT);
                args.engine.say(format!("The files need more room: {}.", size::human(bytes)));
            }
            outcome => return outcome.map(|()| ExitCode::SUCCESS),
        }
    }
    args.make(&input, kind, table, bytes, survey.inodes()).map(|()| ExitCode::SUCCESS)
}

impl MakeFs {
    fn make(&self, input: &Input, kind: Kind, table: PartitionArg, bytes: u64, inodes: u64) -> Result<(), Failure> {
        let new = Target::new(&self.format, CreateOptions::new()).create(&self.output, bytes)?;
        one_partition(new.image().as_ref(), table, Some(kind), false)?;
        let device = if table == PartitionArg::None { "/dev/vda" } else { "/dev/vda1" };
        let mut session = self.engine.start(vec![Disk::Writable(new.image().clone())])?;
        kind.make(session.as_mut(), device, self.label.as_deref(), Some(inodes))?;
        mounted(session.as_mut(), device, kind.name(), |session, _| session.unpack(b"/", &mut |sink| input.hand_over(kind, sink)))?;
        session.shutdown()?;
        Ok(new.commit()?)
    }
}
