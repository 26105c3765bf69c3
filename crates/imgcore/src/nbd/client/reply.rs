//! Replies, checked against what was asked.

use std::io;
use std::ops::Range;

use super::super::proto::*;
use super::super::socket::Reader;
use super::greeting::Granted;
use super::{broken, words};

/// The largest chunk about blocks, in bytes: 64 Ki of them.
const MAX_BLOCKS: u32 = 4 + (8 << 16);
/// Number, length of words, words, and an offset.
const MAX_ERROR: u32 = 4 + 2 + MAX_STRING as u32 + 8;
/// Parts of a read that may be apart while it is filled.
const MAX_APART: usize = 1024;

/// The beginning of a reply, or of a part of one.
pub struct Head {
    pub cookie: u64,
    part: Part,
}

enum Part {
    /// All of the reply: an error number, or 0.
    Simple(u32),
    Chunk {
        flags: u16,
        kind: u16,
        len: u32,
    },
}

impl Head {
    pub fn read(server: &mut Reader, granted: &Granted) -> io::Result<Head> {
        match server.u32()? {
            SIMPLE_REPLY_MAGIC => {
                let number = server.u32()?;
                Ok(Head { cookie: server.u64()?, part: Part::Simple(number) })
            }
            STRUCTURED_REPLY_MAGIC if granted.structured => {
                let (flags, kind) = (server.u16()?, server.u16()?);
                let cookie = server.u64()?;
                Ok(Head { cookie, part: Part::Chunk { flags, kind, len: server.u32()? } })
            }
            _ => Err(broken("a reply's magic number")),
        }
    }
}

/// What a request is to give.
pub enum Wanted<'a> {
    /// Nothing but success.
    Nothing,
    /// Bytes.
    Data(Data<'a>),
    /// Length and flags of blocks, in the context of this number.
    Blocks(u32, &'a mut Vec<(u32, u32)>),
    /// What failed is known; the rest of the reply is still to come.
    Failed(io::Error),
}

/// A buffer that is being filled.
pub struct Data<'a> {
    offset: u64,
    buf: &'a mut [u8],
    /// Whether it comes in chunks: then a simple reply cannot tell of it.
    structured: bool,
    /// What was filled: ascending, apart from each other.
    filled: Vec<Range<usize>>,
}

/// What a head led to.
pub enum Outcome {
    /// It belongs to another request.
    NotOurs,
    /// More of the reply follows.
    More,
    /// That was all.
    Done(io::Result<()>),
}

impl<'a> Wanted<'a> {
    /// `buf.len()` bytes from `offset`.
    pub fn data(offset: u64, buf: &'a mut [u8], structured: bool) -> Self {
        Wanted::Data(Data { offset, buf, structured, filled: Vec::new() })
    }

    /// Reads what follows `head`. An error is one of the connection; the server's refusal is a [`Outcome::Done`].
    pub fn take(&mut self, head: &Head, server: &mut Reader) -> io::Result<Outcome> {
        let done = match head.part {
            Part::Simple(0) => {
                match self {
                    Wanted::Data(data) if !data.structured => data.fill(data.offset, data.buf.len(), Some(server))?,
                    Wanted::Nothing => {}
                    _ => return Err(broken("a simple reply where a structured one is due")),
                }
                true
            }
            Part::Simple(number) => {
                *self = Wanted::Failed(failure(number, ""));
                true
            }
            Part::Chunk { flags, kind, len } => {
                self.chunk(kind, len, server)?;
                flags & NBD_REPLY_FLAG_DONE != 0
            }
        };
        if !done {
            return Ok(Outcome::More);
        }
        match std::mem::replace(self, Wanted::Nothing) {
            Wanted::Failed(e) => return Ok(Outcome::Done(Err(e))),
            Wanted::Data(data) if !data.is_full() => return Err(broken("a read with less than was asked for")),
            Wanted::Blocks(_, blocks) if blocks.is_empty() => return Err(broken("no blocks where some were asked for")),
            _ => {}
        }
        Ok(Outcome::Done(Ok(())))
    }

    fn chunk(&mut self, kind: u16, len: u32, server: &mut Reader) -> io::Result<()> {
        match (kind, self) {
            (NBD_REPLY_TYPE_NONE, _) if len == 0 => Ok(()),
            (NBD_REPLY_TYPE_OFFSET_DATA, Wanted::Data(data)) if len > 8 => {
                let offset = server.u64()?;
                data.fill(offset, (len - 8) as usize, Some(server))
            }
            (NBD_REPLY_TYPE_OFFSET_HOLE, Wanted::Data(data)) if len == 12 => {
                let offset = server.u64()?;
                let len = server.u32()? as usize;
                data.fill(offset, len, None)
            }
            (NBD_REPLY_TYPE_BLOCK_STATUS, Wanted::Blocks(context, blocks)) if len <= MAX_BLOCKS && len % 8 == 4 && blocks.is_empty() => {
                let mut body = vec![0; len as usize];
                server.fill(&mut body)?;
                let (words, _) = body.as_chunks::<4>();
                let mut words = words.iter().map(|w| u32::from_be_bytes(*w));
                if words.next() != Some(*context) {
                    return Err(broken("blocks in a context that was not asked for"));
                }
                while let (Some(len), Some(flags)) = (words.next(), words.next()) {
                    if len == 0 {
                        return Err(broken("a block of no length"));
                    }
                    blocks.push((len, flags));
                }
                Ok(())
            }
            (kind, wanted) if kind & NBD_REPLY_TYPE_IS_ERROR != 0 && (6..=MAX_ERROR).contains(&len) => {
                let number = server.u32()?;
                let said = usize::from(server.u16()?);
                let mut rest = vec![0; len as usize - 6];
                server.fill(&mut rest)?;
                let said = rest.get(..said).ok_or_else(|| broken("the length of an error's words"))?;
                // The first failure is the one to tell of.
                if !matches!(wanted, Wanted::Failed(_)) {
                    *wanted = Wanted::Failed(failure(number, &words(said)));
                }
                Ok(())
            }
            // Data of a request that has failed in another part.
            (NBD_REPLY_TYPE_OFFSET_DATA | NBD_REPLY_TYPE_OFFSET_HOLE | NBD_REPLY_TYPE_BLOCK_STATUS, Wanted::Failed(_)) => {
                server.skip(len.into())
            }
            (kind, _) => Err(broken(format!("a chunk of type {kind} and {len} bytes, which was not asked for"))),
        }
    }
}

impl Data<'_> {
    /// Fills a part that was not filled before, with what the server sends or with zeroes.
    fn fill(&mut self, offset: u64, len: usize, server: Option<&mut Reader>) -> io::Result<()> {
        let outside = || broken("data outside of what was asked for");
        let start = offset.checked_sub(self.offset).and_then(|s| usize::try_from(s).ok()).ok_or_else(outside)?;
        let end = start.checked_add(len).ok_or_else(outside)?;
        let part = self.buf.get_mut(start..end).ok_or_else(outside)?;
        let at = self.filled.partition_point(|r| r.end <= start);
        if self.filled.get(at).is_some_and(|next| next.start < end) {
            return Err(broken("data that came already"));
        }
        let apart = self.filled.len();
        match self.filled[..at].last_mut() {
            Some(before) if before.end == start => before.end = end,
            _ if apart >= MAX_APART => return Err(broken("data in too many pieces")),
            _ => self.filled.insert(at, start..end),
        }
        match server {
            Some(server) => server.fill(part),
            None => {
                part.fill(0);
                Ok(())
            }
        }
    }

    fn is_full(&self) -> bool {
        // Parts that came from back to front stay apart, but leave no gap.
        let mut end = 0;
        self.filled.iter().all(|r| r.start == std::mem::replace(&mut end, r.end)) && end == self.buf.len()
    }
}

fn failure(number: u32, said: &str) -> io::Error {
    let error = i32::try_from(number).map_or_else(|_| io::Error::other("an unknown error"), io::Error::from_raw_os_error);
    if said.is_empty() { error } else { io::Error::new(error.kind(), said) }
}
