//! The entry of VDI in the table of formats.

use std::sync::Arc;

use super::header::{SIGNATURE, SIGNATURE_AT};
use super::{FORMAT, Vdi, check, create};
use crate::formats::{CheckReport, CreateOptions, FormatDriver, FormatOption, OpenContext, Probe, Repair};
use crate::{Image, ImageMut, Result, Storage};

/// VDI as a format.
pub struct VdiDriver;

impl FormatDriver for VdiDriver {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn probe(&self, probe: &Probe<'_>) -> bool {
        probe.head.get(SIGNATURE_AT..).is_some_and(|rest| rest.starts_with(&SIGNATURE))
    }

    fn open(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>) -> Result<Arc<dyn Image>> {
        Ok(Arc::new(Vdi::open(storage)?))
    }

    fn open_mut(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>) -> Result<Arc<dyn ImageMut>> {
        Ok(Arc::new(Vdi::open_mut(storage)?))
    }

    fn options(&self) -> &'static [FormatOption] {
        create::OPTIONS
    }

    fn effective_options(&self, size: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
        create::effective_options(size, options)
    }

    fn create(&self, storage: Arc<dyn Storage>, size: u64, options: &CreateOptions) -> Result<Arc<dyn ImageMut>> {
        Ok(Arc::new(Vdi::create(storage, size, options)?))
    }

    fn check(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>, repair: Repair) -> Result<CheckReport> {
        check::check(storage, repair)
    }
}
