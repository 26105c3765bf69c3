//! This host's own way out to the network, where it is a proxy: what `http_proxy`, `https_proxy` and `no_proxy` name.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::mirrors::Server;

/// Largest head of an answer.
const HEAD: usize = 16 << 10;

/// The proxies of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Upstreams {
    http: Option<Upstream>,
    https: Option<Upstream>,
    /// Ends of names that are reached without them.
    direct: Vec<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upstream {
    pub server: Server,
    /// A line of the request that says who asks.
    pub authorization: String,
}

impl Upstreams {
    /// What this program's environment names.
    pub(super) fn of_host() -> Self {
        Upstreams::named(|name| std::env::var(name).or_else(|_| std::env::var(name.to_uppercase())).unwrap_or_default())
    }

    pub(super) fn named(variable: impl Fn(&str) -> String) -> Self {
        let direct =
            variable("no_proxy").split(',').map(|name| name.trim().trim_start_matches('.').to_ascii_lowercase()).collect::<Vec<_>>();
        Upstreams {
            http: Upstream::parse(&variable("http_proxy")),
            https: Upstream::parse(&variable("https_proxy")),
            direct: direct.into_iter().filter(|name| !name.is_empty()).collect(),
        }
    }

    /// The proxy on the way to a server, for a tunnel or for a plain request.
    pub(super) fn towards(&self, server: &Server, tunnel: bool) -> Option<&Upstream> {
        let host = server.host.to_ascii_lowercase();
        let is_direct =
            |end: &String| end == "*" || host == *end || host.strip_suffix(end.as_str()).is_some_and(|before| before.ends_with('.'));
        let proxy = if tunnel { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !self.direct.iter().any(is_direct))
    }
}

impl Upstream {
    /// `http://[USER:PASSWORD@]HOST[:PORT][/]`
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (user, server) = text.rsplit_once('@').map_or((None, text), |(user, server)| (Some(user), server));
        let authorization = user.map_or(String::new(), |user| format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(user)));
        Some(Upstream { server: Server::parse(server, 80)?, authorization })
    }

    /// Asks for a tunnel to a server on a connection to the proxy.
    pub(super) fn open_tunnel(&self, connection: &mut TcpStream, server: &Server) -> io::Result<()> {
        connection.write_all(format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n{}\r\n", self.authorization).as_bytes())?;
        let mut head = Vec::new();
        let mut byte = [0];
        // One by one: what follows is the tunnel's.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == HEAD || connection.read(&mut byte)? == 0 {
                return Err(io::Error::other(format!("this host's proxy {} gives no answer", self.server)));
            }
            head.push(byte[0]);
        }
        let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_string();
        match first.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(()),
            _ => Err(io::Error::other(format!("this host's proxy {} answers: {first}", self.server))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str, port: u16) -> Server {
        Server { host: host.into(), port }
    }

    #[test]
    fn proxies_are_named_as_elsewhere() {
        let all = Upstreams::named(|name| match name {
            "http_proxy" => "http://proxy.example:3128/".into(),
            "https_proxy" => "me:secret@other.example".into(),
            _ => "localhost, .inner.example,10.0.0.1".into(),
        });
        let plain = all.towards(&server("deb.example", 80), false).unwrap();
        assert_eq!((plain.server.clone(), plain.authorization.as_str()), (server("proxy.example", 3128), ""));
        let tunnel = all.towards(&server("deb.example", 443), true).unwrap();
        assert_eq!(tunnel.server, server("other.example", 80));
        assert_eq!(tunnel.authorization, "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n");
        for host in ["localhost", "inner.example", "a.INNER.example", "10.0.0.1"] {
            assert_eq!(all.towards(&server(host, 80), false), None, "{host}");
        }
        assert!(all.towards(&server("winner.example", 80), false).is_some());
        assert_eq!(Upstreams::named(|_| String::new()), Upstreams::default());
    }
}
