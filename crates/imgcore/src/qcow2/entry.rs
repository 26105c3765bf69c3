//! One L2 entry: where a cluster lies, or why it lies nowhere.
//!
//! Source: `docs/interop/qcow2.txt`, sections "Cluster mapping" and "Extended L2 Entries".

use super::header::{FORMAT, Header, MAX_OFFSET};
use crate::{Error, Result};

/// Set exactly when the cluster's reference count is one: it can be written in place.
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3).
pub(super) const ZERO: u64 = 1;
/// The bits of an L1 or L2 entry that hold a host offset.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where guest bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Not in this image: in the backing image, or nowhere.
    Unallocated,
    /// Zeroes, with a cluster kept for them or not.
    Zero { host: Option<u64> },
    /// At this offset of the file. `copied`: nothing else uses the cluster.
    Data { host: u64, copied: bool },
    /// Compressed, in so many bytes (at most) from this offset of the file.
    Compressed { host: u64, len: u64 },
}

/// How the fields of a compressed entry are divided.
pub(super) fn compressed_offset_bits(header: &Header) -> u32 {
    62 - (header.cluster_bits - 8)
}

impl Mapping {
    /// Decodes an entry of version 2 or 3 without subclusters; `at` is its place in the file, for messages.
    pub fn decode(header: &Header, file: &str, entry: u64, at: u64) -> Result<Self> {
        if entry & COMPRESSED != 0 {
            return Ok(Self::decode_compressed(header, entry));
        }
        let host = Self::host(header, file, entry, at)?;
        if entry & ZERO != 0 && header.l2_entry_size() == 8 {
            if header.version == 2 {
                return Err(Error::corrupt(file, FORMAT, at, "an L2 entry has the zero flag, which version 2 does not know"));
            }
            return Ok(Mapping::Zero { host });
        }
        Ok(host.map_or(Mapping::Unallocated, |host| Mapping::Data { host, copied: entry & COPIED != 0 }))
    }

    /// Decodes subcluster `sub` (0 to 31) of an extended entry.
    pub fn decode_extended(header: &Header, file: &str, entry: u64, bitmap: u64, sub: u32, at: u64) -> Result<Self> {
        if entry & COMPRESSED != 0 {
            return Ok(Self::decode_compressed(header, entry));
        }
        let host = Self::host(header, file, entry, at)?.map(|h| h + u64::from(sub) * (header.cluster_size() / 32));
        match (bitmap >> sub & 1 == 1, bitmap >> (sub + 32) & 1 == 1, host) {
            (true, true, _) => Err(Error::corrupt(file, FORMAT, at, format!("subcluster {sub} is marked as both data and zero"))),
            (false, true, host) => Ok(Mapping::Zero { host }),
            (true, false, Some(host)) => Ok(Mapping::Data { host, copied: entry & COPIED != 0 }),
            (true, false, None) => {
                Err(Error::corrupt(file, FORMAT, at, format!("subcluster {sub} is marked as data, but the cluster lies nowhere")))
            }
            (false, false, _) => Ok(Mapping::Unallocated),
        }
    }

    /// The host offset of a plain entry; with an external data file offset 0 is valid, and marked by the copied flag.
    fn host(header: &Header, file: &str, entry: u64, at: u64) -> Result<Option<u64>> {
        let host = entry & OFFSET;
        if !host.is_multiple_of(header.cluster_size()) {
            return Err(Error::corrupt(file, FORMAT, at, format!("an L2 entry points at {host:#x}, which is no cluster's start")));
        }
        let external_start = header.data_file.is_some() && entry & COPIED != 0;
        Ok((host != 0 || external_start).then_some(host))
    }

    fn decode_compressed(header: &Header, entry: u64) -> Self {
        let bits = compressed_offset_bits(header);
        let host = entry & ((1 << bits) - 1) & (MAX_OFFSET - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> bits;
        Mapping::Compressed { host, len: (sectors + 1) * 512 - host % 512 }
    }

    /// The entry for `len` compressed bytes at `host`.
    pub fn encode_compressed(header: &Header, host: u64, len: u64) -> u64 {
        let bits = compressed_offset_bits(header);
        let sectors = (host + len - 1) / 512 - host / 512;
        COMPRESSED | sectors << bits | host
    }
}
