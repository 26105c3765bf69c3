//! How a host and a guest on it are named: `HOST`, `USER@HOST:PORT`, or the address of an export.

use std::fmt;

use crate::input::remote::Packing;

/// A server, and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub server: Server,
    pub user: Option<String>,
    /// The guest, where the address names it.
    pub guest: Option<Named>,
    pub compression: Option<Packing>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// Only where the user wrote `http://`.
    pub plain: bool,
    /// A name or address, an IPv6 one without brackets.
    pub host: String,
    pub port: Option<u16>,
}

/// How an export's address names a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Uuid(String),
    Reference(String),
}

impl Address {
    /// Reads what the user wrote. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (plain, rest) = match text.split_once("://") {
            None => (false, text),
            Some(("https", rest)) => (false, rest),
            Some(("http", rest)) => (true, rest),
            Some(_) => return Err("only https:// and http:// lead to a XenServer".into()),
        };
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let mut address = Address { server: Server::parse(plain, host)?, user: user.map(str::to_owned), guest: None, compression: None };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if !matches!((path, query), ("" | "/", "") | ("/export" | "/export/", _)) {
            return Err("an address leads to a host, or to an export: https://HOST/export?uuid=…".into());
        }
        for (key, value) in query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
            match (key, value) {
                ("uuid", uuid) if is_word(uuid) => address.guest = Some(Named::Uuid(uuid.into())),
                ("ref", reference) if is_word(reference) => address.guest = Some(Named::Reference(reference.into())),
                ("use_compression", "true" | "gzip") => address.compression = Some(Packing::Gzip),
                ("use_compression", "zstd") => address.compression = Some(Packing::Zstd),
                ("use_compression", "false") => {}
                _ => return Err(format!("'{key}' is no part of an export's address: write https://HOST/export?uuid=…")),
            }
        }
        if path.starts_with("/export") && address.guest.is_none() {
            return Err("the export's address names no guest: write https://HOST/export?uuid=…".into());
        }
        Ok(address)
    }
}

impl Address {
    /// The address of the export of a guest that is there.
    pub fn export(&self, uuid: &str) -> String {
        let url = self.server.url(&format!("/export?uuid={uuid}"));
        match &self.user {
            Some(user) => url.replacen("://", &format!("://{user}@"), 1),
            None => url,
        }
    }
}

impl Server {
    /// Reads `HOST`, `HOST:PORT`, `[IPV6]:PORT`.
    pub fn parse(plain: bool, text: &str) -> Result<Self, String> {
        let bad = || format!("'{}' is no host: write HOST, HOST:PORT or [IPV6]:PORT", text.escape_default());
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(bad)?,
            // An IPv6 address without brackets, as XenServers tell their own.
            None if text.matches(':').count() > 1 => (text, ""),
            None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
        };
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':').and_then(|p| p.parse().ok()).filter(|p| *p != 0).ok_or_else(bad)?),
        };
        let is_letter = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_letter) {
            return Err(bad());
        }
        Ok(Server { plain, host: host.into(), port })
    }

    /// The whole address of a path on it.
    pub fn url(&self, path: &str) -> String {
        format!("{self}{path}")
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain { "http" } else { "https" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) => write!(f, "{scheme}://{host}:{port}"),
            None => write!(f, "{scheme}://{host}"),
        }
    }
}

/// Whether it can be part of an address as it is: UUIDs and references are such.
pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-:_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_users_and_exports() {
        let server = |plain, host: &str, port| Server { plain, host: host.into(), port };
        for (text, expected, user, guest) in [
            ("xen1", server(false, "xen1", None), None, None),
            ("root@10.0.0.1:8443", server(false, "10.0.0.1", Some(8443)), Some("root"), None),
            ("http://xen1/", server(true, "xen1", None), None, None),
            ("https://a@b@[fe80::1]:443", server(false, "fe80::1", Some(443)), Some("a@b"), None),
            ("fe80::1", server(false, "fe80::1", None), None, None),
            ("https://root@xen1/export?uuid=a-b", server(false, "xen1", None), Some("root"), Some(Named::Uuid("a-b".into()))),
            ("https://xen1/export?ref=OpaqueRef:1", server(false, "xen1", None), None, Some(Named::Reference("OpaqueRef:1".into()))),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.server, address.user.as_deref(), address.guest), (expected, user, guest), "{text}");
        }
        for text in ["https://root@xen1:8443/export?uuid=a-b", "http://xen1/export?uuid=1", "https://a@b@[fe80::1]/export?uuid=1"] {
            let parsed = Address::parse(text).unwrap();
            let Some(Named::Uuid(uuid)) = &parsed.guest else { panic!("{parsed:?}") };
            assert_eq!(parsed.export(uuid), text);
        }
        let packed = Address::parse("https://xen1/export?uuid=a&use_compression=zstd").unwrap();
        assert_eq!(packed.compression, Some(Packing::Zstd));
        assert_eq!(server(false, "fe80::1", Some(1)).url("/x"), "https://[fe80::1]:1/x");
    }

    #[test]
    fn what_is_no_address_is_told() {
        for bad in [
            "",
            "ftp://h",
            "https://",
            "h:x",
            "h:0",
            "[::1",
            "h/other",
            "https://h/export",
            "https://h/export?uuid=a/../b",
            "https://h/export?x=1",
            "a b",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
