//! Counting all references to clusters.

use std::collections::BTreeMap;

use super::{BLOCK_OFFSET, Pass};
use crate::Result;
use crate::qcow2::entry::{COMPRESSED, COPIED, OFFSET, ZERO, compressed_place};
use crate::qcow2::header::{DATA_FILE, EXTENDED_L2, be32, be64};
use crate::qcow2::l2::words;
use crate::qcow2::snapshot::{self, MAX_L1_BYTES, Snapshot};
use crate::storage::read_padded;

const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const MAX_BITMAP_ENTRIES: u32 = 4 << 20;
/// So many L2 tables that begin within a cluster are looked into; the image is damaged anyway.
const MAX_UNALIGNED: usize = 1000;
/// So many entries that can be repaired are noted.
const MAX_TO_ZERO: usize = 1 << 20;

/// How often something is named: by the active tables, and in all.
#[derive(Clone, Copy, Default)]
struct Times {
    active: u32,
    all: u32,
}

type L2Tables = BTreeMap<u64, Times>;

impl Pass<'_> {
    /// Counts `times` references to each cluster of a range of the file.
    fn count(&mut self, offset: u64, len: u64, times: u32) {
        let (bits, cluster_size) = (self.header.cluster_bits, self.header.cluster_size());
        if len == 0 {
            return;
        }
        // The file may end within its last cluster.
        let Some(end) = offset.checked_add(len).filter(|end| end.saturating_sub(self.file_len) < cluster_size) else {
            self.corruption(times, || {
                format!(
                    "counting reference for region exceeding the end of the file by one cluster or more: offset {offset:#x} size {len:#x}"
                )
            });
            return;
        };
        // Shifts, not divisions: this is done for every cluster.
        let end = ((end - 1) >> bits) + 1;
        for cluster in offset >> bits..end {
            let over = self.counts.add(cluster, times, self.max_count);
            if over > 0 {
                self.corruption(over, || {
                    format!("overflow cluster offset={:#x}: 'img amend -o refcount_bits=64' widens reference counts", cluster << bits)
                });
            }
        }
        self.clusters = self.clusters.max(end);
    }

    pub(super) fn count_references(&mut self) -> Result<()> {
        let header = self.header.clone();
        self.count(0, header.cluster_size(), 1);
        let mut tables = L2Tables::new();
        self.count_l1(header.l1_table_offset, header.l1_size, Times { active: 1, all: 1 }, &mut tables)?;
        self.count_snapshots(&mut tables)?;
        let mut unaligned = 0;
        for (offset, times) in tables {
            self.count(offset, header.cluster_size(), times.all);
            if !offset.is_multiple_of(header.cluster_size()) {
                self.corruption(times.all, || format!("l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"));
                unaligned += 1;
            }
            if unaligned > MAX_UNALIGNED {
                self.lost = true;
            } else if offset != 0 && offset < self.file_len {
                self.count_l2(offset, times)?;
            }
        }
        self.count_bitmaps()?;
        self.count(header.refcount_table_offset, u64::from(header.refcount_table_clusters) << header.cluster_bits, 1);
        let start = header.refcount_table_offset >> header.cluster_bits;
        self.refcount_clusters.extend(start..start + u64::from(header.refcount_table_clusters));
        self.count_blocks();
        Ok(())
    }

    fn count_blocks(&mut self) {
        let cluster_size = self.header.cluster_size();
        for index in 0..self.refcount_table.len() {
            let entry = self.refcount_table[index];
            let offset = entry & BLOCK_OFFSET;
            if entry != offset {
                self.refcount_table[index] = offset;
                self.rebuild = true;
                self.corruption(1, || format!("refcount table entry {index} has reserved bits set"));
            } else if offset == 0 {
                continue;
            } else if !offset.is_multiple_of(cluster_size) {
                self.rebuild = true;
                self.corruption(1, || format!("refcount block {index} is not cluster aligned; refcount table entry corrupted"));
            } else if offset >= self.clusters * cluster_size {
                self.rebuild = true;
                self.corruption(1, || format!("refcount block {index} is outside image"));
            } else {
                self.count(offset, cluster_size, 1);
                self.refcount_clusters.push(offset >> self.header.cluster_bits);
                let count = self.counts.get(offset >> self.header.cluster_bits);
                if count != 1 {
                    self.rebuild = true;
                    self.corruption(1, || format!("refcount block {index} refcount={count}"));
                }
            }
        }
    }

    fn read_table(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; (entries * 8) as usize];
        read_padded(self.storage, &mut bytes, offset)?;
        Ok(words(&bytes).collect())
    }

    fn count_snapshots(&mut self, tables: &mut L2Tables) -> Result<()> {
        let snapshots = snapshot::read_unchecked(self.storage, &self.header)?;
        if self.header.has(DATA_FILE) && !snapshots.is_empty() {
            self.corruption(1, || format!("{} snapshots in image with data file", snapshots.len()));
        }
        let mut l1s: BTreeMap<(u64, u32), u32> = BTreeMap::new();
        // Tables that do not overlap fit into the file.
        let mut room = self.file_len.next_multiple_of(self.header.cluster_size());
        for (index, Snapshot { info, l1_table_offset, l1_size, disk_size, .. }) in snapshots.iter().enumerate() {
            if self.header.version == 3 && disk_size.is_none() {
                self.incomplete_rows += 1;
                self.corruption(1, || format!("snapshot table entry {index} is incomplete"));
            }
            let bad = |what: String| format!("snapshot {} ({}) {what}; snapshot table entry corrupted", info.id, info.name);
            let (offset, size) = (*l1_table_offset, *l1_size);
            if !offset.is_multiple_of(self.header.cluster_size()) {
                self.lost = true;
                self.corruption(1, || bad(format!("l1_offset={offset:#x}: L1 table is not cluster aligned")));
            } else if u64::from(size) * 8 > MAX_L1_BYTES {
                self.lost = true;
                self.corruption(1, || bad(format!("l1_size={size:#x}: L1 table is too large")));
            } else {
                *l1s.entry((offset, size)).or_insert(0) += 1;
            }
        }
        for ((offset, size), times) in l1s {
            match room.checked_sub(u64::from(size) * 8) {
                Some(rest) => {
                    room = rest;
                    self.count_l1(offset, size, Times { active: 0, all: times }, tables)?;
                }
                None => {
                    self.lost = true;
                    self.corruption(times, || format!("l1_offset={offset:#x}: L1 tables of snapshots overlap; not followed"));
                }
            }
        }
        self.count(self.header.snapshots_offset, snapshots.iter().map(|s| s.entry_len).sum(), 1);
        Ok(())
    }

    fn count_l1(&mut self, offset: u64, entries: u32, times: Times, tables: &mut L2Tables) -> Result<()> {
        self.count(offset, u64::from(entries) * 8, times.all);
        if i64::try_from(offset).is_err() {
            return Err(self.beyond_repair(&format!("the L1 table at {offset:#x} cannot be read")));
        }
        if offset >= self.file_len {
            return Ok(());
        }
        for entry in self.read_table(offset, entries.into())?.into_iter().filter(|entry| *entry != 0) {
            if entry & L1_RESERVED != 0 {
                self.corruption(times.all, || format!("found L1 entry with reserved bits set: {entry:x}"));
            }
            let table = tables.entry(entry & OFFSET).or_default();
            table.active = table.active.saturating_add(times.active);
            table.all = table.all.saturating_add(times.all);
        }
        Ok(())
    }

    fn count_l2(&mut self, l2_offset: u64, times: Times) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let mut bytes = vec![0; cluster_size as usize];
        read_padded(self.storage, &mut bytes, l2_offset)?;
        let mut expected = 0;
        if !self.header.has(EXTENDED_L2) {
            for (at, entry) in (l2_offset..).step_by(8).zip(words(&bytes)).filter(|(_, entry)| *entry != 0) {
                self.count_entry(at, entry, None, times, &mut expected);
            }
            return Ok(());
        }
        for (at, pair) in (l2_offset..).step_by(16).zip(bytes.as_chunks::<16>().0) {
            self.count_entry(at, be64(pair, 0), Some(be64(pair, 8)), times, &mut expected);
        }
        Ok(())
    }

    /// Counts what the L2 entry at `at` of the file refers to. `expected` is where the next cluster would follow the last.
    fn count_entry(&mut self, at: u64, entry: u64, bitmap: Option<u64>, times: Times, expected: &mut u64) {
        let cluster_size = self.header.cluster_size();
        if entry & COMPRESSED != 0 {
            return self.count_compressed(entry, bitmap.unwrap_or(0), times);
        }
        if entry & L2_RESERVED != 0 {
            self.corruption(times.all, || format!("found l2 entry with reserved bits set: {entry:x}"));
        }
        let host = entry & OFFSET;
        let external = self.header.has(DATA_FILE);
        let stored = bitmap.unwrap_or(0) & u64::from(u32::MAX);
        let zero_flag = bitmap.is_none() && entry & ZERO != 0;
        // In an external data file, offset 0 is a place like any other; the copied flag tells it.
        if host == 0 && (zero_flag || !(external && entry & COPIED != 0)) {
            if stored != 0 {
                self.corruption(times.all, || "Unallocated cluster has non-zero subcluster allocation map".into());
                self.note_zero(at);
            }
            return;
        }
        if bitmap.is_some_and(|bitmap| bitmap >> 32 & stored != 0) {
            self.corruption(times.all, || format!("offset={host:x}: Allocated cluster has corrupted subcluster allocation bitmap"));
            self.note_zero(at);
        }
        if host & (cluster_size - 1) != 0 {
            let empty = if bitmap.is_some() { stored == 0 } else { zero_flag };
            let what = if empty { "Preallocated" } else { "Data" };
            self.corruption(times.all, || format!("offset={host:x}: {what} cluster is not properly aligned; L2 entry corrupted."));
            if empty {
                self.note_zero(at);
            }
        }
        if times.active > 0 {
            self.report.allocated_clusters += u64::from(times.active);
            if *expected != 0 && host != *expected {
                self.report.fragmented_clusters += u64::from(times.active);
            }
            *expected = host + cluster_size;
        }
        if !external {
            self.count(host, cluster_size, times.all);
        }
    }

    fn count_compressed(&mut self, entry: u64, bitmap: u64, times: Times) {
        let (host, len) = compressed_place(&self.header, entry);
        if entry & COPIED != 0 {
            self.corruption(times.all, || format!("coffset={host:#x}: copied flag must never be set for compressed clusters"));
        }
        if self.header.has(DATA_FILE) {
            return self.corruption(times.all, || format!("compressed cluster with data file, entry={entry:#x}"));
        }
        if bitmap != 0 {
            return self
                .corruption(times.all, || format!("compressed cluster with non-zero subcluster allocation bitmap, entry={entry:#x}"));
        }
        self.count(host, len, times.all);
        self.report.allocated_clusters += u64::from(times.active);
        self.report.compressed_clusters += u64::from(times.active);
        // Compressed clusters are fragmented by nature.
        self.report.fragmented_clusters += u64::from(times.active);
    }

    fn note_zero(&mut self, at: u64) {
        if self.to_zero.len() < MAX_TO_ZERO {
            self.to_zero.push(at);
        }
    }

    /// Makes entries that hold nothing, or contradict themselves, zero clusters.
    pub(super) fn zero_entries(&self) -> Result<()> {
        for at in &self.to_zero {
            if self.header.has(EXTENDED_L2) {
                let zeroes = (u64::from(u32::MAX) << 32).to_be_bytes();
                self.storage.write_at(&[[0; 8], zeroes].concat(), *at)?;
            } else {
                self.storage.write_at(&ZERO.to_be_bytes(), *at)?;
            }
        }
        self.storage.sync()
    }

    /// Persistent bitmaps: their directory, their tables, and what those name.
    fn count_bitmaps(&mut self) -> Result<()> {
        let Some(bitmaps) = self.header.bitmaps else { return Ok(()) };
        self.count(bitmaps.directory_offset, bitmaps.directory_size, 1);
        let mut directory = vec![0; bitmaps.directory_size as usize];
        read_padded(self.storage, &mut directory, bitmaps.directory_offset)?;
        let mut at = 0;
        // Tables that do not overlap fit into the file.
        let mut room = self.file_len.next_multiple_of(self.header.cluster_size());
        for index in 0..bitmaps.count {
            let Some(entry) = directory.get(at..).filter(|e| e.len() >= 24) else {
                self.corruption(1, || format!("bitmap {index} lies outside the bitmap directory"));
                break;
            };
            let (table, entries) = (be64(entry, 0), be32(entry, 8));
            let name_len = usize::from(u16::from_be_bytes([entry[18], entry[19]]));
            at += (24 + be32(entry, 20) as usize + name_len).next_multiple_of(8);
            self.count(table, u64::from(entries) * 8, 1);
            match room.checked_sub(u64::from(entries) * 8) {
                Some(rest) if entries <= MAX_BITMAP_ENTRIES => room = rest,
                _ => {
                    self.corruption(1, || format!("bitmap {index} has a table of {entries} entries"));
                    continue;
                }
            }
            if table >= self.file_len {
                continue;
            }
            for entry in self.read_table(table, entries.into())? {
                let host = entry & OFFSET;
                if !host.is_multiple_of(self.header.cluster_size()) || entry & !(OFFSET | 1) != 0 || (host != 0 && entry & 1 != 0) {
                    self.corruption(1, || format!("bitmap {index} has the table entry {entry:#x}"));
                } else if host != 0 {
                    self.count(host, self.header.cluster_size(), 1);
                }
            }
        }
        Ok(())
    }
}
