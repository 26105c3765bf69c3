//! Making an image ready for another image below it: what it shows of the old one, and the new one has differently, becomes
//! its own.

use std::ops::Range;

use crate::copy::is_zero;
use crate::cursor::{Cursor, same_bytes};
use crate::{Compression, Error, Extent, ExtentKind, Image, ImageMut, Progress, Result};

/// Bytes compared at once, unless clusters are larger.
const PIECE: u64 = 1 << 20;

/// Writes into `image`, which is open with the images below it, what it needs to read the same on top of `below` (or of
/// nothing). Only clusters that differ are written, compressed if asked for where the format can. Naming the new image is
/// left to the caller, after a flush.
pub fn prepare(image: &dyn ImageMut, below: Option<&dyn Image>, compress: bool, progress: &dyn Progress) -> Result<()> {
    let cluster = image.info().cluster_size.unwrap_or(4096).max(512);
    let compression = match image.compression() {
        None if compress => {
            let info = image.info();
            return Err(Error::unsupported(&info.file, info.format, "compressed clusters"));
        }
        compression => compression.filter(|_| compress),
    };
    let mut rebase = Rebase { image, below, compression, cluster, old: Vec::new(), new: Vec::new() };
    progress.total(image.size());
    // What the image shows is noted before anything is written, a bounded number of extents at a time.
    let (mut shown, mut offered) = (Cursor::new(image), below.map(Cursor::new));
    let mut at = 0;
    while at < image.size() {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let old = shown.peek()?;
        let new = match &mut offered {
            Some(cursor) => cursor.peek()?,
            None => nothing(at),
        };
        let len = old.len.min(new.len).min(image.size() - at);
        if !is_own(&old) && !same_bytes(&old, &new) {
            // Past the end of what lies below now, formats see no need to flag zeroes.
            let flagged = old.depth > 0;
            rebase.range(at, at + len, flagged)?;
        }
        shown.advance(len);
        if let Some(cursor) = &mut offered {
            cursor.advance(len);
        }
        progress.advance(len);
        at += len;
    }
    Ok(())
}

fn nothing(start: u64) -> Extent {
    Extent { start, len: u64::MAX - start, kind: ExtentKind::Unallocated, depth: 0, host_offset: None, file: None }
}

/// Whether the image holds it itself, and does not show what lies below.
fn is_own(extent: &Extent) -> bool {
    extent.depth == 0 && extent.kind != ExtentKind::Unallocated
}

struct Rebase<'a> {
    image: &'a dyn ImageMut,
    below: Option<&'a dyn Image>,
    compression: Option<&'a dyn Compression>,
    cluster: u64,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Rebase<'_> {
    /// Compares a range that the image does not hold itself, and writes what differs. Zeroes are stored unless they can be
    /// `flagged`.
    fn range(&mut self, mut at: u64, end: u64, flagged: bool) -> Result<()> {
        let piece = PIECE.max(self.cluster);
        while at < end {
            let next = end.min((at / piece + 1) * piece);
            self.piece(at, next, flagged)?;
            at = next;
        }
        Ok(())
    }

    fn piece(&mut self, at: u64, end: u64, flagged: bool) -> Result<()> {
        let len = (end - at) as usize;
        self.old.resize(len, 0);
        self.new.resize(len, 0);
        self.image.read_at(&mut self.old, at)?;
        read_below(self.below, &mut self.new, at)?;
        let mut from = 0;
        while from < len {
            let to = len.min(((at + from as u64) / self.cluster * self.cluster + self.cluster - at) as usize);
            if self.old[from..to] != self.new[from..to] {
                self.write(at + from as u64, from..to, flagged)?;
            }
            from = to;
        }
        Ok(())
    }

    fn write(&self, at: u64, range: Range<usize>, flagged: bool) -> Result<()> {
        let bytes = &self.old[range];
        if flagged && is_zero(bytes) {
            return self.image.zero_at(at, bytes.len() as u64);
        }
        let whole = bytes.len() as u64 == self.cluster;
        if let Some(compression) = self.compression.filter(|c| whole && c.cluster_size() == self.cluster)
            && let Some(packed) = compression.compressor()(bytes)
        {
            return compression.write_packed(&packed, at);
        }
        self.image.write_at(bytes, at)
    }
}

/// Reads `image`, and zeroes past its end.
fn read_below(image: Option<&dyn Image>, buf: &mut [u8], at: u64) -> Result<()> {
    let there = image.map_or(0, |image| image.size().saturating_sub(at)).min(buf.len() as u64) as usize;
    let (inside, past) = buf.split_at_mut(there);
    past.fill(0);
    match image {
        Some(image) if there > 0 => image.read_at(inside, at),
        _ => Ok(()),
    }
}
