//! What has changed of a disk that is a file or a device: told by comparing it with the copy, or by what lies above the file that was copied.

use std::fs;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::{Image, ImageMut, Progress, Slice, difference};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::source::SourceDisk;

/// Images in a chain: more are not looked through.
const MAX_DEPTH: u32 = 64;

/// The file that was copied, as it was then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    file: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Identity {
    /// The file of an image; none where it is not a file of its own.
    fn of(image: &dyn Image) -> Self {
        let file = Path::new(&image.info().file).canonicalize();
        let meta = file.as_ref().ok().and_then(|f| fs::metadata(f).ok()).filter(fs::Metadata::is_file);
        let (Ok(file), Some(meta)) = (file, meta) else { return Identity::default() };
        Identity { file, device: meta.dev(), inode: meta.ino(), size: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) }
    }

    /// How far below an image this file lies, as it was.
    fn depth_in(&self, image: &dyn Image) -> Option<u32> {
        let mut below = Some(image);
        (0..MAX_DEPTH).find(|_| {
            let found = below.is_some_and(|image| *self == Identity::of(image));
            if !found {
                below = below.and_then(Image::backing);
            }
            found
        })
    }
}

/// The files of a source's disks.
pub(super) fn identify(disks: &[SourceDisk]) -> Vec<Identity> {
    disks.iter().map(|disk| disk.image.as_ref().map(|image| Identity::of(image.as_ref())).unwrap_or_default()).collect()
}

/// Makes `target`, the copy, read as the disk does now.
pub(super) fn update(image: &Arc<dyn Image>, copied: &Identity, target: &Arc<dyn ImageMut>, progress: &dyn Progress) -> Result<()> {
    progress.total(image.size());
    let depth = if *copied == Identity::default() { None } else { copied.depth_in(image.as_ref()) };
    match depth {
        // Of what lies in the file itself nobody knows whether it was written meanwhile.
        None | Some(0) => Ok(difference::apply(target.as_ref(), image.as_ref(), target.as_ref(), progress)?),
        Some(depth) => {
            for range in above(image.as_ref(), depth)? {
                let len = range.end - range.start;
                let now = Slice::new(image.clone(), range.start, len)?;
                let copy = Slice::new(target.clone(), range.start, len)?;
                difference::apply(&copy, &now, &copy, progress)?;
            }
            Ok(())
        }
    }
}

/// What images above `depth` hold.
fn above(image: &dyn Image, depth: u32) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    image.extents(0..image.size(), &mut |extent| {
        let end = extent.start.saturating_add(extent.len);
        match ranges.last_mut() {
            _ if extent.depth >= depth => {}
            Some(last) if last.end == extent.start => last.end = end,
            _ => ranges.push(extent.start..end),
        }
        ControlFlow::Continue(())
    })?;
    Ok(ranges)
}
