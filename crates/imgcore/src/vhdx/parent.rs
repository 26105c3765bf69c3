//! Opening the parent of a differencing disk: found by its path, known by its data write GUID.

use std::io;
use std::sync::Arc;

use super::FORMAT;
use super::header::Header;
use super::metadata::ParentLocator;
use crate::formats::OpenContext;
use crate::{Error, Image, Reference, Result};

/// Opens the parent that `locator`, read from the image called `file`, names.
pub(super) fn open(file: &str, locator: &ParentLocator, context: &OpenContext<'_>) -> Result<Arc<dyn Image>> {
    let mut missing = None;
    for path in locator.paths() {
        let reference = Reference { from: file, target: &path, role: "parent" };
        let storage = match context.options.gate.open(&reference) {
            Err(error @ Error::Io { .. }) if is_missing(&error) => {
                missing.get_or_insert(error);
                continue;
            }
            other => other?,
        };
        let found = Header::read(&*storage)?.data_write_guid;
        if !locator.matches(found) {
            let what = format!("its parent {path} was changed or is another one: its data write GUID is {found}");
            return Err(Error::corrupt(file, FORMAT, None, what));
        }
        return context.open_reference(&reference, Some(FORMAT));
    }
    Err(missing.unwrap_or_else(|| Error::corrupt(file, FORMAT, None, "the parent locator has no path")))
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
