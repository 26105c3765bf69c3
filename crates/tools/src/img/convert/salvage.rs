//! Reading what can be read of a damaged image: `--salvage`.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use imgcore::{Error, Extent, ExtentKind, Image, ImageInfo};

use crate::img::args::host_words;

const SECTOR: u64 = 512;

/// An image whose unreadable sectors read as zeroes, after a warning unless it is quiet.
pub(super) struct Salvage {
    pub image: Arc<dyn Image>,
    pub quiet: bool,
}

impl Salvage {
    fn warn(&self, offset: u64, error: &Error) {
        if !self.quiet {
            let why = match error {
                Error::Io { source, .. } => host_words(source),
                other => other.to_string(),
            };
            crate::img::warn(&format!("warning: error while reading offset {offset}: {why}"));
        }
    }
}

impl Image for Salvage {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> imgcore::Result<()> {
        let Err(error) = self.image.read_at(buf, offset) else { return Ok(()) };
        let len = buf.len() as u64;
        if len <= SECTOR {
            self.warn(offset, &error);
            buf.fill(0);
            return Ok(());
        }
        // Halves, down to single sectors: most of what surrounds a bad place can be read at once.
        let middle = ((offset + len / 2) / SECTOR * SECTOR).max(offset - offset % SECTOR + SECTOR);
        let (first, second) = buf.split_at_mut((middle - offset) as usize);
        self.read_at(first, offset)?;
        self.read_at(second, middle)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> imgcore::Result<()> {
        let mut at = range.start;
        let mut flow = ControlFlow::Continue(());
        let walked = self.image.extents(range.clone(), &mut |extent| {
            at = extent.start + extent.len;
            flow = visit(extent);
            flow
        });
        let Err(error) = walked else { return Ok(()) };
        // Where a part lies is not known: it is read, which says for each sector whether that can be done.
        self.warn(at, &error);
        if flow.is_continue() && at < range.end {
            let _ = visit(Extent { start: at, len: range.end - at, kind: ExtentKind::Data, depth: 0, host_offset: None, file: None });
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        self.image.info()
    }

    fn backing(&self) -> Option<&dyn Image> {
        self.image.backing()
    }
}
