//! Changing the size of the disk.
//!
//! Growing prepares the new part first, so that it reads as zeroes whatever lies there or in the backing image, and then
//! writes the size. Shrinking writes the size first, and then gives back what lies beyond it.

use super::Qcow2;
use super::entry::{Cluster, OFFSET, Place};
use super::header::Header;
use super::l2::words;
use super::refcount::get_count;
use super::write::used_clusters;
use crate::storage::read_padded;
use crate::{Error, Image, ImageMut, Preallocation, Result};

impl Qcow2 {
    pub(super) fn resize_to(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        let size = size.checked_next_multiple_of(512).ok_or_else(|| Error::Invalid(format!("{}: {size} is too large", self.file)))?;
        if self.header.nb_snapshots != 0 && self.header.version == 2 {
            // Version 2 need not record the disk's size in a snapshot.
            return Err(Error::Invalid("Can't resize a v2 image which has snapshots".into()));
        }
        if size < self.size() && preallocation != Preallocation::Off {
            return Err(Error::Invalid("Preallocation can't be used for shrinking an image".into()));
        }
        let before = self.size();
        let bitmaps = self.suspend_bitmaps()?;
        if size < before { self.shrink(size) } else { self.grow(size, preallocation) }?;
        self.resume_bitmaps(bitmaps, before)
    }

    /// Sets the size for what follows; on disk it is as it was.
    fn pretend_size<T>(&mut self, size: u64, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let before = std::mem::replace(&mut self.header.size, size);
        let result = work(self);
        self.header.size = before;
        result
    }

    fn write_size(&mut self, size: u64) -> Result<()> {
        let header = Header { size, ..self.current_header() };
        header.write_fields(&*self.storage)?;
        self.storage.sync()?;
        self.header = header;
        Ok(())
    }

    fn grow(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        let old = self.size();
        let l1_size = u32::try_from(size.div_ceil(self.header.l2_span())).unwrap_or(u32::MAX);
        if l1_size > self.header.l1_size {
            let header = Header { size, l1_size, ..self.current_header() };
            header.check(&self.file).map_err(|_| Error::Invalid(format!("{size} bytes are too large for this image's clusters")))?;
            self.grow_l1(l1_size)?;
        }
        self.pretend_size(size, |image| {
            // Bitmaps know nothing of what is new, as with QEMU.
            image.zero_range(old..size)?;
            let cluster_size = image.cluster_size();
            image.preallocate(old.div_ceil(cluster_size)..size.div_ceil(cluster_size), preallocation)?;
            if image.external() {
                image.data.set_size(size)?;
            }
            image.flush()
        })?;
        self.write_size(size)
    }

    fn grow_l1(&mut self, l1_size: u32) -> Result<()> {
        let mut shadow = self.shadow()?;
        let mut l1 = self.l1_table();
        shadow.release(self.header.l1_table_offset, l1.len() as u64 * 8)?;
        l1.resize(l1_size as usize, 0);
        shadow.header.l1_table_offset = shadow.write_table(&l1)?;
        shadow.header.l1_size = l1_size;
        self.commit(shadow)
    }

    fn shrink(&mut self, size: u64) -> Result<()> {
        self.flush()?;
        self.write_size(size)?;
        self.drop_beyond(size)?;
        // Growing must not bring back what lies behind the end within the last cluster.
        let end = size.next_multiple_of(self.cluster_size());
        self.pretend_size(end, |image| image.write_zeroes(size..end))?;
        self.flush()?;
        self.drop_last_blocks()?;
        if self.external() {
            self.data.set_size(size)?;
        }
        let end = self.last_used()?.map_or(0, |cluster| cluster + 1) * self.cluster_size();
        if end < self.storage.size()? { self.storage.set_size(end) } else { Ok(()) }
    }

    /// Unlinks all clusters and tables wholly beyond `size`.
    fn drop_beyond(&mut self, size: u64) -> Result<()> {
        let cluster_size = self.cluster_size();
        let span = self.header.l2_span();
        let mut allocation = self.allocation()?;
        let (first, tables) = (size.div_ceil(cluster_size), size.div_ceil(span));
        let start = first * cluster_size;
        if start < tables * span && self.l2_offset(start)?.is_some() {
            self.own_l2(&mut allocation, start)?;
            let nothing = Cluster { place: Place::Nowhere, stored: 0, zero: 0 };
            self.link(&mut allocation, first, (first..tables * span / cluster_size).map(|_| nothing), true)?;
        }
        for (index, entry) in (0u64..).zip(self.l1_table()).skip(tables as usize) {
            if entry & OFFSET == 0 {
                continue;
            }
            let offset = self.l2_offset(index * span)?.unwrap_or_default();
            let table = self.read_l2(offset)?;
            for clusters in self.own_entries(&table).filter_map(|entry| used_clusters(&self.header, entry)) {
                allocation.refcounts.free_later(clusters, true);
            }
            self.unlink_l2(&mut allocation, index as usize);
        }
        self.write_back(&mut allocation)?;
        drop(allocation);
        self.reload()
    }

    /// Drops the last refcount blocks, as far as they count nothing but themselves.
    fn drop_last_blocks(&mut self) -> Result<()> {
        let mut table = self.refcount_table()?;
        let before = table.len();
        while let Some(offset) = table.last().copied() {
            let first = (table.len() as u64 - 1) * self.header.refcounts_per_block();
            let own = offset / self.cluster_size();
            if offset != 0 && self.used_in_block(offset)?.into_iter().any(|place| first + place != own) {
                break;
            }
            table.pop();
        }
        let kept = table.len();
        let old = self.refcount_table()?;
        table.resize(before, 0);
        if table == old {
            return Ok(());
        }
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.storage.write_at(&bytes, self.header.refcount_table_offset)?;
        self.storage.sync()?;
        self.reload()?;
        // Those that another block counts.
        let counted = kept as u64 * self.header.refcounts_per_block();
        let mut allocation = self.allocation()?;
        for offset in old.into_iter().skip(kept).filter(|offset| *offset != 0) {
            let cluster = offset / self.cluster_size();
            if cluster < counted {
                allocation.refcounts.free_later(cluster..cluster + 1, true);
            }
        }
        self.write_back(&mut allocation)
    }

    fn refcount_table(&self) -> Result<Vec<u64>> {
        let mut bytes = vec![0; (u64::from(self.header.refcount_table_clusters) * self.cluster_size()) as usize];
        read_padded(&*self.storage, &mut bytes, self.header.refcount_table_offset)?;
        Ok(words(&bytes).collect())
    }

    /// The places in the refcount block at `offset` that count something.
    fn used_in_block(&self, offset: u64) -> Result<Vec<u64>> {
        let mut block = vec![0; self.cluster_size() as usize];
        read_padded(&*self.storage, &mut block, offset)?;
        let order = self.header.refcount_order;
        Ok((0..self.header.refcounts_per_block()).filter(|place| get_count(&block, *place, order) != 0).collect())
    }

    /// The last cluster of the file that is counted as used.
    fn last_used(&self) -> Result<Option<u64>> {
        for (index, offset) in self.refcount_table()?.into_iter().enumerate().rev() {
            if offset != 0
                && let Some(place) = self.used_in_block(offset)?.last()
            {
                return Ok(Some(index as u64 * self.header.refcounts_per_block() + place));
            }
        }
        Ok(None)
    }
}
