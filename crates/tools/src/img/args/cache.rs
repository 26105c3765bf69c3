//! Cache modes: what of them a program that uses the host's page cache can keep to.

use crate::common::Failure;

/// When what was written must be on stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CacheMode {
    /// When it is asked for: `writeback`, `none`.
    #[default]
    Writeback,
    /// After each write: `writethrough`, `directsync`.
    Writethrough,
    /// When the host likes: `unsafe`.
    Unsafe,
}

impl CacheMode {
    /// The mode called `text`, or `what` complains.
    pub(crate) fn parse(text: Option<&str>, what: &str) -> Result<Self, Failure> {
        match text {
            None | Some("writeback" | "none" | "off") => Ok(CacheMode::Writeback),
            Some("writethrough" | "directsync") => Ok(CacheMode::Writethrough),
            Some("unsafe") => Ok(CacheMode::Unsafe),
            Some(other) => Err(Failure::new(format!("{what}: {other}"))),
        }
    }
}
