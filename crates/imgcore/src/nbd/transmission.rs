//! The transmission phase: requests are carried out by a few threads, and answered as they are done.
//!
//! The threads of a connection take turns: one reads a request, lets the next thread read the one after it, carries its
//! own out and sends the reply. So nothing is handed from thread to thread, and a client that has several requests under
//! way keeps several threads busy.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::Scope;

use super::handshake::{Agreed, broken};
use super::proto::*;
use super::reply::{Outcome, Part, Replies};
use super::socket::Reader;
use crate::{Error, ImageMut};

/// Threads of one connection, made when they are needed.
const MAX_THREADS: usize = 8;
/// Bytes of payload that one connection's requests hold at a time: two of the largest.
const BUDGET: usize = 2 * MAX_PAYLOAD as usize;
/// A thread gives larger buffers back after each request.
const KEPT_BUFFER: usize = 2 << 20;
/// Shorter reads are sent as they are, without looking for holes in them.
const HOLES_FROM: usize = 32 << 10;
/// Parts of one reply to a read.
const MAX_PARTS: usize = 64;
/// Bytes read or written at a time where a request has no payload.
const STEP: usize = 256 << 10;

struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl Request {
    fn payload(&self) -> usize {
        if matches!(self.kind, NBD_CMD_READ | NBD_CMD_WRITE) && self.len <= MAX_PAYLOAD { self.len as usize } else { 0 }
    }
}

/// Serves one connection until the client disconnects or breaks the protocol. `report` hears of images' failures.
pub fn serve(client: Reader, agreed: &Agreed<'_>, report: &(dyn Fn(String) + Sync)) {
    let socket = client.socket().clone();
    let session = Session {
        agreed,
        report,
        client: Mutex::new(client),
        replies: Replies { socket: &socket, structured: agreed.structured, sending: Mutex::new(()) },
        ended: AtomicBool::new(false),
        threads: AtomicUsize::new(1),
        waiting: AtomicUsize::new(0),
        budget: Budget { left: Mutex::new(BUDGET), returned: Condvar::new() },
    };
    std::thread::scope(|scope| session.work(scope));
}

/// What the threads of a connection share.
struct Session<'a> {
    agreed: &'a Agreed<'a>,
    report: &'a (dyn Fn(String) + Sync),
    client: Mutex<Reader>,
    replies: Replies<'a>,
    ended: AtomicBool,
    threads: AtomicUsize,
    /// Threads that wait for their turn to read.
    waiting: AtomicUsize,
    budget: Budget,
}

impl<'a> Session<'a> {
    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut buf = Vec::new();
        loop {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let Ok(Some((request, _share))) = self.next(&mut client, &mut buf) else {
                self.ended.store(true, Ordering::Relaxed);
                return;
            };
            self.have_a_follower(scope);
            drop(client);
            if self.replies.send(request.cookie, &self.outcome(&request, &mut buf)).is_err() {
                // Whoever reads now hears of it so.
                self.replies.socket.shut_down();
                return;
            }
            if buf.len() > KEPT_BUFFER {
                buf = Vec::new();
            }
        }
    }

    /// Sees to it that somebody waits to read the next request, if there may be more threads.
    fn have_a_follower<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        if self.waiting.load(Ordering::Relaxed) > 0 || self.threads.load(Ordering::Relaxed) >= MAX_THREADS {
            return;
        }
        // Only the thread that has its turn comes here, so the count cannot have changed meanwhile.
        if std::thread::Builder::new().name("nbd".into()).spawn_scoped(scope, || self.work(scope)).is_ok() {
            self.threads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads a request, and the payload of a WRITE into `buf`, which gets as long as the request's payload; `None` at the client's good-bye.
    fn next(&self, client: &mut Reader, buf: &mut Vec<u8>) -> io::Result<Option<(Request, Share<'_>)>> {
        if client.u32()? != REQUEST_MAGIC {
            return Err(broken("a request's magic number"));
        }
        let request =
            Request { flags: client.u16()?, kind: client.u16()?, cookie: client.u64()?, offset: client.u64()?, len: client.u32()? };
        if request.kind == NBD_CMD_DISC {
            return Ok(None);
        }
        if request.kind == NBD_CMD_WRITE && request.len > MAX_PAYLOAD {
            // Its payload follows and can't be told from requests unless all of it is read.
            return Err(broken("a request's length"));
        }
        let share = self.budget.take(request.payload());
        if buf.len() < request.payload() {
            buf.resize(request.payload(), 0);
        }
        if request.kind == NBD_CMD_WRITE {
            client.fill(&mut buf[..request.payload()])?;
        }
        Ok(Some((request, share)))
    }

    fn outcome<'b>(&self, request: &Request, buf: &'b mut [u8]) -> Outcome<'b> {
        match self.perform(request, &mut buf[..request.payload()]) {
            Ok(outcome) => outcome,
            Err(Refusal::Protocol(number, words)) => Outcome::Failed(number, words.into()),
            Err(Refusal::Image(error)) => {
                let words = error.to_string();
                (self.report)(words.clone());
                Outcome::Failed(number_of(&error), words)
            }
        }
    }

    fn perform<'b>(&self, request: &Request, bytes: &'b mut [u8]) -> Result<Outcome<'b>, Refusal> {
        let export = self.agreed.export;
        let image = export.content.image();
        let (offset, len) = (request.offset, u64::from(request.len));
        let invalid = |what| Err(Refusal::Protocol(NBD_EINVAL, what));
        let special = match request.kind {
            NBD_CMD_READ if self.agreed.structured => NBD_CMD_FLAG_DF,
            NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
            NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_REQ_ONE,
            _ => 0,
        };
        if request.flags & !(special | NBD_CMD_FLAG_FUA) != 0 {
            return invalid("unknown flags");
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= image.size());
        let writes = matches!(request.kind, NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES);
        if writes && export.content.writable().is_none() {
            return Err(Refusal::Protocol(NBD_EPERM, "the export is read-only"));
        }
        if !inside && matches!(request.kind, NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES) {
            return Err(Refusal::Protocol(NBD_ENOSPC, "past the end of the export"));
        }
        if !inside && request.kind != NBD_CMD_FLUSH {
            return invalid("past the end of the export");
        }
        match (request.kind, export.content.writable()) {
            (NBD_CMD_READ, _) if request.len > MAX_PAYLOAD => invalid("more than the maximum block size"),
            (NBD_CMD_READ, _) => self.read(request, bytes),
            (NBD_CMD_BLOCK_STATUS, _) if self.agreed.contexts.is_empty() => invalid("no metadata context was negotiated"),
            (NBD_CMD_BLOCK_STATUS, _) if len == 0 => invalid("no blocks to ask for"),
            (NBD_CMD_BLOCK_STATUS, _) => {
                let one = request.flags & NBD_CMD_FLAG_REQ_ONE != 0;
                let of = |context: &super::meta::Context| Ok((context.id(), context.blocks(export, offset..offset + len, one)?));
                Ok(Outcome::Blocks(self.agreed.contexts.iter().map(of).collect::<Result<_, Error>>()?))
            }
            (NBD_CMD_CACHE, _) => {
                let mut scratch = vec![0; STEP.min(request.len as usize)];
                steps(offset, len, |at, now| image.read_at(&mut scratch[..now], at))?;
                Ok(Outcome::Done)
            }
            (NBD_CMD_FLUSH, None) => Ok(Outcome::Done),
            (NBD_CMD_FLUSH, Some(image)) => {
                image.flush()?;
                Ok(Outcome::Done)
            }
            (_, Some(image)) if writes => self.write(request, bytes, image),
            _ => invalid("unknown command"),
        }
    }

    /// Reads, but for holes where the reply can tell them.
    fn read<'b>(&self, request: &Request, bytes: &'b mut [u8]) -> Result<Outcome<'b>, Refusal> {
        let image = self.agreed.export.content.image();
        let mut parts = Vec::new();
        if bytes.len() >= HOLES_FROM && self.agreed.structured && request.flags & NBD_CMD_FLAG_DF == 0 {
            image.extents(request.offset..request.offset + bytes.len() as u64, &mut |extent| {
                let hole = extent.kind.reads_zero();
                let len = extent.len.min(bytes.len() as u64) as usize;
                let count = parts.len();
                match parts.last_mut() {
                    Some(Part { len: before, hole: same, .. }) if *same == hole => *before += len,
                    _ if count + 1 >= MAX_PARTS => return ControlFlow::Break(()),
                    _ => parts.push(Part { start: (extent.start - request.offset) as usize, len, hole }),
                }
                ControlFlow::Continue(())
            })?;
        }
        let known = parts.last().map_or(0, |last| last.start + last.len);
        if known < bytes.len() {
            parts.push(Part { start: known, len: bytes.len() - known, hole: false });
        }
        for part in parts.iter().filter(|p| !p.hole) {
            image.read_at(&mut bytes[part.start..part.start + part.len], request.offset + part.start as u64)?;
        }
        Ok(Outcome::Data(request.offset, bytes, parts))
    }

    fn write<'b>(&self, request: &Request, bytes: &[u8], image: &dyn ImageMut) -> Result<Outcome<'b>, Refusal> {
        let (offset, len) = (request.offset, u64::from(request.len));
        let has = |flag| request.flags & flag != 0;
        if len > 0 {
            // Images want no two writers at one place; clients do as they like.
            let _turn = self.agreed.export.writes.lock(offset..offset + len);
            match request.kind {
                NBD_CMD_WRITE => image.write_at(bytes, offset)?,
                NBD_CMD_TRIM => image.discard(offset, len)?,
                _ if has(NBD_CMD_FLAG_NO_HOLE) && has(NBD_CMD_FLAG_FAST_ZERO) => {
                    return Err(Refusal::Protocol(NBD_ENOTSUP, "zeroes without holes are not fast"));
                }
                _ if has(NBD_CMD_FLAG_NO_HOLE) => {
                    let zeroes = vec![0; STEP.min(request.len as usize)];
                    steps(offset, len, |at, now| image.write_at(&zeroes[..now], at))?;
                }
                _ => image.zero_at(offset, len)?,
            }
        }
        if has(NBD_CMD_FLAG_FUA) {
            image.flush()?;
        }
        Ok(Outcome::Done)
    }
}

/// Calls `work` for each offset and length that make up `len` bytes at `offset`.
fn steps(offset: u64, len: u64, mut work: impl FnMut(u64, usize) -> Result<(), Error>) -> Result<(), Error> {
    let mut done = 0;
    while done < len {
        let now = (len - done).min(STEP as u64);
        work(offset + done, now as usize)?;
        done += now;
    }
    Ok(())
}

enum Refusal {
    Protocol(u32, &'static str),
    Image(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Image(error)
    }
}

fn number_of(error: &Error) -> u32 {
    match error {
        Error::Io { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => NBD_ENOSPC,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => NBD_EPERM,
            _ => NBD_EIO,
        },
        Error::Corrupt { .. } | Error::Cancelled => NBD_EIO,
        Error::Unsupported { .. } => NBD_ENOTSUP,
        Error::Refused { .. } | Error::Locked { .. } => NBD_EPERM,
        Error::Invalid(_) => NBD_EINVAL,
    }
}

/// Bytes that requests of one connection may hold.
struct Budget {
    left: Mutex<usize>,
    returned: Condvar,
}

/// Gives its bytes back when dropped.
struct Share<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    /// Waits until there are `bytes`, which are no more than there ever are.
    fn take(&self, bytes: usize) -> Share<'_> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = self.returned.wait_while(left, |left| *left < bytes).unwrap_or_else(PoisonError::into_inner);
        *left -= bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.left.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.returned.notify_all();
    }
}
