//! Storage as a writer from front to end, for what is made in one pass.

use std::io::{self, Write};
use std::sync::Arc;

use super::Storage;

/// Writes to storage from its first byte on. A failure carries the storage's own [`Error`](crate::Error), with file and
/// offset, which [`io::Error::downcast`] gives back.
pub struct Appender {
    storage: Arc<dyn Storage>,
    at: u64,
}

impl Appender {
    /// Begins at the front.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Appender { storage, at: 0 }
    }
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.storage.write_at(bytes, self.at).map_err(io::Error::other)?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::storage::{FaultStorage, MemStorage};

    #[test]
    fn bytes_follow_each_other_and_errors_are_the_storage_s_own() {
        let storage = Arc::new(MemStorage::new("mem", 0));
        let mut out = Appender::new(Arc::new(FaultStorage::new(storage.clone()).fail_at(2)));
        out.write_all(b"one").unwrap();
        out.write_all(b"two").unwrap();
        let failed = out.write_all(b"three").unwrap_err().downcast::<Error>().unwrap();
        assert!(matches!(failed, Error::Io { action: "write", .. }), "{failed}");
        assert_eq!(storage.to_vec(), b"onetwo");
    }
}
