//! Repairing reference counts after a check: leaks in place, all else by building the counts anew.

use std::collections::{BTreeMap, BTreeSet};

use super::check::Pass;
use super::header::{CORRUPT, DIRTY, MAX_REFCOUNT_TABLE_BYTES};
use super::refcount::set_count;
use crate::Result;
use crate::formats::Repair;

/// Repairs what `pass` found. Nothing is overwritten before what replaces it is durable.
pub(super) fn repair(pass: &Pass, repair: Repair) -> Result<()> {
    if repair == Repair::All && pass.counts_too_low {
        rebuild(pass)?;
    } else {
        lower_counts(pass)?;
    }
    if repair == Repair::All {
        for (at, entry) in &pass.wrong_flags {
            pass.storage.write_at(&entry.to_be_bytes(), *at)?;
        }
        pass.storage.sync()?;
        let damaged_elsewhere = pass.report.corruptions > 0 && !pass.counts_too_low && pass.wrong_flags.is_empty();
        if pass.header.version == 3 && pass.header.has(DIRTY | CORRUPT) && !damaged_elsewhere {
            let features = pass.header.incompatible & !(DIRTY | CORRUPT);
            pass.storage.write_at(&features.to_be_bytes(), 72)?;
        }
    }
    pass.storage.sync()
}

fn lower_counts(pass: &Pass) -> Result<()> {
    let (order, per_block) = (pass.header.refcount_order, pass.header.refcounts_per_block());
    let mut by_block: BTreeMap<u64, Vec<(u64, u32)>> = BTreeMap::new();
    for (cluster, count) in &pass.leaked {
        by_block.entry(cluster / per_block).or_default().push((cluster % per_block, *count));
    }
    for (index, changes) in by_block {
        let Some(mut block) = pass.block(index)? else { continue };
        for (place, count) in changes {
            set_count(&mut block, place, order, count.into());
        }
        pass.storage.write_at(&block, pass.refcount_table[index as usize])?;
    }
    Ok(())
}

/// Writes new blocks and a new table behind the end of the file, then switches the header over.
fn rebuild(pass: &Pass) -> Result<()> {
    let header = &pass.header;
    let (cluster_size, per_block) = (header.cluster_size(), header.refcounts_per_block());
    let counts: Vec<(u64, u32)> = {
        let mut old = pass.refcount_clusters.clone();
        old.sort_unstable();
        // Each time that the old table or a block is listed, one reference to its cluster goes away.
        let dropped = |cluster: u64| (old.partition_point(|c| *c <= cluster) - old.partition_point(|c| *c < cluster)) as u32;
        pass.counts
            .used()
            .map(|(cluster, count)| (cluster, count.saturating_sub(dropped(cluster))))
            .filter(|(_, count)| *count > 0)
            .collect()
    };
    if counts.iter().any(|(_, count)| u64::from(*count) > header.max_refcount()) {
        return Err(pass.beyond_repair("a cluster is used more often than its reference count can say; convert the image instead"));
    }
    let end = counts.last().map_or(0, |(cluster, _)| cluster + 1);
    let base = pass.storage.size()?.div_ceil(cluster_size).max(end);
    let used: BTreeSet<u64> = counts.iter().map(|(cluster, _)| cluster / per_block).collect();
    let (mut blocks, mut table_clusters) = (used.clone(), 1);
    loop {
        let new = base..base + blocks.len() as u64 + table_clusters;
        let mut needed = used.clone();
        needed.extend(new.start / per_block..new.end.div_ceil(per_block));
        let needed_table = (needed.last().map_or(1, |index| index + 1) * 8).div_ceil(cluster_size);
        if needed == blocks && needed_table == table_clusters {
            break;
        }
        (blocks, table_clusters) = (needed, needed_table);
    }
    if table_clusters * cluster_size > MAX_REFCOUNT_TABLE_BYTES {
        return Err(pass.beyond_repair("the new refcount table would be larger than 8 MiB; convert the image instead"));
    }
    let own = base..base + blocks.len() as u64 + table_clusters;
    let mut table = vec![0u8; (table_clusters * cluster_size) as usize];
    for (index, place) in blocks.iter().zip(base..) {
        let mut block = vec![0; cluster_size as usize];
        let first = counts.partition_point(|(cluster, _)| cluster / per_block < *index);
        for (cluster, count) in counts[first..].iter().take_while(|(cluster, _)| cluster / per_block == *index) {
            set_count(&mut block, cluster % per_block, header.refcount_order, u64::from(*count));
        }
        for cluster in own.clone().filter(|cluster| cluster / per_block == *index) {
            set_count(&mut block, cluster % per_block, header.refcount_order, 1);
        }
        let offset = place * cluster_size;
        pass.storage.write_at(&block, offset)?;
        let entry = (*index * 8) as usize;
        table[entry..entry + 8].copy_from_slice(&offset.to_be_bytes());
    }
    let table_offset = (base + blocks.len() as u64) * cluster_size;
    pass.storage.write_at(&table, table_offset)?;
    pass.storage.sync()?;
    let mut fields = table_offset.to_be_bytes().to_vec();
    fields.extend(u32::try_from(table_clusters).unwrap_or(u32::MAX).to_be_bytes());
    pass.storage.write_at(&fields, 48)?;
    pass.storage.sync()
}
