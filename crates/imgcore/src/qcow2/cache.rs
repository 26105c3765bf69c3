//! How much metadata may be kept in memory: QEMU's `l2-cache-size`, `refcount-cache-size` and `cache-size`.
//!
//! Source: QEMU's `docs/qcow2-cache.txt`.

use super::header::Header;
use crate::formats::Caches;
use crate::{Error, Result};

/// The default covers the whole image up to this.
const MAX_L2: u64 = 32 << 20;
/// Refcount blocks change only while clusters are allocated, mostly one after the other.
const MAX_REFCOUNT: u64 = 16 << 20;
/// Refcount blocks that are needed at least.
const MIN_BLOCKS: u64 = 4;

/// The bounds of an image's caches, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheSizes {
    pub l2: u64,
    pub refcount: u64,
}

impl CacheSizes {
    /// What `wanted` leaves to choose is chosen as QEMU does: as much as the whole image needs goes to the L2 tables.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes that contradict each other, in QEMU's words.
    pub fn new(header: &Header, wanted: &Caches) -> Result<Self> {
        let contradiction = |what: &str| Err(Error::Invalid(what.into()));
        let cluster_size = header.cluster_size();
        let clusters = header.size.div_ceil(cluster_size);
        let whole = clusters.saturating_mul(header.l2_entry_size()).next_multiple_of(cluster_size);
        let least_refcount = MIN_BLOCKS * cluster_size;
        let (l2, refcount) = match (wanted.total, wanted.l2, wanted.refcount) {
            (Some(_), Some(_), Some(_)) => {
                return contradiction("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
            }
            (Some(total), Some(l2), _) if l2 > total => return contradiction("l2-cache-size may not exceed cache-size"),
            (Some(total), _, Some(refcount)) if refcount > total => {
                return contradiction("refcount-cache-size may not exceed cache-size");
            }
            (Some(total), Some(l2), _) => (l2, total - l2),
            (Some(total), _, Some(refcount)) => (total - refcount, refcount),
            (Some(total), ..) if total >= whole.saturating_add(least_refcount) => (whole, total - whole),
            (Some(total), ..) => (total - total.min(least_refcount), total.min(least_refcount)),
            (None, l2, refcount) => (l2.unwrap_or(MAX_L2), refcount.unwrap_or(MAX_REFCOUNT)),
        };
        // More than the whole image is never used.
        Ok(CacheSizes { l2: l2.min(whole), refcount: refcount.max(least_refcount) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::sound;
    use super::*;

    #[test]
    fn sizes_are_divided_as_qemu_divides_them() {
        let header = Header { size: 1 << 40, ..sound() };
        let sizes = |total, l2, refcount| {
            CacheSizes::new(&header, &Caches { total, l2, refcount }).map(|s| (s.l2, s.refcount)).map_err(|e| e.to_string())
        };
        let (mib, whole) = (1 << 20, 128 << 20);
        assert_eq!(sizes(None, None, None), Ok((32 * mib, 16 * mib)));
        assert_eq!(sizes(None, Some(500 * mib), None), Ok((whole, 16 * mib)));
        assert_eq!(sizes(Some(mib), None, None), Ok((mib - (256 << 10), 256 << 10)));
        assert_eq!(sizes(Some(200 * mib), None, None), Ok((whole, 72 * mib)));
        assert_eq!(sizes(Some(4 * mib), Some(mib), None), Ok((mib, 3 * mib)));
        assert_eq!(sizes(Some(4 * mib), None, Some(mib)), Ok((3 * mib, mib)));
        assert_eq!(sizes(Some(0), None, None), Ok((0, 256 << 10)));
        assert_eq!(sizes(Some(mib), Some(2 * mib), None).unwrap_err(), "l2-cache-size may not exceed cache-size");
        assert_eq!(sizes(Some(mib), None, Some(2 * mib)).unwrap_err(), "refcount-cache-size may not exceed cache-size");
        let all = sizes(Some(mib), Some(1), Some(1)).unwrap_err();
        assert_eq!(all, "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
    }
}
