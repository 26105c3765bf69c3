//! Checking the metadata: footers that are missing or differ, blocks that overlap, lie over metadata or past the end of the file.

use std::sync::Arc;

use super::fixed::FixedVhd;
use super::footer::{DiskType, Footer, Footers};
use super::{FORMAT, SECTOR, UNUSED, Vhd};
use crate::formats::{CheckReport, Repair};
use crate::{Error, Result, Storage};

const MAX_MESSAGES: usize = 100;

/// Checks the image in `storage`. What can be repaired are footers: a missing or damaged one counts as a leak, since the
/// other one tells the same and no data is at risk.
pub(super) fn check(storage: Arc<dyn Storage>, repair: Repair) -> Result<CheckReport> {
    let footers = Footers::read(&*storage)?;
    let footer = footers.choose(storage.name())?.clone();
    let mut report = CheckReport::default();
    if footer.disk_type() == DiskType::Fixed {
        FixedVhd::open(storage)?;
        report.image_end_offset = footers.end_offset + SECTOR;
        return Ok(report);
    }
    let image = Vhd::with_footer(storage, footer)?.into_writable();
    image.check_blocks(&mut report)?;
    let findings = footer_findings(&footers, &image.footer, &image.file);
    report.leaks = findings.len() as u64;
    report.messages.extend(findings);
    if repair != Repair::None && report.leaks > 0 && report.corruptions == 0 {
        image.rewrite_footers()?;
        report.leaks_fixed = std::mem::take(&mut report.leaks);
    }
    Ok(report)
}

fn footer_findings(footers: &Footers, used: &Footer, file: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (found, name) in [(&footers.copy, "copy of the footer at the start"), (&footers.end, "footer at the end")] {
        match found {
            None => findings.push(format!("{file}: the {name} of the file is missing")),
            Some(Err(what)) => findings.push(format!("{file}: the {name} of the file is damaged: {what}")),
            Some(Ok(footer)) if footer != used => findings.push(format!("{file}: the {name} of the file differs from the other one")),
            Some(Ok(_)) => {}
        }
    }
    findings
}

impl Vhd {
    fn check_blocks(&self, report: &mut CheckReport) -> Result<()> {
        let file_size = self.storage.size()?;
        let stride = self.header.bitmap_size() + self.block_size();
        // More blocks than fit into the file must overlap.
        let most = (file_size / stride + 1) as usize;
        let mut places: Vec<u64> = Vec::new();
        report.total_clusters = self.bat.len();
        report.image_end_offset = self.reserved.iter().map(|r| r.end).fold(0, u64::max);
        let (mut block, mut last_end) = (0, None);
        while block < self.bat.len() {
            let (entry, same) = self.bat.run(&*self.storage, block, self.bat.len() - block)?;
            if entry != UNUSED {
                report.allocated_clusters += same;
                if same > 1 {
                    let what = format!("{same} blocks from block {block} on all lie at {:#x}", entry * SECTOR);
                    corruption(report, same - 1, Error::corrupt(&self.file, FORMAT, self.bat.entry_offset(block), what));
                }
                match self.block_start(block, entry) {
                    Err(error) => corruption(report, 1, error),
                    Ok(start) if start + stride > file_size => {
                        let what = format!("block {block} lies at {start:#x}, and ends past the end of the file");
                        corruption(report, 1, Error::corrupt(&self.file, FORMAT, self.bat.entry_offset(block), what));
                    }
                    Ok(start) => {
                        report.fragmented_clusters += u64::from(last_end.is_some_and(|end| start < end || start - end >= stride));
                        last_end = Some(start + stride);
                        report.image_end_offset = report.image_end_offset.max(start + stride);
                        if places.len() <= most {
                            places.push(start);
                        }
                    }
                }
            }
            block += same;
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            if let [a, b] = pair
                && b - a < stride
            {
                corruption(report, 1, Error::corrupt(&self.file, FORMAT, *b, format!("two blocks overlap: at {a:#x} and {b:#x}")));
            }
        }
        Ok(())
    }
}

fn corruption(report: &mut CheckReport, count: u64, error: Error) {
    report.corruptions += count;
    if report.messages.len() < MAX_MESSAGES {
        report.messages.push(error.to_string());
    }
}
