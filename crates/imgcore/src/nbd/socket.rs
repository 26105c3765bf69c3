//! A connected socket of any kind, and reading from it with little buffering and, at first, against the clock.

use std::io::{self, BufReader, IoSlice, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{Shutdown, shutdown};

/// Wanted size of a socket's send buffer; the kernel gives what it allows. The default of 208 KiB would cost a switch to
/// the client and back for each 208 KiB of an answer.
const SEND_BUFFER: usize = 2 << 20;

/// A unix or TCP socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    pub fn new(fd: OwnedFd) -> Self {
        // None of these is worth losing the connection for: the first two fail on unix sockets anyway.
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        let _ = sockopt::set_socket_keepalive(&fd, true);
        let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        Socket(fd)
    }

    /// Ends the connection for whoever reads or writes.
    pub fn shut_down(&self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&self.0, direction, timeout)?;
        }
        Ok(())
    }

    /// Sends all of `parts`.
    pub fn send(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut left = parts;
        while left.iter().any(|part| !part.is_empty()) {
            match rustix::io::writev(&self.0, &left[..left.len().min(1024)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// What the other side sends.
pub struct Reader {
    stream: BufReader<Incoming>,
}

struct Incoming {
    socket: Arc<Socket>,
    /// Until when the other side must have said all that it has to say.
    deadline: Option<Instant>,
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would be none.
            if left < Duration::from_millis(1) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_timeout(Some(left))?;
        }
        Ok(rustix::io::read(&self.socket.0, buf)?)
    }
}

impl Reader {
    /// Reads from `socket` until `deadline`, if there is one; writes of others to it are bounded as well.
    pub fn new(socket: Arc<Socket>, deadline: Option<Instant>) -> Self {
        // Small: payloads of WRITE are larger and then read past it, without a copy.
        Reader { stream: BufReader::with_capacity(4096, Incoming { socket, deadline }) }
    }

    /// From now on the other side may be silent as long as it likes.
    pub fn lift_deadline(&mut self) -> io::Result<()> {
        let incoming = self.stream.get_mut();
        incoming.deadline = None;
        incoming.socket.set_timeout(None)
    }

    pub fn socket(&self) -> &Arc<Socket> {
        &self.stream.get_ref().socket
    }

    pub fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(buf)
    }

    /// Passes over `len` bytes.
    pub fn skip(&mut self, len: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.stream.by_ref().take(len), &mut io::sink())?;
        if skipped == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    pub fn u16(&mut self) -> io::Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}
