//! Images that all hold the same: what one fails to read, another may give.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use imgcore::{Extent, Image, ImageInfo, Result};

/// Copies of one content.
pub(super) struct Mirror {
    first: Arc<dyn Image>,
    others: Vec<Arc<dyn Image>>,
}

impl Mirror {
    /// Images of one size; `None` without any.
    pub fn new(mut copies: Vec<Arc<dyn Image>>) -> Option<Self> {
        let others = copies.split_off(1.min(copies.len()));
        Some(Mirror { first: copies.pop()?, others })
    }
}

impl Image for Mirror {
    fn size(&self) -> u64 {
        self.first.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let failed = match self.first.read_at(buf, offset) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        if self.others.iter().any(|copy| copy.read_at(buf, offset).is_ok()) { Ok(()) } else { Err(failed) }
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        self.first.extents(range, visit)
    }

    fn info(&self) -> ImageInfo {
        self.first.info()
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}
