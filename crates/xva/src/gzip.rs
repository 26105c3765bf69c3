//! A gzipped disk as an image: read at any place, and never unpacked to a file.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use imgcore::{Error, Extent, ExtentKind, Image, ImageInfo, Result};

use crate::archive::MAX_POINTS;
use crate::bytes::{Bytes, HostFile};
use crate::gunzip::Gunzip;

/// What a part of a file unpacks to.
pub struct GzipImage {
    inner: Gunzip,
    name: String,
    size: u64,
}

impl GzipImage {
    /// Opens the gzip that lies in `range` of `path`. It is read once to its end, for its length and its checksums.
    pub fn open(path: &Path, range: Range<u64>, name: &str) -> Result<Self> {
        let packed: Arc<dyn Bytes> = Arc::new(HostFile::open(path)?);
        let inner = Gunzip::new(packed, range, name, MAX_POINTS);
        let size = inner.unpacked_len()?;
        Ok(GzipImage { inner, name: name.into(), size })
    }
}

impl Image for GzipImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(Error::Invalid(format!("{}: byte {offset:#x} is past its end", self.name)));
        }
        self.inner.read_exact(buf, offset)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        let range = range.start.min(self.size)..range.end.min(self.size);
        if range.start < range.end {
            let len = range.end - range.start;
            let _ = visit(Extent { start: range.start, len, kind: ExtentKind::Compressed, depth: 0, host_offset: None, file: None });
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { format: "raw", file: self.name.clone(), virtual_size: self.size, ..ImageInfo::default() }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_gzip_within_a_file_is_read_at_any_place_and_damage_is_told() {
        let plain: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut packed = flate2::write::GzEncoder::new(vec![9; 512], flate2::Compression::fast());
        packed.write_all(&plain).unwrap();
        let mut bytes = packed.finish().unwrap();
        let range = 512..bytes.len() as u64;
        bytes.extend([9; 100]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let image = GzipImage::open(file.path(), range.clone(), "a.ova#disk.gz").unwrap();
        assert_eq!(image.size(), plain.len() as u64);
        for at in [1_000_000, 0, 1_199_990] {
            let mut buf = [0; 10];
            image.read_at(&mut buf, at as u64).unwrap();
            assert_eq!(buf, plain[at..at + 10]);
        }
        assert!(image.read_at(&mut [0; 2], plain.len() as u64 - 1).is_err());
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file.path(), &bytes).unwrap();
        let error = GzipImage::open(file.path(), range, "a.ova#disk.gz").err().unwrap().to_string();
        assert!(error.starts_with("a.ova#disk.gz: corrupt"), "{error}");
    }
}
