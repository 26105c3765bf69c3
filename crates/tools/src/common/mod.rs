//! What all programs share: failures, progress, JSON, and the formats they know.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::SIGPIPE;

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

/// From here on the program ends without a word when nobody reads its standard output any more, as in `img map disk | head`.
/// For work that leaves nothing behind.
pub fn end_with_reader() {
    let always = Arc::new(AtomicBool::new(true));
    // 128 and the signal's number: what a shell shows for a program that the signal ended.
    let _ = signal_hook::flag::register_conditional_shutdown(SIGPIPE, 128 + SIGPIPE, always);
}

/// The formats and containers that the programs know.
pub fn formats() -> imgcore::Formats {
    let options = xva::Options { spool: SPOOL.get().cloned() };
    imgcore::Formats::new().with_container(Arc::new(xva::XvaContainer { options }))
}
