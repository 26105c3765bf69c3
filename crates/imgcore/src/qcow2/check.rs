//! check
use crate::formats::{CheckReport, OpenContext, Repair};
use crate::{Error, Result, Storage};
use std::sync::Arc;
pub(super) fn check(storage: Arc<dyn Storage>, _: &OpenContext<'_>, _: Repair) -> Result<CheckReport> {
    Err(Error::unsupported(storage.name(), "qcow2", "checking"))
}
