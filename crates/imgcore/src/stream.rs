//! Writing to what can only be written from its beginning to its end: a pipe, standard output.

use std::io::{self, Write};
use std::ops::Range;

use crate::{Error, Image, Progress, Result};

/// Bytes read and written at once.
const PIECE: u64 = 1 << 20;

/// An output stream.
pub(crate) struct Stream<'a> {
    out: &'a mut dyn Write,
    progress: &'a dyn Progress,
    buf: Vec<u8>,
}

impl<'a> Stream<'a> {
    pub fn new(out: &'a mut dyn Write, progress: &'a dyn Progress) -> Self {
        Stream { out, progress, buf: vec![0; PIECE as usize] }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(failed)
    }

    /// Writes `len` zero bytes.
    pub fn zeroes(&mut self, len: u64) -> Result<()> {
        self.buf.fill(0);
        self.pieces(0..len, |this, part| this.out.write_all(&this.buf[..(part.end - part.start) as usize]).map_err(failed))
    }

    /// Writes what `range` of `source` holds.
    pub fn copy(&mut self, source: &dyn Image, range: Range<u64>) -> Result<()> {
        self.pieces(range, |this, part| {
            let buf = &mut this.buf[..(part.end - part.start) as usize];
            source.read_at(buf, part.start)?;
            this.out.write_all(buf).map_err(failed)
        })
    }

    fn pieces(&mut self, range: Range<u64>, mut each: impl FnMut(&mut Self, Range<u64>) -> Result<()>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            if self.progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let end = range.end.min(at + PIECE);
            each(self, at..end)?;
            at = end;
        }
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        self.out.flush().map_err(failed)
    }
}

fn failed(e: io::Error) -> Error {
    Error::io("the output", "write", None, e)
}
