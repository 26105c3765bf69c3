//! The handshake: options are haggled over until an export is chosen.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::Export;
use super::proto::*;

/// A client's connection, with the little buffering that request headers want.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        // Small: payloads of WRITE are larger and then read past it, without a copy.
        Client { stream: BufReader::with_capacity(4096, stream) }
    }

    pub fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(buf)
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

    pub fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }
}

/// Brings a connection to the transmission phase; `None` when the client left in good order.
pub fn negotiate<'a>(client: &mut Client, exports: &'a [Export]) -> io::Result<Option<&'a Export>> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(NBDMAGIC.to_be_bytes());
    greeting.extend(IHAVEOPT.to_be_bytes());
    greeting.extend((NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
    client.send(&greeting)?;
    let flags = client.u32()?;
    if flags & !u32::from(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) != 0 {
        return Err(broken("unknown client flags"));
    }
    let no_zeroes = flags & u32::from(NBD_FLAG_NO_ZEROES) != 0;

    for _ in 0..MAX_OPTIONS {
        if client.u64()? != IHAVEOPT {
            return Err(broken("an option's magic number"));
        }
        let option = client.u32()?;
        let len = client.u32()?;
        if len > MAX_OPTION {
            return Err(broken("an option's length"));
        }
        let mut data = vec![0; len as usize];
        client.fill(&mut data)?;
        match option {
            NBD_OPT_EXPORT_NAME => {
                // The old option has no way to say no.
                let export = find(exports, &data).ok_or_else(|| broken("an unknown export"))?;
                let mut reply = Vec::with_capacity(134);
                reply.extend(export.content.image().size().to_be_bytes());
                reply.extend(transmission_flags(export).to_be_bytes());
                if !no_zeroes {
                    reply.resize(reply.len() + 124, 0);
                }
                client.send(&reply)?;
                return Ok(Some(export));
            }
            NBD_OPT_ABORT => {
                // A client may be gone already.
                let _ = reply(client, option, NBD_REP_ACK, &[]);
                return Ok(None);
            }
            NBD_OPT_LIST if data.is_empty() => {
                for export in exports {
                    let name = export.name.as_bytes();
                    let mut entry = u32::try_from(name.len()).map_err(|_| broken("an export's name"))?.to_be_bytes().to_vec();
                    entry.extend(name);
                    reply(client, option, NBD_REP_SERVER, &entry)?;
                }
                reply(client, option, NBD_REP_ACK, &[])?;
            }
            NBD_OPT_INFO | NBD_OPT_GO => match wanted_name(&data).map(|name| find(exports, name)) {
                None => reply(client, option, NBD_REP_ERR_INVALID, b"malformed option")?,
                Some(None) => reply(client, option, NBD_REP_ERR_UNKNOWN, b"no such export")?,
                Some(Some(export)) => {
                    send_info(client, option, export)?;
                    if option == NBD_OPT_GO {
                        return Ok(Some(export));
                    }
                }
            },
            NBD_OPT_LIST => reply(client, option, NBD_REP_ERR_INVALID, b"NBD_OPT_LIST takes no data")?,
            _ => reply(client, option, NBD_REP_ERR_UNSUP, &[])?,
        }
    }
    Err(broken("too many options"))
}

pub fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn find<'a>(exports: &'a [Export], name: &[u8]) -> Option<&'a Export> {
    exports.iter().find(|e| e.name.as_bytes() == name).or_else(|| if name.is_empty() { exports.first() } else { None })
}

/// The name in the data of INFO and GO: length, name, count of information requests, those requests.
fn wanted_name(data: &[u8]) -> Option<&[u8]> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    (rest.len() == usize::from(u16::from_be_bytes(*count)) * 2).then_some(name)
}

fn send_info(client: &mut Client, option: u32, export: &Export) -> io::Result<()> {
    let mut info = NBD_INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(export.content.image().size().to_be_bytes());
    info.extend(transmission_flags(export).to_be_bytes());
    reply(client, option, NBD_REP_INFO, &info)?;
    let mut info = NBD_INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1, 4096, MAX_PAYLOAD] {
        info.extend(size.to_be_bytes());
    }
    reply(client, option, NBD_REP_INFO, &info)?;
    reply(client, option, NBD_REP_ACK, &[])
}

fn transmission_flags(export: &Export) -> u16 {
    let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN;
    match export.content.writable() {
        None => flags | NBD_FLAG_READ_ONLY,
        Some(_) => flags | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES,
    }
}

fn reply(client: &mut Client, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let len = u32::try_from(data.len()).map_err(|_| broken("a reply's length"))?;
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    client.send(&bytes)
}
