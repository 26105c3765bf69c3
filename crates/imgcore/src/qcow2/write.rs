//! Writing: new clusters, copy on write, zeroes, and the order in which metadata reaches the file.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::entry::{COMPRESSED, COPIED, Mapping, OFFSET, ZERO};
use super::header::{CORRUPT, DATA_FILE, DIRTY, EXTENDED_L2, FORMAT, Header};
use super::ranges::RangeLocks;
use super::refcount::{Metadata, Refcounts};
use super::{ClusterCompressor, Qcow2, snapshot};
use crate::formats::{OpenContext, OpenOptions, Repair};
use crate::image::check_range;
use crate::{Compression, Compressor, Error, Formats, Image, ImageMut, NoGate, Result, Storage};

/// New clusters taken at once, in bytes: between them, other writers get their turn.
const MAX_NEW: u64 = 64 << 20;
/// Up to so many bytes, a copied-up head and tail are written together with the data.
const JOIN: u64 = 256 << 10;

/// What an image that is open for writing has besides.
pub(super) struct Writer {
    allocation: Mutex<Allocation>,
    ranges: RangeLocks,
    metadata: Metadata,
}

/// What the allocation lock guards.
pub(super) struct Allocation {
    pub refcounts: Refcounts,
    l1_dirty: BTreeSet<usize>,
    /// Where the last compressed cluster ended, if the rest of that host cluster is free for the next one.
    compressed_end: Option<u64>,
}

impl Qcow2 {
    /// Opens the image in `storage` for reading and writing.
    ///
    /// # Errors
    /// Images that are marked corrupt must be repaired first (dirty ones are repaired here); extended L2 entries and external data files can
    /// only be read.
    pub fn open_mut(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        if Header::read(&*storage)?.has(DIRTY) {
            // With lazy refcounts, the counts may be too low after a crash. QEMU repairs them before writing, too.
            super::check::check(storage.clone(), Repair::All)?;
        }
        let image = Self::open(storage, context)?;
        let unsupported =
            |what: &str| Err(Error::unsupported(&image.file, FORMAT, format!("writing to an image with {what}; convert it first")));
        if image.header.has(EXTENDED_L2) {
            return unsupported("extended L2 entries");
        }
        if image.header.has(DATA_FILE) {
            return unsupported("an external data file");
        }
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
        if header.autoclear != 0 {
            // Whoever writes without knowing a feature clears its bit, so that its data is known to be stale.
            self.storage.write_at(&[0; 8], 88)?;
            self.storage.sync()?;
            header.autoclear = 0;
        }
        let bits = header.cluster_bits;
        let clusters = |offset: u64, len: u64| offset >> bits..(offset + len).div_ceil(1 << bits);
        let metadata = Metadata::default();
        metadata.add(clusters(0, 1).chain(clusters(header.l1_table_offset, u64::from(header.l1_size) * 8)));
        let snapshots = snapshot::read(&*self.storage, header)?;
        metadata.add(clusters(header.snapshots_offset, snapshots.iter().map(|s| s.entry_len).sum()));
        metadata.add(snapshots.iter().flat_map(|s| clusters(s.l1_table_offset, u64::from(s.l1_size) * 8)));
        let l1 = self.l1.get_mut().unwrap_or_else(|e| e.into_inner());
        metadata.add(l1.iter().map(|entry| (entry & OFFSET) >> bits).filter(|cluster| *cluster != 0));
        let refcounts = Refcounts::open(self.storage.clone(), header, metadata.clone())?;
        let allocation = Mutex::new(Allocation { refcounts, l1_dirty: BTreeSet::new(), compressed_end: None });
        self.writer = Some(Writer { allocation, ranges: RangeLocks::default(), metadata });
        Ok(self)
    }

    fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| Error::Invalid(format!("{}: opened for reading only", self.file)))
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
        allocation.refcounts.write_back()?;
        if allocation.compressed_end.is_some() {
            // Readers fetch whole sectors of compressed data.
            let size = self.storage.size()?;
            if size % 512 != 0 {
                self.storage.set_size(size.next_multiple_of(512))?;
            }
        }
        self.storage.sync()?;
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
        }
        Ok(())
    }

    /// Makes sure that the L2 table for `guest` exists and is this image's own.
    fn own_l2(&self, allocation: &mut Allocation, guest: u64) -> Result<u64> {
        let old = self.l2_offset(guest)?;
        let index = (guest / self.header.l2_span()) as usize;
        let copied = self.l1.read().unwrap_or_else(|e| e.into_inner()).get(index).is_some_and(|entry| entry & COPIED != 0);
        if let (Some(offset), true) = (old, copied) {
            return Ok(offset);
        }
        let entries = match old {
            // A snapshot uses the table too: then nothing that it names may be written in place.
            Some(offset) => self.l2.get(&*self.storage, offset)?.to_vec(),
            None => Vec::new(),
        };
        let cluster = allocation.refcounts.allocate(1)?;
        allocation.refcounts.is_fresh(&cluster);
        allocation.refcounts.protect(cluster.clone());
        let offset = cluster.start * self.cluster_size();
        self.l2.insert(offset, entries.into_iter().map(|entry| entry & !COPIED));
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

    /// Points guest clusters from `first` at `entries`, and gives what they pointed at back. All lie in one L2 table that
    /// this image owns.
    pub(super) fn link(&self, allocation: &mut Allocation, first: u64, entries: impl Iterator<Item = u64>, punch: bool) -> Result<()> {
        let guest = first * self.cluster_size();
        let offset = self.l2_offset(guest)?.ok_or_else(|| Error::Invalid(format!("{}: no L2 table at {guest:#x}", self.file)))?;
        let table = self.l2.get_for_change(&*self.storage, offset)?;
        let index = ((guest % self.header.l2_span()) / self.cluster_size()) as usize;
        for (place, entry) in (index..).zip(entries) {
            let old = table.get(place);
            table.set(place, entry);
            if let Some(clusters) = used_clusters(&self.header, old) {
                allocation.refcounts.free_later(clusters, punch);
            }
        }
        Ok(())
    }

    /// Writes the first part of `data` into new clusters and gives its length; 0 when another thread made them meanwhile.
    fn write_new(&self, data: &[u8], guest: u64) -> Result<usize> {
        let cluster_size = self.cluster_size();
        let span = self.header.l2_span();
        let end = (guest + data.len() as u64).min((guest / span + 1) * span).min(guest + MAX_NEW);
        let first = guest / cluster_size;
        let _lock = self.writer()?.ranges.lock(first..end.div_ceil(cluster_size));
        let mut stop = guest;
        while stop < end {
            match self.lookup(stop, end - stop)? {
                (Mapping::Data { copied: true, .. }, _) => break,
                (_, run) => stop += run,
            }
        }
        if stop == guest {
            return Ok(0);
        }
        let (host, fresh) = {
            let mut allocation = self.allocation()?;
            self.own_l2(&mut allocation, guest)?;
            let host = allocation.refcounts.allocate(stop.div_ceil(cluster_size) - first)?;
            let fresh = allocation.refcounts.is_fresh(&host);
            (host, fresh)
        };
        let stop = stop.min((first + host.end - host.start) * cluster_size);
        let written = self.fill_new(&data[..(stop - guest) as usize], guest, host.start * cluster_size, fresh);
        let mut allocation = self.allocation()?;
        if let Err(e) = written {
            allocation.refcounts.free_later(host, false);
            return Err(e);
        }
        self.link(&mut allocation, first, host.map(|cluster| (cluster * cluster_size) | COPIED), false)?;
        Ok((stop - guest) as usize)
    }

    /// Writes `data` for byte `guest` into new clusters at `host`, with what the guest had around it in those clusters.
    fn fill_new(&self, data: &[u8], guest: u64, host: u64, fresh: bool) -> Result<()> {
        let cluster_size = self.cluster_size();
        let start = guest - guest % cluster_size;
        let stop = guest + data.len() as u64;
        let head = self.copied_up(start..guest, fresh)?;
        let tail = self.copied_up(stop..stop.next_multiple_of(cluster_size), fresh)?;
        let at = host + (guest - start);
        if head.is_empty() && tail.is_empty() {
            return self.storage.write_at(data, at);
        }
        if (head.len() + data.len() + tail.len()) as u64 <= JOIN {
            return self.storage.write_at(&[&head[..], data, &tail[..]].concat(), at - head.len() as u64);
        }
        if !head.is_empty() {
            self.storage.write_at(&head, host)?;
        }
        self.storage.write_at(data, at)?;
        if tail.is_empty() { Ok(()) } else { self.storage.write_at(&tail, at + data.len() as u64) }
    }

    /// What the guest reads in `range` of one cluster; empty where zeroes need not be written.
    fn copied_up(&self, range: Range<u64>, fresh: bool) -> Result<Vec<u8>> {
        if range.is_empty() || (fresh && self.reads_zero(range.clone())?) {
            return Ok(Vec::new());
        }
        let mut buf = vec![0; (range.end - range.start) as usize];
        let _reading = self.reads.read().unwrap_or_else(|e| e.into_inner());
        let mut done = 0;
        while done < buf.len() {
            let at = range.start + done as u64;
            let (mapping, run) = self.lookup(at, (buf.len() - done) as u64)?;
            let end = done + run as usize;
            self.read_mapped(mapping, &mut buf[done..end], at)?;
            done = end;
        }
        Ok(buf)
    }

    /// Whether metadata alone says that `range` reads as zeroes.
    fn reads_zero(&self, range: Range<u64>) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            match self.lookup(at, range.end - at)? {
                (Mapping::Zero { .. }, run) => at += run,
                (Mapping::Unallocated, run) if !self.has_backing_at(at) => at += run,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn has_backing_at(&self, guest: u64) -> bool {
        // A backing file that was left closed may hold anything.
        match &self.backing {
            Some(backing) => guest < backing.size(),
            None => self.header.backing_file.is_some(),
        }
    }

    /// Writes `data` into the image's own clusters at `host`, unless a damaged table points at metadata.
    fn write_in_place(&self, data: &[u8], host: u64) -> Result<()> {
        let clusters = host / self.cluster_size()..(host + data.len() as u64).div_ceil(self.cluster_size());
        if let Some(cluster) = self.writer()?.metadata.find(clusters) {
            let at = cluster * self.cluster_size();
            return Err(Error::corrupt(&self.file, FORMAT, at, "guest data would be written over metadata; run 'img check'"));
        }
        self.storage.write_at(data, host)
    }

    /// Makes whole clusters read as zeroes.
    fn zero_clusters(&self, clusters: Range<u64>) -> Result<()> {
        let cluster_size = self.cluster_size();
        let per_table = self.header.l2_span() / cluster_size;
        let mut first = clusters.start;
        while first < clusters.end {
            let end = clusters.end.min((first / per_table + 1) * per_table);
            let guest = first * cluster_size;
            if self.l2_offset(guest)?.is_some() || self.has_backing_at(guest) {
                let _lock = self.writer()?.ranges.lock(first..end);
                let mut allocation = self.allocation()?;
                self.own_l2(&mut allocation, guest)?;
                let entries = (first..end).map(|c| if self.has_backing_at(c * cluster_size) { ZERO } else { 0 });
                self.link(&mut allocation, first, entries, true)?;
            }
            first = end;
        }
        Ok(())
    }

    /// Stores one guest cluster compressed: `packed` is what [`ClusterCompressor`](super::ClusterCompressor) made of all
    /// of the cluster's bytes, those past the end of the image as zeroes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `guest` is no cluster's start or `packed` not smaller than a cluster.
    pub fn write_compressed_cluster(&self, guest: u64, packed: &[u8]) -> Result<()> {
        let cluster_size = self.cluster_size();
        check_range(&self.file, self.size(), guest, 1)?;
        if !guest.is_multiple_of(cluster_size) || packed.is_empty() || packed.len() as u64 >= cluster_size {
            return Err(Error::Invalid(format!("{}: {} bytes cannot be a compressed cluster at {guest:#x}", self.file, packed.len())));
        }
        let len = packed.len() as u64;
        let first = guest / cluster_size;
        let _lock = self.writer()?.ranges.lock(first..first + 1);
        let host = {
            let mut allocation = self.allocation()?;
            self.own_l2(&mut allocation, guest)?;
            let host = allocation.place_compressed(len, cluster_size)?;
            allocation.compressed_end = Some(host + len).filter(|end| end % cluster_size != 0);
            host
        };
        let written = self.storage.write_at(packed, host);
        let entry = Mapping::encode_compressed(&self.header, host, len);
        let mut allocation = self.allocation()?;
        if let Err(e) = written {
            if let Some(clusters) = used_clusters(&self.header, entry) {
                allocation.refcounts.free_later(clusters, false);
            }
            return Err(e);
        }
        self.link(&mut allocation, first, std::iter::once(entry), false)
    }

    /// Gives every guest cluster a place in the file, without writing to it.
    pub(super) fn preallocate(&self) -> Result<()> {
        let cluster_size = self.cluster_size();
        let per_table = self.header.l2_span() / cluster_size;
        let (mut first, clusters) = (0, self.size().div_ceil(cluster_size));
        let mut end = 0;
        while first < clusters {
            let mut allocation = self.allocation()?;
            self.own_l2(&mut allocation, first * cluster_size)?;
            let host = allocation.refcounts.allocate((clusters - first).min(per_table - first % per_table))?;
            allocation.refcounts.is_fresh(&host);
            let count = host.end - host.start;
            end = end.max(host.end * cluster_size);
            self.link(&mut allocation, first, host.map(|cluster| (cluster * cluster_size) | COPIED), false)?;
            first += count;
        }
        if end > self.storage.size()? { self.storage.set_size(end) } else { Ok(()) }
    }
}

impl Allocation {
    /// A place for `len` compressed bytes, behind the last ones where their cluster's count allows.
    fn place_compressed(&mut self, len: u64, cluster_size: u64) -> Result<u64> {
        let Some(end) = self.compressed_end else { return Ok(self.new_cluster()? * cluster_size) };
        let last = end / cluster_size;
        if end % cluster_size + len <= cluster_size {
            return if self.refcounts.increment(last)? { Ok(end) } else { Ok(self.new_cluster()? * cluster_size) };
        }
        let next = self.new_cluster()?;
        Ok(if next == last + 1 && self.refcounts.increment(last)? { end } else { next * cluster_size })
    }

    fn new_cluster(&mut self) -> Result<u64> {
        let cluster = self.refcounts.allocate(1)?;
        self.refcounts.is_fresh(&cluster);
        Ok(cluster.start)
    }
}

/// The host clusters that an L2 entry uses.
pub(super) fn used_clusters(header: &Header, entry: u64) -> Option<Range<u64>> {
    let bits = header.cluster_bits;
    if entry & COMPRESSED != 0 {
        return match Mapping::decode(header, "", entry, 0) {
            Ok(Mapping::Compressed { host, len }) => Some(host >> bits..(host + len).div_ceil(1 << bits)),
            _ => None,
        };
    }
    let cluster = (entry & OFFSET) >> bits;
    (cluster != 0).then(|| cluster..cluster + 1)
}

impl ImageMut for Qcow2 {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, data.len() as u64)?;
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

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, len)?;
        let cluster_size = self.cluster_size();
        let end = offset + len;
        // What lies past the end of the image in its last cluster is nobody's.
        let whole_end = if end == self.size() { end.next_multiple_of(cluster_size) } else { end - end % cluster_size };
        let whole = offset.next_multiple_of(cluster_size)..whole_end;
        if whole.start >= whole.end {
            return self.write_zeroes(offset..end);
        }
        self.write_zeroes(offset..whole.start)?;
        if self.header.version == 2 && self.has_backing_at(whole.start) {
            self.write_zeroes(whole.start..whole.end.min(end))?;
        } else {
            self.zero_clusters(whole.start / cluster_size..whole.end / cluster_size)?;
        }
        self.write_zeroes(whole.end.min(end)..end)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        let mut allocation = self.allocation()?;
        self.write_back(&mut allocation)
    }

    fn compression(&self) -> Option<&dyn Compression> {
        Some(self)
    }
}

impl Compression for Qcow2 {
    fn cluster_size(&self) -> u64 {
        Qcow2::cluster_size(self)
    }

    fn compressor(&self) -> Compressor {
        let mut compressor = ClusterCompressor::new(self.compression_type());
        Box::new(move |cluster| compressor.compress(cluster).map(<[u8]>::to_vec))
    }

    fn write_packed(&self, packed: &[u8], offset: u64) -> Result<()> {
        self.write_compressed_cluster(offset, packed)
    }
}

impl Qcow2 {
    /// Stores zeroes where the range does not read as zeroes already.
    pub(super) fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        let zeroes = vec![0; (range.end - range.start).min(1 << 20) as usize];
        while at < range.end {
            let (mapping, run) = self.lookup(at, (range.end - at).min(zeroes.len() as u64))?;
            let zero = match mapping {
                Mapping::Zero { .. } => true,
                Mapping::Unallocated => !self.has_backing_at(at),
                _ => false,
            };
            if !zero {
                self.write_at(&zeroes[..run as usize], at)?;
            }
            at += run;
        }
        Ok(())
    }
}
