//! Giving every cluster its place before anything is written.

use super::Qcow2;
use super::entry::{Cluster, Place};
use super::header::EXTENDED_L2;
use crate::{Image, Result};

impl Qcow2 {
    /// Gives every guest cluster a place in the file, without writing to it.
    pub(super) fn preallocate(&self) -> Result<()> {
        let cluster_size = self.cluster_size();
        let per_table = self.header.l2_span() / cluster_size;
        let (mut first, clusters) = (0, self.size().div_ceil(cluster_size));
        let mut end = 0;
        // With subclusters, a place says nothing of what is read: that still comes from below.
        let stored = u32::from(!self.header.has(EXTENDED_L2));
        while first < clusters {
            let mut allocation = self.allocation()?;
            self.own_l2(&mut allocation, first * cluster_size)?;
            let host = allocation.refcounts.allocate((clusters - first).min(per_table - first % per_table))?;
            allocation.refcounts.is_fresh(&host);
            let count = host.end - host.start;
            end = end.max(host.end * cluster_size);
            let places = host.map(|cluster| Place::Host { offset: cluster * cluster_size, own: true });
            self.link(&mut allocation, first, places.map(|place| Cluster { place, stored, zero: 0 }), false)?;
            first += count;
        }
        if end > self.storage.size()? { self.storage.set_size(end) } else { Ok(()) }
    }
}
