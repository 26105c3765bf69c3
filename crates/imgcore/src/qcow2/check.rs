//! Checking an image: every reference to a cluster is counted and compared with the counts in the file, as qemu-img
//! does it.
//!
//! Memory is bounded by what the file really holds: counts are kept in pages, only for clusters that something refers
//! to within the file's length.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::entry::{COMPRESSED, COPIED, OFFSET, compressed_place};
use super::header::{DATA_FILE, DIRTY, FORMAT, Header, be32, be64};
use super::l2::words;
use super::refcount::get_count;
use super::repair;
use super::snapshot::{self, Snapshot};
use crate::formats::{CheckReport, Repair};
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

const PAGE: u64 = 1024;
const MAX_MESSAGES: usize = 1000;
const MAX_BITMAP_ENTRIES: u32 = 4 << 20;

/// How often each cluster is referred to.
#[derive(Default)]
pub(super) struct Counts(pub BTreeMap<u64, Box<[u32; PAGE as usize]>>);

impl Counts {
    pub fn get(&self, cluster: u64) -> u32 {
        self.0.get(&(cluster / PAGE)).map_or(0, |page| page[(cluster % PAGE) as usize])
    }

    pub fn set(&mut self, cluster: u64, count: u32) {
        self.0.entry(cluster / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]))[(cluster % PAGE) as usize] = count;
    }

    /// Clusters that are referred to, in order.
    pub fn used(&self) -> impl Iterator<Item = (u64, u32)> {
        self.0.iter().flat_map(|(page, counts)| (page * PAGE..).zip(counts.iter().copied())).filter(|(_, count)| *count > 0)
    }
}

/// One pass over the metadata.
pub(super) struct Pass {
    pub storage: Arc<dyn Storage>,
    pub header: Header,
    pub counts: Counts,
    /// Clusters of the refcount table and its blocks: their references end when those are rebuilt.
    pub refcount_clusters: Vec<u64>,
    pub refcount_table: Vec<u64>,
    /// L1 and L2 entries whose copied flag is wrong: offset in the file and right value.
    pub wrong_flags: Vec<(u64, u64)>,
    /// Clusters counted too high, with the right count.
    pub leaked: Vec<(u64, u32)>,
    /// Whether some count is too low, or a block for it missing.
    pub counts_too_low: bool,
    pub report: CheckReport,
    file_len: u64,
    expected_next: u64,
}

/// Checks the image in `storage`, and repairs what `repair` says.
pub(super) fn check(storage: Arc<dyn Storage>, repair: Repair) -> Result<CheckReport> {
    let header = Header::read(&*storage)?;
    let was_dirty = header.has(DIRTY);
    let first = Pass::run(storage.clone(), header)?;
    let fixes = match repair {
        Repair::None => return Ok(first.report),
        Repair::Leaks => !first.leaked.is_empty(),
        Repair::All => first.report.leaks + first.report.corruptions > 0 || was_dirty,
    };
    if !fixes {
        return Ok(first.report);
    }
    repair::repair(&first, repair)?;
    let second = Pass::run(storage.clone(), Header::read(&*storage)?)?.report;
    Ok(CheckReport {
        leaks_fixed: first.report.leaks.saturating_sub(second.leaks),
        corruptions_fixed: first.report.corruptions.saturating_sub(second.corruptions),
        ..second
    })
}

impl Pass {
    fn run(storage: Arc<dyn Storage>, header: Header) -> Result<Self> {
        let file_len = storage.size()?;
        let mut table = vec![0; (u64::from(header.refcount_table_clusters) << header.cluster_bits) as usize];
        read_padded(&*storage, &mut table, header.refcount_table_offset)?;
        let mut pass = Pass {
            refcount_table: words(&table).collect(),
            storage,
            header,
            counts: Counts::default(),
            refcount_clusters: Vec::new(),
            wrong_flags: Vec::new(),
            leaked: Vec::new(),
            counts_too_low: false,
            report: CheckReport::default(),
            file_len,
            expected_next: 0,
        };
        pass.report.total_clusters = pass.header.size.div_ceil(pass.header.cluster_size());
        pass.count_references()?;
        pass.compare()?;
        pass.check_copied_flags()?;
        Ok(pass)
    }

    fn say(&mut self, message: String) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message);
        } else if self.report.messages.len() == MAX_MESSAGES {
            self.report.messages.push("More findings are only counted".into());
        }
    }

    fn corruption(&mut self, message: String) {
        self.report.corruptions += 1;
        self.say(format!("ERROR {message}"));
    }

    /// Counts a reference to each cluster of a range of the file.
    fn count(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let cluster_size = self.header.cluster_size();
        // The file may end within its last cluster.
        if offset.checked_add(len).is_none_or(|end| end.saturating_sub(self.file_len) >= cluster_size) {
            self.corruption(format!(
                "counting reference for region exceeding the end of the file by one cluster or more: offset {offset:#x} size {len:#x}"
            ));
            return;
        }
        for cluster in offset / cluster_size..(offset + len).div_ceil(cluster_size) {
            let count = self.counts.get(cluster);
            self.counts.set(cluster, count.saturating_add(1));
        }
    }

    fn count_references(&mut self) -> Result<()> {
        let header = self.header.clone();
        self.count(0, header.cluster_size());
        self.count_l1(header.l1_table_offset, header.l1_size, true)?;
        let snapshots = snapshot::read(&*self.storage, &header)?;
        for Snapshot { l1_table_offset, l1_size, .. } in &snapshots {
            self.count_l1(*l1_table_offset, *l1_size, false)?;
        }
        self.count(header.snapshots_offset, snapshots.iter().map(|s| s.entry_len).sum());
        self.count_bitmaps()?;
        self.count(header.refcount_table_offset, u64::from(header.refcount_table_clusters) << header.cluster_bits);
        let start = header.refcount_table_offset >> header.cluster_bits;
        self.refcount_clusters.extend(start..start + u64::from(header.refcount_table_clusters));
        for (index, offset) in self.refcount_table.clone().into_iter().enumerate() {
            if offset == 0 {
                continue;
            }
            if offset % header.cluster_size() != 0 {
                self.corruption(format!("refcount block {index} is not cluster aligned; refcount table entry corrupted"));
                self.counts_too_low = true;
                self.refcount_table[index] = 0;
            } else if offset >= self.file_len {
                self.corruption(format!("refcount block {index} is outside image"));
                self.counts_too_low = true;
                self.refcount_table[index] = 0;
            } else {
                self.count(offset, header.cluster_size());
                self.refcount_clusters.push(offset >> header.cluster_bits);
                let count = self.counts.get(offset >> header.cluster_bits);
                if count != 1 {
                    self.corruption(format!("refcount block {index} refcount={count}"));
                    self.counts_too_low = true;
                }
            }
        }
        Ok(())
    }

    fn read_table(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; (entries * 8) as usize];
        read_padded(&*self.storage, &mut bytes, offset)?;
        Ok(words(&bytes).collect())
    }

    fn count_l1(&mut self, offset: u64, entries: u32, active: bool) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        self.count(offset, u64::from(entries) * 8);
        // A table that appears twice is walked once: otherwise a small file could ask for endless work.
        let mut seen = HashSet::new();
        for entry in self.read_table(offset, entries.into())? {
            let l2_offset = entry & OFFSET;
            if l2_offset == 0 {
                continue;
            }
            self.count(l2_offset, cluster_size);
            if !l2_offset.is_multiple_of(cluster_size) {
                self.corruption(format!("l2_offset={l2_offset:#x}: Table is not cluster aligned; L1 entry corrupted"));
            } else if l2_offset < self.file_len && seen.insert(l2_offset) {
                self.count_l2(l2_offset, active)?;
            }
        }
        Ok(())
    }

    fn count_l2(&mut self, l2_offset: u64, active: bool) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let step = (self.header.l2_entry_size() / 8) as usize;
        let external = self.header.has(DATA_FILE);
        for (index, entry) in self.read_table(l2_offset, cluster_size / 8)?.into_iter().step_by(step).enumerate() {
            if entry & COMPRESSED != 0 {
                if entry & COPIED != 0 {
                    self.corruption(format!("coffset={:#x}: copied flag must never be set for compressed clusters", entry & OFFSET));
                }
                let (host, len) = compressed_place(&self.header, entry);
                self.count(host, len);
                if active {
                    self.report.allocated_clusters += 1;
                    self.report.compressed_clusters += 1;
                    // Compressed clusters are fragmented by nature.
                    self.report.fragmented_clusters += 1;
                }
                continue;
            }
            let host = entry & OFFSET;
            // In an external data file, offset 0 is a place like any other; the copied flag tells it.
            if host == 0 && !(external && entry & COPIED != 0) {
                continue;
            }
            if !host.is_multiple_of(cluster_size) {
                let at = l2_offset + (index * step * 8) as u64;
                self.corruption(format!("offset={host:#x}: Cluster is not properly aligned; L2 entry at {at:#x} corrupted"));
            }
            if !external {
                self.count(host, cluster_size);
            }
            if active {
                self.report.allocated_clusters += 1;
                if self.expected_next != 0 && host != self.expected_next {
                    self.report.fragmented_clusters += 1;
                }
                self.expected_next = host.saturating_add(cluster_size);
            }
        }
        Ok(())
    }

    /// Persistent bitmaps are not used here, but their clusters are.
    fn count_bitmaps(&mut self) -> Result<()> {
        let Some(bitmaps) = self.header.bitmaps else { return Ok(()) };
        self.count(bitmaps.directory_offset, bitmaps.directory_size);
        let mut directory = vec![0; bitmaps.directory_size as usize];
        read_padded(&*self.storage, &mut directory, bitmaps.directory_offset)?;
        let mut at = 0;
        for index in 0..bitmaps.count {
            let Some(entry) = directory.get(at..).filter(|e| e.len() >= 24) else {
                self.corruption(format!("bitmap {index} lies outside the bitmap directory"));
                break;
            };
            let (table, entries) = (be64(entry, 0), be32(entry, 8));
            let name_len = usize::from(u16::from_be_bytes([entry[18], entry[19]]));
            at += (24 + be32(entry, 20) as usize + name_len).next_multiple_of(8);
            self.count(table, u64::from(entries) * 8);
            if entries > MAX_BITMAP_ENTRIES {
                self.corruption(format!("bitmap {index} has a table of {entries} entries"));
                continue;
            }
            if table.saturating_add(u64::from(entries) * 8) > self.file_len.next_multiple_of(self.header.cluster_size()) {
                continue;
            }
            for entry in self.read_table(table, entries.into())? {
                if entry & OFFSET != 0 {
                    self.count(entry & OFFSET, self.header.cluster_size());
                }
            }
        }
        Ok(())
    }

    /// The refcount block `index`, if there is one.
    pub fn block(&self, index: u64) -> Result<Option<Vec<u8>>> {
        let offset = usize::try_from(index).ok().and_then(|i| self.refcount_table.get(i)).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; self.header.cluster_size() as usize];
        read_padded(&*self.storage, &mut bytes, offset)?;
        Ok(Some(bytes))
    }

    /// Compares the counts in the file with those that were found.
    fn compare(&mut self) -> Result<()> {
        let per_block = self.header.refcounts_per_block();
        let there = (0u64..).zip(&self.refcount_table).filter(|(_, offset)| **offset != 0).map(|(index, _)| index);
        let mut blocks: BTreeSet<u64> = there.collect();
        let mut last = None;
        for (cluster, _) in self.counts.used() {
            if last != Some(cluster / per_block) {
                last = Some(cluster / per_block);
                blocks.insert(cluster / per_block);
            }
        }
        // What lies past the end of the file is not looked at, as in qemu-img.
        let clusters = self.file_len.div_ceil(self.header.cluster_size()).max(self.counts.used().last().map_or(0, |(c, _)| c + 1));
        let mut highest = None;
        for index in blocks {
            let block = self.block(index)?;
            for place in 0..per_block {
                let cluster = index * per_block + place;
                if cluster >= clusters {
                    break;
                }
                let counted = block.as_ref().map_or(0, |bytes| get_count(bytes, place, self.header.refcount_order));
                let found = self.counts.get(cluster);
                if counted > 0 || found > 0 {
                    highest = Some(cluster);
                }
                if counted == u64::from(found) {
                    continue;
                }
                if counted > u64::from(found) {
                    self.report.leaks += 1;
                    self.leaked.push((cluster, found));
                    self.say(format!("Leaked cluster {cluster} refcount={counted} reference={found}"));
                } else {
                    self.counts_too_low = true;
                    self.corruption(format!("cluster {cluster} refcount={counted} reference={found}"));
                }
            }
        }
        self.report.image_end_offset = highest.map_or(0, |cluster| (cluster + 1) * self.header.cluster_size());
        Ok(())
    }

    /// Entries of the active tables say by their copied flag whether a cluster is used once.
    fn check_copied_flags(&mut self) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let step = (self.header.l2_entry_size() / 8) as usize;
        let mut seen = HashSet::new();
        let l1 = self.read_table(self.header.l1_table_offset, self.header.l1_size.into())?;
        for (index, entry) in l1.into_iter().enumerate() {
            let l2_offset = entry & OFFSET;
            if l2_offset == 0 || !l2_offset.is_multiple_of(cluster_size) {
                continue;
            }
            let count = self.file_count(l2_offset)?;
            if (count == 1) != (entry & COPIED != 0) {
                self.corruption(format!("OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={count}"));
                self.wrong_flag(self.header.l1_table_offset + index as u64 * 8, entry, l2_offset);
            }
            if self.header.has(DATA_FILE) || l2_offset >= self.file_len || !seen.insert(l2_offset) {
                continue;
            }
            for (index, entry) in self.read_table(l2_offset, cluster_size / 8)?.into_iter().step_by(step).enumerate() {
                let host = entry & OFFSET;
                if entry & COMPRESSED != 0 || host == 0 || !host.is_multiple_of(cluster_size) {
                    continue;
                }
                let count = self.file_count(host)?;
                if (count == 1) != (entry & COPIED != 0) {
                    self.corruption(format!("OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={count}"));
                    self.wrong_flag(l2_offset + (index * step * 8) as u64, entry, host);
                }
            }
        }
        Ok(())
    }

    /// Notes the value that an entry will have once the counts are right.
    fn wrong_flag(&mut self, at: u64, entry: u64, host: u64) {
        let right = if self.counts.get(host >> self.header.cluster_bits) == 1 { entry | COPIED } else { entry & !COPIED };
        self.wrong_flags.push((at, right));
    }

    /// The count that the file gives for the cluster at `offset`.
    fn file_count(&mut self, offset: u64) -> Result<u64> {
        let cluster = offset >> self.header.cluster_bits;
        let index = cluster / self.header.refcounts_per_block();
        // The clusters of one table mostly share a block; a full cache would be larger than the work saved.
        let offset = usize::try_from(index).ok().and_then(|i| self.refcount_table.get(i)).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(0);
        }
        let order = self.header.refcount_order;
        let bit = (cluster % self.header.refcounts_per_block()) << order;
        let width = (1usize << order).div_ceil(8);
        let mut bytes = [0; 8];
        read_padded(&*self.storage, &mut bytes[..width], offset + bit / 8)?;
        Ok(get_count(&bytes, (bit % 8) >> order, order))
    }

    /// The error for an image that is past repair.
    pub fn beyond_repair(&self, what: &str) -> Error {
        Error::corrupt(self.storage.name(), FORMAT, None, what)
    }
}
