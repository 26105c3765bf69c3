//! HTTP to the hosts of one pool: timeouts by silence, redirects by our own rules, errors in words.
//!
//! A redirect is followed from host to host of the pool only, and never from https to http: it takes the session along.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{Response, StatusCode};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};
use ureq::{Agent, Body, BodyReader};

use super::address::Server;
use super::tls::{self, TlsConnector};
use crate::input::remote::{Remote, Secret};
use crate::{Error, Result};

/// Redirects in a row.
const MAX_REDIRECTS: usize = 5;
/// A connection that is not made within this is given up.
const CONNECT: Duration = Duration::from_secs(30);
/// An answer of the API is no longer: the records of thousands of guests.
const MAX_ANSWER: u64 = 256 << 20;

/// Sends requests.
pub(super) struct Client {
    agent: Agent,
    timeout: Duration,
}

/// An answer that is still to be read.
pub(super) struct Answer {
    response: Response<Body>,
}

impl Answer {
    /// Its body.
    pub fn into_reader(self) -> BodyReader<'static> {
        self.response.into_body().into_with_config().limit(u64::MAX).reader()
    }

    /// A header, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub fn status(&self) -> StatusCode {
        self.response.status()
    }
}

impl Client {
    pub fn new(remote: &Remote, plain: bool) -> Result<Self> {
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // It would see what goes to a host by http, and a pool is not behind one.
            .proxy(None)
            .user_agent("guestlift")
            // One that the host has closed meanwhile would fail the next request, which may be the one that removes a snapshot.
            .max_idle_connections(0)
            .timeout_connect(Some(CONNECT.min(remote.timeout)))
            .timeout_per_read(Some(remote.timeout))
            .timeout_per_write(Some(remote.timeout))
            .https_only(!plain)
            .build();
        let connector = ().chain(TcpConnector::default()).chain(TlsConnector::new(remote.ca.as_deref())?);
        Ok(Client { agent: Agent::with_parts(config, connector, DefaultResolver::default()), timeout: remote.timeout })
    }

    /// Calls the API: gives what it answers, a JSON document.
    pub fn post(&self, server: &Server, path: &str, json: &str) -> Result<Vec<u8>> {
        let url = server.url(path);
        let sent = self.agent.post(&url).header("content-type", "application/json").send(json);
        let response = sent.map_err(|e| self.failed(server, &e))?;
        if response.status() != StatusCode::OK {
            return Err(refused(server, path, response.status()));
        }
        let mut reader = response.into_body().into_with_config().limit(MAX_ANSWER).reader();
        let mut answer = Vec::new();
        io::Read::read_to_end(&mut reader, &mut answer)
            .map_err(|e| Error::Invalid(format!("{server}: {}", self.cut(&e, answer.len() as u64))))?;
        Ok(answer)
    }

    /// Asks for a file, with the session in a cookie, where no log of the server's has it. `range` is the first byte that is wanted and
    /// the version of the file.
    pub fn get(&self, server: &Server, path: &str, session: &Secret, pool: &[String], range: Option<(u64, &str)>) -> Result<Answer> {
        let (mut server, mut path) = (server.clone(), path.to_owned());
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(server.url(&path)).header("cookie", format!("session_id={}", session.0));
            if let Some((from, version)) = range {
                request = request.header("range", format!("bytes={from}-")).header("if-range", version);
            }
            let response = request.call().map_err(|e| self.failed(&server, &e))?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(Answer { response }),
                status if status.is_redirection() => {
                    let location = response.headers().get("location").and_then(|l| l.to_str().ok()).unwrap_or_default();
                    (server, path) = follow(&server, location, pool)?;
                }
                status => return Err(refused(&server, &path, status)),
            }
        }
        Err(Error::Invalid(format!(
            "{server}: leads from host to host without end, after {MAX_REDIRECTS} redirects: ask the pool's master, or the host that the guest's disks lie on"
        )))
    }

    /// What a connection that ended too early is called.
    pub fn cut(&self, error: &io::Error, after: u64) -> String {
        match error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>()) {
            Some(ureq::Error::Timeout(_)) => format!("it has said nothing for {} s, after {after} bytes", self.timeout.as_secs()),
            _ => format!("the connection was cut after {after} bytes ({error})"),
        }
    }

    fn failed(&self, server: &Server, error: &ureq::Error) -> Error {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(e) = cause {
            // An io::Error hides what it was made of from `source`.
            let inner = e.downcast_ref::<io::Error>().and_then(|e| e.get_ref()).map(|e| e as &(dyn StdError + 'static));
            if let Some(e) = e.downcast_ref::<rustls::Error>() {
                return Error::Invalid(format!("{server}: {}", tls::explain(e, &server.host)));
            }
            cause = inner.or_else(|| match e.downcast_ref::<ureq::Error>() {
                Some(ureq::Error::Io(e)) => Some(e),
                Some(ureq::Error::Other(e)) => Some(e.as_ref()),
                _ => e.source(),
            });
        }
        let what = match error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => "it does not answer: look at the address, and at firewalls between".into(),
            ureq::Error::Timeout(_) => format!(
                "it has said nothing for {} s: look whether xapi works there, or give it longer with --timeout SECONDS",
                self.timeout.as_secs()
            ),
            ureq::Error::HostNotFound => "there is no host of this name".into(),
            ureq::Error::Io(e) => format!("cannot connect: {e}"),
            e => format!("the request failed: {e}"),
        };
        Error::Invalid(format!("{server}: {what}"))
    }
}

/// Where a redirect leads, if it may.
fn follow(from: &Server, location: &str, pool: &[String]) -> Result<(Server, String)> {
    let refuse = |what: String| Err(Error::Invalid(format!("{from}: redirects {what}, which is not followed")));
    let (plain, rest) = match location.split_once("://") {
        None if location.starts_with('/') => return Ok((from.clone(), location.to_owned())),
        Some(("https", rest)) => (false, rest),
        Some(("http", rest)) => (true, rest),
        _ => return refuse("to no address".into()),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    // It may have the session in its query: nothing of that is repeated.
    let Ok(server) = Server::parse(plain, authority) else { return refuse("to no host".into()) };
    if plain && !from.plain {
        return refuse(format!("from https to {server}"));
    }
    if !server.host.eq_ignore_ascii_case(&from.host) && !pool.iter().any(|host| host.eq_ignore_ascii_case(&server.host)) {
        return refuse(format!("to {server}, no host of its pool"));
    }
    Ok((server, path.to_owned()))
}

fn refused(server: &Server, path: &str, status: StatusCode) -> Error {
    let what = path.split('?').next().unwrap_or_default();
    Error::Invalid(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!(
                "{server}: refuses {what} ({status}): the session has ended, or the user may not export (it needs the role vm-power-admin)"
            )
        }
        StatusCode::NOT_FOUND => format!("{server}: has no {what} ({status}): is it a XenServer or XCP-ng?"),
        status => format!("{server}: refuses {what} ({status}): /var/log/xensource.log there says why"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(from: &str, location: &str) -> std::result::Result<String, String> {
        let from = Server::parse(from.starts_with("http:"), from.trim_start_matches("http:").trim_start_matches("https:")).unwrap();
        follow(&from, location, &["10.0.0.2".into()]).map(|(server, path)| server.url(&path)).map_err(|e| e.to_string())
    }

    #[test]
    fn redirects_stay_in_the_pool_and_in_https() {
        assert_eq!(to("xen1", "https://10.0.0.2/export?uuid=1").unwrap(), "https://10.0.0.2/export?uuid=1");
        assert_eq!(to("xen1", "https://XEN1:8443/x").unwrap(), "https://XEN1:8443/x");
        assert_eq!(to("xen1:444", "/export?x").unwrap(), "https://xen1:444/export?x");
        assert_eq!(to("http:xen1", "http://10.0.0.2").unwrap(), "http://10.0.0.2/");
        for (location, why) in [
            ("http://xen1/export", "from https to http://xen1"),
            ("https://evil/export?session_id=geheim", "to https://evil, no host of its pool"),
            ("ftp://xen1/", "to no address"),
            ("https://user@xen1/", "to no host"),
        ] {
            let error = to("xen1", location).unwrap_err();
            assert!(error.contains(why) && !error.contains("geheim"), "{error}");
        }
    }
}
