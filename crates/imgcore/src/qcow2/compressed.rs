//! Storing clusters compressed.

use super::entry::{Cluster, Place};
use super::header::FORMAT;
use super::write::{Allocation, used_clusters};
use super::{ClusterCompressor, Qcow2};
use crate::image::check_range;
use crate::{Compression, Compressor, Error, Image, Result};

impl Qcow2 {
    /// Stores one guest cluster compressed: `packed` is what [`ClusterCompressor`](super::ClusterCompressor) made of all
    /// of the cluster's bytes, those past the end of the image as zeroes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `guest` is no cluster's start or `packed` not smaller than a cluster.
    pub fn write_compressed_cluster(&self, guest: u64, packed: &[u8]) -> Result<()> {
        let cluster_size = self.cluster_size();
        check_range(&self.file, self.size(), guest, 1)?;
        if !guest.is_multiple_of(cluster_size) || packed.is_empty() || packed.len() as u64 >= cluster_size {
            return Err(Error::Invalid(format!("{}: {} bytes cannot be a compressed cluster at {guest:#x}", self.file, packed.len())));
        }
        if self.external() {
            return Err(Error::unsupported(&self.file, FORMAT, "compressed clusters with an external data file"));
        }
        let len = packed.len() as u64;
        let first = guest / cluster_size;
        let _lock = self.writer()?.ranges.lock(first..first + 1);
        let host = {
            let mut allocation = self.allocation()?;
            self.own_l2(&mut allocation, guest)?;
            let host = allocation.place_compressed(len, cluster_size)?;
            allocation.compressed_end = Some(host + len).filter(|end| end % cluster_size != 0);
            host
        };
        let written = self.storage.write_at(packed, host);
        let cluster = Cluster { place: Place::Compressed { host, len }, stored: 0, zero: 0 };
        let mut allocation = self.allocation()?;
        if let Err(e) = written {
            if let Some(clusters) = used_clusters(&self.header, cluster.encode(&self.header).0) {
                allocation.refcounts.free_later(clusters, false);
            }
            return Err(e);
        }
        self.link(&mut allocation, first, std::iter::once(cluster), false)
    }
}

impl Allocation {
    /// A place for `len` compressed bytes, behind the last ones where their cluster's count allows.
    fn place_compressed(&mut self, len: u64, cluster_size: u64) -> Result<u64> {
        let Some(end) = self.compressed_end else { return Ok(self.new_cluster()? * cluster_size) };
        let last = end / cluster_size;
        if end % cluster_size + len <= cluster_size {
            return if self.refcounts.increment(last)? { Ok(end) } else { Ok(self.new_cluster()? * cluster_size) };
        }
        let next = self.new_cluster()?;
        Ok(if next == last + 1 && self.refcounts.increment(last)? { end } else { next * cluster_size })
    }

    fn new_cluster(&mut self) -> Result<u64> {
        let cluster = self.refcounts.allocate(1)?;
        self.refcounts.is_fresh(&cluster);
        Ok(cluster.start)
    }
}

impl Compression for Qcow2 {
    fn cluster_size(&self) -> u64 {
        Qcow2::cluster_size(self)
    }

    fn compressor(&self) -> Compressor {
        let mut compressor = ClusterCompressor::new(self.compression_type());
        Box::new(move |cluster| compressor.compress(cluster).map(<[u8]>::to_vec))
    }

    fn write_packed(&self, packed: &[u8], offset: u64) -> Result<()> {
        self.write_compressed_cluster(offset, packed)
    }
}
