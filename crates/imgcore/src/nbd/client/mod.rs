//! An NBD client: an export of any server as an [`Image`](crate::Image).
//!
//! Several threads may use one [`Client`]. Each sends its request and then reads replies itself: whoever comes upon a reply to
//! another thread's request leaves it in the socket for that one. So bytes go from the socket into the caller's buffer, and no
//! thread of ours stands between.
//!
//! Servers are not trusted: lengths and places in replies are checked against what was asked, and one that breaks the protocol
//! loses the connection. A server may be as slow as its disk, so requests have no time limit; the handshake has one.

mod greeting;
mod reply;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::{ControlFlow, Range};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::proto::*;
use super::socket::{Reader, Socket};
use super::{HANDSHAKE_TIME, lock};
use crate::image::check_range;
use crate::{Error, Extent, ExtentKind, Image, ImageInfo, ImageMut, Result};
use greeting::Granted;
use reply::{Head, Outcome, Wanted};

/// Bytes that one request without payload is about at most.
const STEP: u64 = 1 << 30;
/// Zeroes that are sent at a time to servers that have no command for them.
const ZEROES: usize = 256 << 10;

/// A connection to one export.
pub struct Client {
    file: String,
    granted: Granted,
    socket: Arc<Socket>,
    sending: Mutex<()>,
    /// Requests without their whole reply.
    open: Mutex<BTreeSet<u64>>,
    incoming: Mutex<Incoming>,
    /// A head was left in [`Incoming`], or nobody reads any more.
    left: Condvar,
    next: AtomicU64,
}

struct Incoming {
    reader: Reader,
    /// The head of a reply to somebody else, whose turn it is.
    head: Option<Head>,
    /// Why there is nothing to be read any more.
    lost: Option<String>,
}

impl Client {
    /// Asks the server at the other end of `socket` for `export`; errors will name it `file`.
    ///
    /// # Errors
    /// [`Error::Io`] when the server refuses or breaks the protocol, [`Error::Unsupported`] when it cannot read and write single bytes.
    pub fn new(socket: impl Into<OwnedFd>, export: &str, file: &str) -> Result<Self> {
        let socket = Arc::new(Socket::new(socket.into()));
        let failed = |e| Error::io(file, "connect to", None, e);
        let mut reader = Reader::new(socket.clone(), Some(Instant::now() + HANDSHAKE_TIME));
        let granted = greeting::ask(&mut reader, export).map_err(failed)?;
        reader.lift_deadline().map_err(failed)?;
        if granted.min_block > 1 {
            let what = format!("the server takes whole blocks of {} bytes only", granted.min_block);
            return Err(Error::unsupported(file, "NBD", what));
        }
        Ok(Client {
            file: file.into(),
            granted,
            socket,
            sending: Mutex::default(),
            open: Mutex::default(),
            incoming: Mutex::new(Incoming { reader, head: None, lost: None }),
            left: Condvar::new(),
            next: AtomicU64::new(1),
        })
    }

    /// Whether the server takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.has(NBD_FLAG_READ_ONLY)
    }

    fn has(&self, flag: u16) -> bool {
        self.granted.flags & flag != 0
    }

    /// Sends a request and waits for all of its reply.
    fn request(&self, kind: u16, offset: u64, len: u32, payload: &[u8], mut wanted: Wanted<'_>) -> io::Result<()> {
        let cookie = self.next.fetch_add(1, Ordering::Relaxed);
        let head = request_head(kind, cookie, offset, len);
        lock(&self.open).insert(cookie);
        let sent = {
            let _turn = lock(&self.sending);
            self.socket.send(&mut [IoSlice::new(&head), IoSlice::new(payload)])
        };
        if sent.is_err() {
            // Half a request is in the socket; whoever reads hears of it so.
            self.socket.shut_down();
        }
        let mut incoming = lock(&self.incoming);
        let outcome = loop {
            if let Some(why) = &incoming.lost {
                break Err(io::Error::new(io::ErrorKind::BrokenPipe, why.clone()));
            }
            let left = incoming.head.take();
            let fresh = left.is_none();
            let step = left.map_or_else(|| Head::read(&mut incoming.reader, &self.granted), Ok).and_then(|head| {
                if head.cookie == cookie {
                    return wanted.take(&head, &mut incoming.reader);
                }
                if !lock(&self.open).contains(&head.cookie) {
                    return Err(broken("a reply to nothing that was asked"));
                }
                incoming.head = Some(head);
                Ok(Outcome::NotOurs)
            });
            match step {
                Ok(Outcome::More) => {}
                Ok(Outcome::Done(outcome)) => break outcome,
                Ok(Outcome::NotOurs) => {
                    if fresh {
                        self.left.notify_all();
                    }
                    incoming = self.left.wait(incoming).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                Err(e) => {
                    self.socket.shut_down();
                    incoming.lost = Some(format!("the connection is lost: {e}"));
                }
            }
        };
        lock(&self.open).remove(&cookie);
        self.left.notify_all();
        outcome
    }

    /// Carries a request without payload out for all of `len` bytes.
    fn in_steps(&self, kind: u16, action: &'static str, offset: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let (at, now) = (offset + done, (len - done).min(STEP));
            self.request(kind, at, now as u32, &[], Wanted::Nothing).map_err(|e| self.failed(action, at, e))?;
            done += now;
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, offset: u64, error: io::Error) -> Error {
        Error::io(&self.file, action, Some(offset), error)
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::Invalid(format!("{}: the server does not allow writing", self.file)));
        }
        check_range(&self.file, self.granted.size, offset, len)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.socket.send(&mut [IoSlice::new(&request_head(NBD_CMD_DISC, 0, 0, 0))]);
        self.socket.shut_down();
    }
}

impl Image for Client {
    fn size(&self) -> u64 {
        self.granted.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.granted.size, offset, buf.len() as u64)?;
        let mut at = offset;
        for piece in buf.chunks_mut(self.granted.max_payload as usize) {
            let len = piece.len() as u32;
            self.request(NBD_CMD_READ, at, len, &[], Wanted::data(at, piece, self.granted.structured))
                .map_err(|e| self.failed("read", at, e))?;
            at += u64::from(len);
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.file, self.granted.size, range.start, range.end.saturating_sub(range.start))?;
        let extent = |start, len, kind| Extent { start, len, kind, depth: 0, host_offset: None, file: None };
        let mut at = range.start;
        while at < range.end {
            let Some(context) = self.granted.allocation else {
                let _ = visit(extent(at, range.end - at, ExtentKind::Data));
                return Ok(());
            };
            let asked = (range.end - at).min(STEP);
            let mut blocks = Vec::new();
            self.request(NBD_CMD_BLOCK_STATUS, at, asked as u32, &[], Wanted::Blocks(context, &mut blocks))
                .map_err(|e| self.failed("ask for the state of blocks", at, e))?;
            let end = at + asked;
            for (len, flags) in blocks {
                // The last block may go on past what was asked.
                let len = u64::from(len).min(end - at);
                let kind = match (flags & NBD_STATE_ZERO != 0, flags & NBD_STATE_HOLE != 0) {
                    (true, true) => ExtentKind::Unallocated,
                    (true, false) => ExtentKind::Zero,
                    (false, _) => ExtentKind::Data,
                };
                if len == 0 {
                    break;
                }
                if visit(extent(at, len, kind)).is_break() {
                    return Ok(());
                }
                at += len;
            }
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { format: "nbd", file: self.file.clone(), virtual_size: self.granted.size, ..ImageInfo::default() }
    }

    fn backing(&self) -> Option<&dyn Image> {
        None
    }
}

impl ImageMut for Client {
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.check_write(offset, data.len() as u64)?;
        let mut at = offset;
        for piece in data.chunks(self.granted.max_payload as usize) {
            let len = piece.len() as u32;
            self.request(NBD_CMD_WRITE, at, len, piece, Wanted::Nothing).map_err(|e| self.failed("write", at, e))?;
            at += u64::from(len);
        }
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        if self.has(NBD_FLAG_SEND_WRITE_ZEROES) {
            return self.in_steps(NBD_CMD_WRITE_ZEROES, "zero", offset, len);
        }
        let zeroes = [0; ZEROES];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(ZEROES as u64);
            self.write_at(&zeroes[..now as usize], offset + done)?;
            done += now;
        }
        Ok(())
    }

    /// A server need not carry a TRIM out, and what was trimmed need not read as zeroes: both is asked for.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        if self.has(NBD_FLAG_SEND_TRIM) {
            self.in_steps(NBD_CMD_TRIM, "discard", offset, len)?;
        }
        self.zero_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        if self.has(NBD_FLAG_SEND_FLUSH) {
            return self.request(NBD_CMD_FLUSH, 0, 0, &[], Wanted::Nothing).map_err(|e| Error::io(&self.file, "flush", None, e));
        }
        if self.is_read_only() {
            return Ok(());
        }
        Err(Error::unsupported(&self.file, "NBD", "the server has no command to put on stable storage what was written"))
    }
}

/// A request without its payload and without command flags.
fn request_head(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let (magic, flags) = (REQUEST_MAGIC.to_be_bytes(), 0u16.to_be_bytes());
    [&magic[..], &flags, &kind.to_be_bytes(), &cookie.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Words of a server for a message: without characters that a terminal obeys.
fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect()
}
