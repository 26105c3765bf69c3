//! The entry of qcow2 in the table of formats.

use std::sync::Arc;

use super::header::{FORMAT, MAGIC};
use super::{Qcow2, create, measure, stream};
use crate::formats::{CheckReport, CreateOptions, FormatDriver, FormatOption, Measured, OpenContext, Probe, Repair};
use crate::{Image, ImageEdit, ImageMut, Progress, Result, Storage};

/// qcow2 as a format.
pub struct Qcow2Driver;

impl FormatDriver for Qcow2Driver {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn probe(&self, probe: &Probe<'_>) -> bool {
        // Version 1 of the same magic is another format; the version is looked at when it is opened.
        probe.head.starts_with(&MAGIC) && probe.head.get(4..8).is_some_and(|version| version != [0, 0, 0, 1])
    }

    fn open(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn Image>> {
        Ok(Arc::new(Qcow2::open(storage, context)?))
    }

    fn open_mut(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn ImageMut>> {
        Ok(Arc::new(Qcow2::open_mut(storage, context)?))
    }

    fn open_edit(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Box<dyn ImageEdit>> {
        Ok(Box::new(Qcow2::open_edit(storage, context)?))
    }

    fn has_snapshots(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [FormatOption] {
        create::OPTIONS
    }

    fn amend_options(&self) -> &'static [FormatOption] {
        super::amend::AMENDABLE
    }

    fn effective_options(&self, size: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
        create::effective_options(size, options)
    }

    fn create(&self, storage: Arc<dyn Storage>, size: u64, options: &CreateOptions) -> Result<Arc<dyn ImageMut>> {
        Ok(Arc::new(Qcow2::create(storage, size, options)?))
    }

    fn data_file<'o>(&self, options: &'o CreateOptions) -> Option<&'o str> {
        options.get("data_file")
    }

    fn create_with_data_file(
        &self,
        storage: Arc<dyn Storage>,
        data: Arc<dyn Storage>,
        size: u64,
        options: &CreateOptions,
    ) -> Result<Arc<dyn ImageMut>> {
        Ok(Arc::new(Qcow2::create_parts(storage, Some(data), size, options)?))
    }

    fn measure(&self, size: u64, source: Option<&dyn Image>, options: &CreateOptions) -> Result<Measured> {
        measure::measure(size, source, options)
    }

    fn write_stream(
        &self,
        source: &dyn Image,
        options: &CreateOptions,
        out: &mut dyn std::io::Write,
        progress: &dyn Progress,
    ) -> Result<()> {
        stream::write_stream(source, options, out, progress)
    }

    fn check(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>, repair: Repair) -> Result<CheckReport> {
        super::check::check(storage, repair)
    }
}
