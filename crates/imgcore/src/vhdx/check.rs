//! Checking the metadata: blocks that overlap, lie over metadata or past the end of the file.

use std::sync::Arc;

use super::bat::State;
use super::header::Header;
use super::{FORMAT, Vhdx, write};
use crate::formats::{CheckReport, Repair};
use crate::{Error, Result, Storage};

const MAX_MESSAGES: usize = 100;

/// Checks the image in `storage`. Of repairs there is one: replaying the log.
pub(super) fn check(storage: Arc<dyn Storage>, repair: Repair) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let mut header = Header::read(&*storage)?;
    if header.is_dirty() {
        if repair == Repair::None {
            let what = "checking an image whose log needs to be replayed: 'img check -r all' replays it";
            return Err(Error::unsupported(storage.name(), FORMAT, what));
        }
        write::replay(&*storage, &mut header)?;
        report.corruptions_fixed += 1;
    }
    let image = Vhdx::with_header(storage, &header)?;
    image.check_blocks(&mut report)?;
    Ok(report)
}

impl Vhdx {
    fn check_blocks(&self, report: &mut CheckReport) -> Result<()> {
        let file_size = self.storage.size()?;
        let mut places: Vec<(u64, u64)> = Vec::new();
        self.for_each_entry(|block, entry| {
            // The disk may end within its last block.
            let used = self.block_size().min(self.metadata.size - block * self.block_size());
            match (self.map_block(block, 0, entry, 1), State::of(entry)) {
                (Err(error), _) => corruption(report, error),
                (Ok(_), State::FullyPresent(offset) | State::PartiallyPresent(offset)) => {
                    if offset.saturating_add(used) > file_size {
                        corruption(report, self.bad_entry(block, &format!("lies at {offset:#x}, past the end of the file")));
                    }
                    places.push((offset, block));
                }
                _ => {}
            }
            Ok(())
        })?;
        places.sort_unstable();
        for pair in places.windows(2) {
            if let [(a, _), (b, block)] = pair
                && b - a < self.block_size()
            {
                corruption(report, self.bad_entry(*block, &format!("lies at {b:#x}, over another block")));
            }
        }
        Ok(())
    }
}

fn corruption(report: &mut CheckReport, error: Error) {
    report.corruptions += 1;
    if report.messages.len() < MAX_MESSAGES {
        report.messages.push(error.to_string());
    }
}
