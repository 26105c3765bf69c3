//! Results on NBD servers: disks that cannot be renamed when they are whole.
//!
//! What marks a whole disk is its beginning: partition table and boot loader. It is kept back in memory and written last, when all else is
//! on the server's stable storage. What a conversion leaves behind that failed or was killed is a disk that nothing starts from and that
//! holds no volumes. Where `NAME.xml` is, all disks are whole.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imgcore::nbd::Client;
use imgcore::nbd::uri::Uri;
use imgcore::{Extent, ExtentKind, Image, ImageInfo, ImageMut, Progress, size};

use crate::layout::Layout;
use crate::{Error, Result};

/// Bytes that are kept back. Partitions that we make begin behind them, and a GPT's first copy is before.
const HEAD: u64 = 1 << 20;
/// Bytes that are looked at in one go.
const PIECE: u64 = 4 << 20;

/// A disk of the result on a server, as large as the result wants it.
pub struct NbdDisk {
    client: Client,
    size: u64,
    head: Mutex<Vec<u8>>,
}

/// Connects to a server for each disk of the result, and sees to it that nothing is there.
///
/// # Errors
/// There are more or fewer servers than disks, one is too small, or holds data and `force` is not said.
pub fn begin(targets: &[Uri], layout: &Layout, force: bool, progress: &dyn Progress) -> Result<Vec<Arc<NbdDisk>>> {
    if targets.len() != layout.disks.len() {
        let disks: Vec<String> = layout.disks.iter().map(|d| format!("{} with {}", d.device, size::human(d.size))).collect();
        return Err(Error::Invalid(format!(
            "{} targets are named for {} disks: give --nbd URI once for each, in this order: {}",
            targets.len(),
            disks.len(),
            disks.join(", ")
        )));
    }
    let clients: Vec<(Client, &Uri, u64)> = targets
        .iter()
        .zip(&layout.disks)
        .map(|(uri, disk)| {
            let client = uri.connect_writable(None)?;
            if client.size() < disk.size {
                let (has, needs) = (client.size(), disk.size);
                return Err(Error::Invalid(format!("{}: has {has} bytes, and {} needs {needs}: make it larger", uri.name(), disk.device)));
            }
            Ok((client, uri, disk.size))
        })
        .collect::<Result<_>>()?;
    // All are known to be good before one is changed.
    for (client, uri, _) in &clients {
        if !force && !is_empty(client, progress)? {
            return Err(Error::Invalid(format!("{}: holds data already; --force overwrites it", uri.name())));
        }
    }
    let disk = |(client, _, size): (Client, &Uri, u64)| {
        if force {
            client.zero_at(0, client.size())?;
        }
        Ok(Arc::new(NbdDisk { client, size, head: Mutex::new(vec![0; HEAD.min(size) as usize]) }))
    };
    clients.into_iter().map(disk).collect()
}

/// Writes the beginnings of all disks: from then on they are whole.
pub fn finish(disks: &[Arc<NbdDisk>]) -> Result<()> {
    // None of them begins to look whole before all are.
    disks.iter().try_for_each(|disk| disk.client.flush())?;
    for disk in disks {
        disk.client.write_at(&disk.lock(), 0)?;
        disk.client.flush()?;
    }
    Ok(())
}

/// Whether every byte is zero. What the server does not say so itself is read.
fn is_empty(image: &dyn Image, progress: &dyn Progress) -> Result<bool> {
    let mut data: Vec<Range<u64>> = Vec::new();
    image.extents(0..image.size(), &mut |extent| {
        if !extent.kind.reads_zero() {
            data.push(extent.start..extent.start.saturating_add(extent.len));
        }
        ControlFlow::Continue(())
    })?;
    let mut buf = vec![0; PIECE as usize];
    for range in data {
        let mut at = range.start;
        while at < range.end {
            if progress.cancelled() {
                return Err(imgcore::Error::Cancelled.into());
            }
            let len = (range.end - at).min(PIECE);
            let piece = &mut buf[..len as usize];
            image.read_at(piece, at)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += len;
        }
    }
    Ok(true)
}

impl NbdDisk {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part of a range that is kept back, and how many bytes it has.
    fn check(&self, offset: u64, len: u64) -> imgcore::Result<usize> {
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            let what = format!("{}: {len} bytes at {offset:#x} go past its end", self.client.info().file);
            return Err(imgcore::Error::Invalid(what));
        }
        let kept = (self.lock().len() as u64).saturating_sub(offset).min(len);
        Ok(kept as usize)
    }
}

impl Image for NbdDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> imgcore::Result<()> {
        let kept = self.check(offset, buf.len() as u64)?;
        let (head, rest) = buf.split_at_mut(kept);
        if kept > 0 {
            head.copy_from_slice(&self.lock()[offset as usize..][..kept]);
        }
        if rest.is_empty() { Ok(()) } else { self.client.read_at(rest, offset + kept as u64) }
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> imgcore::Result<()> {
        let kept = self.check(range.start, range.end.saturating_sub(range.start))? as u64;
        if kept > 0 {
            let head = Extent { start: range.start, len: kept, kind: ExtentKind::Data, depth: 0, host_offset: None, file: None };
            if visit(head).is_break() {
                return Ok(());
            }
        }
        if range.start + kept < range.end { self.client.extents(range.start + kept..range.end, visit) } else { Ok(()) }
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { virtual_size: self.size, ..self.client.info() }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

impl ImageMut for NbdDisk {
    fn write_at(&self, data: &[u8], offset: u64) -> imgcore::Result<()> {
        let kept = self.check(offset, data.len() as u64)?;
        let (head, rest) = data.split_at(kept);
        if kept > 0 {
            self.lock()[offset as usize..][..kept].copy_from_slice(head);
        }
        if rest.is_empty() { Ok(()) } else { self.client.write_at(rest, offset + kept as u64) }
    }

    fn zero_at(&self, offset: u64, len: u64) -> imgcore::Result<()> {
        let kept = self.check(offset, len)?;
        if kept > 0 {
            self.lock()[offset as usize..][..kept].fill(0);
        }
        let rest = len - kept as u64;
        if rest == 0 { Ok(()) } else { self.client.zero_at(offset + kept as u64, rest) }
    }

    fn discard(&self, offset: u64, len: u64) -> imgcore::Result<()> {
        let kept = self.check(offset, len)? as u64;
        if kept > 0 {
            self.zero_at(offset, kept)?;
        }
        if len > kept { self.client.discard(offset + kept, len - kept) } else { Ok(()) }
    }

    fn flush(&self) -> imgcore::Result<()> {
        self.client.flush()
    }
}
