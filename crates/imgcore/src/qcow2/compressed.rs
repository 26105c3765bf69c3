//! Storing clusters compressed.

use super::write::Allocation;
use super::{ClusterCompressor, Qcow2};
use crate::{Compression, Compressor, Placing, Result};

impl Qcow2 {
    /// Stores one guest cluster compressed: `packed` is what [`ClusterCompressor`](super::ClusterCompressor) made of all
    /// of the cluster's bytes, those past the end of the image as zeroes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `guest` is no cluster's start or `packed` not smaller than a cluster.
    pub fn write_compressed_cluster(&self, guest: u64, packed: &[u8]) -> Result<()> {
        let host = self.place_packed(guest, packed.len() as u64)?;
        self.store(packed, host)
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
        self.write_compressed_cluster(offset, packed)
    }
}
