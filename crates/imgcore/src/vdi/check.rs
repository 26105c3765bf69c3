//! Checking the block map: places that do not exist or are used twice, and the number of stored blocks.

use std::collections::HashSet;
use std::sync::Arc;

use super::header::{ALLOCATED_AT, BLOCK_SIZE};
use super::{FORMAT, Mapping, Vdi};
use crate::formats::{CheckReport, Repair};
use crate::{Error, Result, Storage};

const MAX_MESSAGES: usize = 100;

/// Checks the image in `storage`; nothing can be repaired.
pub(super) fn check(storage: Arc<dyn Storage>, repair: Repair) -> Result<CheckReport> {
    if repair != Repair::None {
        return Err(Error::unsupported(storage.name(), FORMAT, "repairing images of this format"));
    }
    let file_size = storage.size()?;
    let image = Vdi::open(storage)?;
    let mut report = CheckReport { total_clusters: image.header.blocks, ..CheckReport::default() };
    let mut used = HashSet::new();
    let mut corruption = |offset: u64, what: String| {
        report.corruptions += 1;
        if report.messages.len() < MAX_MESSAGES {
            report.messages.push(Error::corrupt(&image.file, FORMAT, offset, what).to_string());
        }
    };
    for block in 0..image.header.blocks {
        let at = image.entry_offset(block);
        match image.block(block) {
            Ok(Mapping::Absent) => {}
            Ok(Mapping::Data(host)) if host >= file_size => {
                corruption(at, format!("block {block} lies at {host:#x}, past the end of the file"));
            }
            Ok(Mapping::Data(host)) => {
                if !used.insert(host) {
                    corruption(at, format!("block {block} lies at {host:#x}, as another block does"));
                }
            }
            Err(error) => corruption(at, error.to_string()),
        }
    }
    let end = used.iter().max().map_or(image.header.data_offset, |host| host + BLOCK_SIZE);
    let (stored, said) = (used.len() as u64, image.header.allocated);
    if said < (end - image.header.data_offset) / BLOCK_SIZE {
        corruption(ALLOCATED_AT, format!("{said} blocks are said to be stored, and the next one would go over the last of {stored}"));
    }
    report.leaks = said.saturating_sub(stored);
    report.allocated_clusters = stored;
    report.image_end_offset = end;
    Ok(report)
}
