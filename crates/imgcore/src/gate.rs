//! Which other files an image may name.

use std::sync::Arc;

use crate::{Result, Storage};

/// A file that an image names, as it stands in the image.
#[derive(Clone, Debug)]
pub struct Reference<'a> {
    /// The file that holds the reference, as it was opened.
    pub from: &'a str,
    /// The reference: a path, mostly relative to `from`'s folder.
    pub target: &'a str,
    /// The role: `backing file`, `data file`, `parent`, `extent`.
    pub role: &'static str,
}

/// A caller's policy on files that images name. No image opens another file but through a gate.
pub trait Gate: Send + Sync {
    /// Opens the referenced file for reading, or says why not with
    /// [`Error::Refused`](crate::Error::Refused).
    fn open(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>>;
}
