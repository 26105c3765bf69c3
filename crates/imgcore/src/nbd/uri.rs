//! Disks on NBD servers, named as the NBD URI specification has it.

use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::Client;
use crate::{Error, Result};

const PORT: u16 = 10809;
const PATIENCE: Duration = Duration::from_secs(30);

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Where its server listens.
    pub address: Address,
    /// Empty for the server's own choice.
    pub export: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of a host.
    Tcp {
        /// Its name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket of this host.
    Unix(PathBuf),
}

impl Uri {
    /// Reads `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`.
    pub fn parse(uri: &str) -> Result<Self> {
        let bad = |what: &str| {
            Error::Invalid(format!("{uri}: {what}; disks on servers are named nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"))
        };
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| bad("this is no URI"))?;
        if !matches!(scheme, "nbd" | "nbd+unix") {
            return Err(bad(&format!("{scheme}: is not supported")));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let decode = |text: &str| decode(text).ok_or_else(|| bad("a % is not followed by two digits, or what they make is not text"));
        let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
        let address = match socket {
            Some("") => return Err(bad("the socket has no name")),
            Some(socket) if authority.is_empty() => Address::Unix(decode(socket)?.into()),
            Some(_) => return Err(bad("a server has a host or a socket, not both")),
            None if scheme == "nbd+unix" => return Err(bad("the socket is missing")),
            None if authority.contains('@') => return Err(bad("user names are not supported")),
            None => {
                // An address of IPv6 is full of colons itself.
                let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                    Some((host, port)) => (host, port.strip_prefix(':')),
                    None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
                };
                if host.is_empty() {
                    return Err(bad("the host is missing"));
                }
                let port = port.map_or(Ok(PORT), str::parse).map_err(|_| bad("the port is no number"))?;
                Address::Tcp { host: host.into(), port }
            }
        };
        Ok(Uri { address, export: decode(export)? })
    }

    /// The export, for reading.
    pub fn connect(&self, format: Option<&str>) -> Result<Client> {
        let name = self.name();
        if let Some(format) = format.filter(|format| *format != "raw") {
            return Err(Error::Invalid(format!("{name}: what a server exports is raw, not {format}")));
        }
        let failed = |e| Error::io(&name, "connect", None, e);
        let socket: OwnedFd = match &self.address {
            Address::Unix(path) => UnixStream::connect(path).map_err(failed)?.into(),
            Address::Tcp { host, port } => tcp(host, *port).map_err(failed)?.into(),
        };
        Client::new(socket, &self.export, &name)
    }

    /// The export, for writing too.
    pub fn connect_writable(&self, format: Option<&str>) -> Result<Client> {
        let client = self.connect(format)?;
        if client.is_read_only() {
            return Err(Error::Invalid(format!("{}: the server lets nobody write", self.name())));
        }
        Ok(client)
    }

    /// The URI.
    pub fn name(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } if host.contains(':') => format!("nbd://[{host}]:{port}/{}", self.export),
            Address::Tcp { host, port } => format!("nbd://{host}:{port}/{}", self.export),
            Address::Unix(path) => format!("nbd+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

fn tcp(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut failure = std::io::Error::new(std::io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) => failure = e,
        }
    }
    Err(failure)
}

/// Undoes `%20` and its like.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        let tcp = |host: &str, port, export: &str| Uri { address: Address::Tcp { host: host.into(), port }, export: export.into() };
        let unix = |path: &str, export: &str| Uri { address: Address::Unix(path.into()), export: export.into() };
        for (uri, server) in [
            ("nbd://box", tcp("box", PORT, "")),
            ("nbd://box:99/disk%201", tcp("box", 99, "disk 1")),
            ("nbd://[::1]:99/a/b", tcp("::1", 99, "a/b")),
            ("nbd+unix:///?socket=/run/x", unix("/run/x", "")),
            ("nbd+unix:///d?socket=/run/a%3Fb", unix("/run/a?b", "d")),
            ("nbd://?socket=/run/x", unix("/run/x", "")),
        ] {
            assert_eq!(Uri::parse(uri).ok(), Some(server), "{uri}");
        }
        for uri in ["nbd://", "nbd+unix:///x", "nbd://box:x/", "ssh://box/x", "nbd://box/%4", "nbd+unix://box/?socket=/x", "nbd://u@box/"] {
            assert!(Uri::parse(uri).is_err(), "{uri}");
        }
    }
}
