//! Whether the result's folder has room for its disks: known before anything is copied.

use std::ops::ControlFlow;
use std::path::Path;

use imgcore::overlay::free_space;
use imgcore::{Image, size};

use crate::disk_build;
use crate::layout::Layout;
use crate::source::Source;
use crate::{Error, Result};

/// Looks at what would be copied, against what is free in `folder`. Gives a warning where the copy may turn out smaller than it looks:
/// on a source that has no holes, such as a device, zeroes are found only by reading all of it.
pub fn check(source: &Source, layout: &Layout, folder: &Path, preallocated: bool) -> Result<Option<String>> {
    let Some(free) = free_space(folder) else { return Ok(None) };
    let total: u64 = layout.disks.iter().map(|d| d.size).fold(0, u64::saturating_add);
    let (needed, sure) = if preallocated { (total, true) } else { data(source, layout)? };
    if needed <= free {
        return Ok(None);
    }
    let (needed, free) = (size::human(needed), size::human(free));
    if sure {
        return Err(Error::Invalid(format!(
            "{}: {} has {free} free, and the disks need about {needed}: make room, or choose another folder with -os",
            source.name,
            folder.display()
        )));
    }
    Ok(Some(format!(
        "{} has {free} free, and the disks need up to {needed}: what of them is zeroes is seen only while they are read",
        folder.display()
    )))
}

/// Whether an image is known to have nothing in it: never written, or discarded.
pub fn is_empty(image: &dyn Image) -> bool {
    let mut empty = true;
    let walked = image.extents(0..image.size(), &mut |extent| {
        empty = extent.kind.reads_zero();
        if empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    empty && walked.is_ok()
}

/// The bytes that are not known to be zero, and whether the source tells them from the others.
fn data(source: &Source, layout: &Layout) -> Result<(u64, bool)> {
    let (mut data, mut all) = (0u64, 0u64);
    for part in layout.disks.iter().flat_map(disk_build::moves) {
        let Some(image) = source.disks.get(part.disk).and_then(|d| d.image.as_deref()) else { continue };
        all = all.saturating_add(part.len);
        let end = part.source_offset.saturating_add(part.len).min(image.size());
        image.extents(part.source_offset.min(end)..end, &mut |extent| {
            if !extent.kind.reads_zero() {
                data = data.saturating_add(extent.len);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok((data, data < all))
}
