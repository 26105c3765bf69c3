//! The one error of this crate.

/// Result of anything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image below failed.
    #[error(transparent)]
    Image(#[from] imgcore::Error),
    /// The path is not there.
    #[error("{}: no such file or directory", show(.0))]
    NotFound(Vec<u8>),
    /// The path is there, but is something else: `what` says what was expected.
    #[error("{}: {what}", show(.path))]
    WrongType {
        /// The path in the guest.
        path: Vec<u8>,
        /// `not a directory`, `is a directory`, `not a symbolic link`.
        what: &'static str,
    },
    /// The filesystem contradicts itself.
    #[error("corrupt {filesystem}: {what}")]
    Corrupt {
        /// The filesystem's name: `ext4`.
        filesystem: &'static str,
        /// Where and what.
        what: String,
    },
    /// Beyond the in-process readers: the appliance may do it.
    #[error("{filesystem}: not supported in process: {what}")]
    Unsupported {
        /// The filesystem's or volume's name.
        filesystem: &'static str,
        /// The feature.
        what: String,
    },
    /// An operation in the guest failed: the kernel's or the agent's words.
    #[error("{}: {action}: {what}", show(.path))]
    Guest {
        /// The path in the guest.
        path: Vec<u8>,
        /// What was tried, as a verb.
        action: &'static str,
        /// The failure.
        what: String,
    },
    /// The appliance could not be started, died or did not answer; with its console's last lines.
    #[error("{what}{}", console_tail(.console))]
    Appliance {
        /// What happened and what to do next.
        what: String,
        /// The last lines of its console, if there were any.
        console: String,
    },
    /// This host lacks a program or a file that is needed: what it is, and how to get it.
    #[error("{0}")]
    Missing(String),
    /// There are several operating systems, of which one is to be chosen.
    #[error("there are several operating systems, choose one with --root:\n{list}")]
    SeveralSystems {
        /// Each one's root, as the guest calls it.
        roots: Vec<String>,
        /// The same for people, a line each.
        list: String,
    },
    /// The request itself cannot be carried out.
    #[error("{0}")]
    Invalid(String),
}

/// A guest's path for a message: control characters escaped, so that a hostile name can't drive a terminal.
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

fn console_tail(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("\nthe appliance's console ended with:\n{console}") }
}
