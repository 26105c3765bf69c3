//! The one error of this crate: what failed, in which file, where, and what to do next.

use std::io;

/// Result of anything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on an image failed.
///
/// The kinds are what a caller can tell apart: the host failed ([`Io`](Error::Io)), the image is damaged
/// ([`Corrupt`](Error::Corrupt)), the image is sound but beyond us ([`Unsupported`](Error::Unsupported)), the
/// caller's policy said no ([`Refused`](Error::Refused)), somebody else uses it ([`Locked`](Error::Locked)), or the caller asked for something impossible
/// ([`Invalid`](Error::Invalid)).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's storage failed.
    #[error("{file}: cannot {action}{}: {source}", at(*.offset))]
    Io {
        /// The file as the user named it.
        file: String,
        /// What was tried, as a verb: `read`, `write`, `open`.
        action: &'static str,
        /// Byte offset in the file, where the failure has one.
        offset: Option<u64>,
        /// The host's error.
        source: io::Error,
    },
    /// The image contradicts its own format.
    #[error("{file}: corrupt {format}{}: {what}", at(*.offset))]
    Corrupt {
        /// The file as the user named it.
        file: String,
        /// The format's name.
        format: &'static str,
        /// Byte offset of the structure in the file, where known.
        offset: Option<u64>,
        /// What was found and what was expected.
        what: String,
    },
    /// The image uses something that we don't read or write.
    #[error("{file}: {format}: not supported: {what}")]
    Unsupported {
        /// The file as the user named it.
        file: String,
        /// The format's name.
        format: &'static str,
        /// The feature, and what to do about it.
        what: String,
    },
    /// The caller's [`Gate`](crate::Gate) did not allow a file that the image names.
    #[error("{file}: will not open '{reference}', which it names: {why}")]
    Refused {
        /// The file that holds the reference.
        file: String,
        /// The reference as it stands in the image.
        reference: String,
        /// The gate's reason, and how to allow it.
        why: String,
    },
    /// Another program, or another part of this one, uses the file in a way that forbids it.
    #[error("Could not open '{file}': {why}\nIs another process using the image [{file}]?")]
    Locked {
        /// The file as the user named it.
        file: String,
        /// Which lock could not be had, in QEMU's words.
        why: String,
    },
    /// The request itself cannot be carried out.
    #[error("{0}")]
    Invalid(String),
    /// [`Progress::cancelled`](crate::Progress::cancelled) asked for an end.
    #[error("stopped on request")]
    Cancelled,
}

fn at(offset: Option<u64>) -> String {
    offset.map(|o| format!(" at offset {o:#x}")).unwrap_or_default()
}

impl Error {
    /// An I/O failure of `action` on `file`.
    pub fn io(file: &str, action: &'static str, offset: Option<u64>, source: io::Error) -> Self {
        Error::Io { file: file.into(), action, offset, source }
    }

    /// A structure at `offset` of `file` that breaks the rules of `format`.
    pub fn corrupt(file: &str, format: &'static str, offset: impl Into<Option<u64>>, what: impl Into<String>) -> Self {
        Error::Corrupt { file: file.into(), format, offset: offset.into(), what: what.into() }
    }

    /// A feature of `format` that is beyond us.
    pub fn unsupported(file: &str, format: &'static str, what: impl Into<String>) -> Self {
        Error::Unsupported { file: file.into(), format, what: what.into() }
    }
}
