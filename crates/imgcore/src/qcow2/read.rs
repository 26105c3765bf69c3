//! Reading guest bytes: from this image's clusters, unpacked ones, or the image below.

use std::sync::Arc;

use super::entry::Mapping;
use super::header::{DATA_FILE, FORMAT};
use super::{KEPT_CLUSTERS, Qcow2, codec};
use crate::storage::read_padded;
use crate::{Error, Result};

/// Bytes of compressed clusters that are fetched at once.
const MAX_FETCH: u64 = 1 << 20;

/// A compressed cluster's bytes in the file.
#[derive(Clone, Copy)]
struct Packed {
    host: u64,
    len: u64,
}

impl Qcow2 {
    /// Fills `buf` from byte `guest`, which lies in the image. The caller holds the lock on reads.
    pub(super) fn read_range(&self, buf: &mut [u8], guest: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = guest + done as u64;
            let rest = &mut buf[done..];
            let (mapping, run) = self.lookup(at, rest.len() as u64)?;
            done += match mapping {
                Mapping::Compressed { host, len } if run == self.cluster_size() => self.read_packed(Packed { host, len }, rest, at)?,
                _ => {
                    self.read_mapped(mapping, &mut rest[..run as usize], at)?;
                    run as usize
                }
            };
        }
        Ok(())
    }

    /// Reads the whole compressed cluster `first` at byte `guest`, and those behind it whose bytes follow in the file; gives the
    /// number of bytes read.
    fn read_packed(&self, first: Packed, buf: &mut [u8], guest: u64) -> Result<usize> {
        let cluster_size = self.cluster_size();
        let mut clusters = vec![first];
        let mut end = first.host + first.len;
        loop {
            let at = clusters.len() as u64 * cluster_size;
            if at + cluster_size > buf.len() as u64 {
                break;
            }
            // Lengths are in sectors, so a cluster may begin in the last one of the one before it.
            match self.lookup(guest + at, cluster_size)? {
                (Mapping::Compressed { host, len }, _) if host >= first.host && host <= end && host + len - first.host <= MAX_FETCH => {
                    clusters.push(Packed { host, len });
                    end = end.max(host + len);
                }
                _ => break,
            }
        }
        let mut packed = vec![0; (end - first.host) as usize];
        read_padded(&*self.storage, &mut packed, first.host)?;
        for (cluster, out) in clusters.iter().zip(buf.chunks_mut(cluster_size as usize)) {
            let start = (cluster.host - first.host) as usize;
            self.unpack(*cluster, packed.get(start..start + cluster.len as usize).unwrap_or_default(), out)?;
        }
        Ok(clusters.len() * cluster_size as usize)
    }

    /// Reads what `lookup` found.
    fn read_mapped(&self, mapping: Mapping, buf: &mut [u8], guest: u64) -> Result<()> {
        match mapping {
            Mapping::Zero { .. } => buf.fill(0),
            Mapping::Unallocated => self.read_backing(buf, guest)?,
            Mapping::Data { host, .. } if self.header.has(DATA_FILE) && Arc::ptr_eq(&self.data, &self.storage) => {
                let what = format!("reading at {host:#x} of the external data file, which was left closed");
                return Err(Error::unsupported(&self.file, FORMAT, what));
            }
            Mapping::Data { host, .. } => read_padded(&*self.data, buf, host)?,
            Mapping::Compressed { host, len } => self.read_compressed(Packed { host, len }, buf, guest % self.cluster_size())?,
        }
        Ok(())
    }

    fn read_backing(&self, buf: &mut [u8], guest: u64) -> Result<()> {
        let there = self.backing.as_ref().map_or(0, |b| b.size().saturating_sub(guest)).min(buf.len() as u64) as usize;
        let (below, past) = buf.split_at_mut(there);
        past.fill(0);
        match &self.backing {
            Some(backing) if there > 0 => backing.read_at(below, guest),
            _ => Ok(()),
        }
    }

    /// Reads a part of one compressed cluster, which is kept for the next such read.
    fn read_compressed(&self, cluster: Packed, buf: &mut [u8], within: u64) -> Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        let found = kept.iter().find(|(key, _)| *key == cluster.host).map(|(_, bytes)| bytes.clone());
        let bytes = match found {
            Some(bytes) => bytes,
            None => {
                drop(kept);
                // Sectors are counted up to twice the cluster and never more: the field has cluster_bits - 8 bits.
                let mut packed = vec![0; cluster.len as usize];
                read_padded(&*self.storage, &mut packed, cluster.host)?;
                let mut bytes = vec![0; self.cluster_size() as usize];
                self.unpack(cluster, &packed, &mut bytes)?;
                let bytes: Arc<[u8]> = bytes.into();
                kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
                kept.truncate(KEPT_CLUSTERS - 1);
                kept.push_front((cluster.host, bytes.clone()));
                bytes
            }
        };
        drop(kept);
        let within = within as usize;
        buf.copy_from_slice(bytes.get(within..within + buf.len()).unwrap_or_default());
        Ok(())
    }

    fn unpack(&self, Packed { host, len }: Packed, packed: &[u8], out: &mut [u8]) -> Result<()> {
        codec::decompress(self.header.compression, packed, out)
            .map_err(|what| Error::corrupt(&self.file, FORMAT, host, format!("a compressed cluster of {len} bytes cannot be read: {what}")))
    }
}
