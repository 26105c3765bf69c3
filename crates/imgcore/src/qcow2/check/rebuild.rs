//! Building the reference counts anew from what was found.

use std::collections::BTreeSet;

use super::Pass;
use crate::Result;
use crate::qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::qcow2::refcount::set_count;

impl Pass<'_> {
    /// Writes new blocks and a new table behind the end of the file, then switches the header over. Nothing of the old
    /// ones is overwritten.
    pub(super) fn rebuild_counts(&mut self) -> Result<()> {
        for cluster in std::mem::take(&mut self.refcount_clusters) {
            self.counts.drop_one(cluster);
        }
        let header = &self.header;
        let (cluster_size, per_block) = (header.cluster_size(), header.refcounts_per_block());
        let end = self.counts.last_used().map_or(0, |cluster| cluster + 1);
        let base = self.storage.size()?.div_ceil(cluster_size).max(end);
        let used: BTreeSet<u64> =
            self.counts.ranges().into_iter().flat_map(|range| range.start / per_block..range.end.min(end).div_ceil(per_block)).collect();
        let (mut blocks, mut table_clusters) = (used.clone(), 1);
        loop {
            // Before anything is made as large as that.
            if (base / per_block * 8).max(table_clusters * cluster_size) > MAX_REFCOUNT_TABLE_BYTES {
                return Err(self.beyond_repair("the new refcount table would be larger than 8 MiB; convert the image instead"));
            }
            let new = base..base + blocks.len() as u64 + table_clusters;
            let mut needed = used.clone();
            needed.extend(new.start / per_block..new.end.div_ceil(per_block));
            let needed_table = (needed.last().map_or(1, |index| index + 1) * 8).div_ceil(cluster_size);
            if needed == blocks && needed_table == table_clusters {
                break;
            }
            (blocks, table_clusters) = (needed, needed_table);
        }
        let own = base..base + blocks.len() as u64 + table_clusters;
        let mut table = vec![0u8; (table_clusters * cluster_size) as usize];
        for (index, place) in blocks.iter().zip(base..) {
            let mut block = vec![0; cluster_size as usize];
            let first = index * per_block;
            for cluster in first..(first + per_block).min(own.end) {
                let count = if own.contains(&cluster) { 1 } else { self.counts.get(cluster) };
                set_count(&mut block, cluster - first, header.refcount_order, count.into());
            }
            let offset = place * cluster_size;
            self.storage.write_at(&block, offset)?;
            let entry = (*index * 8) as usize;
            table[entry..entry + 8].copy_from_slice(&offset.to_be_bytes());
        }
        let table_offset = (base + blocks.len() as u64) * cluster_size;
        self.storage.write_at(&table, table_offset)?;
        self.storage.sync()?;
        let mut fields = table_offset.to_be_bytes().to_vec();
        fields.extend(u32::try_from(table_clusters).unwrap_or(u32::MAX).to_be_bytes());
        self.storage.write_at(&fields, 48)?;
        self.storage.sync()
    }
}
