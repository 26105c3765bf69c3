//! The entry of VHD in the table of formats.

use std::sync::Arc;

use super::fixed::FixedVhd;
use super::footer::{COOKIE, DiskType, Footers, POISON};
use super::{FORMAT, Vhd, check, create, header};
use crate::formats::{CheckReport, CreateOptions, FormatDriver, FormatOption, OpenContext, Probe, Repair};
use crate::storage::MemStorage;
use crate::{Image, ImageEdit, ImageMut, Result, Storage};

/// VHD as a format, under QEMU's name for it.
pub struct VhdDriver;

/// Whether `storage` holds a disk without a header.
fn is_fixed(storage: &dyn Storage) -> Result<bool> {
    Ok(Footers::read(storage)?.choose(storage.name())?.disk_type() == DiskType::Fixed)
}

impl FormatDriver for VhdDriver {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["vhd"]
    }

    /// By the copy of the footer at the start; else by a good footer at the end, which a guest may have written to its raw
    /// disk: so only for disks that name no other file, and that the file's size or a header fits.
    fn probe(&self, probe: &Probe<'_>) -> bool {
        if [COOKIE, POISON].iter().any(|cookie| probe.head.starts_with(cookie)) {
            return true;
        }
        let footers = Footers::read(&MemStorage::from_bytes("tail", probe.tail));
        let Ok(Footers { end: Some(Ok(footer)), end_offset, .. }) = footers else { return false };
        let before = probe.size - probe.tail.len() as u64 + end_offset;
        match footer.disk_type() {
            DiskType::Fixed => footer.fits(before),
            DiskType::Dynamic => {
                let at = usize::try_from(footer.data_offset()).ok();
                at.and_then(|at| probe.head.get(at..)).is_some_and(|bytes| bytes.starts_with(header::COOKIE))
            }
            DiskType::Differencing => false,
        }
    }

    fn open(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn Image>> {
        Ok(if is_fixed(&*storage)? { Arc::new(FixedVhd::open(storage)?) } else { Arc::new(Vhd::open(storage, context)?) })
    }

    fn open_mut(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn ImageMut>> {
        Ok(if is_fixed(&*storage)? { Arc::new(FixedVhd::open(storage)?) } else { Arc::new(Vhd::open_mut(storage, context)?) })
    }

    fn open_edit(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Box<dyn ImageEdit>> {
        Ok(if is_fixed(&*storage)? { Box::new(FixedVhd::open(storage)?) } else { Box::new(Vhd::open_mut(storage, context)?) })
    }

    fn options(&self) -> &'static [FormatOption] {
        create::OPTIONS
    }

    fn effective_options(&self, size: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
        create::effective_options(size, options)
    }

    fn create(&self, storage: Arc<dyn Storage>, size: u64, options: &CreateOptions) -> Result<Arc<dyn ImageMut>> {
        create::create(storage, size, options)
    }

    fn check(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>, repair: Repair) -> Result<CheckReport> {
        check::check(storage, repair)
    }
}
