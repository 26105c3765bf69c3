//! The one error of this crate: which part of the conversion stopped, and what to do next.

/// Result of anything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a conversion stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An image failed.
    #[error(transparent)]
    Image(#[from] imgcore::Error),
    /// A guest's filesystem or the appliance failed.
    #[error(transparent)]
    Guest(#[from] guestfs::Error),
    /// A configuration cannot be understood.
    #[error("{file}:{line}: {what}")]
    Config {
        /// The configuration file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The host failed.
    #[error("{file}: cannot {action}: {source}")]
    Io {
        /// The file as the user named it.
        file: String,
        /// What was tried, as a verb.
        action: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
    /// A step cannot do its work on this guest.
    #[error("{guest}: step '{step}': {what}")]
    Step {
        /// The guest's name.
        guest: String,
        /// The step's name.
        step: &'static str,
        /// What is missing, with the file where there is one, and what to do about it.
        what: String,
    },
    /// The guest or the request cannot be converted.
    #[error("{0}")]
    Invalid(String),
}
