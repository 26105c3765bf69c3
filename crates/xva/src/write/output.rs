//! Where an appliance goes: bytes in a row, with the place in the messages.

use std::io::Write;

use imgcore::{Error, Result};

/// A writer that knows how far it is.
pub(super) struct Output<'a> {
    out: &'a mut dyn Write,
    at: u64,
}

impl<'a> Output<'a> {
    /// Begins at the front of `out`.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Output { out, at: 0 }
    }

    /// Writes all of `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| self.error(e))?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Passes on what lies in buffers.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| self.error(e))
    }

    /// An error that storage told of has its own file and offset.
    fn error(&self, e: std::io::Error) -> Error {
        e.downcast().unwrap_or_else(|e| Error::io("the appliance", "write", Some(self.at), e))
    }
}
