//! Writing in two steps: clusters are taken and linked in order, their bytes stored by many threads.

use super::Qcow2;
use super::cow::MAX_NEW;
use super::entry::{self, Cluster, Mapping, subclusters};
use crate::image::check_range;
use crate::{Image, Place, Placing, Result};

impl Placing for Qcow2 {
    /// Whole clusters only: a part of one needs what the guest has around it.
    fn place(&self, offset: u64, len: u64) -> Result<Option<Place>> {
        check_range(&self.file, self.size(), offset, len)?;
        let cluster_size = self.cluster_size();
        if !offset.is_multiple_of(cluster_size) || len < cluster_size {
            return Ok(None);
        }
        let len = len - len % cluster_size;
        self.record(offset, len)?;
        if let (Mapping::Data { host, copied: true }, len) = self.lookup(offset, len)? {
            self.check_in_place(host, len)?;
            return Ok(Some(Place { host, len }));
        }
        let span = self.header.l2_span();
        let end = (offset + len).min((offset / span + 1) * span).min(offset + MAX_NEW);
        let first = offset / cluster_size;
        let _lock = self.writer()?.ranges.lock(first..end / cluster_size);
        let Some((_, target, clusters)) = self.place_for(offset, end)? else { return Ok(None) };
        let len = (clusters.end - clusters.start) * cluster_size;
        let stored = subclusters(0, cluster_size / self.header.subcluster_size());
        let new = (0..len).step_by(cluster_size as usize).map(|within| Cluster {
            place: entry::Place::Host { offset: target.host + within, own: true },
            stored,
            zero: 0,
        });
        let mut allocation = self.allocation()?;
        self.link(&mut allocation, first, new, false)?;
        Ok(Some(Place { host: target.host, len }))
    }

    fn store(&self, data: &[u8], host: u64) -> Result<()> {
        self.data.write_at(data, host)
    }
}
