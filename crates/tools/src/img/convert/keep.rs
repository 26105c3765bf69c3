//! What a new image keeps of the source besides its content: persistent bitmaps and internal snapshots.

use std::path::Path;
use std::sync::Arc;

use imgcore::copy::{self, copy_range};
use imgcore::formats::{CreateOptions, FormatDriver};
use imgcore::storage::NewFile;
use imgcore::{Formats, Image, ImageEdit, LocalGate, OpenOptions, Progress, SnapshotInfo, difference};

use crate::common::Failure;
use crate::img::args::ImageSpec;
use crate::img::bitmap::check_sizes;

/// The bitmaps of `source` that are to be kept.
pub(super) fn check_bitmaps(source: &dyn Image, skip_broken: bool) -> Result<(), Failure> {
    for bitmap in source.info().bitmaps {
        if bitmap.in_use && skip_broken {
            crate::img::warn(&format!("warning: Skipping inconsistent bitmap '{}'", bitmap.name));
        } else if bitmap.in_use {
            let message = format!("Cannot copy inconsistent bitmap '{}'", bitmap.name);
            return Err(Failure::new(message + "\nTry --skip-broken-bitmaps, or use 'img bitmap --remove' to delete it"));
        }
    }
    Ok(())
}

/// Gives `target` the sound bitmaps of `source`.
pub(super) fn copy_bitmaps(source: &dyn Image, target: &mut dyn ImageEdit) -> Result<(), Failure> {
    let (theirs, ours) = (source.size(), target.size());
    let bitmaps = target.bitmaps()?;
    for bitmap in source.info().bitmaps.into_iter().filter(|bitmap| !bitmap.in_use) {
        let mismatch = |why| Failure::new(format!("Failed to populate bitmap {}: {why}", bitmap.name));
        check_sizes(theirs, ours).map_err(mismatch)?;
        let failed = |e: imgcore::Error| Failure::new(format!("Failed to create bitmap {}: {e}", bitmap.name));
        bitmaps.add(&bitmap.name, Some(bitmap.granularity)).map_err(failed)?;
        bitmaps.mark(&bitmap.name, &source.dirty_ranges(&bitmap.name)?)?;
        bitmaps.set_recording(&bitmap.name, bitmap.auto)?;
    }
    Ok(())
}

/// A new image in a file, opened for changes to its structure.
pub(super) fn reopen(formats: &Formats, driver: &dyn FormatDriver, file: &NewFile) -> Result<Box<dyn ImageEdit>, Failure> {
    let options = OpenOptions::new(&LocalGate).format(driver.name()).without_backing();
    Ok(formats.open_edit(file.storage(), &options)?)
}

/// Makes an image with all internal snapshots of `source`. Clusters that two of them share are stored once.
pub(super) fn with_snapshots(
    formats: &Formats,
    driver: &dyn FormatDriver,
    source: &ImageSpec,
    output: &Path,
    create: &CreateOptions,
    options: &copy::Options,
    progress: &dyn Progress,
) -> Result<NewFile, Failure> {
    if !driver.has_snapshots() {
        return Err(Failure::new(format!("Format driver '{}' does not support internal snapshots", driver.name())));
    }
    let now = source.open(formats)?;
    let snapshots = now.info().snapshots;
    let mut states: Vec<(Arc<dyn Image>, Option<SnapshotInfo>)> = Vec::new();
    for snapshot in snapshots {
        if snapshot.vm_state_size > 0 {
            crate::img::warn(&format!("warning: the machine state of snapshot '{}' is not kept", snapshot.name));
        }
        let state = source.clone().snapshot(Some(snapshot.id.clone())).open(formats)?;
        states.push((state, Some(SnapshotInfo { vm_state_size: 0, ..snapshot })));
    }
    states.push((now, None));
    progress.total(states.iter().fold(0, |sum, (state, _)| sum + state.size()));

    let (first, _) = &states[0];
    let file = NewFile::create(output)?;
    let target = driver.create(file.storage(), first.size(), create)?;
    copy_range(&**first, 0..first.size(), &*target, 0, options, &copy::Part(progress))?;
    target.flush()?;
    drop(target);
    let mut target = reopen(formats, driver, &file)?;
    for (number, (state, snapshot)) in states.iter().enumerate() {
        if let Some((before, _)) = number.checked_sub(1).map(|n| &states[n]) {
            if target.size() != state.size() {
                target.resize(state.size(), imgcore::Preallocation::Off)?;
            }
            difference::apply(&**before, &**state, &*target, &copy::Part(progress))?;
        }
        if let Some(snapshot) = snapshot {
            target.snapshots()?.add(snapshot.clone())?;
        }
    }
    target.flush()?;
    Ok(file)
}
