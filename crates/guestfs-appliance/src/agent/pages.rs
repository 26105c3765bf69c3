//! Files go to the port as pages of the kernel's, which nobody copies.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::protocol::CHUNK;

/// A pipe between a file and the port.
pub struct Pages {
    filled: OwnedFd,
    fill: OwnedFd,
    port: File,
}

impl Pages {
    /// A pipe to this port.
    pub fn new(port: File) -> io::Result<Self> {
        let (filled, fill) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&fill, CHUNK)?;
        Ok(Pages { filled, fill, port })
    }

    /// Reads up to `len` bytes of the file, for [`send`](Self::send); none at its end.
    pub fn read(&self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        Ok(splice(file, Some(&mut { offset }), &self.fill, None, len, SpliceFlags::MOVE)?)
    }

    /// Sends `len` of the bytes that were read, and says how many got lost on the way: the driver has no other answer where it has no
    /// room in its ring. The pipe is empty afterwards.
    pub fn send(&self, len: usize) -> io::Result<usize> {
        let mut left = len;
        while left > 0 {
            match splice(&self.filled, None, &self.port, None, left, SpliceFlags::MOVE) {
                Ok(0) => return Ok(left),
                Ok(sent) => left = left.saturating_sub(sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(0)
    }
}
