//! Checking the metadata: grains that overlap or lie past the end of the file.

use std::collections::HashSet;
use std::sync::Arc;

use super::extent::Body;
use super::sparse::{Mapping, Sparse};
use super::{FORMAT, SECTOR, Vmdk};
use crate::formats::{CheckReport, OpenContext};
use crate::{Error, Result, Storage};

const MAX_MESSAGES: usize = 100;

/// Checks the image in `storage` and all its extents.
pub(super) fn check(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    for extent in &Vmdk::open_layer(storage, context)?.extents {
        if let Body::Sparse(sparse) = &extent.body {
            check_extent(sparse, &mut report)?;
        }
    }
    Ok(report)
}

fn check_extent(sparse: &Sparse, report: &mut CheckReport) -> Result<()> {
    let file_size = sparse.storage.size()?;
    // Places are sectors of 32 bits.
    let mut places: Vec<u32> = Vec::new();
    let distance = if sparse.header.is_compressed { 1 } else { sparse.header.grain_size / SECTOR };
    let mut at = 0;
    let (capacity, span) = (sparse.header.capacity, sparse.header.table_span());
    // A table that is there twice is looked into once: the file's size bounds the work, whatever it claims.
    let mut tables = HashSet::new();
    while at < capacity {
        let to_next = (span - at % span).min(capacity - at);
        let found = sparse.entry_place(at).and_then(|place| match place {
            Some(place) if at.is_multiple_of(span) && !tables.insert(place) => {
                Err(corrupt(sparse, place, format!("the grain table of byte {at:#x} is that of others, too")))
            }
            Some(_) => sparse.lookup(at, to_next),
            None => sparse.lookup(at, capacity - at),
        });
        let (mapping, run) = match found {
            Ok(found) => found,
            Err(error @ Error::Corrupt { .. }) => {
                found_corrupt(report, || error);
                at += to_next;
                continue;
            }
            Err(error) => return Err(error),
        };
        for within in (0..run).step_by(sparse.header.grain_size as usize) {
            let host = match mapping {
                Mapping::Data(host) => host + within,
                Mapping::Compressed(host) => host,
                _ => break,
            };
            places.push((host / SECTOR) as u32);
            let used = if sparse.header.is_compressed { 1 } else { sparse.header.grain_size.min(run - within) };
            if host.saturating_add(used) > file_size {
                let what = || format!("the grain of byte {:#x} lies past the end of the file", at + within);
                found_corrupt(report, || corrupt(sparse, host, what()));
            }
        }
        at += run;
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if let [a, b] = pair
            && u64::from(b - a) < distance
        {
            found_corrupt(report, || corrupt(sparse, u64::from(*b) * SECTOR, "two grains lie on top of each other".into()));
        }
    }
    Ok(())
}

fn corrupt(sparse: &Sparse, at: u64, what: String) -> Error {
    Error::corrupt(sparse.storage.name(), FORMAT, at, what)
}

/// Counts a finding. What it is is put into words only where they are kept: there may be millions.
fn found_corrupt(report: &mut CheckReport, error: impl FnOnce() -> Error) {
    report.corruptions += 1;
    if report.messages.len() < MAX_MESSAGES {
        report.messages.push(error().to_string());
    }
}
