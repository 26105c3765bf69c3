//! The one way out for a guest's package manager: an HTTP proxy on this host, through which only the guest's own mirrors are reached.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use guestfs::engine::Relay;

use super::mirrors::Server;
use super::upstream::Upstreams;

/// Largest head of a request.
const HEAD: usize = 64 << 10;
const HEADERS: usize = 100;
const CONNECTING: Duration = Duration::from_secs(30);
/// Longest silence of a mirror.
const SILENCE: Duration = Duration::from_secs(120);

/// See the module.
pub(in super::super) struct Proxy {
    /// The guest's own mirrors.
    mirrors: BTreeSet<Server>,
    /// Those that the user named.
    named: BTreeSet<Server>,
    /// How this host itself reaches servers.
    upstreams: Upstreams,
    refused: Mutex<BTreeSet<String>>,
}

impl Proxy {
    pub fn new(mirrors: BTreeSet<Server>, named: BTreeSet<Server>, upstreams: Upstreams) -> Self {
        Proxy { mirrors, named, upstreams, refused: Mutex::default() }
    }

    /// What was asked for and not let through, for the user.
    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn refuse(&self, server: &str, why: &str) -> Answer {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        // A guest must not fill the host's memory with names.
        if refused.len() < 100 {
            refused.insert(format!("{server}: {why}"));
        }
        Answer { status: "403 Forbidden", what: format!("{server}: {why}") }
    }

    /// Answers one request. Each has a connection of its own: so it cannot turn into one to somebody else.
    fn answer(&self, client: &mut UnixStream) -> Result<(), Answer> {
        let head = head(client)?;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(httparse::Status::Complete(_)) => {}
            _ => return Err(Answer::bad("this is no HTTP request")),
        }
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        let broken = |e: io::Error| Answer { status: "502 Bad Gateway", what: format!("{target}: {e}") };
        match method {
            "CONNECT" => {
                let server = Server::parse(target, 443).ok_or_else(|| Answer::bad("no server is named"))?;
                let mut upstream = self.connect(&server, true)?;
                if let Some(proxy) = self.upstreams.towards(&server, true) {
                    proxy.open_tunnel(&mut upstream, &server).map_err(broken)?;
                }
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").map_err(broken)?;
                // What ends one direction ends the connection, but never before it was carried.
                let _ = both_ways(client, &upstream);
            }
            "GET" | "HEAD" => {
                let server = Server::of_uri(target).filter(|_| target.starts_with("http://"));
                let server = server.ok_or_else(|| Answer::bad("a proxy is asked for whole http URIs"))?;
                let mut upstream = self.connect(&server, false)?;
                // A proxy is told the whole of it.
                let first = match self.upstreams.towards(&server, false) {
                    Some(proxy) => format!("{method} {target} HTTP/1.1\r\n{}", proxy.authorization),
                    None => format!("{method} /{} HTTP/1.1\r\n", target.splitn(4, '/').nth(3).unwrap_or_default()),
                };
                upstream.write_all(&for_mirror(first, request.headers)).map_err(broken)?;
                let _ = carry(&mut upstream, client);
            }
            _ => return Err(Answer { status: "405 Method Not Allowed", what: format!("{method}: packages are fetched, nothing else") }),
        }
        Ok(())
    }

    /// A connection to a server, or to this host's proxy on the way to it.
    fn connect(&self, server: &Server, tunnel: bool) -> Result<TcpStream, Answer> {
        let shown = server.to_string();
        let is_named = self.named.contains(server);
        if !is_named && !self.mirrors.contains(server) {
            return Err(self.refuse(&shown, "none of the guest's mirrors"));
        }
        let failed = |e: io::Error| Answer { status: "502 Bad Gateway", what: format!("{shown}: {e}") };
        let proxy = self.upstreams.towards(server, tunnel).map(|proxy| &proxy.server);
        // What a proxy makes of a name is the proxy's affair, but not of an address.
        let is_here = server.host.trim_matches(['[', ']']).parse().is_ok_and(is_this_host) || server.host.eq_ignore_ascii_case("localhost");
        let mut last = None;
        let next = proxy.unwrap_or(server);
        for address in (next.host.as_str(), next.port).to_socket_addrs().map_err(failed)? {
            // A guest's settings are the guest's: they must not lead to services of this host.
            if !is_named && (is_here || proxy.is_none() && is_this_host(address.ip())) {
                return Err(self.refuse(&shown, "it is an address of this host; name it with --mirror if it is meant"));
            }
            match TcpStream::connect_timeout(&address, CONNECTING) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(SILENCE)).and_then(|()| stream.set_write_timeout(Some(SILENCE))).map_err(failed)?;
                    return Ok(stream);
                }
                Err(e) => last = Some(e),
            }
        }
        Err(failed(last.unwrap_or_else(|| io::Error::other("it has no address"))))
    }
}

impl Relay for Proxy {
    fn serve(&self, mut connection: UnixStream) {
        if let Err(Answer { status, what }) = self.answer(&mut connection) {
            let body = format!("{what}\n");
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = connection.write_all((head + &body).as_bytes());
        }
        let _ = connection.shutdown(Shutdown::Both);
    }
}

/// What the proxy itself answers.
struct Answer {
    status: &'static str,
    what: String,
}

impl Answer {
    fn bad(what: &str) -> Self {
        Answer { status: "400 Bad Request", what: what.into() }
    }
}

/// Addresses that mean this host, or its neighbours on the link, where clouds keep secrets.
fn is_this_host(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_unspecified() || a.is_broadcast() || a.is_multicast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_unspecified() || a.is_multicast(),
    }
}

/// A request's head: all up to the first empty line.
fn head(client: &mut UnixStream) -> Result<Vec<u8>, Answer> {
    let mut head = Vec::new();
    let mut buf = [0; 4096];
    loop {
        match client.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(n) if n > 0 && head.len() < HEAD => {
                head.extend_from_slice(&buf[..n]);
                if let Some(at) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                    // What follows is another request: the connection is closed before it is its turn, and it is made again.
                    head.truncate(at + 4);
                    return Ok(head);
                }
            }
            _ => return Err(Answer::bad("a request without an end")),
        }
    }
}

/// The request as a mirror wants it, for an answer that ends with the connection.
fn for_mirror(first: String, headers: &[httparse::Header<'_>]) -> Vec<u8> {
    let mut request = first.into_bytes();
    let ours =
        ["connection", "proxy-connection", "proxy-authorization", "keep-alive", "te", "upgrade", "content-length", "transfer-encoding"];
    for header in headers.iter().filter(|h| ours.iter().all(|name| !h.name.eq_ignore_ascii_case(name))) {
        request.extend_from_slice(header.name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(header.value);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    request
}

/// Carries all of one direction, and ends it.
fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buf = [0; 64 << 10];
    loop {
        match from.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buf[..n])?,
            Err(e) => return Err(e),
        }
    }
}

fn both_ways(client: &UnixStream, upstream: &TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = (client.try_clone()?, client.try_clone()?);
    let (mut from_upstream, mut to_upstream) = (upstream.try_clone()?, upstream.try_clone()?);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = carry(&mut from_client, &mut to_upstream);
            let _ = to_upstream.shutdown(Shutdown::Write);
        });
        let carried = carry(&mut from_upstream, &mut to_client);
        // Wakes the other direction.
        let _ = to_client.shutdown(Shutdown::Both);
        carried
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::*;

    /// What a guest's program gets for this request, while a mirror answers `answer` and says what it was asked.
    fn ask(request: &str, proxy: Proxy, mirror: Option<(TcpListener, &'static [u8])>) -> (String, String) {
        let (mut client, ours) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || proxy.serve(ours));
        let asked = mirror.map(|(listener, answer)| {
            let speaks_first = !answer.starts_with(b"HTTP");
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = vec![0; 4096];
                let n = if speaks_first { 0 } else { stream.read(&mut asked).unwrap() };
                stream.write_all(answer).unwrap();
                String::from_utf8_lossy(&asked[..n]).into_owned()
            })
        });
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        serving.join().unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), asked.map(|a| a.join().unwrap()).unwrap_or_default())
    }

    fn mirror() -> (TcpListener, Server) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, Server { host: "127.0.0.1".into(), port })
    }

    #[test]
    fn a_mirror_is_asked_in_its_own_words() {
        let (listener, server) = mirror();
        let request = format!(
            "GET http://{server}/debian/a?b HTTP/1.1\r\nHost: {server}\r\nProxy-Connection: keep-alive\r\nRange: bytes=5-\r\n\r\nGET next"
        );
        let proxy = Proxy::new(BTreeSet::new(), [server.clone()].into(), Upstreams::default());
        let (answer, asked) = ask(&request, proxy, Some((listener, b"HTTP/1.1 200 OK\r\n\r\nthe package")));
        assert_eq!(answer, "HTTP/1.1 200 OK\r\n\r\nthe package");
        assert_eq!(asked, format!("GET /debian/a?b HTTP/1.1\r\nHost: {server}\r\nRange: bytes=5-\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn a_tunnel_to_a_mirror() {
        let (listener, server) = mirror();
        let proxy = Proxy::new(BTreeSet::new(), [server.clone()].into(), Upstreams::default());
        let (answer, _) = ask(&format!("CONNECT {server} HTTP/1.1\r\n\r\n"), proxy, Some((listener, b"hello")));
        assert_eq!(answer, "HTTP/1.1 200 Connection established\r\n\r\nhello");
    }

    /// The proxy of this host that listens there.
    fn upstream(server: &Server) -> Upstreams {
        Upstreams::named(|name| if name == "no_proxy" { String::new() } else { format!("http://u:p@{server}") })
    }

    #[test]
    fn the_hosts_own_proxy_is_asked_for_mirrors_and_for_no_other() {
        let deb = || BTreeSet::from([Server { host: "deb.example".into(), port: 80 }]);
        let (listener, server) = mirror();
        let proxy = Proxy::new(deb(), BTreeSet::new(), upstream(&server));
        let request = "GET http://deb.example/a HTTP/1.1\r\nHost: deb.example\r\n\r\n";
        let (answer, asked) = ask(request, proxy, Some((listener, b"HTTP/1.1 200 OK\r\n\r\nx")));
        assert_eq!(answer, "HTTP/1.1 200 OK\r\n\r\nx");
        let words = "Proxy-Authorization: Basic dTpw\r\nHost: deb.example\r\nConnection: close\r\n\r\n";
        assert_eq!(asked, format!("GET http://deb.example/a HTTP/1.1\r\n{words}"));

        let (listener, server) = mirror();
        let proxy = Proxy::new(deb(), BTreeSet::new(), upstream(&server));
        let answer = ask("CONNECT deb.example:80 HTTP/1.1\r\n\r\n", proxy, Some((listener, b"HTTP/1.1 200 OK\r\n\r\nhello"))).0;
        assert_eq!(answer, "HTTP/1.1 200 Connection established\r\n\r\nhello");

        let (_listener, server) = mirror();
        let proxy = Proxy::new(deb(), BTreeSet::new(), upstream(&server));
        assert!(ask("GET http://other.example/a HTTP/1.1\r\n\r\n", proxy, None).0.starts_with("HTTP/1.1 403"));
    }

    #[test]
    fn nobody_else_is_reached() {
        let (_listener, here) = mirror();
        let of_guest = || BTreeSet::from([here.clone(), Server { host: "deb.example".into(), port: 80 }]);
        for (request, status) in [
            (format!("GET http://{here}/ HTTP/1.1\r\n\r\n"), "403"),
            ("GET http://other.example/ HTTP/1.1\r\n\r\n".into(), "403"),
            ("GET http://deb.example:81/ HTTP/1.1\r\n\r\n".into(), "403"),
            ("CONNECT deb.example:443 HTTP/1.1\r\n\r\n".into(), "403"),
            ("GET https://deb.example/ HTTP/1.1\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: deb.example\r\n\r\n".into(), "400"),
            ("POST http://deb.example/ HTTP/1.1\r\n\r\n".into(), "405"),
            (format!("GET http://{}/ HTTP/1.1\r\n\r\n", "a".repeat(300)), "400"),
            (format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200)), "400"),
            ("rubbish\r\n\r\n".into(), "400"),
        ] {
            let proxy = Arc::new(Proxy::new(of_guest(), BTreeSet::new(), Upstreams::default()));
            let (mut client, ours) = UnixStream::pair().unwrap();
            client.write_all(request.as_bytes()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            proxy.serve(ours);
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
            assert_eq!(proxy.refused().is_empty(), status != "403");
        }
        for address in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1"] {
            assert!(is_this_host(address.parse().unwrap()), "{address}");
        }
    }
}
