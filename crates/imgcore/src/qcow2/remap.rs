//! Giving guest ranges new guest offsets by rewriting tables only: volumes that were streamed into one image side by
//! side take their places on the disk that is made of them.

use super::Qcow2;
use super::entry::{COPIED, OFFSET};
use super::header::{FORMAT, Header};
use super::l2::L2Entry;
use super::write::used_clusters;
use crate::{Error, Image, ImageMut, Result};

/// A guest range and its new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where the range starts now.
    pub source: u64,
    /// Where it shall start.
    pub target: u64,
    /// Bytes. A length that is no multiple of the cluster size is filled up with zeroes.
    pub len: u64,
}

impl Qcow2 {
    /// Makes the image `new_size` bytes large and moves the given ranges; everything else reads as zeroes afterwards.
    /// No data is copied. Durable when it returns; interrupted, the image is as before but for leaked clusters.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a start is no multiple of the cluster size, a range leaves the old or new size, or two
    /// overlap; [`Error::Unsupported`] for images with snapshots, bitmaps, a backing file or an external data file.
    pub fn remap(&mut self, new_size: u64, moves: &[Move]) -> Result<()> {
        if self.header.nb_snapshots != 0 || self.header.backing_file.is_some() || self.external() || self.header.bitmaps.is_some() {
            return Err(Error::unsupported(
                &self.file,
                FORMAT,
                "moving ranges of an image with snapshots, bitmaps, a backing file or a data file",
            ));
        }
        self.check_moves(new_size, moves)?;
        self.flush()?;
        let cluster_size = self.cluster_size();
        let per_table = self.header.l2_span() / cluster_size;
        let l1_size = u32::try_from(new_size.div_ceil(self.header.l2_span())).unwrap_or(u32::MAX).max(1);
        let header = Header { size: new_size, l1_size, ..self.header.clone() };
        header.check(&self.file)?;

        let mut sorted = moves.to_vec();
        sorted.sort_unstable_by_key(|m| m.target);
        let mut allocation = self.allocation()?;
        let mut l1 = vec![0u64; l1_size as usize];
        let mut table: (u64, Vec<L2Entry>) = (0, vec![(0, 0); per_table as usize]);
        let mut new_tables = Vec::new();
        let mut put_table = |index: u64, entries: &[L2Entry]| -> Result<()> {
            if entries.iter().all(|entry| *entry == (0, 0)) {
                return Ok(());
            }
            let cluster = allocation.refcounts.allocate(1)?;
            allocation.refcounts.is_fresh(&cluster);
            let offset = cluster.start * cluster_size;
            self.l2.insert(offset, entries);
            self.l2.write_back(&*self.storage)?;
            l1[index as usize] = offset | COPIED;
            new_tables.push(cluster);
            Ok(())
        };
        for m in &sorted {
            let (from, to) = (m.source / cluster_size, m.target / cluster_size);
            let count = m.len.div_ceil(cluster_size);
            let mut done = 0;
            while done < count {
                let guest = (from + done) * cluster_size;
                let rest_of_table = (per_table - (from + done) % per_table).min(count - done);
                let Some(offset) = self.l2_offset(guest)? else {
                    done += rest_of_table;
                    continue;
                };
                let old = self.l2.table(&*self.storage, offset)?;
                for _ in 0..rest_of_table {
                    let target = to + done;
                    if target / per_table != table.0 {
                        put_table(table.0, &table.1)?;
                        table = (target / per_table, vec![(0, 0); per_table as usize]);
                    }
                    table.1[(target % per_table) as usize] = old[((from + done) % per_table) as usize];
                    done += 1;
                }
            }
        }
        put_table(table.0, &table.1)?;

        let l1_clusters = (u64::from(l1_size) * 8).div_ceil(cluster_size);
        let place = allocation.refcounts.allocate_exact(l1_clusters)?;
        allocation.refcounts.is_fresh(&place);
        let l1_offset = place.start * cluster_size;
        let mut bytes: Vec<u8> = l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        bytes.resize((l1_clusters * cluster_size) as usize, 0);
        self.storage.write_at(&bytes, l1_offset)?;
        allocation.refcounts.write_back()?;
        self.storage.sync()?;

        // Size, encryption (none), L1 size and L1 offset adjoin: one write within one sector changes all.
        let mut fields = new_size.to_be_bytes().to_vec();
        fields.extend([0; 4]);
        fields.extend(l1_size.to_be_bytes());
        fields.extend(l1_offset.to_be_bytes());
        self.storage.write_at(&fields, 24)?;
        self.storage.sync()?;

        self.free_old(&mut allocation.refcounts, moves)?;
        allocation.refcounts.protect(place);
        new_tables.into_iter().for_each(|cluster| allocation.refcounts.protect(cluster));
        self.write_back(&mut allocation)?;
        drop(allocation);

        self.header = Header { l1_table_offset: l1_offset, ..header };
        self.l1 = l1.into();
        for m in moves {
            let end = m.target + m.len;
            self.write_zeroes(end..end.next_multiple_of(cluster_size).min(new_size))?;
        }
        self.flush()
    }

    fn check_moves(&self, new_size: u64, moves: &[Move]) -> Result<()> {
        let cluster_size = self.cluster_size();
        let bad = |m: &Move, why: &str| {
            Err(Error::Invalid(format!("{}: cannot move {} bytes from {:#x} to {:#x}: {why}", self.file, m.len, m.source, m.target)))
        };
        let mut ranges: [Vec<(u64, u64)>; 2] = Default::default();
        for m in moves {
            if m.source % cluster_size != 0 || m.target % cluster_size != 0 {
                return bad(m, "a start is no multiple of the cluster size");
            }
            for ((start, size), ranges) in [(m.source, self.size()), (m.target, new_size)].into_iter().zip(&mut ranges) {
                match start.checked_add(m.len) {
                    Some(end) if end <= size => ranges.push((start, end.next_multiple_of(cluster_size))),
                    _ => return bad(m, "it reaches past the end"),
                }
            }
        }
        for mut ranges in ranges {
            ranges.sort_unstable();
            if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
                return Err(Error::Invalid(format!("{}: two moves overlap at {:#x}", self.file, pair[1].0)));
            }
        }
        Ok(())
    }

    /// Gives back the old tables, and the clusters of ranges that were not moved.
    fn free_old(&self, refcounts: &mut super::refcount::Refcounts, moves: &[Move]) -> Result<()> {
        let cluster_size = self.cluster_size();
        let per_table = self.header.l2_span() / cluster_size;
        let mut kept: Vec<_> = moves.iter().map(|m| m.source / cluster_size..(m.source + m.len).div_ceil(cluster_size)).collect();
        kept.sort_unstable_by_key(|range| range.start);
        let is_kept = |cluster: u64| {
            let after = kept.partition_point(|range| range.start <= cluster);
            after > 0 && kept[after - 1].contains(&cluster)
        };
        let l1 = self.l1.read().unwrap_or_else(|e| e.into_inner()).clone();
        for (index, entry) in (0u64..).zip(&l1) {
            let offset = entry & OFFSET;
            if offset == 0 {
                continue;
            }
            let table = self.l2.table(&*self.storage, offset)?;
            for (number, (entry, _)) in (index * per_table..).zip(table) {
                if let Some(clusters) = used_clusters(&self.header, entry)
                    && !is_kept(number)
                {
                    refcounts.free_later(clusters, true);
                }
            }
            refcounts.free_later(offset / cluster_size..offset / cluster_size + 1, false);
        }
        let start = self.header.l1_table_offset / cluster_size;
        refcounts.free_later(start..start + (u64::from(self.header.l1_size) * 8).div_ceil(cluster_size), false);
        Ok(())
    }
}
