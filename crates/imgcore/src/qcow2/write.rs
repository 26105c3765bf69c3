//! Writing: who may change what, and the order in which metadata reaches the file.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::bitmaps::record::Recorder;
use super::entry::{COMPRESSED, COPIED, Cluster, Mapping, OFFSET, compressed_place};
use super::header::{BITMAPS, CORRUPT, DATA_FILE, DATA_FILE_RAW, DIRTY, FORMAT, Header, LAZY_REFCOUNTS};
use super::l2::L2Entry;
use super::refcount::{Metadata, Refcounts};
use super::{Qcow2, snapshot};
use crate::formats::{OpenContext, OpenOptions, Repair};
use crate::image::check_range;
use crate::ranges::RangeLocks;
use crate::{Compression, Error, Formats, Image, ImageMut, NoGate, Placing, Result, Storage};

/// What an image that is open for writing has besides.
pub(super) struct Writer {
    allocation: Mutex<Allocation>,
    pub ranges: RangeLocks,
    metadata: Metadata,
    pub recorder: Recorder,
}

/// What the allocation lock guards.
pub(super) struct Allocation {
    pub refcounts: Refcounts,
    l1_dirty: BTreeSet<usize>,
    /// Where the last compressed cluster ended, if the rest of that host cluster is free for the next one.
    pub compressed_end: Option<u64>,
    /// Whether counts may come when the image is closed.
    lazy: bool,
    /// Whether the file says that its counts cannot be relied on.
    marked_dirty: bool,
}

impl Qcow2 {
    /// Opens the image in `storage` for reading and writing.
    ///
    /// # Errors
    /// Images that are marked corrupt must be repaired first (dirty ones are repaired here).
    pub fn open_mut(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        if Header::read(&*storage)?.has(DIRTY) {
            // With lazy refcounts, the counts may be too low after a crash. QEMU repairs them before writing, too.
            super::check::check(storage.clone(), Repair::All)?;
        }
        let image = Self::open_parts(storage, context, true)?;
        if image.header.has(CORRUPT) {
            return Err(Error::corrupt(&image.file, FORMAT, 72, "the image is marked corrupt; run 'img check -r all' before writing"));
        }
        if image.header.has(DIRTY) {
            return Err(Error::corrupt(&image.file, FORMAT, 72, "the image was not closed cleanly and cannot be repaired; convert it"));
        }
        image.into_writable()
    }

    /// Opens an image that names no other file, for reading and writing.
    ///
    /// # Errors
    /// As [`open_mut`](Qcow2::open_mut), and [`Error::Refused`] for an image with a backing file.
    pub fn open_standalone(storage: Arc<dyn Storage>) -> Result<Self> {
        let (formats, options) = (Formats::new(), OpenOptions::new(&NoGate));
        Self::open_mut(storage, &OpenContext::new(&formats, &options, false))
    }

    pub(super) fn into_writable(mut self) -> Result<Self> {
        let header = &mut self.header;
        clear_unknown(header, &*self.storage)?;
        let bits = header.cluster_bits;
        let clusters = |offset: u64, len: u64| offset >> bits..(offset + len).div_ceil(1 << bits);
        let metadata = Metadata::default();
        metadata.add(clusters(0, 1).chain(clusters(header.l1_table_offset, u64::from(header.l1_size) * 8)));
        let snapshots = snapshot::read(&*self.storage, header)?;
        metadata.add(clusters(header.snapshots_offset, snapshots.iter().map(|s| s.entry_len).sum()));
        metadata.add(snapshots.iter().flat_map(|s| clusters(s.l1_table_offset, u64::from(s.l1_size) * 8)));
        let l1 = self.l1.get_mut().unwrap_or_else(|e| e.into_inner());
        metadata.add(l1.iter().map(|entry| (entry & OFFSET) >> bits).filter(|cluster| *cluster != 0));
        let refcounts = Refcounts::open(self.storage.clone(), header, metadata.clone(), self.cache.refcount)?;
        let lazy = header.compatible & LAZY_REFCOUNTS != 0;
        let allocation = Allocation { refcounts, l1_dirty: BTreeSet::new(), compressed_end: None, lazy, marked_dirty: false };
        let allocation = Mutex::new(allocation);
        let recorder = self.recorder(&metadata)?;
        self.writer = Some(Writer { allocation, ranges: RangeLocks::default(), metadata, recorder });
        Ok(self)
    }

    pub(super) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| Error::Invalid(format!("{}: opened for reading only", self.file)))
    }

    /// The header as it stands in the file: since the image was opened, the refcount table may have moved.
    pub(super) fn current_header(&self) -> Header {
        let mut header = self.header.clone();
        if let Some(writer) = &self.writer {
            let allocation = writer.allocation.lock().unwrap_or_else(|e| e.into_inner());
            (header.refcount_table_offset, header.refcount_table_clusters) = allocation.refcounts.table_place();
        }
        header
    }

    /// The clusters that are known to hold metadata.
    pub(super) fn metadata(&self) -> Result<Metadata> {
        Ok(self.writer()?.metadata.clone())
    }

    /// Takes the allocation lock, and room in the caches.
    pub(super) fn allocation(&self) -> Result<MutexGuard<'_, Allocation>> {
        let mut allocation = self.writer()?.allocation.lock().unwrap_or_else(|e| e.into_inner());
        if self.l2.crowded() || allocation.refcounts.crowded() {
            self.write_back(&mut allocation)?;
        }
        Ok(allocation)
    }

    /// Writes all changed metadata, each kind only after what it relies on is durable.
    pub(super) fn write_back(&self, allocation: &mut Allocation) -> Result<()> {
        self.write_counts(allocation)?;
        if allocation.compressed_end.is_some() {
            // Readers fetch whole sectors of compressed data.
            let size = self.storage.size()?;
            if size % 512 != 0 {
                self.storage.set_size(size.next_multiple_of(512))?;
            }
        }
        self.storage.sync()?;
        if self.external() {
            self.data.sync()?;
        }
        if self.l2.write_back(&*self.storage)? {
            self.storage.sync()?;
        }
        if !allocation.l1_dirty.is_empty() {
            for index in &allocation.l1_dirty {
                let entry = self.l1.read().unwrap_or_else(|e| e.into_inner()).get(*index).copied().unwrap_or(0);
                self.storage.write_at(&entry.to_be_bytes(), self.header.l1_table_offset + *index as u64 * 8)?;
            }
            self.storage.sync()?;
            allocation.l1_dirty.clear();
        }
        if allocation.refcounts.has_frees() {
            // Reads that looked a cluster up before it was unlinked end before it can be used again.
            drop(self.reads.write().unwrap_or_else(|e| e.into_inner()));
            self.kept.lock().unwrap_or_else(|e| e.into_inner()).clear();
            allocation.compressed_end = None;
            allocation.refcounts.apply_frees()?;
            self.write_counts(allocation)?;
        }
        Ok(())
    }

    /// Writes changed counts. Lazy ones are left for later, in an image that says durably that they are.
    fn write_counts(&self, allocation: &mut Allocation) -> Result<()> {
        if !allocation.lazy || allocation.refcounts.crowded() {
            allocation.refcounts.write_back()?;
        } else if allocation.refcounts.is_dirty() && !allocation.marked_dirty {
            self.mark_dirty(true)?;
            allocation.marked_dirty = true;
        }
        Ok(())
    }

    fn mark_dirty(&self, dirty: bool) -> Result<()> {
        let features = self.header.incompatible | if dirty { DIRTY } else { 0 };
        self.storage.write_at(&features.to_be_bytes(), 72)?;
        self.storage.sync()
    }

    /// Brings an image with lazy counts into order, and keeps it so. Whoever changes more than content calls it first.
    pub(super) fn end_laziness(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let mut allocation = writer.allocation.lock().unwrap_or_else(|e| e.into_inner());
        allocation.lazy = false;
        if std::mem::take(&mut allocation.marked_dirty) {
            self.write_back(&mut allocation)?;
            self.storage.sync()?;
            self.mark_dirty(false)?;
        }
        Ok(())
    }

    /// Makes sure that the L2 table for `guest` exists and is this image's own.
    pub(super) fn own_l2(&self, allocation: &mut Allocation, guest: u64) -> Result<u64> {
        let old = self.l2_offset(guest)?;
        let index = (guest / self.header.l2_span()) as usize;
        let copied = self.l1.read().unwrap_or_else(|e| e.into_inner()).get(index).is_some_and(|entry| entry & COPIED != 0);
        if let (Some(offset), true) = (old, copied) {
            if allocation.refcounts.get(offset / self.cluster_size())? == 0 {
                let what = "the L2 table lies in a cluster that is counted as free; run 'img check -r all' before writing";
                return Err(Error::corrupt(&self.file, FORMAT, offset, what));
            }
            return Ok(offset);
        }
        let entries = match old {
            // A snapshot uses the table too: then nothing that it names may be written in place.
            Some(offset) => self.l2.table(&*self.storage, offset)?,
            None => Vec::new(),
        };
        let cluster = allocation.refcounts.allocate(1)?;
        allocation.refcounts.is_fresh(&cluster);
        allocation.refcounts.protect(cluster.clone());
        let offset = cluster.start * self.cluster_size();
        // In an external data file, every cluster is this image's own.
        let shared = if self.external() { 0 } else { COPIED };
        let entries: Vec<L2Entry> = entries.into_iter().map(|(entry, bitmap)| (entry & !shared, bitmap)).collect();
        self.l2.insert(offset, &entries);
        if let Some(entry) = self.l1.write().unwrap_or_else(|e| e.into_inner()).get_mut(index) {
            *entry = offset | COPIED;
        }
        allocation.l1_dirty.insert(index);
        if let Some(old) = old {
            let cluster = old / self.cluster_size();
            allocation.refcounts.free_later(cluster..cluster + 1, false);
        }
        Ok(offset)
    }

    /// Drops the L2 table number `index`, but not what it names.
    pub(super) fn unlink_l2(&self, allocation: &mut Allocation, index: usize) {
        let mut l1 = self.l1.write().unwrap_or_else(|e| e.into_inner());
        let Some(entry) = l1.get_mut(index) else { return };
        let cluster = (std::mem::take(entry) & OFFSET) / self.cluster_size();
        allocation.l1_dirty.insert(index);
        allocation.refcounts.free_later(cluster..cluster + 1, false);
    }

    /// Makes guest clusters from `first` what `clusters` says, and gives back what they no longer use. All lie in one L2
    /// table that this image owns.
    pub(super) fn link(&self, allocation: &mut Allocation, first: u64, clusters: impl Iterator<Item = Cluster>, punch: bool) -> Result<()> {
        let guest = first * self.cluster_size();
        let table = self.l2_offset(guest)?.ok_or_else(|| Error::Invalid(format!("{}: no L2 table at {guest:#x}", self.file)))?;
        for (number, cluster) in (first..).zip(clusters) {
            let (slice, index) = self.l2.get_for_change(&*self.storage, table, number % self.l2.table_entries())?;
            let (old, _) = slice.get(index);
            let new = cluster.encode(&self.header);
            slice.set(index, new);
            let stays = old == new.0 || ((old | new.0) & COMPRESSED == 0 && (old ^ new.0) & OFFSET == 0);
            if let (false, Some(clusters)) = (stays, used_clusters(&self.header, old)) {
                allocation.refcounts.free_later(clusters, punch);
            }
        }
        Ok(())
    }

    /// Whether guest data lies in a file of its own, each cluster at its guest offset and uncounted.
    pub(super) fn external(&self) -> bool {
        self.header.has(DATA_FILE)
    }

    /// Writes `data` into the image's own clusters at `host`.
    pub(super) fn write_in_place(&self, data: &[u8], host: u64) -> Result<()> {
        self.check_in_place(host, data.len() as u64)?;
        self.data.write_at(data, host)
    }

    /// A damaged table may point at metadata, which must not be written over.
    pub(super) fn check_in_place(&self, host: u64, len: u64) -> Result<()> {
        let clusters = host / self.cluster_size()..(host + len).div_ceil(self.cluster_size());
        if !self.external()
            && let Some(cluster) = self.writer()?.metadata.find(clusters)
        {
            let at = cluster * self.cluster_size();
            return Err(Error::corrupt(&self.file, FORMAT, at, "guest data would be written over metadata; run 'img check'"));
        }
        Ok(())
    }
}

impl Drop for Qcow2 {
    /// An image that cannot be brought into order stays marked as dirty, and is repaired when it is opened again. Bitmaps
    /// that cannot be stored stay marked as in use.
    fn drop(&mut self) {
        if self.writer.is_some() {
            let _ = self.store_bitmaps();
            let _ = self.end_laziness();
        }
    }
}

/// The host clusters that an L2 entry uses.
pub(super) fn used_clusters(header: &Header, entry: u64) -> Option<Range<u64>> {
    let bits = header.cluster_bits;
    if entry & COMPRESSED != 0 {
        let (host, len) = compressed_place(header, entry);
        return Some(host >> bits..(host + len).div_ceil(1 << bits));
    }
    if header.has(DATA_FILE) {
        return None;
    }
    let cluster = (entry & OFFSET) >> bits;
    (cluster != 0).then(|| cluster..cluster + 1)
}

impl Qcow2 {
    /// Writes what lies in the image, without a note to the bitmaps.
    pub(super) fn write_range(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            let guest = offset + done as u64;
            let rest = &data[done..];
            done += match self.lookup(guest, rest.len() as u64)? {
                (Mapping::Data { host, copied: true }, run) => {
                    self.write_in_place(&rest[..run as usize], host)?;
                    run as usize
                }
                _ => self.write_new(rest, guest)?,
            };
        }
        Ok(())
    }
}

impl ImageMut for Qcow2 {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, data.len() as u64)?;
        self.record(offset, data.len() as u64)?;
        self.write_range(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, len)?;
        self.record(offset, len)?;
        self.zero_range(offset..offset + len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        let mut allocation = self.allocation()?;
        self.write_back(&mut allocation)
    }

    fn compression(&self) -> Option<&dyn Compression> {
        if self.external() { None } else { Some(self) }
    }

    fn placing(&self) -> Option<&dyn Placing> {
        Some(self)
    }
}
/// Clears the bits of features that are not known: whoever writes without knowing a feature says so, that its data is known to be stale.
pub(super) fn clear_unknown(header: &mut Header, storage: &dyn Storage) -> Result<()> {
    let known = DATA_FILE_RAW | if header.bitmaps.is_some() { BITMAPS } else { 0 };
    if header.autoclear & !known == 0 {
        return Ok(());
    }
    header.autoclear &= known;
    storage.write_at(&header.autoclear.to_be_bytes(), 88)?;
    storage.sync()
}
