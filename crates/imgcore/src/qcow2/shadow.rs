//! Changes that move many reference counts at once, and must not be seen half done.
//!
//! Whether a cluster may be written in place is said twice: by its count and by the copied flag of what points to it. No
//! order of writes in place keeps the two in step. So changed refcount blocks, like changed L1 and L2 tables, are
//! written to clusters that were free, and one write within the header's first sector makes all of them current. Until
//! then the file is the old image, from then on the new one.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::Qcow2;
use super::entry::OFFSET;
use super::header::{FORMAT, Header, MAX_OFFSET, MAX_REFCOUNT_TABLE_BYTES};
use super::l2::words;
use super::refcount::{Metadata, get_count, set_count};
use crate::storage::read_padded;
use crate::{Error, ImageMut, Result, Storage};

/// Numbers kept as ranges.
#[derive(Default)]
pub(super) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    fn insert(&mut self, number: u64) {
        let start = match self.0.range(..=number).next_back() {
            Some((_, end)) if number < *end => return,
            Some((start, end)) if *end == number => *start,
            _ => number,
        };
        let end = self.0.remove(&(number + 1)).unwrap_or(number + 1);
        self.0.insert(start, end);
    }

    fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, end)| number < *end)
    }

    fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }
}

struct Block {
    bytes: Vec<u8>,
    changed: bool,
}

/// The reference counts of an image as they shall be.
pub(super) struct Shadow {
    storage: Arc<dyn Storage>,
    /// What the header shall say, but for the refcount table.
    pub header: Header,
    table: Vec<u64>,
    blocks: HashMap<u64, Block>,
    /// So many blocks at once, before unchanged ones are forgotten.
    max_blocks: usize,
    metadata: Metadata,
    /// Clusters whose count fell to zero. The old image still uses them.
    freed: RangeSet,
    /// No free cluster lies below.
    hint: u64,
}

/// Unchanged blocks that are kept.
const MAX_KEPT: usize = 256;

impl Shadow {
    fn open(storage: Arc<dyn Storage>, header: Header, metadata: Metadata) -> Result<Self> {
        let mut bytes = vec![0; (u64::from(header.refcount_table_clusters) << header.cluster_bits) as usize];
        read_padded(&*storage, &mut bytes, header.refcount_table_offset)?;
        let table = words(&bytes).collect();
        let blocks = HashMap::new();
        Ok(Shadow { storage, header, table, blocks, max_blocks: MAX_KEPT, metadata, freed: RangeSet::default(), hint: 0 })
    }

    fn corrupt(&self, cluster: u64, what: &str) -> Error {
        Error::corrupt(self.storage.name(), FORMAT, cluster << self.header.cluster_bits, format!("{what}; run 'img check -r all'"))
    }

    fn block(&mut self, index: u64) -> Result<Option<&mut Block>> {
        if !self.blocks.contains_key(&index) {
            let offset = usize::try_from(index).ok().and_then(|i| self.table.get(i)).copied().unwrap_or(0);
            if offset == 0 {
                return Ok(None);
            }
            if self.blocks.len() >= self.max_blocks {
                self.blocks.retain(|_, block| block.changed);
                self.max_blocks = MAX_KEPT.max(2 * self.blocks.len());
            }
            let mut bytes = vec![0; self.header.cluster_size() as usize];
            read_padded(&*self.storage, &mut bytes, offset)?;
            self.blocks.insert(index, Block { bytes, changed: false });
        }
        Ok(self.blocks.get_mut(&index))
    }

    /// How many uses of `cluster` are counted.
    pub fn get(&mut self, cluster: u64) -> Result<u64> {
        let (per_block, order) = (self.header.refcounts_per_block(), self.header.refcount_order);
        Ok(self.block(cluster / per_block)?.map_or(0, |block| get_count(&block.bytes, cluster % per_block, order)))
    }

    fn set(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (per_block, order) = (self.header.refcounts_per_block(), self.header.refcount_order);
        if let Some(block) = self.block(cluster / per_block)? {
            set_count(&mut block.bytes, cluster % per_block, order, count);
            block.changed = true;
        }
        Ok(())
    }

    /// Counts `times` more uses of each of `clusters`.
    pub fn add(&mut self, clusters: Range<u64>, times: u64) -> Result<()> {
        let max = self.header.max_refcount();
        for cluster in clusters {
            let count = self.get(cluster)?;
            if count == 0 {
                return Err(self.corrupt(cluster, "the cluster is in use but counted as free"));
            }
            let sum = count.checked_add(times).filter(|sum| *sum <= max).ok_or_else(|| {
                let bits = 1u32 << self.header.refcount_order;
                let what = format!(
                    "using the cluster at {:#x} more than {max} times, which is all that a reference count of {bits} bits holds; \
                     'img amend -o refcount_bits=16' widens it",
                    cluster << self.header.cluster_bits
                );
                Error::unsupported(self.storage.name(), FORMAT, what)
            })?;
            self.set(cluster, sum)?;
        }
        Ok(())
    }

    /// Counts `times` less uses of each of `clusters`.
    pub fn drop(&mut self, clusters: Range<u64>, times: u64) -> Result<()> {
        for cluster in clusters {
            let count = self.get(cluster)?;
            let rest =
                count.checked_sub(times).ok_or_else(|| self.corrupt(cluster, "the cluster is used more often than it is counted"))?;
            self.set(cluster, rest)?;
            if rest == 0 {
                self.freed.insert(cluster);
            }
        }
        Ok(())
    }

    /// Takes `count` adjoining free clusters.
    fn allocate(&mut self, count: u64) -> Result<Range<u64>> {
        let mut start = self.next_free(self.hint)?;
        let mut end = start + 1;
        while end < start + count {
            let free = self.next_free(end)?;
            if free != end {
                start = free;
            }
            end = free + 1;
        }
        if end > MAX_OFFSET >> self.header.cluster_bits {
            return Err(Error::unsupported(self.storage.name(), FORMAT, "an image file larger than 64 PiB"));
        }
        for cluster in start..end {
            let index = cluster / self.header.refcounts_per_block();
            if self.block(index)?.is_none() {
                let bytes = vec![0; self.header.cluster_size() as usize];
                self.blocks.insert(index, Block { bytes, changed: true });
            }
            self.set(cluster, 1)?;
        }
        if count == 1 {
            self.hint = end;
        }
        Ok(start..end)
    }

    fn next_free(&mut self, from: u64) -> Result<u64> {
        let mut at = from;
        while self.get(at)? != 0 || self.freed.contains(at) {
            at += 1;
        }
        if self.metadata.contains(at) {
            return Err(self.corrupt(at, "the cluster holds metadata but is counted as free"));
        }
        Ok(at)
    }

    /// Writes a new table of `entries`, used once; gives its place in the file.
    pub fn write_table(&mut self, entries: &[u64]) -> Result<u64> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write_new(bytes)
    }

    /// Writes `bytes` to clusters of their own; gives their place in the file.
    pub fn write_new(&mut self, mut bytes: Vec<u8>) -> Result<u64> {
        let cluster_size = self.header.cluster_size();
        let clusters = (bytes.len() as u64).div_ceil(cluster_size).max(1);
        bytes.resize((clusters * cluster_size) as usize, 0);
        let offset = self.allocate(clusters)?.start * cluster_size;
        self.storage.write_at(&bytes, offset)?;
        Ok(offset)
    }

    /// A cluster that reads as zeroes.
    pub fn new_zeroes(&mut self) -> Result<u64> {
        let cluster_size = self.header.cluster_size();
        let offset = self.allocate(1)?.start * cluster_size;
        self.storage.zero_at(offset, cluster_size)?;
        Ok(offset)
    }

    /// Gives back `len` bytes at `offset` that one thing used.
    pub fn release(&mut self, offset: u64, len: u64) -> Result<()> {
        let bits = self.header.cluster_bits;
        self.drop(offset >> bits..(offset + len).div_ceil(1 << bits), 1)
    }

    /// Lays all counts out anew, in 2^`order` bits each.
    pub fn set_refcount_order(&mut self, order: u32) -> Result<()> {
        let (old, new) = (self.header.clone(), Header { refcount_order: order, ..self.header.clone() });
        let mut blocks: HashMap<u64, Block> = HashMap::new();
        // What is counted past the end of the file is of no use, and could ask for any amount of memory.
        let end = self.storage.size()?.div_ceil(old.cluster_size());
        for index in 0..(self.table.len() as u64).min(end.div_ceil(old.refcounts_per_block())) {
            let first = index * old.refcounts_per_block();
            let Some(block) = self.block(index)? else { continue };
            for place in 0..old.refcounts_per_block().min(end - first) {
                let count = get_count(&block.bytes, place, old.refcount_order);
                if count > new.max_refcount() {
                    let at = (first + place) << old.cluster_bits;
                    return Err(Error::Invalid(format!(
                        "Cannot decrease refcount entry width to {} bits: Cluster at offset {at:#x} has a refcount of {count}",
                        1u32 << order
                    )));
                }
                if count > 0 {
                    let cluster = first + place;
                    let empty = || Block { bytes: vec![0; new.cluster_size() as usize], changed: true };
                    let block = blocks.entry(cluster / new.refcounts_per_block()).or_insert_with(empty);
                    set_count(&mut block.bytes, cluster % new.refcounts_per_block(), order, count);
                }
            }
        }
        let old_blocks = std::mem::take(&mut self.table);
        (self.header, self.blocks) = (new, blocks);
        for offset in old_blocks.into_iter().filter(|offset| *offset != 0) {
            self.release(offset, 1)?;
        }
        Ok(())
    }

    /// Makes the new image durable and current; gives the clusters that it no longer uses.
    fn commit(mut self, old: &Header) -> Result<RangeSet> {
        let cluster_size = self.header.cluster_size();
        self.release(old.refcount_table_offset, u64::from(old.refcount_table_clusters) * cluster_size)?;
        // Placing blocks and table changes counts, which may change further blocks.
        let mut places = BTreeMap::new();
        let mut table = 0..0;
        loop {
            let mut todo: Vec<u64> = self.blocks.iter().filter(|(i, b)| b.changed && !places.contains_key(*i)).map(|(i, _)| *i).collect();
            todo.sort_unstable();
            for index in &todo {
                let place = self.allocate(1)?.start * cluster_size;
                places.insert(*index, place);
                let index = usize::try_from(*index).map_err(|_| self.corrupt(0, "the refcount table is too large"))?;
                let entries = (cluster_size / 8) as usize;
                if index >= self.table.len() {
                    if index >= (MAX_REFCOUNT_TABLE_BYTES / 8) as usize {
                        let what = "a refcount table larger than 8 MiB; use larger clusters";
                        return Err(Error::unsupported(self.storage.name(), FORMAT, what));
                    }
                    self.table.resize((index + 1).next_multiple_of(entries), 0);
                }
                let before = std::mem::replace(&mut self.table[index], place);
                if before != 0 {
                    self.release(before, 1)?;
                }
            }
            let needed = self.table.len() as u64 * 8 / cluster_size;
            if table.end - table.start < needed {
                self.drop(table, 1)?;
                table = self.allocate(needed)?;
            } else if todo.is_empty() {
                break;
            }
        }
        for (index, place) in &places {
            if let Some(block) = self.blocks.get(index) {
                self.storage.write_at(&block.bytes, *place)?;
            }
        }
        let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.header.refcount_table_offset = table.start * cluster_size;
        self.header.refcount_table_clusters = (table.end - table.start) as u32;
        self.storage.write_at(&bytes, self.header.refcount_table_offset)?;
        self.storage.sync()?;
        self.header.write_fields(&*self.storage)?;
        self.storage.sync()?;
        Ok(self.freed)
    }
}

impl Qcow2 {
    /// Begins a change of many counts; all that was written before is durable.
    pub(super) fn shadow(&self) -> Result<Shadow> {
        self.flush()?;
        self.store_bitmaps()?;
        Shadow::open(self.storage.clone(), self.current_header(), self.metadata()?)
    }

    /// Makes `shadow` the image, and gives the host the space that is no longer used.
    pub(super) fn commit(&mut self, shadow: Shadow) -> Result<()> {
        let freed = shadow.commit(&self.current_header())?;
        let end = self.storage.size()?;
        for clusters in freed.iter() {
            let bits = self.header.cluster_bits;
            let (start, end) = (clusters.start << bits, (clusters.end << bits).min(end));
            if start < end {
                self.storage.zero_at(start, end - start)?;
            }
        }
        self.reload()
    }

    /// Takes everything from the file again.
    pub(super) fn reload(&mut self) -> Result<()> {
        let mut fresh = Self::with_header(self.storage.clone(), Header::read(&*self.storage)?, self.backing.clone())?;
        (fresh.data, fresh.data_file) = (self.data.clone(), self.data_file.clone());
        fresh.compression_level = self.compression_level;
        *self = fresh.into_writable()?;
        self.end_laziness()
    }

    /// The L2 tables that `l1` names, and how often. A table is walked once, so that a small file cannot ask for endless
    /// work.
    pub(super) fn l2_tables(&self, l1: &[u64]) -> Result<BTreeMap<u64, u64>> {
        let mut tables = BTreeMap::new();
        for (index, entry) in l1.iter().enumerate() {
            let offset = entry & OFFSET;
            if !offset.is_multiple_of(self.cluster_size()) {
                let what = format!("L1 entry {index} points at {offset:#x}, which is no cluster's start");
                return Err(Error::corrupt(&self.file, FORMAT, None, what));
            }
            if offset != 0 {
                *tables.entry(offset).or_insert(0) += 1;
            }
        }
        Ok(tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join() {
        let mut set = RangeSet::default();
        for number in [5, 7, 6, 1, 5, 0, 9] {
            set.insert(number);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0..2, 5..8, 9..10]);
        assert!(set.contains(6) && !set.contains(8) && !set.contains(2));
    }
}
