//! The receiving end for streams: what is pushed is written by a thread of its own, in the order pushed.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::runs::split;
use super::target::Target;
use super::{Copied, Options};
use crate::{Error, ImageMut, Result};

/// Pieces that may wait for the writer.
const WAITING: usize = 8;

/// Takes pieces of a disk from a stream and writes them while the stream is read on.
///
/// ```
/// # use std::sync::Arc;
/// # use imgcore::{ImageMut, Result, copy::{Options, Sink}};
/// # fn example(disk: Arc<dyn ImageMut>, pieces: Vec<(u64, Vec<u8>)>) -> Result<()> {
/// let mut sink = Sink::new(disk, Options { target_is_zero: true, ..Options::default() })?;
/// for (offset, bytes) in pieces {
///     sink.write(offset, bytes)?;
/// }
/// let copied = sink.finish()?;
/// # Ok(())
/// # }
/// ```
pub struct Sink {
    pieces: Option<SyncSender<Piece>>,
    writer: Option<JoinHandle<Result<Copied>>>,
}

enum Piece {
    Data(u64, Vec<u8>),
    Zero(u64, u64),
}

impl Sink {
    /// A sink that writes to `target`. Of `options`, `threads`, `only_top` and `compress` do not matter.
    pub fn new(target: Arc<dyn ImageMut>, options: Options) -> Result<Self> {
        let options = Options { compress: false, ..options };
        let (pieces, waiting) = sync_channel(WAITING);
        let writer = move || {
            let target = Target::new(target.as_ref(), &options)?;
            let mut copied = Copied::default();
            for piece in waiting {
                match piece {
                    Piece::Data(offset, bytes) => target.write(&bytes, split(&bytes, offset, target.granule), offset, &mut copied)?,
                    Piece::Zero(offset, len) => target.zero(offset, len, &mut copied)?,
                }
            }
            Ok(copied)
        };
        let writer = std::thread::Builder::new().name("copy-sink".into()).spawn(writer);
        let writer = writer.map_err(|source| Error::io("a thread", "start", None, source))?;
        Ok(Sink { pieces: Some(pieces), writer: Some(writer) })
    }

    /// Hands over bytes that belong at byte `offset`. Waits while eight pieces are on their way.
    ///
    /// # Errors
    /// The failure of this or an earlier piece.
    pub fn write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.push(Piece::Data(offset, bytes)) }
    }

    /// Says that `len` bytes from `offset` are zeroes.
    ///
    /// # Errors
    /// As [`write`](Sink::write).
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        if len == 0 { Ok(()) } else { self.push(Piece::Zero(offset, len)) }
    }

    /// Waits until all is written. Flushing the image is left to the caller.
    ///
    /// # Errors
    /// The first failure, if it was not reported before.
    pub fn finish(mut self) -> Result<Copied> {
        self.join()
    }

    fn push(&mut self, piece: Piece) -> Result<()> {
        if self.pieces.as_ref().is_some_and(|pieces| pieces.send(piece).is_ok()) {
            return Ok(());
        }
        // The writer is gone: it failed.
        self.join().and(Err(ended()))
    }

    fn join(&mut self) -> Result<Copied> {
        self.pieces = None;
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(ended()),
        }
    }
}

fn ended() -> Error {
    Error::Invalid("the target of a copy failed before".into())
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
