//! Giving clusters their places before anything is written.

use std::ops::Range;

use super::Qcow2;
use super::entry::{Cluster, Place};
use super::header::EXTENDED_L2;
use crate::{Image, Preallocation, Result};

/// Bytes that are written or linked at once.
const PIECE: u64 = 1 << 20;

impl Qcow2 {
    /// Gives guest clusters, where nothing is stored yet, places. What is read does not change.
    pub(super) fn preallocate(&self, clusters: Range<u64>, mode: Preallocation) -> Result<()> {
        if mode == Preallocation::Off {
            return Ok(());
        }
        let cluster_size = self.cluster_size();
        let per_table = self.header.l2_span() / cluster_size;
        // With subclusters, a place says nothing of what is read: that still comes from below.
        let plain = u32::from(!self.header.has(EXTENDED_L2));
        let mut first = clusters.start;
        while first < clusters.end {
            let count = (clusters.end - first).min(per_table - first % per_table);
            let mut allocation = self.allocation()?;
            self.own_l2(&mut allocation, first * cluster_size)?;
            let (host, fresh) = if self.external() {
                (first..first + count, false)
            } else {
                let host = allocation.refcounts.allocate(count)?;
                let fresh = allocation.refcounts.is_fresh(&host);
                (host, fresh)
            };
            // A data file is no longer than the disk.
            let most = if self.external() { self.size() } else { u64::MAX };
            self.prepare(host.start * cluster_size..most.min(host.end * cluster_size), fresh, mode)?;
            let count = host.end - host.start;
            let zero = (first..first + count).map(|number| Ok(self.cluster(number)?.zero)).collect::<Result<Vec<u32>>>()?;
            let places = host.map(|cluster| Place::Host { offset: cluster * cluster_size, own: true });
            let linked = places.zip(zero).map(|(place, zero)| Cluster { place, stored: plain & !zero, zero });
            self.link(&mut allocation, first, linked, false)?;
            first += count;
        }
        Ok(())
    }

    /// Makes a range of the data's file zeroes, as `mode` says it. One that is `fresh` is zeroes.
    fn prepare(&self, Range { start, end }: Range<u64>, fresh: bool, mode: Preallocation) -> Result<()> {
        let (len, size) = (end - start, self.data.size()?);
        if !fresh && start < size {
            // What a cluster held before must not come back.
            self.data.zero_at(start, len.min(size - start))?;
        }
        match mode {
            Preallocation::Full => {
                let zeroes = vec![0; len.min(PIECE) as usize];
                let mut pieces = (start..end).step_by(PIECE as usize);
                pieces.try_for_each(|at| self.data.write_at(&zeroes[..(end - at).min(PIECE) as usize], at))
            }
            Preallocation::Falloc => self.data.reserve(start, len),
            _ if end > size => self.data.set_size(end),
            _ => Ok(()),
        }
    }
}
