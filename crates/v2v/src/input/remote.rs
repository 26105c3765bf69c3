//! What a user says of a server that guests come from: who asks, with what password, and whom to trust.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// The environment's variable with the password, where no file is named.
pub const PASSWORD_VARIABLE: &str = "GUESTLIFT_PASSWORD";
/// No password is longer.
const PASSWORD_LIMIT: u64 = 4096;

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Who asks; what the address says goes before.
    pub user: Option<String>,
    /// The file that holds the password.
    pub password_file: Option<PathBuf>,
    /// Certificates that are trusted in place of the system's: authorities, or the server's own.
    pub ca: Option<PathBuf>,
    /// A server that says nothing for so long is given up.
    pub timeout: Duration,
    /// How the server is asked to pack what it sends.
    pub compression: Option<Packing>,
    /// A guest that runs is converted from a snapshot, which the server takes and removes again.
    pub snapshot: bool,
}

impl Remote {
    /// What is used where the user says nothing.
    pub const DEFAULT: Remote =
        Remote { user: None, password_file: None, ca: None, timeout: Duration::from_secs(120), compression: None, snapshot: false };

    /// The password: of the file, else of the environment. Never of the command line, which every user of the machine can read.
    pub(crate) fn password(&self) -> Result<Secret> {
        let Some(file) = &self.password_file else {
            return std::env::var(PASSWORD_VARIABLE).map(Secret).map_err(|_| {
                Error::Invalid(format!("the server wants a password: put it into a file, and name that with --password-file FILE, or into the environment's {PASSWORD_VARIABLE}"))
            });
        };
        let fail = |source| Error::Io { file: file.display().to_string(), action: "read the password of", source };
        let mut text = String::new();
        let mut open = std::io::Read::take(std::fs::File::open(file).map_err(fail)?, PASSWORD_LIMIT + 1);
        std::io::Read::read_to_string(&mut open, &mut text).map_err(fail)?;
        // Editors and `echo` end the line.
        let password = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
        if password.is_empty() || text.len() as u64 > PASSWORD_LIMIT {
            return Err(Error::Invalid(format!("{}: holds no password: it must be its only line", file.display())));
        }
        Ok(Secret(password.to_owned()))
    }
}

impl Default for Remote {
    fn default() -> Self {
        Remote::DEFAULT
    }
}

/// How a server packs what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip, which every XenServer can, and which is slower than most networks.
    Gzip,
    /// zstd, from XenServer 8 and XCP-ng 8 on.
    Zstd,
}

/// What must not be seen: it is in no message, log or report.
#[derive(Clone)]
pub(crate) struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Whether the guest is named by a server's address, and not by a file.
pub fn is_url(guest: &Path) -> bool {
    guest.to_str().is_some_and(|g| g.starts_with("https://") || g.starts_with("http://"))
}

/// Refuses an address with a password in it, without repeating it.
pub fn check_url(guest: &Path) -> Result<()> {
    let text = guest.to_string_lossy();
    let Some((_, rest)) = text.split_once("://").filter(|_| is_url(guest)) else { return Ok(()) };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let has_password = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    if has_password || text.contains("session_id=") {
        return Err(Error::Invalid(format!(
            "the guest's address holds a password or a session, which every user of this machine can see in the list of processes, and now should be \
             changed: leave it away, and name a file with --password-file FILE, or use the environment's {PASSWORD_VARIABLE}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_refused_and_not_repeated() {
        for bad in ["https://root:geheim@host/export?uuid=1", "http://a:@h", "https://h/export?session_id=geheim"] {
            let error = check_url(Path::new(bad)).unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
        for good in ["https://root@host:8443/export?uuid=1:2", "https://host", "root:geheim.img", "-"] {
            check_url(Path::new(good)).unwrap();
        }
    }

    #[test]
    fn a_password_is_the_only_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Remote { password_file: Some(file.clone()), ..Remote::DEFAULT }.password().map(|p| p.0)
        };
        for (text, password) in [("geheim\n", "geheim"), ("a b\r\n", "a b"), (" x", " x")] {
            assert_eq!(read(text).unwrap(), password);
        }
        assert!(read("\n").unwrap_err().to_string().contains("holds no password"));
        assert_eq!(format!("{:?}", Secret("geheim".into())), "Secret");
    }
}
