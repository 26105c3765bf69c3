//! One L2 entry: where a cluster lies, or why it lies nowhere.
//!
//! Source: `docs/interop/qcow2.txt`, sections "Cluster mapping" and "Extended L2 Entries".

use super::header::{DATA_FILE, EXTENDED_L2, FORMAT, Header};
use super::l2::L2Entry;
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

/// Where the bytes of a guest cluster have their place, whether something is stored there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    /// At this offset. `own`: nothing else uses the cluster.
    Host {
        offset: u64,
        own: bool,
    },
    Compressed {
        host: u64,
        len: u64,
    },
}

/// A decoded entry. A cluster is made of 32 subclusters in images with extended entries, and is its only subcluster in
/// others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cluster {
    pub place: Place,
    /// Bit n: subcluster n is stored at its place.
    pub stored: u32,
    /// Bit n: subcluster n reads as zeroes.
    pub zero: u32,
}

/// The bits of the subclusters from `from` up to and without `to`.
pub(super) fn subclusters(from: u64, to: u64) -> u32 {
    (((1u64 << to) - 1) & !((1u64 << from) - 1)) as u32
}

/// How the fields of a compressed entry are divided.
fn compressed_offset_bits(header: &Header) -> u32 {
    62 - (header.cluster_bits - 8)
}

impl Cluster {
    /// Decodes an entry; `at` is its place in the file, for messages.
    pub fn decode(header: &Header, file: &str, (entry, bitmap): L2Entry, at: u64) -> Result<Self> {
        if entry & COMPRESSED != 0 {
            let (host, len) = compressed_place(header, entry);
            return Ok(Cluster { place: Place::Compressed { host, len }, stored: 0, zero: 0 });
        }
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(header.cluster_size()) {
            return Err(Error::corrupt(file, FORMAT, at, format!("an L2 entry points at {offset:#x}, which is no cluster's start")));
        }
        let own = entry & COPIED != 0;
        // In an external data file, offset 0 is a place like any other; the copied flag tells it.
        let there = offset != 0 || (own && header.has(DATA_FILE));
        let place = if there { Place::Host { offset, own } } else { Place::Nowhere };
        if header.has(EXTENDED_L2) {
            return Ok(Cluster { place, stored: bitmap as u32, zero: (bitmap >> 32) as u32 });
        }
        let zero = entry & ZERO != 0;
        if zero && header.version == 2 {
            return Err(Error::corrupt(file, FORMAT, at, "an L2 entry has the zero flag, which version 2 does not know"));
        }
        Ok(Cluster { place, stored: u32::from(there && !zero), zero: u32::from(zero) })
    }

    /// The entry for it. Compressed places have [`encode_compressed`].
    pub fn encode(&self, header: &Header) -> L2Entry {
        let entry = match self.place {
            Place::Nowhere => 0,
            Place::Host { offset, own } => offset | if own { COPIED } else { 0 },
            Place::Compressed { host, len } => return encode_compressed(header, host, len),
        };
        if header.has(EXTENDED_L2) {
            return (entry, u64::from(self.zero) << 32 | u64::from(self.stored));
        }
        (entry | if self.zero != 0 { ZERO } else { 0 }, 0)
    }

    /// Where subcluster `sub` lies, for messages about the entry at `at`.
    pub fn mapping(&self, header: &Header, file: &str, sub: u32, at: u64) -> Result<Mapping> {
        let within = u64::from(sub) * header.subcluster_size();
        match (self.place, self.stored >> sub & 1 == 1, self.zero >> sub & 1 == 1) {
            (Place::Compressed { host, len }, ..) => Ok(Mapping::Compressed { host, len }),
            (_, true, true) => Err(Error::corrupt(file, FORMAT, at, format!("subcluster {sub} is marked as both data and zero"))),
            (Place::Host { offset, own }, true, false) => Ok(Mapping::Data { host: offset + within, copied: own }),
            (Place::Host { offset, .. }, false, true) => Ok(Mapping::Zero { host: Some(offset + within) }),
            (Place::Nowhere, false, true) => Ok(Mapping::Zero { host: None }),
            (Place::Nowhere, true, false) => {
                Err(Error::corrupt(file, FORMAT, at, format!("subcluster {sub} is marked as data, but the cluster lies nowhere")))
            }
            (_, false, false) => Ok(Mapping::Unallocated),
        }
    }
}

/// Where the bytes of a compressed entry lie, and how many there are at most.
pub(super) fn compressed_place(header: &Header, entry: u64) -> (u64, u64) {
    let bits = compressed_offset_bits(header);
    let host = entry & ((1 << bits) - 1);
    let sectors = (entry & !(COPIED | COMPRESSED)) >> bits;
    (host, (sectors + 1) * 512 - host % 512)
}

/// The entry for `len` compressed bytes at `host`.
pub(super) fn encode_compressed(header: &Header, host: u64, len: u64) -> L2Entry {
    let bits = compressed_offset_bits(header);
    let sectors = (host + len - 1) / 512 - host / 512;
    (COMPRESSED | sectors << bits | host, 0)
}
