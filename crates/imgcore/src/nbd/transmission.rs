//! The transmission phase: requests are carried out one after the other and answered.

use std::io;

use super::Export;
use super::handshake::{Client, broken};
use super::proto::*;
use crate::{Error, ImageMut};

/// Length of a simple reply without payload, in bytes.
const REPLY: usize = 16;

struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

/// Serves one connection until the client disconnects or breaks the protocol. `report` hears of images' failures.
pub fn serve(client: &mut Client, export: &Export, report: &dyn Fn(String)) -> io::Result<()> {
    // Holds a reply and its payload, so that both go out in one write; grows to the largest request seen.
    let mut buf = vec![0; REPLY + (256 << 10)];
    loop {
        if client.u32()? != REQUEST_MAGIC {
            return Err(broken("a request's magic number"));
        }
        let request =
            Request { flags: client.u16()?, kind: client.u16()?, cookie: client.u64()?, offset: client.u64()?, len: client.u32()? };
        if request.kind == NBD_CMD_DISC {
            return Ok(());
        }
        let has_payload = matches!(request.kind, NBD_CMD_READ | NBD_CMD_WRITE);
        if has_payload && request.len > MAX_PAYLOAD {
            if request.kind == NBD_CMD_WRITE {
                // Its payload follows and can't be told from requests unless all of it is read.
                return Err(broken("a request's length"));
            }
            answer(client, &mut buf, &request, Err(NBD_EINVAL), 0)?;
            continue;
        }
        let payload = if has_payload { request.len as usize } else { 0 };
        if buf.len() < REPLY + payload {
            buf.resize(REPLY + payload, 0);
        }
        let bytes = &mut buf[REPLY..REPLY + payload];
        if request.kind == NBD_CMD_WRITE {
            client.fill(bytes)?;
        }
        let result = perform(export, &request, bytes).map_err(|refusal| match refusal {
            Refusal::Protocol(number) => number,
            Refusal::Image(error) => {
                report(error.to_string());
                number_of(&error)
            }
        });
        let sent = if request.kind == NBD_CMD_READ && result.is_ok() { payload } else { 0 };
        answer(client, &mut buf, &request, result, sent)?;
    }
}

enum Refusal {
    Protocol(u32),
    Image(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Image(error)
    }
}

fn perform(export: &Export, request: &Request, bytes: &mut [u8]) -> Result<(), Refusal> {
    let image = export.content.image();
    let (offset, len) = (request.offset, u64::from(request.len));
    let inside = offset.checked_add(len).is_some_and(|end| end <= image.size());
    let allowed = match request.kind {
        NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE,
        _ => NBD_CMD_FLAG_FUA,
    };
    if request.flags & !allowed != 0 {
        return Err(Refusal::Protocol(NBD_EINVAL));
    }
    match request.kind {
        NBD_CMD_READ if inside => return Ok(image.read_at(bytes, offset)?),
        NBD_CMD_READ => return Err(Refusal::Protocol(NBD_EINVAL)),
        NBD_CMD_FLUSH => return export.content.writable().map_or(Ok(()), |image| Ok(image.flush()?)),
        NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES => {}
        _ => return Err(Refusal::Protocol(NBD_EINVAL)),
    }
    let image: &dyn ImageMut = export.content.writable().ok_or(Refusal::Protocol(NBD_EPERM))?;
    if !inside {
        return Err(Refusal::Protocol(if request.kind == NBD_CMD_TRIM { NBD_EINVAL } else { NBD_ENOSPC }));
    }
    if len > 0 {
        match request.kind {
            NBD_CMD_WRITE => image.write_at(bytes, offset)?,
            NBD_CMD_TRIM => image.discard(offset, len)?,
            _ => image.zero_at(offset, len)?,
        }
    }
    if request.flags & NBD_CMD_FLAG_FUA != 0 {
        image.flush()?;
    }
    Ok(())
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

fn answer(client: &mut Client, buf: &mut [u8], request: &Request, result: Result<(), u32>, payload: usize) -> io::Result<()> {
    buf[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    buf[4..8].copy_from_slice(&result.err().unwrap_or(0).to_be_bytes());
    buf[8..REPLY].copy_from_slice(&request.cookie.to_be_bytes());
    client.send(&buf[..REPLY + payload])
}
