//! Progress as events: the library counts, the program shows.

/// Receives the progress of long work. Called from any thread.
pub trait Progress: Send + Sync {
    /// The whole work in bytes is now known to be `total`.
    fn total(&self, total: u64);
    /// `done` more bytes are finished.
    fn advance(&self, done: u64);
    /// Whether the user wants to stop; asked between pieces of work.
    fn cancelled(&self) -> bool;
}

/// For callers that do not care.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn total(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}
