//! `img snapshot`: the internal snapshots of an image.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, FromArgMatches};
use imgcore::{Error, SnapshotInfo};

use super::Entry;
use super::args::{ImageArgs, ImageSpec, only, usage};
use super::info::snapshot_list;
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "snapshot", arguments: Snapshot::augment_args, run: |matches| run(Snapshot::from_arg_matches(matches)?) };

/// List or change the snapshots inside of an image.
#[derive(Args)]
#[command(after_help = "Examples:\n  img snapshot disk.qcow2\n  img snapshot -c before-upgrade disk.qcow2\n  \
                        img snapshot -a before-upgrade disk.qcow2\n  img snapshot -d before-upgrade disk.qcow2")]
struct Snapshot {
    #[command(flatten)]
    image: ImageArgs,
    /// List the snapshots; so without any of these
    #[arg(short, long)]
    list: bool,
    /// Take a snapshot of this name
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,
    /// Make the disk what it was at the snapshot of this name or id
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Option<String>,
    /// Drop the snapshot of this name
    #[arg(short, long, value_name = "NAME")]
    delete: Option<String>,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// Read the image even while it is in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Snapshot) -> Result<ExitCode, Failure> {
    let wanted = [args.list, args.create.is_some(), args.apply.is_some(), args.delete.is_some()];
    if wanted.into_iter().filter(|wanted| *wanted).count() > 1 {
        return Err(usage("snapshot", "Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let image = args.image.image(only("snapshot", &args.files)?)?.force_share(args.force_share);
    if let Some(name) = &args.create {
        create(&image, name)?;
    } else if let Some(name) = &args.apply {
        apply(&image, name)?;
    } else if let Some(name) = &args.delete {
        delete(&image, name)?;
    } else {
        common::end_with_reader();
        print!("{}", snapshot_list(&image.open(&common::formats())?.info()));
    }
    Ok(ExitCode::SUCCESS)
}

fn create(image: &ImageSpec, name: &str) -> Result<(), Failure> {
    let mut edit = image.open_edit(&common::formats())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // All of the guest is as at its start, the count of its instructions too: so says qemu-img.
    let info = SnapshotInfo {
        id: String::new(),
        name: name.into(),
        date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nsec: now.subsec_nanos(),
        vm_clock_nsec: 0,
        vm_state_size: 0,
        icount: Some(0),
    };
    let created = edit.snapshots().and_then(|snapshots| snapshots.add(info));
    created.map_err(|e| failed("create", name, "Operation not supported", e))?;
    Ok(())
}

fn apply(image: &ImageSpec, name: &str) -> Result<(), Failure> {
    let mut edit = image.open_edit(&common::formats())?;
    let beyond = |e| failed("apply", name, "Block driver does not support snapshots", e);
    let snapshots = edit.snapshots().map_err(beyond)?;
    if snapshots.list().iter().all(|s| s.id != name && s.name != name) {
        let why = "Failed to load snapshot: No such file or directory";
        return Err(Failure::new(format!("Could not apply snapshot '{name}': {why}")));
    }
    snapshots.apply(name).map_err(beyond)
}

/// As qemu-img does, takes the name alone: an id would be another's name as easily.
fn delete(image: &ImageSpec, name: &str) -> Result<(), Failure> {
    let mut edit = image.open_edit(&common::formats())?;
    let missing = || Failure::new(format!("Could not delete snapshot '{name}': snapshot not found"));
    let snapshots = match edit.snapshots() {
        Err(Error::Unsupported { .. }) => return Err(missing()),
        snapshots => snapshots?,
    };
    let id = snapshots.list().into_iter().find(|s| s.name == name).ok_or_else(missing)?.id;
    snapshots.delete(&id).map_err(|e| failed("delete", name, "Operation not supported", e))
}

fn failed(what: &str, name: &str, unsupported: &str, error: Error) -> Failure {
    let failure = Failure::from_ref(&error);
    let why = if matches!(error, Error::Unsupported { .. }) { unsupported } else { failure.message() };
    let message = format!("Could not {what} snapshot '{name}': {why}");
    failure.reworded(message)
}
