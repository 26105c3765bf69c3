//! The client's side of the handshake.

use std::io::{self, IoSlice};

use super::super::proto::*;
use super::super::socket::Reader;
use super::{broken, words};

/// The largest reply to an option that is read, in bytes.
const MAX_REPLY: u32 = 64 << 10;
/// Replies to one option.
const MAX_REPLIES: usize = 64;
/// What there is to know about blocks.
const CONTEXT: &[u8] = b"base:allocation";

/// What the server grants.
pub struct Granted {
    /// Bytes of the export.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// Whether replies may be structured.
    pub structured: bool,
    /// The number of the context `base:allocation`, where the server has it.
    pub allocation: Option<u32>,
    /// What offsets and lengths must be multiples of.
    pub min_block: u32,
    /// The largest payload of one request.
    pub max_payload: u32,
}

/// Asks for `export` and, where the server has them, structured replies and the state of blocks.
pub fn ask(server: &mut Reader, export: &str) -> io::Result<Granted> {
    if export.len() > MAX_STRING {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an export's name has 4096 bytes at most"));
    }
    if server.u64()? != NBDMAGIC || server.u64()? != IHAVEOPT {
        return Err(broken("this is no NBD server of the newstyle handshake"));
    }
    let flags = server.u16()?;
    if flags & NBD_FLAG_FIXED_NEWSTYLE == 0 {
        return Err(broken("the server does not speak the fixed newstyle handshake"));
    }
    let flags = u32::from(flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
    server.socket().send(&mut [IoSlice::new(&flags.to_be_bytes())])?;

    let structured = option(server, NBD_OPT_STRUCTURED_REPLY, &[], &mut |_, _| Ok(()))?.is_ok();
    let name = [&(export.len() as u32).to_be_bytes()[..], export.as_bytes()].concat();
    let mut allocation = None;
    if structured {
        let query = [&name[..], &1u32.to_be_bytes(), &(CONTEXT.len() as u32).to_be_bytes(), CONTEXT].concat();
        let granted = option(server, NBD_OPT_SET_META_CONTEXT, &query, &mut |kind, data| {
            if let (NBD_REP_META_CONTEXT, Some((id, CONTEXT))) = (kind, data.split_first_chunk()) {
                allocation = Some(u32::from_be_bytes(*id));
            }
            Ok(())
        })?;
        allocation = granted.ok().and(allocation);
    }
    let mut granted = Granted { size: 0, flags: 0, structured, allocation, min_block: 1, max_payload: MAX_PAYLOAD };
    let wish = [&name[..], &1u16.to_be_bytes(), &NBD_INFO_BLOCK_SIZE.to_be_bytes()].concat();
    option(server, NBD_OPT_GO, &wish, &mut |kind, data| match (kind, data.split_first_chunk()) {
        (NBD_REP_INFO, Some((info, data))) => take_info(&mut granted, u16::from_be_bytes(*info), data),
        _ => Ok(()),
    })?
    .map_err(io::Error::other)?;
    if granted.flags & NBD_FLAG_HAS_FLAGS == 0 {
        return Err(broken("the server did not tell of the export"));
    }
    Ok(granted)
}

fn take_info(granted: &mut Granted, info: u16, data: &[u8]) -> io::Result<()> {
    match info {
        NBD_INFO_EXPORT => {
            let (size, flags) = data.split_first_chunk::<8>().ok_or_else(|| broken("an export without a size"))?;
            let flags: &[u8; 2] = flags.try_into().map_err(|_| broken("an export without flags"))?;
            granted.size = u64::from_be_bytes(*size);
            if i64::try_from(granted.size).is_err() {
                return Err(broken(format!("an export of {} bytes", granted.size)));
            }
            granted.flags = u16::from_be_bytes(*flags);
        }
        NBD_INFO_BLOCK_SIZE => {
            let ([min, _, max], []) = data.as_chunks::<4>() else { return Err(broken("block sizes of another length")) };
            let (min, max) = (u32::from_be_bytes(*min), u32::from_be_bytes(*max));
            if !min.is_power_of_two() || max < min {
                return Err(broken(format!("blocks of {min} to {max} bytes")));
            }
            (granted.min_block, granted.max_payload) = (min, max.min(MAX_PAYLOAD));
        }
        _ => {}
    }
    Ok(())
}

/// Sends an option and hands the replies before the last one to `take`. The inner error is a refusal, in words.
fn option(
    server: &mut Reader,
    option: u32,
    data: &[u8],
    take: &mut dyn FnMut(u32, &[u8]) -> io::Result<()>,
) -> io::Result<Result<(), String>> {
    let head = [&IHAVEOPT.to_be_bytes()[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
    server.socket().send(&mut [IoSlice::new(&head), IoSlice::new(data)])?;
    for _ in 0..MAX_REPLIES {
        if server.u64()? != OPTION_REPLY_MAGIC || server.u32()? != option {
            return Err(broken("a reply to an option that was not sent"));
        }
        let (kind, len) = (server.u32()?, server.u32()?);
        if len > MAX_REPLY {
            return Err(broken(format!("a reply of {len} bytes to an option")));
        }
        let mut data = vec![0; len as usize];
        server.fill(&mut data)?;
        match kind {
            NBD_REP_ACK => return Ok(Ok(())),
            _ if kind & NBD_REP_ERR != 0 => {
                let why = if kind == NBD_REP_ERR_UNKNOWN { "no such export" } else { "the server refuses" };
                return Ok(Err(if data.is_empty() { why.into() } else { format!("{why}: {}", words(&data)) }));
            }
            _ => take(kind, &data)?,
        }
    }
    Err(broken("replies to an option without end"))
}
