//! Replies: simple ones, and structured ones of several chunks.

use std::io::{self, IoSlice};
use std::sync::{Mutex, PoisonError};

use super::proto::*;
use super::socket::Socket;

/// A part of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, in bytes from the request's offset.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Whether it is all zeroes, and need not be sent.
    pub hole: bool,
}

/// What a request gave.
pub enum Outcome<'a> {
    /// Nothing but success.
    Done,
    /// The bytes at this offset, in parts that fill them.
    Data(u64, &'a [u8], Vec<Part>),
    /// For each context its number and the length and flags of blocks.
    Blocks(Vec<(u32, Vec<(u32, u32)>)>),
    /// An error number, and words for the client's log.
    Failed(u32, String),
}

/// Where replies of several threads go, one after the other.
pub struct Replies<'a> {
    pub socket: &'a Socket,
    pub structured: bool,
    pub sending: Mutex<()>,
}

impl Replies<'_> {
    /// Sends the reply to the request called `cookie`.
    pub fn send(&self, cookie: u64, outcome: &Outcome<'_>) -> io::Result<()> {
        let mut message = Message { heads: Vec::new(), payloads: Vec::new() };
        match (self.structured, outcome) {
            (false, outcome) => message.simple(cookie, outcome),
            (true, Outcome::Done) => message.chunk(cookie, NBD_REPLY_TYPE_NONE, true, &[], &[]),
            (true, Outcome::Data(offset, bytes, parts)) => message.read(cookie, *offset, bytes, parts),
            (true, Outcome::Blocks(contexts)) => {
                for (at, (id, blocks)) in contexts.iter().enumerate() {
                    let words = [*id].into_iter().chain(blocks.iter().flat_map(|(len, flags)| [*len, *flags]));
                    let body: Vec<u8> = words.flat_map(u32::to_be_bytes).collect();
                    message.chunk(cookie, NBD_REPLY_TYPE_BLOCK_STATUS, at + 1 == contexts.len(), &body, &[]);
                }
            }
            (true, Outcome::Failed(number, words)) => {
                let words = &words.as_bytes()[..words.len().min(MAX_STRING)];
                let body = [&number.to_be_bytes()[..], &(words.len() as u16).to_be_bytes(), words].concat();
                message.chunk(cookie, NBD_REPLY_TYPE_ERROR, true, &body, &[]);
            }
        }
        let mut slices = message.slices();
        let _turn = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.socket.send(&mut slices)
    }
}

/// Heads with the payload that follows each.
struct Message<'a> {
    heads: Vec<u8>,
    /// Where in the heads each payload comes.
    payloads: Vec<(usize, &'a [u8])>,
}

impl<'a> Message<'a> {
    fn simple(&mut self, cookie: u64, outcome: &Outcome<'a>) {
        let (number, bytes) = match outcome {
            Outcome::Failed(number, _) => (*number, &[][..]),
            Outcome::Data(_, bytes, _) => (0, *bytes),
            // Blocks are asked for only where replies are structured.
            Outcome::Done | Outcome::Blocks(_) => (0, &[][..]),
        };
        self.heads.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.heads.extend(number.to_be_bytes());
        self.heads.extend(cookie.to_be_bytes());
        self.payloads.push((self.heads.len(), bytes));
    }

    fn read(&mut self, cookie: u64, offset: u64, bytes: &'a [u8], parts: &[Part]) {
        if parts.is_empty() {
            return self.chunk(cookie, NBD_REPLY_TYPE_NONE, true, &[], &[]);
        }
        for (at, part) in parts.iter().enumerate() {
            let last = at + 1 == parts.len();
            let start = (offset + part.start as u64).to_be_bytes();
            if part.hole {
                // No longer than a payload, so than 32 bits.
                let body = [&start[..], &(part.len as u32).to_be_bytes()].concat();
                self.chunk(cookie, NBD_REPLY_TYPE_OFFSET_HOLE, last, &body, &[]);
            } else {
                self.chunk(cookie, NBD_REPLY_TYPE_OFFSET_DATA, last, &start, &bytes[part.start..part.start + part.len]);
            }
        }
    }

    /// One chunk: `body`, then `payload`.
    fn chunk(&mut self, cookie: u64, kind: u16, last: bool, body: &[u8], payload: &'a [u8]) {
        self.heads.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
        self.heads.extend(if last { NBD_REPLY_FLAG_DONE } else { 0 }.to_be_bytes());
        self.heads.extend(kind.to_be_bytes());
        self.heads.extend(cookie.to_be_bytes());
        // Bounded by the largest payload and the most extents.
        self.heads.extend(((body.len() + payload.len()) as u32).to_be_bytes());
        self.heads.extend(body);
        self.payloads.push((self.heads.len(), payload));
    }

    fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut at = 0;
        let pairs = self.payloads.iter().flat_map(|(end, payload)| {
            let head = &self.heads[at..*end];
            at = *end;
            [IoSlice::new(head), IoSlice::new(payload)]
        });
        pairs.collect()
    }
}
