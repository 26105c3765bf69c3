//! How large an image's file gets, as qemu-img reckons it: metadata for every cluster, and the data that there is.

use std::ops::ControlFlow;

use super::create::settings;
use super::header::{FORMAT, Header, MAX_L1_BYTES};
use crate::formats::{CreateOptions, Measured};
use crate::{Error, Image, ImageInfo, Preallocation, Result};

pub(super) fn measure(size: u64, source: Option<&dyn Image>, options: &CreateOptions) -> Result<Measured> {
    // These two are not at odds here, for nothing is created.
    let preallocation: Preallocation = options.get("preallocation").unwrap_or("off").parse()?;
    let header = settings(0, &options.clone().without("preallocation").without("backing_file"))?.header;
    let cluster_size = header.cluster_size();
    let size = source.map_or(size, |source| source.size());
    let too_large = || Error::Invalid("The image size is too large (try using a larger cluster size)".into());
    if size.div_ceil(header.l2_span()).saturating_mul(8) > MAX_L1_BYTES {
        return Err(too_large());
    }
    let size = size.checked_next_multiple_of(cluster_size).ok_or_else(too_large)?;
    let metadata = metadata_size(&header, size);
    let data = match source {
        _ if matches!(preallocation, Preallocation::Falloc | Preallocation::Full) => size,
        // Nobody knows how much of the source the backing file has.
        Some(_) if options.get("backing_file").is_some() => size,
        Some(source) => data_size(source, cluster_size)?,
        None => 0,
    };
    let keeps_bitmaps = |info: &ImageInfo| info.format == FORMAT && info.details.iter().any(|d| *d == ("compat".into(), "1.1".into()));
    let bitmaps = source.map(|source| source.info()).filter(|info| header.version == 3 && keeps_bitmaps(info));
    Ok(Measured {
        required: metadata + data,
        fully_allocated: metadata + size,
        bitmaps: bitmaps.map(|info| bitmaps_size(&info, cluster_size)),
    })
}

/// Bytes of the clusters that hold data of `source`.
fn data_size(source: &dyn Image, cluster_size: u64) -> Result<u64> {
    let (mut clusters, mut next) = (0, 0);
    source.extents(0..source.size(), &mut |extent| {
        if !extent.kind.reads_zero() {
            let first = (extent.start / cluster_size).max(next);
            let end = (extent.start + extent.len).div_ceil(cluster_size);
            clusters += end.saturating_sub(first);
            next = next.max(end);
        }
        ControlFlow::Continue(())
    })?;
    Ok(clusters * cluster_size)
}

/// Bytes of all metadata when every one of `size` bytes, whole clusters, has its place.
fn metadata_size(header: &Header, size: u64) -> u64 {
    let cluster_size = header.cluster_size();
    let l2_entries = cluster_size / header.l2_entry_size();
    let l2_tables = (size / cluster_size).div_ceil(l2_entries);
    let l1_clusters = (l2_tables * 8).div_ceil(cluster_size);
    let counted = 1 + l2_tables + l1_clusters;
    let (table, blocks) = refcount_layout(header, counted + size / cluster_size);
    (counted + table + blocks) * cluster_size
}

/// Clusters of the refcount table, and refcount blocks, that `clusters` others need.
pub(super) fn refcount_layout(header: &Header, clusters: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (0, 0);
    loop {
        let all = clusters + table + blocks;
        blocks = all.div_ceil(header.refcounts_per_block());
        table = (blocks * 8).div_ceil(header.cluster_size());
        if clusters + table + blocks == all {
            return (table, blocks);
        }
    }
}

/// Bytes for all bitmaps that are sound, each with all of its bits stored.
fn bitmaps_size(info: &ImageInfo, cluster_size: u64) -> u64 {
    let (mut total, mut directory) = (0, 0u64);
    for bitmap in info.bitmaps.iter().filter(|bitmap| !bitmap.in_use) {
        let clusters = info.virtual_size.div_ceil(bitmap.granularity.max(1)).div_ceil(8).div_ceil(cluster_size);
        total += clusters * cluster_size + (clusters * 8).next_multiple_of(cluster_size);
        directory += (24 + bitmap.name.len() as u64).next_multiple_of(8);
    }
    total + directory.next_multiple_of(cluster_size)
}
