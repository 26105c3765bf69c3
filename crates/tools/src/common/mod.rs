//! What all programs share: failures, progress, JSON, and the formats they know.

use std::sync::Arc;

pub mod error;
pub mod json;
pub mod progress;

pub use error::Failure;

/// The formats and containers that the programs know.
pub fn formats() -> imgcore::Formats {
    imgcore::Formats::new().with_container(Arc::new(xva::XvaContainer::default()))
}
