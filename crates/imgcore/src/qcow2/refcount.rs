//! Reference counts of clusters: reading and changing them, finding free clusters, growing the table.
//!
//! Source: `docs/interop/qcow2.txt`, section "Host cluster management".
//!
//! Counts are raised at once in memory but lowered only by [`Refcounts::apply_frees`], after the tables that no longer
//! use the clusters are durable. So counts on disk are never too low, and a crash leaves leaks at worst.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, RwLock};

use super::header::{FORMAT, Header, MAX_OFFSET};
use super::l2::words;
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

const MAX_TABLE_BYTES: u64 = 8 << 20;

/// One count in a block.
pub(super) fn get_count(block: &[u8], index: u64, order: u32) -> u64 {
    let byte = |i: usize| block.get(i).copied().unwrap_or(0);
    match order {
        0..=2 => {
            let bit = index << order;
            u64::from(byte((bit / 8) as usize)) >> (bit % 8) & ((1 << (1 << order)) - 1)
        }
        // The usual width, at its own speed.
        4 => u64::from(u16::from_be_bytes([byte(index as usize * 2), byte(index as usize * 2 + 1)])),
        _ => {
            let width = 1usize << (order - 3);
            let at = index as usize * width;
            (at..at + width).fold(0, |count, i| count << 8 | u64::from(byte(i)))
        }
    }
}

/// Changes one count in a block; the index must lie in it and the value fit.
pub(super) fn set_count(block: &mut [u8], index: u64, order: u32, value: u64) {
    match order {
        0..=2 => {
            let bit = index << order;
            let mask = ((1u16 << (1 << order)) - 1) as u8;
            if let Some(byte) = block.get_mut((bit / 8) as usize) {
                *byte = *byte & !(mask << (bit % 8)) | (value as u8 & mask) << (bit % 8);
            }
        }
        _ => {
            let width = 1usize << (order - 3);
            let at = index as usize * width;
            if let Some(place) = block.get_mut(at..at + width) {
                place.copy_from_slice(&value.to_be_bytes()[8 - width..]);
            }
        }
    }
}

/// Clusters that hold metadata, shared with writers in place.
#[derive(Clone, Default)]
pub(super) struct Metadata(Arc<RwLock<HashSet<u64>>>);

impl Metadata {
    pub fn add(&self, clusters: impl IntoIterator<Item = u64>) {
        self.0.write().unwrap_or_else(|e| e.into_inner()).extend(clusters);
    }

    fn remove(&self, cluster: u64) {
        self.0.write().unwrap_or_else(|e| e.into_inner()).remove(&cluster);
    }

    /// The first of `clusters` that holds metadata.
    pub fn find(&self, mut clusters: Range<u64>) -> Option<u64> {
        let known = self.0.read().unwrap_or_else(|e| e.into_inner());
        clusters.find(|cluster| known.contains(cluster))
    }

    pub fn contains(&self, cluster: u64) -> bool {
        self.find(cluster..cluster + 1).is_some()
    }
}

/// Clusters to be given back.
struct Free {
    clusters: Range<u64>,
    /// Whether the host should get the space back too.
    punch: bool,
}

/// The allocator of one image that is open for writing.
pub(super) struct Refcounts {
    storage: Arc<dyn Storage>,
    cluster_bits: u32,
    order: u32,
    per_block: u64,
    max: u64,
    table: Vec<u64>,
    table_offset: u64,
    table_dirty: BTreeSet<usize>,
    /// Blocks in memory, by their index in the table.
    blocks: HashMap<u64, Vec<u8>>,
    /// Those that the file does not have in this form yet.
    dirty: BTreeSet<u64>,
    /// How many blocks are kept.
    max_blocks: u64,
    /// No free cluster lies below.
    hint: u64,
    /// Bytes of the file that may hold something other than zeroes.
    high_water: u64,
    frees: Vec<Free>,
    /// Never free, whatever the counts say.
    metadata: Metadata,
}

impl Refcounts {
    /// Reads the refcount table, and adds what it knows to `metadata`. Up to `cache` bytes of blocks are kept.
    pub fn open(storage: Arc<dyn Storage>, header: &Header, metadata: Metadata, cache: u64) -> Result<Self> {
        let mut bytes = vec![0; (u64::from(header.refcount_table_clusters) << header.cluster_bits) as usize];
        read_padded(&*storage, &mut bytes, header.refcount_table_offset)?;
        let table: Vec<u64> = words(&bytes).collect();
        // Blocks are written before the table names them. One that lies elsewhere would make the file as long as it says.
        let end = storage.size()?.min(MAX_OFFSET);
        for (index, offset) in table.iter().enumerate() {
            if offset % header.cluster_size() != 0 || (*offset != 0 && *offset >= end) {
                let at = header.refcount_table_offset + index as u64 * 8;
                return Err(Error::corrupt(storage.name(), FORMAT, at, format!("refcount block {index} cannot lie at {offset:#x}")));
            }
            if *offset != 0 {
                metadata.add([offset >> header.cluster_bits]);
            }
        }
        let start = header.refcount_table_offset >> header.cluster_bits;
        metadata.add(start..start + u64::from(header.refcount_table_clusters));
        let high_water = storage.size()?;
        Ok(Refcounts {
            storage,
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            per_block: header.refcounts_per_block(),
            max: header.max_refcount(),
            table,
            table_offset: header.refcount_table_offset,
            table_dirty: BTreeSet::new(),
            blocks: HashMap::new(),
            dirty: BTreeSet::new(),
            max_blocks: cache >> header.cluster_bits,
            hint: 0,
            high_water,
            frees: Vec::new(),
            metadata,
        })
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn corrupt(&self, cluster: u64, what: impl Into<String>) -> Error {
        Error::corrupt(self.storage.name(), FORMAT, cluster << self.cluster_bits, what)
    }

    /// The block that counts `cluster`, if there is one.
    fn block(&mut self, cluster: u64) -> Result<Option<&mut Vec<u8>>> {
        let index = cluster / self.per_block;
        let offset = usize::try_from(index).ok().and_then(|i| self.table.get(i)).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(None);
        }
        if !self.blocks.contains_key(&index) {
            if self.blocks.len() as u64 > self.max_blocks {
                self.blocks.retain(|index, _| self.dirty.contains(index));
            }
            let mut bytes = vec![0; 1 << self.cluster_bits];
            read_padded(&*self.storage, &mut bytes, offset)?;
            self.blocks.insert(index, bytes);
        }
        Ok(self.blocks.get_mut(&index))
    }

    /// How many uses of `cluster` are counted.
    pub fn get(&mut self, cluster: u64) -> Result<u64> {
        let (index, order) = (cluster % self.per_block, self.order);
        Ok(self.block(cluster)?.map_or(0, |block| get_count(block, index, order)))
    }

    fn set(&mut self, cluster: u64, value: u64) -> Result<()> {
        let (index, order) = (cluster % self.per_block, self.order);
        if value > self.max {
            return Err(self.corrupt(cluster, format!("the cluster would be used {value} times, its count holds up to {}", self.max)));
        }
        let Some(block) = self.block(cluster)? else {
            return Err(self.corrupt(cluster, "the cluster is used, but there is no refcount block for it; run 'img check -r all'"));
        };
        set_count(block, index, order, value);
        self.dirty.insert(cluster / self.per_block);
        Ok(())
    }

    /// Counts one more use of `cluster`; whether its count has room for that.
    pub fn increment(&mut self, cluster: u64) -> Result<bool> {
        let count = self.get(cluster)?;
        if count >= self.max {
            return Ok(false);
        }
        self.set(cluster, count + 1)?;
        Ok(true)
    }

    /// Takes up to `max` adjoining free clusters, at least one.
    pub fn allocate(&mut self, max: u64) -> Result<Range<u64>> {
        let start = self.first_free(self.hint)?;
        let mut end = start + 1;
        while end < start + max && self.has_block(end) && self.get(end)? == 0 && !self.metadata.contains(end) {
            end += 1;
        }
        self.take(start..end)?;
        self.hint = end;
        Ok(start..end)
    }

    /// Takes exactly `count` adjoining free clusters.
    pub fn allocate_exact(&mut self, count: u64) -> Result<Range<u64>> {
        let mut start = self.first_free(self.hint)?;
        let mut end = start + 1;
        while end < start + count {
            let free = self.first_free(end)?;
            if free != end {
                start = free;
            }
            end = free + 1;
        }
        self.take(start..end)?;
        Ok(start..end)
    }

    fn take(&mut self, clusters: Range<u64>) -> Result<()> {
        if clusters.end > MAX_OFFSET >> self.cluster_bits {
            return Err(Error::unsupported(self.storage.name(), FORMAT, "an image file larger than 64 PiB"));
        }
        clusters.into_iter().try_for_each(|cluster| self.set(cluster, 1))
    }

    fn has_block(&self, cluster: u64) -> bool {
        usize::try_from(cluster / self.per_block).ok().and_then(|i| self.table.get(i)).is_some_and(|o| *o != 0)
    }

    fn first_free(&mut self, from: u64) -> Result<u64> {
        let mut at = from;
        loop {
            if !self.has_block(at) {
                self.add_block(at)?;
            } else if self.get(at)? != 0 {
                at += 1;
            } else if self.metadata.contains(at) {
                return Err(self.corrupt(at, "the cluster holds metadata but is counted as free; run 'img check -r all' before writing"));
            } else {
                return Ok(at);
            }
        }
    }

    /// Makes the refcount block that counts `cluster`; it lies in that very cluster, which nothing counts yet.
    fn add_block(&mut self, cluster: u64) -> Result<()> {
        let index = cluster / self.per_block;
        if index >= self.table.len() as u64 {
            return self.grow_table(index);
        }
        if self.metadata.contains(cluster) {
            return Err(self.corrupt(cluster, "the cluster holds metadata, but there is no refcount block for it; run 'img check -r all'"));
        }
        let mut bytes = vec![0; 1 << self.cluster_bits];
        set_count(&mut bytes, cluster % self.per_block, self.order, 1);
        self.blocks.insert(index, bytes);
        self.dirty.insert(index);
        self.table[index as usize] = cluster << self.cluster_bits;
        self.table_dirty.insert(index as usize);
        self.metadata.add([cluster]);
        Ok(())
    }

    /// Moves the refcount table to a larger place past all that the old one can count, with the blocks for it.
    fn grow_table(&mut self, index: u64) -> Result<()> {
        let cluster_size = self.cluster_size();
        let base = self.table.len() as u64 * self.per_block;
        let entries_per_cluster = cluster_size / 8;
        let wanted = (index + 1).max(self.table.len() as u64 * 3 / 2);
        // The new blocks are counted by themselves, so their number depends on itself.
        let (mut blocks, mut table_clusters) = (1, 0);
        loop {
            let entries = wanted.max(self.table.len() as u64 + blocks).next_multiple_of(entries_per_cluster);
            let clusters = entries / entries_per_cluster;
            let needed = (blocks + clusters).div_ceil(self.per_block);
            if needed == blocks && clusters == table_clusters {
                break;
            }
            (blocks, table_clusters) = (needed, clusters);
        }
        if table_clusters * cluster_size > MAX_TABLE_BYTES {
            return Err(Error::unsupported(self.storage.name(), FORMAT, "a refcount table larger than 8 MiB; use larger clusters"));
        }
        let old = self.table_offset >> self.cluster_bits
            ..(self.table_offset >> self.cluster_bits) + (self.table.len() as u64 / entries_per_cluster);
        // What the old table does not know yet must be durable in its own place first.
        self.write_back()?;
        let first_block = self.table.len() as u64;
        let mut table = self.table.clone();
        table.resize((table_clusters * entries_per_cluster) as usize, 0);
        for block in 0..blocks {
            let mut bytes = vec![0; cluster_size as usize];
            let counted = (blocks + table_clusters).saturating_sub(block * self.per_block).min(self.per_block);
            for count in 0..counted {
                set_count(&mut bytes, count, self.order, 1);
            }
            let cluster = base + block;
            self.storage.write_at(&bytes, cluster << self.cluster_bits)?;
            table[(first_block + block) as usize] = cluster << self.cluster_bits;
            self.blocks.insert(first_block + block, bytes);
        }
        let offset = (base + blocks) << self.cluster_bits;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.storage.write_at(&bytes, offset)?;
        self.storage.sync()?;
        let mut field = offset.to_be_bytes().to_vec();
        field.extend((table_clusters as u32).to_be_bytes());
        self.storage.write_at(&field, 48)?;
        self.storage.sync()?;
        self.metadata.add(base..base + blocks + table_clusters);
        self.high_water = self.high_water.max((base + blocks + table_clusters) << self.cluster_bits);
        (self.table, self.table_offset) = (table, offset);
        self.free_later(old, false);
        Ok(())
    }

    /// Where the table lies, and of how many clusters it is.
    pub fn table_place(&self) -> (u64, u32) {
        (self.table_offset, ((self.table.len() * 8) >> self.cluster_bits) as u32)
    }

    /// Whether `clusters` were never written, so that they read as zeroes.
    pub fn is_fresh(&mut self, clusters: &Range<u64>) -> bool {
        let fresh = clusters.start << self.cluster_bits >= self.high_water;
        self.high_water = self.high_water.max(clusters.end << self.cluster_bits);
        fresh
    }

    /// Takes note that `clusters` hold metadata.
    pub fn protect(&mut self, clusters: Range<u64>) {
        self.metadata.add(clusters);
    }

    /// Counts one use less of each cluster at the next [`apply_frees`](Refcounts::apply_frees).
    pub fn free_later(&mut self, clusters: Range<u64>, punch: bool) {
        match self.frees.last_mut() {
            Some(last) if last.clusters.end == clusters.start && last.punch == punch => last.clusters.end = clusters.end,
            _ => self.frees.push(Free { clusters, punch }),
        }
    }

    /// Whether so much has changed that it should be written back.
    pub fn crowded(&self) -> bool {
        self.dirty.len() as u64 > self.max_blocks || self.frees.len() > 1 << 16
    }

    /// Whether the file does not have all counts yet.
    pub fn is_dirty(&self) -> bool {
        !self.table_dirty.is_empty() || !self.dirty.is_empty()
    }

    pub fn has_frees(&self) -> bool {
        !self.frees.is_empty()
    }

    /// Writes changed blocks, then the table entries that point to new ones; whether there were any.
    pub fn write_back(&mut self) -> Result<bool> {
        let any = !self.dirty.is_empty();
        while let Some(index) = self.dirty.first().copied() {
            let offset = usize::try_from(index).ok().and_then(|i| self.table.get(i)).copied().unwrap_or(0);
            if let Some(bytes) = self.blocks.get(&index) {
                self.storage.write_at(bytes, offset)?;
                self.high_water = self.high_water.max(offset + bytes.len() as u64);
            }
            self.dirty.remove(&index);
        }
        if !self.table_dirty.is_empty() {
            self.storage.sync()?;
            for index in &self.table_dirty {
                self.storage.write_at(&self.table[*index].to_be_bytes(), self.table_offset + *index as u64 * 8)?;
            }
            self.table_dirty.clear();
        }
        Ok(any)
    }

    /// Lowers the counts of what [`free_later`](Refcounts::free_later) was told, in memory. All tables that still named
    /// those clusters must be durable in their new form.
    pub fn apply_frees(&mut self) -> Result<()> {
        let frees = std::mem::take(&mut self.frees);
        for free in frees {
            let mut run: Option<Range<u64>> = None;
            for cluster in free.clusters {
                let count = self.get(cluster)?;
                if count == 0 {
                    return Err(self.corrupt(cluster, "the cluster was in use but counted as free; run 'img check -r all'"));
                }
                self.set(cluster, count - 1)?;
                if count > 1 {
                    continue;
                }
                self.hint = self.hint.min(cluster);
                self.metadata.remove(cluster);
                if free.punch {
                    match &mut run {
                        Some(run) if run.end == cluster => run.end += 1,
                        _ => self.punch(run.replace(cluster..cluster + 1))?,
                    }
                }
            }
            self.punch(run)?;
        }
        Ok(())
    }

    fn punch(&self, clusters: Option<Range<u64>>) -> Result<()> {
        let Some(clusters) = clusters else { return Ok(()) };
        let (start, end) = (clusters.start << self.cluster_bits, clusters.end << self.cluster_bits);
        // Never beyond the end, where there is nothing to give back and the file would grow.
        let end = end.min(self.storage.size()?);
        if start < end { self.storage.zero_at(start, end - start) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_widths() {
        for order in 0..=6 {
            let mut block = vec![0xa5; 512];
            let max = u64::MAX >> (64 - (1u32 << order));
            for (index, value) in [(0, max), (1, 0), (2, 1), ((511 * 8) >> order, max), (3, max / 2)] {
                set_count(&mut block, index, order, value);
                assert_eq!(get_count(&block, index, order), value, "order {order}, index {index}");
            }
            assert_eq!(get_count(&block, 0, order), max, "order {order}");
            assert_eq!(get_count(&block, 2, order), 1, "order {order}");
        }
    }
}
