//! From what the kernel says to what the host is told.

use std::io;

use rustix::io::Errno;

use crate::protocol::{Failure, Wrong};

/// Result of an operation of the agent.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Failure::NotFound,
            Errno::NOTDIR => Failure::WrongType(Wrong::NotDirectory),
            Errno::ISDIR => Failure::WrongType(Wrong::IsDirectory),
            other => Failure::Other(words(&other.into())),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Failure::Other(error.to_string()),
        }
    }
}

/// A failure in our own words.
pub fn other(what: impl Into<String>) -> Failure {
    Failure::Other(what.into())
}

/// What failed, with the kernel's reason.
pub fn because(what: &str, error: impl Into<io::Error>) -> Failure {
    Failure::Other(format!("{what}: {}", words(&error.into())))
}

/// The system's message without Rust's "(os error 28)".
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}
