//! Storing clusters compressed.

use super::entry::{Cluster, Place};
use super::header::FORMAT;
use super::write::Allocation;
use super::{ClusterCompressor, Qcow2};
use crate::image::check_range;
use crate::{Compression, Compressor, Error, Image, Placing, Result};

impl Qcow2 {
    /// Stores one guest cluster compressed: `packed` is what [`ClusterCompressor`](super::ClusterCompressor) made of all
    /// of the cluster's bytes, those past the end of the image as zeroes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `guest` is no cluster's start or `packed` not smaller than a cluster.
    pub fn write_compressed_cluster(&self, guest: u64, packed: &[u8]) -> Result<()> {
        self.write_packed(packed, guest)
    }
}

impl Allocation {
    /// A place for `len` compressed bytes, behind the last ones where their cluster's count allows.
    pub fn place_compressed(&mut self, len: u64, cluster_size: u64) -> Result<u64> {
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
        let mut compressor = ClusterCompressor::with_level(self.compression_type(), self.compression_level);
        Box::new(move |cluster| compressor.compress(cluster).map(<[u8]>::to_vec))
    }

    fn write_packed(&self, packed: &[u8], offset: u64) -> Result<()> {
        self.place_packed(offset, packed.len() as u64)?.map_or(Ok(()), |host| self.store(packed, host))
    }

    fn place_packed(&self, offset: u64, len: u64) -> Result<Option<u64>> {
        let cluster_size = self.cluster_size();
        check_range(&self.file, self.size(), offset, 1)?;
        if !offset.is_multiple_of(cluster_size) || len == 0 || len >= cluster_size {
            return Err(Error::Invalid(format!("{}: {len} bytes cannot be a compressed cluster at {offset:#x}", self.file)));
        }
        if self.external() {
            return Err(Error::unsupported(&self.file, FORMAT, "compressed clusters with an external data file"));
        }
        self.record(offset, cluster_size.min(self.size() - offset))?;
        let first = offset / cluster_size;
        let _lock = self.writer()?.ranges.lock(first..first + 1);
        let mut allocation = self.allocation()?;
        self.own_l2(&mut allocation, offset)?;
        let host = allocation.place_compressed(len, cluster_size)?;
        allocation.compressed_end = Some(host + len).filter(|end| end % cluster_size != 0);
        let packed = Cluster { place: Place::Compressed { host, len }, stored: 0, zero: 0 };
        self.link(&mut allocation, first, std::iter::once(packed), false)?;
        Ok(Some(host))
    }
}
