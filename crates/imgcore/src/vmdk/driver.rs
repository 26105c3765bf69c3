//! The entry of VMDK in the table of formats.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use super::create::{self, STREAM_OPTIMIZED, Settings};
use super::descriptor::is_descriptor;
use super::header::{COWD_MAGIC, MAGIC};
use super::stream::{Sink, StreamImage};
use super::{FORMAT, Vmdk, check};
use crate::formats::{CheckReport, CreateOptions, FormatDriver, FormatOption, OpenContext, Probe, Repair};
use crate::{Error, Image, ImageMut, Progress, Result, Storage, copy};

/// Pieces of a stream that may wait to be written.
const WAITING: usize = 64;

/// VMDK as a format.
pub struct VmdkDriver;

impl FormatDriver for VmdkDriver {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn probe(&self, probe: &Probe<'_>) -> bool {
        probe.head.starts_with(MAGIC) || probe.head.starts_with(COWD_MAGIC) || is_descriptor(probe.head)
    }

    fn open(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Arc<dyn Image>> {
        Ok(Arc::new(Vmdk::open(storage, context)?))
    }

    fn open_mut(&self, storage: Arc<dyn Storage>, _: &OpenContext<'_>) -> Result<Arc<dyn ImageMut>> {
        Ok(Arc::new(Vmdk::open_mut(storage)?))
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

    /// A pipe gets a streamOptimized image, which must be asked for.
    fn write_stream(&self, source: &dyn Image, options: &CreateOptions, out: &mut dyn Write, progress: &dyn Progress) -> Result<()> {
        let settings = Settings::new(source.size(), options)?;
        if !settings.is_stream {
            let what = format!("writing another kind than streamOptimized to a pipe: use -o subformat={STREAM_OPTIMIZED}");
            return Err(Error::unsupported(&source.info().file, FORMAT, what));
        }
        let (pieces, waiting) = sync_channel::<Vec<u8>>(WAITING);
        std::thread::scope(|scope| {
            let copied = scope.spawn(move || {
                let target = StreamImage::begin(Sink::Channel(pieces), &settings)?;
                let options = copy::Options { target_is_zero: true, ..copy::Options::default() };
                copy::copy(source, &target, &options, progress)?;
                target.flush()
            });
            let written = waiting.into_iter().try_for_each(|piece| out.write_all(&piece)).and_then(|()| out.flush());
            let copied = copied.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // When writing fails, copying is cut off.
            written.map_err(|e| e.downcast().unwrap_or_else(|e| Error::io("the output", "write", None, e)))?;
            copied
        })
    }

    fn check(&self, storage: Arc<dyn Storage>, context: &OpenContext<'_>, _: Repair) -> Result<CheckReport> {
        check::check(storage, context)
    }
}
