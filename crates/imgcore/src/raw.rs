//! Raw images: the bytes of the file are the bytes of the disk.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::formats::{CheckReport, CreateOptions, FormatDriver, FormatOption, Formats, Measured, OpenContext, Probe, Repair};
use crate::image::check_range;
use crate::storage::read_padded;
use crate::stream::Stream;
use crate::{Error, Extent, ExtentKind, Image, ImageEdit, ImageInfo, ImageMut, Place, Placing, Preallocation, Progress, Result, Storage};

/// The guest-visible size is a multiple of this; a file's odd end is padded with zeroes.
const SECTOR: u64 = 512;

/// A raw image.
pub struct Raw {
    storage: Arc<dyn Storage>,
    size: u64,
    file: Arc<str>,
    /// Set when nobody said that this is raw: the guest could then write another format's header into sector 0 and
    /// have its own choice of backing file read at the next start. Such writes are refused, as QEMU does.
    guard: Option<Formats>,
}

impl Raw {
    /// The whole of `storage` as a disk.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let size = storage.size()?;
        let size = size.checked_next_multiple_of(SECTOR).ok_or_else(|| Error::Invalid(format!("{}: too large", storage.name())))?;
        let file = storage.name().into();
        Ok(Raw { storage, size, file, guard: None })
    }

    /// A disk of `size` zero bytes (rounded up to sectors) in `storage`.
    pub fn create(storage: Arc<dyn Storage>, size: u64) -> Result<Self> {
        let rounded = size.checked_next_multiple_of(SECTOR).ok_or_else(|| Error::Invalid(format!("{}: too large", storage.name())))?;
        storage.set_size(0)?;
        storage.set_size(rounded)?;
        let file = storage.name().into();
        Ok(Raw { storage, size: rounded, file, guard: None })
    }

    /// What the bytes lie in.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn check_header(&self, data: &[u8], offset: u64) -> Result<()> {
        let Some(formats) = &self.guard else { return Ok(()) };
        if offset >= SECTOR {
            return Ok(());
        }
        let mut head = [0; SECTOR as usize];
        read_padded(&*self.storage, &mut head, 0)?;
        let start = offset as usize;
        let len = data.len().min(head.len() - start);
        head[start..start + len].copy_from_slice(&data[..len]);
        let driver = formats.probe(&Probe { head: &head, tail: &[], size: self.size });
        if driver.name() == RawDriver.name() {
            return Ok(());
        }
        let what = format!(
            "writing a {} header to sector 0 of an image whose format was guessed; say its format (raw) to allow it",
            driver.name()
        );
        Err(Error::unsupported(&self.file, "raw", what))
    }
}

impl Image for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size, offset, buf.len() as u64)?;
        read_padded(&*self.storage, buf, offset)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.file, self.size, range.start, range.end.saturating_sub(range.start))?;
        let mut at = range.start;
        let mut emit = |range: Range<u64>, kind| {
            let extent = Extent {
                start: range.start,
                len: range.end - range.start,
                kind,
                depth: 0,
                host_offset: Some(range.start),
                file: Some(self.file.clone()),
            };
            visit(extent)
        };
        while at < range.end {
            let data = self.storage.next_data(at)?.unwrap_or(range.end..range.end);
            let start = data.start.clamp(at, range.end);
            let end = data.end.clamp(start, range.end);
            if start > at && emit(at..start, ExtentKind::Zero).is_break() {
                return Ok(());
            }
            if end > start && emit(start..end, ExtentKind::Data).is_break() {
                return Ok(());
            }
            at = end;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: "raw",
            file: self.file.to_string(),
            virtual_size: self.size,
            actual_size: self.storage.allocated(),
            file_size: self.storage.size().ok(),
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

impl ImageMut for Raw {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size, offset, data.len() as u64)?;
        self.check_header(data, offset)?;
        self.storage.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.size, offset, len)?;
        self.storage.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.storage.sync()
    }

    fn placing(&self) -> Option<&dyn Placing> {
        Some(self)
    }
}

impl Placing for Raw {
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>> {
        check_range(&self.file, self.size, offset, len)?;
        Ok(Some(Place { host: offset, len }))
    }

    fn store(&self, data: &[u8], host: u64) -> Result<()> {
        self.write_at(data, host)
    }
}

impl ImageEdit for Raw {
    fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        let size = size.checked_next_multiple_of(SECTOR).ok_or_else(|| Error::Invalid(format!("{}: too large", self.file)))?;
        let old = self.size;
        if size < old && preallocation != Preallocation::Off {
            return Err(Error::Invalid("Preallocation can't be used for shrinking an image".into()));
        }
        if preallocation == Preallocation::Metadata {
            return Err(Error::Invalid("Unsupported preallocation mode: metadata".into()));
        }
        self.storage.set_size(size)?;
        self.size = size;
        self.fill(old, preallocation)?;
        self.storage.sync()
    }
}

impl Raw {
    /// Gives what lies from `start` on, where nothing was written yet, its place on the host.
    fn fill(&self, start: u64, preallocation: Preallocation) -> Result<()> {
        let len = self.size.saturating_sub(start);
        match preallocation {
            Preallocation::Falloc if len > 0 => self.storage.reserve(start, len),
            Preallocation::Full => {
                let zeroes = vec![0; len.min(1 << 20) as usize];
                let pieces = (0..len).step_by(1 << 20).map(|at| (start + at, (len - at).min(1 << 20) as usize));
                pieces.into_iter().try_for_each(|(at, now)| self.storage.write_at(&zeroes[..now], at))
            }
            _ => Ok(()),
        }
    }
}

/// The entry of the raw format in the table of formats.
pub struct RawDriver;

impl FormatDriver for RawDriver {
    fn name(&self) -> &'static str {
        "raw"
    }

    /// Raw is what remains when no other format claims the bytes.
    fn probe(&self, _: &Probe<'_>) -> bool {
        false
    }

    fn has_metadata(&self) -> bool {
        false
    }

    fn open(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>) -> Result<Arc<dyn Image>> {
        Ok(Arc::new(Raw::open(storage)?))
    }

    fn open_mut(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn ImageMut>> {
        let mut raw = Raw::open(storage)?;
        raw.guard = context.guessed.then(|| context.formats.clone());
        Ok(Arc::new(raw))
    }

    fn open_edit(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>) -> Result<Box<dyn ImageEdit>> {
        Ok(Box::new(Raw::open(storage)?))
    }

    fn options(&self) -> &'static [FormatOption] {
        &[FormatOption { name: "preallocation", value: "<str>", help: "Preallocation mode (allowed values: off, falloc, full)" }]
    }

    fn effective_options(&self, size: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
        let preallocation = options.get("preallocation").map(|p| ("preallocation", p.into()));
        Ok([("size", size.to_string())].into_iter().chain(preallocation).collect())
    }

    fn create(&self, storage: Arc<dyn Storage>, size: u64, options: &CreateOptions) -> Result<Arc<dyn ImageMut>> {
        let mode = options.get("preallocation").unwrap_or("off");
        let preallocation = mode.parse().map_err(|_| Error::Invalid(format!("invalid parameter value: {mode}")))?;
        if preallocation == Preallocation::Metadata {
            return Err(Error::Invalid("Unsupported preallocation mode: metadata".into()));
        }
        let raw = Raw::create(storage, size)?;
        raw.fill(0, preallocation)?;
        Ok(Arc::new(raw))
    }

    fn measure(&self, size: u64, source: Option<&dyn Image>, _: &CreateOptions) -> Result<Measured> {
        let size = source.map_or(size, |source| source.size()).next_multiple_of(SECTOR);
        Ok(Measured { required: size, fully_allocated: size, bitmaps: None })
    }

    fn write_stream(&self, source: &dyn Image, _: &CreateOptions, out: &mut dyn std::io::Write, progress: &dyn Progress) -> Result<()> {
        progress.total(source.size());
        let mut stream = Stream::new(out, progress);
        let mut outcome = Ok(());
        source.extents(0..source.size(), &mut |extent| {
            let range = extent.start..extent.start + extent.len;
            outcome = if extent.kind.reads_zero() { stream.zeroes(extent.len) } else { stream.copy(source, range) };
            progress.advance(extent.len);
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome?;
        stream.finish()
    }

    fn check(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>, _: Repair) -> Result<CheckReport> {
        Err(Error::unsupported(storage.name(), "raw", "checking: a raw image has no metadata that could be damaged"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;

    #[test]
    fn holes_are_zero_extents() {
        let storage = Arc::new(MemStorage::new("disk", 0));
        let raw = Raw::create(storage, 1 << 20).unwrap();
        raw.write_at(&[1; 4096], 8192).unwrap();
        let mut seen = Vec::new();
        raw.extents(4096..1 << 20, &mut |e| {
            seen.push((e.start, e.len, e.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, [(4096, 4096, ExtentKind::Zero), (8192, 4096, ExtentKind::Data), (12288, (1 << 20) - 12288, ExtentKind::Zero)]);
        raw.write_at(&[0], 1 << 20).unwrap_err();
        raw.read_at(&mut [0; 2], (1 << 20) - 1).unwrap_err();
    }

    #[test]
    fn an_odd_end_is_padded() {
        let raw = Raw::open(Arc::new(MemStorage::from_bytes("odd", &[5; 700]))).unwrap();
        assert_eq!(raw.size(), 1024);
        let mut buf = [1; 1024];
        raw.read_at(&mut buf, 0).unwrap();
        assert!(buf[..700] == [5; 700] && buf[700..] == [0; 324]);
    }

    #[test]
    fn a_guessed_raw_image_cannot_turn_into_another_format() {
        let storage: Arc<dyn Storage> = Arc::new(MemStorage::new("disk", 1 << 20));
        let formats = Formats::new();
        let guessed = formats.open_storage_mut(storage.clone(), &crate::OpenOptions::new(&crate::NoGate)).unwrap();
        let error = guessed.write_at(b"QFI\xfb\0\0\0\x03", 0).unwrap_err().to_string();
        assert!(error.contains("writing a qcow2 header to sector 0"), "{error}");
        guessed.write_at(b"QFI", 0).unwrap();
        guessed.write_at(b"\xfb\0\0\0\x03", 3).unwrap_err();
        let named = formats.open_storage_mut(storage, &crate::OpenOptions::new(&crate::NoGate).format("raw")).unwrap();
        named.write_at(b"QFI\xfb\0\0\0\x03", 0).unwrap();
    }
}
