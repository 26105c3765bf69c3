//! The package mirrors that a guest names in its package manager's settings.

use std::collections::BTreeSet;

use super::context::Context;
use crate::common::Failure;

/// A server, as a URI names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Server {
    /// In lower case; addresses of version 6 without brackets.
    pub host: String,
    pub port: u16,
}

impl Server {
    /// Reads `HOST` or `HOST:PORT`.
    pub fn parse(authority: &str, default_port: u16) -> Option<Self> {
        let authority = authority.rsplit_once('@').map_or(authority, |(_, server)| server);
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':')?)),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(default_port), |p| p.parse().ok())?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        let sound = !host.is_empty() && host.len() <= 255 && host.chars().all(is_name);
        sound.then(|| Server { host: host.to_ascii_lowercase(), port })
    }

    /// The server of an `http:` or `https:` URI.
    pub fn of_uri(uri: &str) -> Option<Self> {
        let (scheme, rest) = uri.split_once("://")?;
        let port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        Server::parse(rest.split(['/', '?', '#']).next()?, port)
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Settings that name mirrors, as patterns.
const SETTINGS: &[&str] = &[
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d/*.list",
    "/etc/apt/sources.list.d/*.sources",
    "/etc/apt/mirrors/*",
    "/etc/yum.repos.d/*.repo",
    "/etc/dnf/dnf.conf",
    "/etc/yum.conf",
    "/etc/zypp/repos.d/*.repo",
    "/etc/apk/repositories",
    "/etc/pacman.conf",
    "/etc/pacman.d/mirrorlist",
];

/// The servers that the guest's settings name.
pub(super) fn of_guest(c: &Context<'_>) -> Result<BTreeSet<Server>, Failure> {
    let mut servers = BTreeSet::new();
    for pattern in SETTINGS {
        for path in c.matching(pattern.as_bytes())? {
            servers.extend(in_text(&String::from_utf8_lossy(&c.read_or_empty(&path)?)));
        }
    }
    Ok(servers)
}

/// Every URI in lines that are no comments; what else such files hold names no servers.
fn in_text(text: &str) -> BTreeSet<Server> {
    let lines = text.lines().map(str::trim).filter(|l| !l.starts_with('#') && !l.starts_with(';'));
    // `mirror+https:`, `baseurl=https:`: what matters begins at the scheme.
    let uri = |word: &str| word.find("https://").or_else(|| word.find("http://")).and_then(|at| Server::of_uri(&word[at..]));
    lines.flat_map(|l| l.split(|c: char| c.is_whitespace() || c == ',')).filter_map(uri).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        in_text(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_package_managers_settings() {
        let apt = "# deb http://old.example/debian x main\ndeb [arch=amd64 signed-by=/k] http://deb.example.org/debian bookworm main\n\
                   deb-src HTTP://nope.example/ x\ndeb cdrom:[Debian]/ x main\ndeb file:/srv/debian x main\n";
        assert_eq!(names(apt), ["deb.example.org:80"]);
        let deb822 = "Types: deb\nURIs: https://a.example/debian mirror+http://b.example:8080/list\nSuites: sid\n";
        assert_eq!(names(deb822), ["a.example:443", "b.example:8080"]);
        let yum = "[base]\nmirrorlist=http://mirrorlist.example/?release=$releasever\n#baseurl=http://old.example/\nbaseurl=https://One.example/a,http://[2001:db8::1]:81/b\n";
        assert_eq!(names(yum), ["2001:db8::1:81", "mirrorlist.example:80", "one.example:443"]);
        assert_eq!(names("https://dl.example/alpine/v3.19/main\n@edge http://dl.example/edge\n"), ["dl.example:80", "dl.example:443"]);
        assert_eq!(names("Server = https://m.example/$repo/os/$arch\n"), ["m.example:443"]);
    }

    #[test]
    fn what_is_no_server() {
        for text in ["http://", "http:///x", "http://a%20b/", "ftp://x/", "http://x:99999/"] {
            assert_eq!(names(text), [""; 0], "{text}");
        }
        assert_eq!(Server::parse("user:secret@h:1", 80), Some(Server { host: "h".into(), port: 1 }));
        assert_eq!(Server::parse("a/b", 80), None);
    }
}
