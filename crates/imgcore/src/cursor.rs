//! Walking over the extents of several images side by side.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use crate::{Error, Extent, ExtentKind, Image, Result};

/// Extents fetched at once: bounds the memory, whatever the image is made of.
const FETCH: usize = 4096;

/// The extents of an image one after the other, cut where the caller wants. Past the end of the image nothing is allocated.
pub(crate) struct Cursor<'a> {
    image: &'a dyn Image,
    fetched: VecDeque<Extent>,
    at: u64,
}

impl<'a> Cursor<'a> {
    /// A cursor at the first byte of `image`.
    pub(crate) fn new(image: &'a dyn Image) -> Self {
        Cursor { image, fetched: VecDeque::new(), at: 0 }
    }

    /// The extent at the cursor, from there on. It is never empty.
    pub(crate) fn peek(&mut self) -> Result<Extent> {
        let (at, size) = (self.at, self.image.size());
        if at >= size {
            let (kind, host_offset, file) = (ExtentKind::Unallocated, None, None);
            return Ok(Extent { start: at, len: u64::MAX - at, kind, depth: 0, host_offset, file });
        }
        if self.fetched.is_empty() {
            let fetched = &mut self.fetched;
            self.image.extents(at..size, &mut |extent| {
                fetched.push_back(extent);
                if fetched.len() < FETCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        match self.fetched.front() {
            Some(extent) if extent.start <= at && extent.len > at - extent.start => {
                let past = at - extent.start;
                let host_offset = extent.host_offset.map(|offset| offset.saturating_add(past));
                Ok(Extent { start: at, len: extent.len - past, host_offset, ..extent.clone() })
            }
            _ => {
                Err(Error::Invalid(format!("{}: the walk over its content stopped at offset {at:#x} of {size:#x}", self.image.info().file)))
            }
        }
    }

    /// Goes `len` bytes on, which must lie in the extent that [`peek`](Self::peek) gave.
    pub(crate) fn advance(&mut self, len: u64) {
        self.at += len;
        if self.fetched.front().is_some_and(|extent| extent.start + extent.len <= self.at) {
            self.fetched.pop_front();
        }
    }
}

/// Whether the bytes of both extents are known to be the same without reading them: both zeroes, or one place of one file.
pub(crate) fn same_bytes(a: &Extent, b: &Extent) -> bool {
    let one_place = a.kind == ExtentKind::Data && b.kind == ExtentKind::Data && a.file.is_some() && a.file == b.file;
    (a.kind.reads_zero() && b.kind.reads_zero()) || (one_place && a.host_offset.is_some() && a.host_offset == b.host_offset)
}
