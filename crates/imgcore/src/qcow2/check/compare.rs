//! Comparing the counts in the file, and the flags that follow from them, with the references that were found.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::Pass;
use super::counts::PAGE;
use crate::formats::Repair;
use crate::qcow2::entry::{COMPRESSED, COPIED, OFFSET, ZERO};
use crate::qcow2::header::{DATA_FILE, EXTENDED_L2, Header};
use crate::qcow2::l2::words;
use crate::qcow2::refcount::{get_count, set_count};
use crate::storage::read_padded;
use crate::{Result, Storage};

/// Bytes of refcount blocks that are kept.
const MAX_KEPT: u64 = 16 << 20;

/// Refcount blocks of the file, read once while they fit.
pub(super) struct Blocks {
    kept: HashMap<u64, Arc<[u8]>>,
    last: Option<(u64, Arc<[u8]>)>,
    cluster_size: u64,
}

impl Blocks {
    pub fn new(header: &Header) -> Self {
        Blocks { kept: HashMap::new(), last: None, cluster_size: header.cluster_size() }
    }

    /// The block at `offset`.
    fn get(&mut self, storage: &dyn Storage, offset: u64) -> Result<&[u8]> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != offset) {
            let block = match self.kept.get(&offset) {
                Some(block) => block.clone(),
                None => {
                    if self.kept.len() as u64 >= (MAX_KEPT / self.cluster_size).max(4) {
                        self.kept.clear();
                    }
                    let mut bytes = vec![0; self.cluster_size as usize];
                    read_padded(storage, &mut bytes, offset)?;
                    let block: Arc<[u8]> = bytes.into();
                    self.kept.insert(offset, block.clone());
                    block
                }
            };
            self.last = Some((offset, block));
        }
        Ok(self.last.as_ref().map_or(&[], |(_, block)| block))
    }

    fn forget(&mut self) {
        (self.kept, self.last) = Default::default();
    }
}

impl Pass<'_> {
    /// The place of refcount block `index`; 0 when there is none.
    fn block_offset(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|i| self.refcount_table.get(i)).copied().unwrap_or(0)
    }

    /// Whether no refcount block can lie at `offset`.
    fn unreadable(&self, offset: u64) -> bool {
        offset & (self.header.cluster_size() - 1) != 0 || i64::try_from(offset).is_err()
    }

    /// Compares the counts in the file with those that were found, and sets those right that `repair` allows.
    pub(super) fn compare(&mut self, repair: Repair) -> Result<()> {
        let per_block = self.header.refcounts_per_block();
        // What lies past the end of the file is not looked at.
        let ranges = self.counts.ranges();
        let used = ranges.iter().flat_map(|range| range.start / per_block..range.end.div_ceil(per_block));
        let there = (0u64..).zip(&self.refcount_table).filter(|(_, offset)| **offset != 0).map(|(index, _)| index);
        let indices: BTreeSet<u64> = used.chain(there).filter(|index| index * per_block < self.clusters).collect();
        let (mut seen, mut highest) = (HashSet::new(), None);
        for index in indices {
            let offset = self.block_offset(index);
            let clusters = index * per_block..((index + 1) * per_block).min(self.clusters);
            if self.unreadable(offset) {
                self.report.check_errors += clusters.end - clusters.start;
                self.say(|| format!("Can't get refcounts for clusters {} to {}: Input/output error", clusters.start, clusters.end - 1));
            } else if offset == 0 || !seen.insert(offset) {
                // One block cannot count for two ranges: only what is in use is looked at.
                for range in &ranges {
                    let part = range.start.max(clusters.start)..range.end.min(clusters.end);
                    self.compare_part(part, index, repair, &mut highest)?;
                }
            } else {
                self.compare_part(clusters, index, repair, &mut highest)?;
            }
        }
        self.report.image_end_offset = highest.map_or(0, |cluster: u64| (cluster + 1) * self.header.cluster_size());
        self.blocks.forget();
        Ok(())
    }

    /// The same for clusters that the refcount block `index` counts.
    fn compare_part(&mut self, clusters: Range<u64>, index: u64, repair: Repair, highest: &mut Option<u64>) -> Result<()> {
        let (order, offset, within) = (self.header.refcount_order, self.block_offset(index), (1 << self.block_bits) - 1);
        let mut block = if offset == 0 { Vec::new() } else { self.blocks.get(self.storage, offset)?.to_vec() };
        let (mut changed, mut at, mut differ) = (false, clusters.start, Vec::new());
        while at < clusters.end {
            let end = clusters.end.min((at / PAGE + 1) * PAGE);
            let page = self.counts.page(at / PAGE);
            for cluster in at..end {
                let counted = get_count(&block, cluster & within, order);
                let found = page.map_or(0, |page| page[(cluster % PAGE) as usize]);
                if counted > 0 || found > 0 {
                    *highest = (*highest).max(Some(cluster));
                }
                if counted != u64::from(found) {
                    differ.push((cluster, counted, found));
                }
            }
            for (cluster, counted, found) in differ.drain(..) {
                let right = u64::from(found);
                if counted == 0 {
                    self.rebuild = true;
                } else if (counted > right && repair != Repair::None) || (counted < right && repair == Repair::All) {
                    set_count(&mut block, cluster & within, order, right);
                    changed = true;
                    continue;
                }
                if counted > right {
                    self.report.leaks += 1;
                    self.say(|| format!("Leaked cluster {cluster} refcount={counted} reference={found}"));
                } else {
                    self.corruption(1, || format!("cluster {cluster} refcount={counted} reference={found}"));
                }
            }
            at = end;
        }
        if changed { self.storage.write_at(&block, offset) } else { Ok(()) }
    }

    /// Entries of the active tables say by their copied flag whether a cluster is used once. Those that are wrong are
    /// found or, with `fix`, set right.
    pub(super) fn check_copied_flags(&mut self, fix: bool) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let mut seen = HashSet::new();
        let mut l1 = vec![0; self.header.l1_size as usize * 8];
        read_padded(self.storage, &mut l1, self.header.l1_table_offset)?;
        let l1: Vec<u64> = words(&l1).collect();
        for (index, entry) in l1.into_iter().enumerate() {
            let l2_offset = entry & OFFSET;
            if l2_offset == 0 {
                continue;
            }
            if let Some(count) = self.file_count(l2_offset)?
                && (count == 1) != (entry & COPIED != 0)
            {
                self.wrong_flag(|| format!("OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={count}"));
                if fix {
                    self.storage.write_at(&(entry ^ COPIED).to_be_bytes(), self.header.l1_table_offset + index as u64 * 8)?;
                }
            }
            if l2_offset < self.file_len && (!self.lost || l2_offset.is_multiple_of(cluster_size)) && seen.insert(l2_offset) {
                self.check_table_flags(l2_offset, fix)?;
            }
        }
        Ok(())
    }

    fn check_table_flags(&mut self, l2_offset: u64, fix: bool) -> Result<()> {
        let (external, extended) = (self.header.has(DATA_FILE), self.header.has(EXTENDED_L2));
        let mut table = vec![0; self.header.cluster_size() as usize];
        read_padded(self.storage, &mut table, l2_offset)?;
        let mut changed = false;
        let step = if extended { 16 } else { 8 };
        for place in (0..table.len()).step_by(step) {
            let Some(bytes) = table.get(place..place + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()) else { break };
            let entry = u64::from_be_bytes(bytes);
            let host = entry & OFFSET;
            let nowhere = host == 0 && (!external || entry & COPIED == 0 || (!extended && entry & ZERO != 0));
            if nowhere || entry & COMPRESSED != 0 {
                continue;
            }
            let count = if external { Some(1) } else { self.file_count(host)? };
            if let Some(count) = count
                && (count == 1) != (entry & COPIED != 0)
            {
                self.wrong_flag(|| format!("OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={count}"));
                if fix && let Some(bytes) = table.get_mut(place..place + 8) {
                    bytes.copy_from_slice(&(entry ^ COPIED).to_be_bytes());
                    changed = true;
                }
            }
        }
        if changed { self.storage.write_at(&table, l2_offset) } else { Ok(()) }
    }

    fn wrong_flag(&mut self, message: impl FnOnce() -> String) {
        self.wrong_flags += 1;
        self.corruption(1, message);
    }

    /// The count that the file gives for the cluster at `offset`, if that can be read.
    fn file_count(&mut self, offset: u64) -> Result<Option<u64>> {
        let cluster = offset >> self.header.cluster_bits;
        match self.block_offset(cluster >> self.block_bits) {
            0 => Ok(Some(0)),
            block if self.unreadable(block) => Ok(None),
            block => {
                let (place, order) = (cluster & ((1 << self.block_bits) - 1), self.header.refcount_order);
                Ok(Some(get_count(self.blocks.get(self.storage, block)?, place, order)))
            }
        }
    }
}
