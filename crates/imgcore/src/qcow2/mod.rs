//! qcow2, versions 2 and 3: QEMU's copy-on-write format.
//!
//! Source: QEMU's `docs/interop/qcow2.txt`.
//!
//! A guest offset is looked up in the L1 table (in memory), then in an L2 table (cached). Reading takes no lock but the
//! cache's; writing into clusters that are already the image's own takes none either. What changes metadata holds the
//! allocation lock, shortly. Metadata reaches the file only in the order that [`write`](self) keeps: counts, then L2
//! tables, then L1, then lowered counts; so a crash leaves leaked clusters at worst. With lazy refcounts, the image is
//! marked as dirty before the first table that the counts do not know, and the counts come when it is closed.
//!
//! Not supported, and said so: encryption.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use crate::formats::{Caches, OpenContext};
use crate::gate;
use crate::image::check_range;
use crate::storage::read_padded;
use crate::{BitmapInfo, Bitmaps, Error, Extent, ExtentKind, Image, ImageInfo, Reference, Result, SnapshotInfo, Storage};

mod amend;
mod bitmaps;
mod cache;
mod check;
mod codec;
mod compressed;
mod cow;
mod create;
mod deflate;
mod driver;
mod edit;
mod entry;
mod header;
mod l2;
mod measure;
mod place;
mod preallocate;
mod read;
mod refcount;
mod remap;
mod resize;
mod shadow;
mod snapshot;
mod snapshots;
mod stream;
mod write;
mod zero;

pub use codec::ClusterCompressor;
pub use driver::Qcow2Driver;
pub use header::CompressionType;
pub use remap::Move;

use cache::CacheSizes;
use entry::{Cluster, Mapping, OFFSET, Place};
use header::{DATA_FILE, EXTENDED_L2, FORMAT, Header};
use l2::L2Cache;

/// Decompressed clusters that are kept for reads of parts of them.
const KEPT_CLUSTERS: usize = 8;

type KeptClusters = VecDeque<(u64, Arc<[u8]>)>;

/// An open qcow2 image.
pub struct Qcow2 {
    storage: Arc<dyn Storage>,
    /// Where guest data lies: the same, or the external data file.
    data: Arc<dyn Storage>,
    header: Header,
    l1: RwLock<Vec<u64>>,
    l2: L2Cache,
    cache: CacheSizes,
    /// How hard to try when compressing, within the type's bounds.
    compression_level: Option<u32>,
    backing: Option<Arc<dyn Image>>,
    snapshots: Vec<SnapshotInfo>,
    bitmaps: Vec<BitmapInfo>,
    file: Arc<str>,
    data_file: Arc<str>,
    kept: Mutex<KeptClusters>,
    /// See `may_have_holes`.
    sparse: OnceLock<bool>,
    /// Held by every read; freed clusters are reused only after all reads that may still look at them.
    reads: RwLock<()>,
    writer: Option<write::Writer>,
}

impl Qcow2 {
    /// Opens the image in `storage` for reading.
    pub fn open(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        Self::open_parts(storage, context, false)
    }

    /// Opens the image and the files that it names.
    fn open_parts(storage: Arc<dyn Storage>, context: &OpenContext<'_>, writable: bool) -> Result<Self> {
        let mut header = Header::read(&*storage)?;
        if let Some(wanted) = context.options.snapshot {
            snapshot::select(&*storage, &mut header, wanted)?;
        }
        let cache = CacheSizes::new(&header, &context.options.caches)?;
        let from = storage.name().to_owned();
        let refers = |target, role| Reference { from: &from, target, role };
        let data = match &header.data_file {
            _ if !header.has(DATA_FILE) => None,
            Some(target) if writable => Some(context.open_part_mut(&refers(target, gate::DATA_FILE))?),
            Some(target) if context.options.backing => Some(context.open_part(&refers(target, gate::DATA_FILE))?),
            Some(_) => None,
            None => return Err(Error::corrupt(&from, FORMAT, 72, "the image has an external data file, but does not name it")),
        };
        let backing = match &header.backing_file {
            Some(target) if context.options.backing => {
                Some(context.open_reference(&refers(target, "backing file"), header.backing_format.as_deref())?)
            }
            _ => None,
        };
        let mut image = Self::with_header(storage, header, backing)?;
        image.l2 = L2Cache::new(&image.header, cache.l2);
        image.cache = cache;
        Ok(match data {
            Some(data) => image.with_data(data),
            None => image,
        })
    }

    /// The same image, with its guest data in `data`.
    fn with_data(mut self, data: Arc<dyn Storage>) -> Self {
        self.data_file = data.name().into();
        self.data = data;
        self
    }

    fn with_header(storage: Arc<dyn Storage>, header: Header, backing: Option<Arc<dyn Image>>) -> Result<Self> {
        let mut bytes = vec![0; header.l1_size as usize * 8];
        read_padded(&*storage, &mut bytes, header.l1_table_offset)?;
        let file: Arc<str> = storage.name().into();
        let cache = CacheSizes::new(&header, &Caches::default())?;
        let snapshots = snapshot::read(&*storage, &header)?.into_iter().map(|s| s.info).collect();
        Ok(Qcow2 {
            snapshots,
            // A damaged directory is an obstacle only to writing.
            bitmaps: bitmaps::read(&*storage, &header).unwrap_or_default().iter().map(bitmaps::Bitmap::info).collect(),
            data: storage.clone(),
            storage,
            l1: RwLock::new(l2::words(&bytes).collect()),
            l2: L2Cache::new(&header, cache.l2),
            cache,
            compression_level: None,
            header,
            backing,
            data_file: file.clone(),
            file,
            kept: Mutex::default(),
            sparse: OnceLock::new(),
            reads: RwLock::default(),
            writer: None,
        })
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// How clusters of this image are compressed.
    pub fn compression_type(&self) -> CompressionType {
        self.header.compression
    }

    /// Whether the file occupies so much less than its length that room was reserved for data, as QEMU guesses. Only then
    /// is it worth looking for holes in data.
    fn may_have_holes(&self) -> bool {
        *self.sparse.get_or_init(|| {
            let (Some(allocated), Ok(len)) = (self.storage.allocated(), self.storage.size()) else { return false };
            let stored = allocated / self.cluster_size();
            !self.header.has(DATA_FILE) && len.div_ceil(self.cluster_size()) >= (stored.saturating_mul(10) / 9).max(stored + 2)
        })
    }

    /// The place of the L2 table for `guest`, checked; `None` when there is none.
    fn l2_offset(&self, guest: u64) -> Result<Option<u64>> {
        let index = guest / self.header.l2_span();
        let entry = {
            let l1 = self.l1.read().unwrap_or_else(|e| e.into_inner());
            usize::try_from(index).ok().and_then(|i| l1.get(i)).copied().unwrap_or(0)
        };
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(self.cluster_size()) {
            let at = self.header.l1_table_offset + index * 8;
            return Err(Error::corrupt(
                &self.file,
                FORMAT,
                at,
                format!("L1 entry {index} points at {offset:#x}, which is no cluster's start"),
            ));
        }
        Ok((offset != 0).then_some(offset))
    }

    /// Where the byte `guest` lies, and how many bytes (at most `len`) follow it in the same way. Goes no farther than
    /// one slice of an L2 table.
    fn lookup(&self, guest: u64, len: u64) -> Result<(Mapping, u64)> {
        let (span, cluster_size, unit) = (self.header.l2_span(), self.cluster_size(), self.header.subcluster_size());
        let Some(table) = self.l2_offset(guest)? else { return Ok((Mapping::Unallocated, (span - guest % span).min(len))) };
        let (slice, index) = self.l2.get(&*self.storage, table, guest % span / cluster_size)?;
        let in_slice = ((self.l2.slice_entries() - index as u64) * cluster_size - guest % cluster_size).min(len);
        let start = guest - guest % cluster_size;
        let mapping = |guest: u64| -> Result<Mapping> {
            let index = index + ((guest - start) / cluster_size) as usize;
            let at = slice.offset + index as u64 * self.header.l2_entry_size();
            let cluster = Cluster::decode(&self.header, &self.file, slice.get(index), at)?;
            cluster.mapping(&self.header, &self.file, (guest % cluster_size / unit) as u32, at)
        };
        let first = mapping(guest)?;
        let within = guest % unit;
        let mut run = unit - within;
        if unit == cluster_size && run < in_slice {
            // Entries that continue the first one are the same number, or rise by one cluster: most of the work of a walk.
            let step = match first {
                Mapping::Unallocated | Mapping::Zero { host: None } => Some(0),
                Mapping::Data { .. } | Mapping::Zero { host: Some(_) } => Some(cluster_size),
                Mapping::Compressed { .. } => None,
            };
            run += step.map_or(0, |step| slice.following(index, step)) as u64 * cluster_size;
        }
        while run < in_slice && !matches!(first, Mapping::Compressed { .. }) {
            if !follows(first, mapping(guest + run)?, run + within) {
                break;
            }
            run += unit;
        }
        let mapping = match first {
            Mapping::Data { host, copied } => Mapping::Data { host: host + within, copied },
            Mapping::Zero { host } => Mapping::Zero { host: host.map(|h| h + within) },
            other => other,
        };
        if matches!(mapping, Mapping::Compressed { .. }) {
            run = cluster_size - guest % cluster_size;
        }
        Ok((mapping, run.min(in_slice)))
    }

    /// The guest cluster number `number`, as its L2 entry describes it.
    fn cluster(&self, number: u64) -> Result<Cluster> {
        let guest = number * self.cluster_size();
        let Some(table) = self.l2_offset(guest)? else { return Ok(Cluster { place: Place::Nowhere, stored: 0, zero: 0 }) };
        let (slice, index) = self.l2.get(&*self.storage, table, number % self.l2.table_entries())?;
        let at = slice.offset + index as u64 * self.header.l2_entry_size();
        Cluster::decode(&self.header, &self.file, slice.get(index), at)
    }
}

/// Whether `next`, `distance` bytes after the start of `first`, continues it.
fn follows(first: Mapping, next: Mapping, distance: u64) -> bool {
    match (first, next) {
        (Mapping::Unallocated, Mapping::Unallocated) => true,
        (Mapping::Zero { host: None }, Mapping::Zero { host: None }) => true,
        (Mapping::Zero { host: Some(a) }, Mapping::Zero { host: Some(b) }) => a.checked_add(distance) == Some(b),
        (Mapping::Data { host: a, copied: c }, Mapping::Data { host: b, copied: d }) => c == d && a.checked_add(distance) == Some(b),
        _ => false,
    }
}

impl Image for Qcow2 {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, buf.len() as u64)?;
        let _reading = self.reads.read().unwrap_or_else(|e| e.into_inner());
        self.read_range(buf, offset)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.file, self.size(), range.start, range.end.saturating_sub(range.start))?;
        let mut at = range.start;
        let mut ahead = None;
        while at < range.end {
            let (mapping, mut run) = ahead.take().map_or_else(|| self.lookup(at, range.end - at), Ok)?;
            // Runs are joined over L2 tables, so that an empty terabyte is one extent.
            while at + run < range.end {
                let (next, more) = self.lookup(at + run, range.end - at - run)?;
                // No host offset tells adjoining compressed clusters apart.
                let both_compressed = [mapping, next].iter().all(|m| matches!(m, Mapping::Compressed { .. }));
                if !both_compressed && !follows(mapping, next, run) {
                    ahead = Some((next, more));
                    break;
                }
                run += more;
            }
            let own = |kind, start, len, host_offset: Option<u64>| Extent {
                start,
                len,
                kind,
                depth: 0,
                host_offset,
                file: host_offset.map(|_| self.data_file.clone()),
            };
            let mut flow = ControlFlow::Continue(());
            match mapping {
                Mapping::Data { host, .. } if self.may_have_holes() => {
                    let mut from = host;
                    while from < host + run && flow.is_continue() {
                        let data = self.data.next_data(from)?.unwrap_or(host + run..host + run);
                        let (start, end) = (data.start.clamp(from, host + run), data.end.clamp(from, host + run));
                        let (kind, to) = if start > from { (ExtentKind::Hole, start) } else { (ExtentKind::Data, end.max(from + 1)) };
                        flow = visit(own(kind, at + (from - host), to - from, Some(from)));
                        from = to;
                    }
                }
                Mapping::Data { host, .. } => flow = visit(own(ExtentKind::Data, at, run, Some(host))),
                Mapping::Zero { host } => flow = visit(own(ExtentKind::Zero, at, run, host)),
                Mapping::Compressed { .. } => flow = visit(own(ExtentKind::Compressed, at, run, None)),
                Mapping::Unallocated => {
                    let below = self.backing.as_ref().map_or(0, |b| b.size().saturating_sub(at)).min(run);
                    if let (Some(backing), true) = (&self.backing, below > 0) {
                        backing.extents(at..at + below, &mut |extent| {
                            flow = visit(Extent { depth: extent.depth + 1, ..extent });
                            flow
                        })?;
                    }
                    if flow.is_continue() && below < run {
                        flow = visit(own(ExtentKind::Unallocated, at + below, run - below, None));
                    }
                }
            }
            if flow.is_break() {
                break;
            }
            at += run;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        let header = &self.header;
        let flag = |on: bool| on.to_string();
        let mut details = vec![("compat".to_owned(), if header.version == 2 { "0.10" } else { "1.1" }.to_owned())];
        let mut detail = |name: &str, value: String| details.push((name.into(), value));
        detail("compression type", if header.compression == CompressionType::Zlib { "zlib" } else { "zstd" }.into());
        if header.version == 3 {
            detail("lazy refcounts", flag(header.compatible & header::LAZY_REFCOUNTS != 0));
        }
        detail("refcount bits", (1u32 << header.refcount_order).to_string());
        if header.version == 3 {
            if let (true, Some(data_file)) = (header.has(DATA_FILE), &header.data_file) {
                detail("data file", data_file.clone());
                detail("data file raw", flag(header.autoclear & header::DATA_FILE_RAW != 0));
            }
            detail("corrupt", flag(header.has(header::CORRUPT)));
            detail("extended l2", flag(header.has(EXTENDED_L2)));
        }
        ImageInfo {
            format: FORMAT,
            file: self.file.to_string(),
            virtual_size: header.size,
            actual_size: self.storage.allocated(),
            cluster_size: Some(header.cluster_size()),
            backing_file: header.backing_file.clone(),
            backing_format: header.backing_format.clone(),
            dirty: header.has(header::DIRTY),
            file_size: self.storage.size().ok(),
            snapshots: self.snapshots.clone(),
            bitmaps: self.bitmaps.clone(),
            details,
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        self.backing.as_deref()
    }

    fn dirty_ranges(&self, bitmap: &str) -> Result<Vec<Range<u64>>> {
        Bitmaps::dirty(self, bitmap)
    }
}
