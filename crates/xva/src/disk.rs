//! One disk of an open archive, as an image.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use imgcore::{Error, Extent, ExtentKind, Image, ImageInfo, Progress, Result};

use crate::XVA;
use crate::archive::{Data, MAX_POINTS, RawChunk, RawSum};
use crate::bytes::{Bytes, HostFile};
use crate::gunzip::Gunzip;
use crate::model::{Disk, Role};
use crate::stream::MAX_CHUNK;
use crate::sums::Sum;

/// Where a disk's files are.
#[derive(Clone)]
pub(crate) enum Place {
    /// In an archive: a file's place is the offset of its data.
    Archive(Arc<dyn Bytes>),
    /// In this folder: a file's place is its number, which makes its name.
    Folder(PathBuf),
}

impl Place {
    fn read(&self, file: &str, place: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Place::Archive(bytes) => bytes.read_exact(buf, place.saturating_add(within)),
            Place::Folder(folder) => HostFile::open_member(&folder.join(file))?.read_exact(buf, within),
        }
    }

    /// The file of the host in which places are offsets.
    fn plain_file(&self) -> Option<&str> {
        match self {
            Place::Archive(bytes) if bytes.is_plain() => Some(bytes.name()),
            _ => None,
        }
    }
}

/// The chunks of a modern disk that hold data, in order.
pub(crate) struct ModernData {
    place: Place,
    chunks: Vec<Chunk>,
    verified: Vec<AtomicBool>,
    /// Bytes of a chunk.
    pub block: Option<u64>,
}

struct Chunk {
    offset: u64,
    place: u64,
    number: u64,
    /// Bytes that are the disk's.
    len: u32,
    /// Bytes stored, a tail's padding included.
    stored: u32,
    sum: ChunkSum,
}

enum ChunkSum {
    None,
    Stored(RawSum),
    /// Of the table at the archive's end.
    Known(Box<Sum>),
}

impl ModernData {
    pub fn new(place: Place) -> Self {
        ModernData { place, chunks: Vec::new(), verified: Vec::new(), block: None }
    }

    /// Adds the next chunk, which lies at `offset` with `len` of its bytes.
    pub fn push(&mut self, raw: RawChunk, offset: u64, len: u64, known: Option<Sum>) -> Result<(), String> {
        let too_long = || format!("chunk {:08} has {} bytes: more than {MAX_CHUNK} are not read", raw.number, raw.len);
        if raw.len > MAX_CHUNK {
            return Err(too_long());
        }
        let [len, stored] = [len, raw.len].map(|n| u32::try_from(n).map_err(|_| too_long()));
        let sum = match (raw.sum, known) {
            (Some(sum), _) => ChunkSum::Stored(sum),
            (None, Some(sum)) => ChunkSum::Known(Box::new(sum)),
            (None, None) => ChunkSum::None,
        };
        self.chunks.push(Chunk { offset, place: raw.place, number: raw.number, len: len?, stored: stored?, sum });
        self.verified.push(AtomicBool::new(false));
        Ok(())
    }

    /// The first chunk that ends after `offset`.
    fn at(&self, offset: u64) -> usize {
        self.chunks.partition_point(|c| c.offset + u64::from(c.len) <= offset)
    }

    fn sum(&self, chunk: &Chunk, name: &str, id: &str) -> Result<Option<Sum>> {
        Ok(match &chunk.sum {
            ChunkSum::None => None,
            ChunkSum::Known(sum) => Some(**sum),
            ChunkSum::Stored(raw) => {
                let mut text = vec![0; usize::from(raw.len)];
                let file = format!("{:08}.{}", chunk.number, raw.kind.extension());
                self.place.read(&file, raw.place, 0, &mut text)?;
                let sum = raw.kind.parse(&text).ok_or_else(|| {
                    let at = self.place.plain_file().map(|_| raw.place);
                    Error::corrupt(name, XVA, at, format!("{id}/{file} holds no checksum"))
                })?;
                Some(sum)
            }
        })
    }

    /// Fills `buf` from byte `within` of a chunk, verifying the chunk if that was not done.
    fn read(&self, index: usize, within: u64, buf: &mut [u8], name: &str, id: &str) -> Result<()> {
        let (Some(chunk), Some(verified)) = (self.chunks.get(index), self.verified.get(index)) else {
            return Err(Error::Invalid(format!("{name}: no chunk {index}")));
        };
        let file = format!("{:08}", chunk.number);
        if verified.load(Ordering::Relaxed) {
            return self.place.read(&file, chunk.place, within, buf);
        }
        let stored = chunk.stored as usize;
        let mut whole = Vec::new();
        let data: &mut [u8] = if within == 0 && buf.len() == stored {
            buf
        } else {
            whole.resize(stored, 0);
            &mut whole
        };
        self.place.read(&file, chunk.place, 0, data)?;
        if let Some(sum) = self.sum(chunk, name, id)? {
            let at = self.place.plain_file().map(|_| chunk.place);
            check(data, sum, name, at, &format!("{id}/{file}"), chunk.offset)?;
        }
        verified.store(true, Ordering::Relaxed);
        if !whole.is_empty() {
            let start = usize::try_from(within).unwrap_or(usize::MAX);
            let part = start.checked_add(buf.len()).and_then(|end| whole.get(start..end));
            buf.copy_from_slice(part.ok_or_else(|| Error::Invalid(format!("{name}: {id}: read past a chunk's end")))?);
        }
        Ok(())
    }
}

/// Compares data with its checksum.
pub(crate) fn check(data: &[u8], expected: Sum, name: &str, at: Option<u64>, entry: &str, disk_offset: u64) -> Result<()> {
    let actual = expected.kind().compute(data);
    if actual == expected {
        return Ok(());
    }
    let what = format!(
        "wrong checksum of {entry} (byte {disk_offset} of the disk): its data gives {actual}, the archive says {expected}. The archive is damaged: copy or export it again"
    );
    Err(Error::corrupt(name, XVA, at, what))
}

/// The gzipped chunks of a legacy disk.
pub(crate) struct LegacyData {
    chunks: Vec<LegacyChunk>,
    stored: u64,
}

struct LegacyChunk {
    offset: u64,
    len: u64,
    gzip: Gunzip,
}

impl LegacyData {
    /// `chunks` ascend. `total` is the number of all disks' chunks. The inner error says why the disk is not whole.
    pub fn new(name: &str, disk: &Disk, chunks: Vec<RawChunk>, place: Place, total: usize) -> Result<Result<Self, String>> {
        let points = (MAX_POINTS / total.max(1)).max(2);
        let mut gzips = Vec::new();
        let mut stored = 0;
        for (i, chunk) in chunks.iter().enumerate() {
            if chunk.number != i as u64 {
                return Ok(Err(format!("chunk {i} is missing, or there twice: the next is {}", chunk.number)));
            }
            let (bytes, range): (Arc<dyn Bytes>, _) = match &place {
                Place::Archive(bytes) => (bytes.clone(), chunk.place..chunk.place.saturating_add(chunk.len)),
                Place::Folder(folder) => {
                    let dash = if chunk.place == 1 { "-" } else { "" };
                    let file = HostFile::open_member(&folder.join(format!("chunk{dash}{:09}.gz", chunk.number)))?;
                    (Arc::new(file), 0..chunk.len)
                }
            };
            // The last four bytes of a gzip are the length of what it unpacks to: true for chunks of 1e9 bytes.
            let mut isize = [0; 4];
            if chunk.len < 18 {
                return Ok(Err(format!("truncated: chunk {i} has only {} bytes", chunk.len)));
            }
            bytes.read_exact(&mut isize, range.end - 4)?;
            let label = format!("{name}: {}/chunk {i}", disk.id);
            gzips.push((u64::from(u32::from_le_bytes(isize)), Gunzip::new(bytes, range, &label, points)));
            stored += chunk.len;
        }
        let claimed: u64 = gzips.iter().map(|(len, _)| len).sum();
        if claimed != disk.size {
            for (len, gzip) in &mut gzips {
                *len = gzip.unpacked_len()?;
            }
        }
        let mut offset = 0u64;
        let mut data = LegacyData { chunks: Vec::new(), stored };
        for (len, gzip) in gzips {
            data.chunks.push(LegacyChunk { offset, len, gzip });
            offset = offset.saturating_add(len);
        }
        if offset != disk.size {
            return Ok(Err(wrong_size(offset, disk.size)));
        }
        Ok(Ok(data))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            let at = offset + done as u64;
            let index = self.chunks.partition_point(|c| c.offset + c.len <= at);
            let Some(chunk) = self.chunks.get(index) else {
                return Err(Error::Invalid(format!("read past the disk's end, at {at}")));
            };
            let within = at - chunk.offset;
            let n = rest.len().min(usize::try_from(chunk.len - within).unwrap_or(usize::MAX));
            chunk.gzip.read_exact(&mut rest[..n], within)?;
            if within + n as u64 == chunk.len {
                chunk.at_end()?;
            }
            done += n;
        }
        Ok(())
    }
}

impl LegacyChunk {
    /// Verifies the gzip's own checksum, and that it ends where it said.
    fn at_end(&self) -> Result<()> {
        if self.gzip.read_some(&mut [0], self.len)? != 0 {
            return Err(Error::corrupt(self.gzip.name(), XVA, None, "gzip: unpacks to more than its end says"));
        }
        Ok(())
    }
}

/// What to say of a legacy disk whose chunks do not add up.
pub(crate) fn wrong_size(got: u64, size: u64) -> String {
    match got < size {
        true => format!("truncated: its chunks hold {got} of {size} bytes"),
        false => format!("its chunks hold {got} bytes, more than its size of {size}"),
    }
}

/// A disk as an image.
pub(crate) struct DiskImage {
    archive: Arc<str>,
    file: Arc<str>,
    model: Disk,
    data: Arc<Data>,
}

impl DiskImage {
    pub fn new(archive: Arc<str>, model: Disk, data: Arc<Data>) -> Self {
        let file = format!("{archive}#{}", model.id).into();
        DiskImage { archive, file, model, data }
    }

    /// Bytes that it takes in the archive.
    pub fn stored_bytes(&self) -> u64 {
        match &*self.data {
            Data::Modern(d) => d.chunks.iter().map(|c| u64::from(c.stored)).sum(),
            Data::Legacy(d) => d.stored,
        }
    }

    /// Reads everything, on all processors.
    pub fn verify(&self, progress: &dyn Progress) -> Result<()> {
        let next = AtomicUsize::new(0);
        let count = match &*self.data {
            Data::Modern(d) => d.chunks.len(),
            Data::Legacy(d) => d.chunks.len(),
        };
        let work = || -> Result<()> {
            let mut buf = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return Ok(());
                }
                if progress.cancelled() {
                    return Err(Error::Invalid("stopped".into()));
                }
                let result = match &*self.data {
                    Data::Modern(d) => d.chunks.get(i).map_or(Ok(0), |c| {
                        buf.resize(c.stored as usize, 0);
                        d.read(i, 0, &mut buf, &self.archive, &self.model.id).map(|()| u64::from(c.stored))
                    }),
                    Data::Legacy(d) => d.chunks.get(i).map_or(Ok(0), |c| {
                        let len = c.gzip.unpacked_len()?;
                        if len != c.len {
                            return Err(Error::corrupt(
                                c.gzip.name(),
                                XVA,
                                None,
                                format!("gzip: unpacks to {len} bytes, not to {}", c.len),
                            ));
                        }
                        Ok(d.stored / count as u64)
                    }),
                };
                // Everybody stops at the first error.
                progress.advance(result.inspect_err(|_| next.store(count, Ordering::Relaxed))?);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count.max(1));
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            all.into_iter().try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn in_bounds(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len).is_some_and(|end| end <= self.model.size) {
            true => Ok(()),
            false => Err(Error::Invalid(format!("{}: {len} bytes at {offset} lie past the disk's end at {}", self.file, self.model.size))),
        }
    }
}

impl Image for DiskImage {
    fn size(&self) -> u64 {
        self.model.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.in_bounds(offset, buf.len() as u64)?;
        let data = match &*self.data {
            Data::Legacy(data) => return data.read(buf, offset),
            Data::Modern(data) => data,
        };
        let end = offset + buf.len() as u64;
        let mut at = offset;
        let mut rest = buf;
        let mut index = data.at(offset);
        while at < end {
            let (start, stop) = data.chunks.get(index).map_or((end, end), |c| (c.offset.min(end), (c.offset + u64::from(c.len)).min(end)));
            let gap = usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX);
            let (zeroes, tail) = rest.split_at_mut(gap.min(rest.len()));
            zeroes.fill(0);
            at = at.max(start);
            let (part, tail) = tail.split_at_mut(usize::try_from(stop - at).unwrap_or(usize::MAX).min(tail.len()));
            if !part.is_empty() {
                data.read(index, at - start, part, &self.archive, &self.model.id)?;
            }
            rest = tail;
            at = stop;
            index += 1;
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        self.in_bounds(range.start, range.end.saturating_sub(range.start))?;
        let mut emit = |start: u64, end: u64, kind, host_offset, file| match start < end {
            true => visit(Extent { start, len: end - start, kind, depth: 0, host_offset, file }),
            false => ControlFlow::Continue(()),
        };
        let data = match &*self.data {
            Data::Legacy(_) => {
                let _ = emit(range.start, range.end, ExtentKind::Compressed, None, None);
                return Ok(());
            }
            Data::Modern(data) => data,
        };
        let file: Option<Arc<str>> = data.place.plain_file().map(Into::into);
        let mut at = range.start;
        for chunk in data.chunks.iter().skip(data.at(range.start)) {
            if at >= range.end {
                break;
            }
            let start = chunk.offset.clamp(at, range.end);
            let end = (chunk.offset + u64::from(chunk.len)).min(range.end);
            if emit(at, start, ExtentKind::Zero, None, None).is_break() {
                return Ok(());
            }
            let host_offset = file.as_ref().map(|_| chunk.place + (start - chunk.offset.min(start)));
            if emit(start, end, ExtentKind::Data, host_offset, file.clone()).is_break() {
                return Ok(());
            }
            at = end.max(start);
        }
        let _ = emit(at, range.end, ExtentKind::Zero, None, None);
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        let mut details = Vec::new();
        let mut detail = |key: &str, value: &str| {
            if !value.is_empty() {
                details.push((key.to_string(), value.to_string()));
            }
        };
        detail("name", &self.model.name);
        detail("description", &self.model.description);
        detail("uuid", &self.model.uuid);
        detail("role", if self.model.role == Role::Suspend { "memory of a suspended guest" } else { "" });
        ImageInfo {
            format: "xva",
            file: self.file.to_string(),
            virtual_size: self.model.size,
            actual_size: Some(self.stored_bytes()),
            cluster_size: match &*self.data {
                Data::Modern(d) => d.block,
                Data::Legacy(_) => None,
            },
            details,
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}
