//! Writing what layers hold into the image below them.

use crate::cursor::Cursor;
use crate::{Error, ExtentKind, Image, ImageEdit, Preallocation, Progress, Result};

/// Bytes read and written at once.
const PIECE: u64 = 2 << 20;

/// Makes `base` read as the first of `layers` does on top of the others and of it. `layers` are ordered from the top and
/// each open without the image below it, so that only what it holds itself counts. The base grows to the first layer's
/// size, and is flushed at the end.
///
/// The lowest layer comes first: whenever the work ends too early, the chain still reads as before.
pub fn commit(layers: &[&dyn Image], base: &mut dyn ImageEdit, progress: &dyn Progress) -> Result<()> {
    let Some(top) = layers.first() else { return Ok(()) };
    if base.size() < top.size() {
        base.resize(top.size(), Preallocation::Off)?;
    }
    progress.total(layers.iter().fold(0, |sum, layer| sum + layer.size()));
    for (number, layer) in layers.iter().enumerate().rev() {
        copy_own(*layer, base, progress)?;
        // Where a layer ends, the ones above it see zeroes and not the base.
        let seen = number.checked_sub(1).and_then(|above| layers.get(above)).map_or(0, |above| above.size()).min(base.size());
        if seen > layer.size() {
            base.zero_at(layer.size(), seen - layer.size())?;
        }
    }
    base.flush()
}

fn copy_own(layer: &dyn Image, base: &dyn ImageEdit, progress: &dyn Progress) -> Result<()> {
    let end = layer.size().min(base.size());
    let mut buf = Vec::new();
    let mut cursor = Cursor::new(layer);
    let mut at = 0;
    while at < end {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let extent = cursor.peek()?;
        let mut len = extent.len.min(end - at);
        match extent.kind {
            ExtentKind::Unallocated => {}
            ExtentKind::Zero | ExtentKind::Hole => base.zero_at(at, len)?,
            ExtentKind::Data | ExtentKind::Compressed => {
                len = len.min(PIECE - at % PIECE);
                buf.resize(len as usize, 0);
                layer.read_at(&mut buf, at)?;
                base.write_at(&buf, at)?;
            }
        }
        cursor.advance(len);
        progress.advance(len);
        at += len;
    }
    Ok(())
}
