//! Where bytes lie. Formats see nothing of the host but this.

use std::ops::Range;

use crate::{Error, Result};

mod append;
mod fault;
mod file;
mod image;
mod lock;
mod mem;
mod new_file;
pub mod undo;

pub use append::Appender;
pub use fault::{FaultStorage, Operation};
pub use file::FileStorage;
pub use image::ImageStorage;
pub use lock::Lock;
pub use mem::MemStorage;
pub use new_file::{NewFile, remove_unfinished};
pub use undo::Undo;

/// A row of bytes on the host, readable and writable at any offset from any thread.
pub trait Storage: Send + Sync {
    /// How the user named it; for messages.
    fn name(&self) -> &str;

    /// Size in bytes now.
    fn size(&self) -> Result<u64>;

    /// Bytes that it occupies, where the host can tell.
    fn allocated(&self) -> Option<u64>;

    /// Something that two handles of one file share (device and inode), to find loops; `None` for memory.
    fn identity(&self) -> Option<(u64, u64)>;

    /// Tells other programs what is done with it, until it is closed; see [`Lock`]. Memory has no other users.
    ///
    /// # Errors
    /// [`Error::Locked`] when what another user does with it, or denies, does not go together with `lock`.
    fn lock(&self, lock: &Lock) -> Result<()>;

    /// Fills `buf` from `offset`; past the end is an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `data` at `offset`, growing the storage where needed.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;

    /// Makes `len` bytes at `offset` read as zeroes, as a hole where the host can.
    fn zero_at(&self, offset: u64, len: u64) -> Result<()>;

    /// Has the host set room aside for `len` bytes at `offset`, growing the storage where needed. What was never written
    /// there reads as zeroes. Where the host cannot do that, zeroes are written.
    fn reserve(&self, offset: u64, len: u64) -> Result<()>;

    /// The first range at or after `offset` that holds data; `None` when only a hole follows.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// Cuts or grows (with a hole) to `size` bytes.
    fn set_size(&self, size: u64) -> Result<()>;

    /// Returns when everything is on stable storage.
    fn sync(&self) -> Result<()>;
}

/// Fills `buf` from `offset`, with zeroes for what lies past the end of `storage`.
pub fn read_padded(storage: &dyn Storage, buf: &mut [u8], offset: u64) -> Result<()> {
    match storage.read_at(buf, offset) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            let there = storage.size()?.saturating_sub(offset).min(buf.len() as u64) as usize;
            buf[there..].fill(0);
            if there == 0 { Ok(()) } else { storage.read_at(&mut buf[..there], offset) }
        }
        other => other,
    }
}
