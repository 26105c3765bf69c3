//! An unlocked volume's content, decrypted as it is read.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use imgcore::{Error, Extent, ExtentKind, Image, ImageInfo, Result};

use super::cipher::Cipher;
use super::{SECTOR, Segment};

/// Bytes that are decrypted at once.
const PIECE: u64 = 1 << 20;

/// The content of a segment.
pub(super) struct Decrypted {
    volume: Arc<dyn Image>,
    start: u64,
    len: u64,
    iv_tweak: u64,
    sector_size: u64,
    cipher: Cipher,
}

impl Decrypted {
    /// `len` bytes, whole sectors that lie in the volume.
    pub fn new(volume: Arc<dyn Image>, segment: &Segment, len: u64, cipher: Cipher) -> Self {
        let Segment { start, iv_tweak, sector_size, .. } = *segment;
        Decrypted { volume, start, len, iv_tweak, sector_size, cipher }
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        let what =
            || Error::Invalid(format!("{}: bytes {:#x}..{:#x} reach past what is encrypted", self.info().file, range.start, range.end));
        if range.start <= range.end && range.end <= self.len { Ok(()) } else { Err(what()) }
    }
}

impl Image for Decrypted {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(&(offset..offset.saturating_add(buf.len() as u64)))?;
        let mut at = offset;
        let mut rest = buf;
        let mut sectors = Vec::new();
        while !rest.is_empty() {
            let within = at % self.sector_size;
            let now = (rest.len() as u64).min(PIECE - within);
            let (first, whole) = (at - within, (within + now).next_multiple_of(self.sector_size));
            sectors.resize(whole as usize, 0);
            self.volume.read_at(&mut sectors, self.start + first)?;
            self.cipher.decrypt(&mut sectors, self.iv_tweak.wrapping_add(first / SECTOR), self.sector_size as usize);
            let (target, later) = rest.split_at_mut(now as usize);
            target.copy_from_slice(&sectors[within as usize..][..now as usize]);
            rest = later;
            at += now;
        }
        Ok(())
    }

    /// Zeroes below are none once decrypted: all is data.
    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        self.check(&range)?;
        if !range.is_empty() {
            let (start, len) = (range.start, range.end - range.start);
            let _ = visit(Extent { start, len, kind: ExtentKind::Data, depth: 0, host_offset: None, file: None });
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { virtual_size: self.len, actual_size: None, ..self.volume.info() }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}
