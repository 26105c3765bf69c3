//! Checking an image: every reference to a cluster is counted and compared with the counts in the file, as qemu-img
//! does it; and repairing what is wrong.
//!
//! Memory is bounded by what the file really holds, and so is the work: a table is walked once however often it is
//! named, and counts for it as often.

use std::sync::Arc;

use super::Qcow2;
use super::header::{CORRUPT, DIRTY, FORMAT, Header};
use super::l2::words;
use super::snapshot;
use super::write::clear_unknown;
use crate::formats::{CheckReport, Repair};
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

mod compare;
mod counts;
mod rebuild;
mod walk;

use compare::Blocks;
use counts::Counts;

const MAX_MESSAGES: usize = 1000;
/// Bits of a refcount table entry that hold an offset.
const BLOCK_OFFSET: u64 = !511;

/// Checks the image in `storage`, and repairs what `repair` says.
pub(super) fn check(storage: Arc<dyn Storage>, repair: Repair) -> Result<CheckReport> {
    let mut first = Pass::run(&*storage)?;
    if repair == Repair::None {
        return Ok(first.report);
    }
    clear_unknown(&mut first.header, &*storage)?;
    let found = first.report.clone();
    if found.leaks + found.corruptions + found.check_errors > 0 {
        if repair == Repair::All && !first.to_zero.is_empty() {
            first.zero_entries()?;
            first = Pass::run(&*storage)?;
        }
        first.repair(repair)?;
        storage.sync()?;
    }
    let mut second = Pass::run(&*storage)?;
    // A flag is right or wrong by the count, so counts come first.
    let small = second.wrong_flags + second.incomplete_rows;
    if repair == Repair::All && small > 0 && small == second.report.corruptions && second.report.leaks == 0 {
        second.check_copied_flags(true)?;
        storage.sync()?;
        if second.incomplete_rows > 0 {
            complete_rows(storage.clone())?;
        }
        second = Pass::run(&*storage)?;
    }
    let (header, report) = (second.header, second.report);
    if report.corruptions + report.check_errors == 0 && header.has(DIRTY | CORRUPT) {
        let features = header.incompatible & !(DIRTY | CORRUPT);
        storage.write_at(&features.to_be_bytes(), 72)?;
        storage.sync()?;
    }
    Ok(CheckReport {
        leaks_fixed: found.leaks.saturating_sub(report.leaks),
        corruptions_fixed: found.corruptions.saturating_sub(report.corruptions),
        ..report
    })
}

/// Gives the entries of the snapshot table what version 3 asks for.
fn complete_rows(storage: Arc<dyn Storage>) -> Result<()> {
    let header = Header::read(&*storage)?;
    let mut image = Qcow2::with_header(storage, header, None)?.into_writable()?;
    let mut shadow = image.shadow()?;
    let rows = snapshot::read(&*image.storage, &image.header)?;
    image.write_rows(&mut shadow, &rows)?;
    image.commit(shadow)
}

/// One pass over the metadata.
struct Pass<'a> {
    storage: &'a dyn Storage,
    header: Header,
    counts: Counts,
    /// The refcount table, with 0 for blocks that cannot be read.
    refcount_table: Vec<u64>,
    blocks: Blocks,
    /// Clusters of the refcount table and its blocks: their references end when those are rebuilt.
    refcount_clusters: Vec<u64>,
    /// Whether counts must be built anew, for they cannot be set right where they are.
    rebuild: bool,
    /// Whether something could not be followed, so that what seems unused may be in use.
    lost: bool,
    /// L2 entries to be made zeroes by their place in the file.
    to_zero: Vec<u64>,
    wrong_flags: u64,
    incomplete_rows: u64,
    report: CheckReport,
    file_len: u64,
    /// Clusters of the file.
    clusters: u64,
    /// The largest count that the file can hold, as far as it matters.
    max_count: u32,
    /// log2 of the clusters that one refcount block counts.
    block_bits: u32,
}

impl<'a> Pass<'a> {
    fn run(storage: &'a dyn Storage) -> Result<Self> {
        let header = Header::read(storage)?;
        // As QEMU sees it, in sectors.
        let file_len = storage.size()?.next_multiple_of(512);
        let mut table = vec![0; (u64::from(header.refcount_table_clusters) << header.cluster_bits) as usize];
        read_padded(storage, &mut table, header.refcount_table_offset)?;
        let mut pass = Pass {
            refcount_table: words(&table).collect(),
            storage,
            clusters: file_len.div_ceil(header.cluster_size()),
            counts: Counts::default(),
            blocks: Blocks::new(&header),
            refcount_clusters: Vec::new(),
            rebuild: false,
            lost: false,
            to_zero: Vec::new(),
            wrong_flags: 0,
            incomplete_rows: 0,
            report: CheckReport { total_clusters: header.size.div_ceil(header.cluster_size()), ..CheckReport::default() },
            file_len,
            max_count: u32::try_from(header.max_refcount()).unwrap_or(u32::MAX),
            block_bits: header.refcounts_per_block().trailing_zeros(),
            header,
        };
        pass.count_references()?;
        pass.compare(Repair::None)?;
        pass.check_copied_flags(false)?;
        Ok(pass)
    }

    fn repair(&mut self, repair: Repair) -> Result<()> {
        match (self.rebuild, repair) {
            (true, Repair::All) => self.rebuild_counts(),
            (true, _) => Err(self.beyond_repair("its reference counts must be built anew, which 'img check -r all' does")),
            (false, _) => {
                // What cannot be followed may name what looks leaked.
                let repair = if self.lost { Repair::None } else { repair };
                self.compare(repair)
            }
        }
    }

    fn say(&mut self, message: impl FnOnce() -> String) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message());
        } else if self.report.messages.len() == MAX_MESSAGES {
            self.report.messages.push("More findings are only counted".into());
        }
    }

    /// A corruption found `times` times.
    fn corruption(&mut self, times: u32, message: impl FnOnce() -> String) {
        self.report.corruptions += u64::from(times);
        self.say(|| format!("ERROR {}", message()));
    }

    /// The error for an image that is past repair.
    fn beyond_repair(&self, what: &str) -> Error {
        Error::corrupt(self.storage.name(), FORMAT, None, what)
    }
}
