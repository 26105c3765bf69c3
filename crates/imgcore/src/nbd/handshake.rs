//! The handshake: options are haggled over until an export is chosen.

use std::io::{self, IoSlice};

use super::Export;
use super::meta::Context;
use super::proto::*;
use super::socket::Reader;

/// The largest option that a client may send, in bytes: many queries of metadata contexts.
const MAX_OPTION: u32 = 64 << 10;
/// Options in one handshake, so that a client can't keep a thread busy with nothing.
const MAX_OPTIONS: usize = 1024;

/// What client and server have agreed on.
pub struct Agreed<'a> {
    pub export: &'a Export,
    /// Whether replies are structured.
    pub structured: bool,
    /// What a question for the state of blocks is answered with.
    pub contexts: Vec<Context>,
}

/// Brings a connection to the transmission phase; `None` when the client left in good order.
pub fn negotiate<'a>(client: &mut Reader, exports: &'a [Export]) -> io::Result<Option<Agreed<'a>>> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(NBDMAGIC.to_be_bytes());
    greeting.extend(IHAVEOPT.to_be_bytes());
    greeting.extend((NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
    send(client, &greeting)?;
    let flags = client.u32()?;
    if flags & !u32::from(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) != 0 {
        return Err(broken("unknown client flags"));
    }
    let no_zeroes = flags & u32::from(NBD_FLAG_NO_ZEROES) != 0;

    let mut structured = false;
    // The contexts that were set, and for which export: they count for no other.
    let mut chosen: Option<(&Export, Vec<Context>)> = None;
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
                let mut answer = Vec::with_capacity(134);
                answer.extend(export.content.image().size().to_be_bytes());
                answer.extend(transmission_flags(export, structured).to_be_bytes());
                if !no_zeroes {
                    answer.resize(answer.len() + 124, 0);
                }
                send(client, &answer)?;
                return Ok(Some(agreed(export, structured, chosen)));
            }
            NBD_OPT_ABORT => {
                // A client may be gone already.
                let _ = reply(client, option, NBD_REP_ACK, &[]);
                return Ok(None);
            }
            NBD_OPT_LIST if data.is_empty() => {
                for export in exports {
                    let mut entry = string(export.name.as_bytes());
                    entry.extend(export.description.as_bytes());
                    reply(client, option, NBD_REP_SERVER, &entry)?;
                }
                reply(client, option, NBD_REP_ACK, &[])?;
            }
            NBD_OPT_STRUCTURED_REPLY if data.is_empty() => {
                structured = true;
                reply(client, option, NBD_REP_ACK, &[])?;
            }
            NBD_OPT_LIST | NBD_OPT_STRUCTURED_REPLY => reply(client, option, NBD_REP_ERR_INVALID, b"this option takes no data")?,
            NBD_OPT_INFO | NBD_OPT_GO => match wanted(&data) {
                None => reply(client, option, NBD_REP_ERR_INVALID, b"malformed option")?,
                Some((name, infos)) => match find(exports, name) {
                    None => reply(client, option, NBD_REP_ERR_UNKNOWN, b"no such export")?,
                    Some(export) => {
                        send_info(client, option, export, structured, &infos)?;
                        if option == NBD_OPT_GO {
                            return Ok(Some(agreed(export, structured, chosen)));
                        }
                    }
                },
            },
            NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => {
                if option == NBD_OPT_SET_META_CONTEXT {
                    chosen = None;
                }
                match queries(&data) {
                    _ if !structured => {
                        reply(client, option, NBD_REP_ERR_INVALID, b"metadata contexts need structured replies: ask for these first")?
                    }
                    None => reply(client, option, NBD_REP_ERR_INVALID, b"malformed option")?,
                    Some((name, queries)) => match find(exports, name) {
                        None => reply(client, option, NBD_REP_ERR_UNKNOWN, b"no such export")?,
                        Some(export) => {
                            let contexts = matching(export, &queries, option == NBD_OPT_LIST_META_CONTEXT);
                            for context in &contexts {
                                let mut entry = context.id().to_be_bytes().to_vec();
                                entry.extend(context.name(export).as_bytes());
                                reply(client, option, NBD_REP_META_CONTEXT, &entry)?;
                            }
                            reply(client, option, NBD_REP_ACK, &[])?;
                            if option == NBD_OPT_SET_META_CONTEXT {
                                chosen = Some((export, contexts));
                            }
                        }
                    },
                }
            }
            _ => reply(client, option, NBD_REP_ERR_UNSUP, &[])?,
        }
    }
    Err(broken("too many options"))
}

pub fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn agreed<'a>(export: &'a Export, structured: bool, chosen: Option<(&Export, Vec<Context>)>) -> Agreed<'a> {
    let contexts = chosen.filter(|(of, _)| std::ptr::eq(*of, export)).map(|(_, contexts)| contexts);
    Agreed { export, structured, contexts: contexts.unwrap_or_default() }
}

fn find<'a>(exports: &'a [Export], name: &[u8]) -> Option<&'a Export> {
    exports.iter().find(|e| e.name.as_bytes() == name).or_else(|| if name.is_empty() { exports.first() } else { None })
}

/// Takes a string and its length before it off the front of `data`.
fn take_string<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (string, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    *data = rest;
    Some(string)
}

/// A string with its length before it, cut to what the protocol allows.
fn string(text: &[u8]) -> Vec<u8> {
    let text = &text[..text.len().min(MAX_STRING)];
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// The data of INFO and GO: name, count of information requests, those requests.
fn wanted(mut data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let name = take_string(&mut data)?;
    let (count, rest) = data.split_first_chunk::<2>()?;
    let (infos, []) = rest.as_chunks::<2>() else { return None };
    (infos.len() == usize::from(u16::from_be_bytes(*count))).then(|| (name, infos.iter().map(|i| u16::from_be_bytes(*i)).collect()))
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT: an export's name, count of queries, those queries.
fn queries(mut data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let name = take_string(&mut data)?;
    let (count, mut rest) = data.split_first_chunk::<4>()?;
    let mut queries = Vec::new();
    while !rest.is_empty() {
        queries.push(take_string(&mut rest)?);
    }
    (u32::try_from(queries.len()) == Ok(u32::from_be_bytes(*count))).then_some((name, queries))
}

/// The contexts that the queries mean: exact names, or to list them also namespaces, or all.
fn matching(export: &Export, queries: &[&[u8]], list: bool) -> Vec<Context> {
    let wanted = |context: &Context| match (list, queries) {
        (true, []) => true,
        (true, queries) => queries.iter().any(|query| context.listed_by(query, export)),
        (false, queries) => queries.contains(&context.name(export).as_bytes()),
    };
    Context::all(export).filter(wanted).collect()
}

fn send_info(client: &Reader, option: u32, export: &Export, structured: bool, infos: &[u16]) -> io::Result<()> {
    let mut info = NBD_INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(export.content.image().size().to_be_bytes());
    info.extend(transmission_flags(export, structured).to_be_bytes());
    reply(client, option, NBD_REP_INFO, &info)?;
    for (kind, text) in [(NBD_INFO_NAME, &export.name), (NBD_INFO_DESCRIPTION, &export.description)] {
        if infos.contains(&kind) && !text.is_empty() {
            reply(client, option, NBD_REP_INFO, &[&kind.to_be_bytes(), text.as_bytes()].concat())?;
        }
    }
    let mut info = NBD_INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1, 4096, MAX_PAYLOAD] {
        info.extend(size.to_be_bytes());
    }
    reply(client, option, NBD_REP_INFO, &info)?;
    reply(client, option, NBD_REP_ACK, &[])
}

fn transmission_flags(export: &Export, structured: bool) -> u16 {
    let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    let flags = if structured { flags | NBD_FLAG_SEND_DF } else { flags };
    match export.content.writable() {
        None => flags | NBD_FLAG_READ_ONLY,
        Some(_) => flags | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO,
    }
}

fn reply(client: &Reader, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let len = u32::try_from(data.len()).map_err(|_| broken("a reply's length"))?;
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    send(client, &bytes)
}

fn send(client: &Reader, bytes: &[u8]) -> io::Result<()> {
    client.socket().send(&mut [IoSlice::new(bytes)])
}
