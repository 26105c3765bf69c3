//! What all programs share: failures, progress, JSON, and the formats they know.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub mod error;
pub mod json;
pub mod progress;
pub mod signals;

pub use error::Failure;

static SPOOL: OnceLock<PathBuf> = OnceLock::new();

/// Sets the folder for unpacking packed appliances, once for the program: what its user said with `--spool`.
pub fn spool_into(folder: PathBuf) {
    let _ = SPOOL.set(folder);
}

/// The formats and containers that the programs know.
pub fn formats() -> imgcore::Formats {
    let options = xva::Options { spool: SPOOL.get().cloned() };
    imgcore::Formats::new().with_container(Arc::new(xva::XvaContainer { options }))
}
