//! An image in memory for this crate's own tests: small, obvious, and able to fail on demand.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::{Barrier, Mutex};

use crate::{Error, Extent, ExtentKind, Image, ImageInfo, ImageMut, Result};

/// Blocks of 4 KiB that are either data or unallocated.
pub struct TestImage {
    size: u64,
    /// The bytes, and the blocks that were ever written.
    state: Mutex<(Vec<u8>, BTreeSet<u64>)>,
    /// Reads and writes that touch it fail.
    pub bad: Option<Range<u64>>,
    /// Reads wait here for each other.
    pub meet: Option<Barrier>,
    /// Calls of write_at and zero_at: (offset, length, whether zeroes were written through zero_at).
    pub log: Mutex<Vec<(u64, u64, bool)>>,
}

const BLOCK: u64 = 4096;

impl TestImage {
    pub fn new(size: u64) -> Self {
        TestImage { size, state: Mutex::new((vec![0; size as usize], BTreeSet::new())), bad: None, meet: None, log: Mutex::default() }
    }

    pub fn with(size: u64, pieces: &[(u64, &[u8])]) -> Self {
        let image = TestImage::new(size);
        for (offset, bytes) in pieces {
            image.write_at(bytes, *offset).unwrap();
        }
        image.log.lock().unwrap().clear();
        image
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap().0.clone()
    }

    fn check(&self, offset: u64, len: u64, action: &'static str) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(Error::Invalid(format!("{len} bytes at {offset} go past the end")));
        }
        match &self.bad {
            Some(bad) if offset < bad.end && bad.start < offset + len => {
                Err(Error::io("test", action, Some(bad.start), std::io::Error::other("bad block")))
            }
            _ => Ok(()),
        }
    }
}

impl Image for TestImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64, "read")?;
        if let Some(barrier) = &self.meet {
            barrier.wait();
        }
        buf.copy_from_slice(&self.state.lock().unwrap().0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        let written = self.state.lock().unwrap().1.clone();
        let mut start = range.start;
        while start < range.end {
            let data = written.contains(&(start / BLOCK));
            let mut end = start;
            while end < range.end && written.contains(&(end / BLOCK)) == data {
                end = (end / BLOCK + 1) * BLOCK;
            }
            let kind = if data { ExtentKind::Data } else { ExtentKind::Unallocated };
            let len = end.min(range.end) - start;
            if visit(Extent { start, len, kind, depth: 0, host_offset: None, file: None }).is_break() {
                break;
            }
            start += len;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { format: "test", file: "test".into(), virtual_size: self.size, ..ImageInfo::default() }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

impl ImageMut for TestImage {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let len = data.len() as u64;
        self.check(offset, len, "write")?;
        let mut state = self.state.lock().unwrap();
        state.0[offset as usize..][..data.len()].copy_from_slice(data);
        state.1.extend(offset / BLOCK..(offset + len).div_ceil(BLOCK));
        self.log.lock().unwrap().push((offset, len, false));
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len, "write")?;
        let mut state = self.state.lock().unwrap();
        state.0[offset as usize..][..len as usize].fill(0);
        for block in offset.div_ceil(BLOCK)..(offset + len) / BLOCK {
            state.1.remove(&block);
        }
        self.log.lock().unwrap().push((offset, len, true));
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
