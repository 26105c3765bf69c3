//! Operations on a guest's accounts: passwords and keys.

use std::io::Read;
use std::path::Path;

use clap::ValueEnum;
use guestfs::{Attributes, Ext};
use sha_crypt::{PasswordHasher, ShaCrypt};
use yescrypt::Yescrypt;

use super::super::show::join;
use super::context::Context;
use super::{Action, Value, act};
use crate::common::Failure;

/// What an account's password is to be.
#[derive(Clone)]
enum Password {
    Text(String),
    Random,
    /// No password is right.
    Disabled,
    /// As it is, or the given one, but of no use until the account is unlocked.
    Locked(Option<Box<Password>>),
}

impl Password {
    fn parse(value: &Value, text: &str) -> Result<Self, Failure> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("password", Some(text)) => Ok(Password::Text(text.into())),
            ("file", Some(file)) => {
                let content = std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{file}: {e}")))?;
                Ok(Password::Text(content.lines().next().unwrap_or_default().into()))
            }
            ("random", None) => Ok(Password::Random),
            ("disabled", None) => Ok(Password::Disabled),
            ("locked", None) => Ok(Password::Locked(None)),
            ("locked", Some(rest)) if !rest.starts_with("locked") => Ok(Password::Locked(Some(Box::new(Password::parse(value, rest)?)))),
            _ => Err(value.wrong("the password is password:TEXT, file:FILE, random, disabled, locked or locked:… with one of these")),
        }
    }

    /// The field of /etc/shadow, which held `old`.
    fn field(&self, user: &str, old: &str, crypto: Crypto) -> Result<String, Failure> {
        match self {
            Password::Text(text) => hash(text, crypto),
            Password::Random => {
                let text = random_text(16)?;
                println!("virt-customize: the password of {user} is {text}");
                hash(&text, crypto)
            }
            Password::Disabled => Ok("*".into()),
            Password::Locked(None) => Ok(format!("!!{}", old.trim_start_matches('!'))),
            Password::Locked(Some(password)) => Ok(format!("!!{}", password.field(user, old, crypto)?)),
        }
    }
}

/// How passwords are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in super::super) enum Crypto {
    Sha256,
    Sha512,
    Yescrypt,
}

impl Crypto {
    /// What the guest hashes its own with, by PAM's settings or login.defs; else SHA-512, which every guest of this century understands.
    fn of_guest(c: &Context<'_>) -> Result<Self, Failure> {
        const PAM: [&str; 3] = ["/etc/pam.d/common-password", "/etc/pam.d/system-auth", "/etc/pam.d/passwd"];
        for file in PAM {
            let settings = String::from_utf8_lossy(&c.read_or_empty(file.as_bytes())?).into_owned();
            let unix = settings.lines().filter(|line| !line.trim_start().starts_with('#') && line.contains("pam_unix.so"));
            if unix.flat_map(str::split_whitespace).any(|word| word == "yescrypt") {
                return Ok(Crypto::Yescrypt);
            }
        }
        let settings = String::from_utf8_lossy(&c.read_or_empty(b"/etc/login.defs")?).into_owned();
        let method = settings.lines().filter_map(|line| line.trim().strip_prefix("ENCRYPT_METHOD")).next_back();
        Ok(if method.is_some_and(|method| method.trim() == "YESCRYPT") { Crypto::Yescrypt } else { Crypto::Sha512 })
    }
}

fn hash(password: &str, crypto: Crypto) -> Result<String, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(format!("the password cannot be hashed: {e}"));
    let salt = random_bytes(12)?;
    let hashed = match crypto {
        Crypto::Sha256 => ShaCrypt::SHA256.hash_password_with_salt(password.as_bytes(), &salt).map_err(|e| failed(&e))?,
        Crypto::Sha512 => ShaCrypt::SHA512.hash_password_with_salt(password.as_bytes(), &salt).map_err(|e| failed(&e))?,
        Crypto::Yescrypt => Yescrypt::default().hash_password_with_salt(password.as_bytes(), &random_bytes(16)?).map_err(|e| failed(&e))?,
    };
    Ok(hashed.as_str().to_string())
}

fn random_bytes(len: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; len];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes))?;
    Ok(bytes)
}

/// Letters and digits that are not taken for one another.
fn random_text(len: usize) -> Result<String, Failure> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    Ok(random_bytes(len)?.into_iter().map(|b| char::from(LETTERS[usize::from(b % 32)])).collect())
}

/// `USER:SELECTOR`
pub(super) fn password(value: &Value) -> Result<Action, Failure> {
    let text = String::from_utf8_lossy(value.bytes()).into_owned();
    let (user, selector) = text.split_once(':').ok_or_else(|| value.wrong("it is USER:SELECTOR"))?;
    set(user.into(), Password::parse(value, selector)?)
}

/// `SELECTOR`
pub(super) fn root_password(value: &Value) -> Result<Action, Failure> {
    set("root".into(), Password::parse(value, &String::from_utf8_lossy(value.bytes()))?)
}

fn set(user: String, password: Password) -> Result<Action, Failure> {
    act(move |c| {
        c.say(&format!("Setting password: {user}"));
        let crypto = c.crypto.map_or_else(|| Crypto::of_guest(c), Ok)?;
        let shadow = c.read(b"/etc/shadow")?;
        let shadow = String::from_utf8(shadow).map_err(|_| Failure::new("/etc/shadow: is not text"))?;
        let mut found = false;
        let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs() / 86400;
        let mut lines = Vec::new();
        for line in shadow.lines() {
            let mut fields: Vec<String> = line.split(':').map(str::to_string).collect();
            if fields.first() == Some(&user) && fields.len() > 2 {
                fields[1] = password.field(&user, &fields[1], crypto)?;
                fields[2] = today.to_string();
                found = true;
            }
            lines.push(fields.join(":") + "\n");
        }
        if !found {
            return Err(Failure::new(format!("the guest has no user '{user}' in /etc/shadow")));
        }
        c.write(b"/etc/shadow", lines.concat().as_bytes())
    })
}

/// `USER[:file:FILE|:string:KEY]`
pub(super) fn ssh_inject(value: &Value) -> Result<Action, Failure> {
    let text = String::from_utf8_lossy(value.bytes()).into_owned();
    let (user, selector) = text.split_once(':').map_or((text.as_str(), None), |(user, rest)| (user, Some(rest)));
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())));
    let keys = match selector.map(|s| s.split_once(':')) {
        None => own_keys()?,
        Some(Some(("file", file))) => read(Path::new(file))?,
        Some(Some(("string", key))) => key.to_string(),
        _ => return Err(value.wrong("the key is file:FILE or string:KEY; without it your own are taken")),
    };
    let keys: Vec<String> = keys.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_string).collect();
    if keys.is_empty() {
        return Err(value.wrong("there is no key in it"));
    }
    let user = user.to_string();
    act(move |c| {
        c.say(&format!("SSH key inject: {user}"));
        let account = c.user(user.as_bytes())?;
        if !c.session.is_dir(&account.home) {
            return Err(Failure::new(format!("{}: the home of {user} is not there", guestfs::show(&account.home))));
        }
        let own = |mode| Attributes { mode, uid: account.uid, gid: account.gid };
        let folder = join(&account.home, b".ssh");
        c.make_directories(&folder, own(0o700))?;
        let file = join(&folder, b"authorized_keys");
        let mut content = c.read_or_empty(&file)?;
        if !content.is_empty() && !content.ends_with(b"\n") {
            content.push(b'\n');
        }
        for key in &keys {
            if !content.split(|b| *b == b'\n').any(|line| line == key.as_bytes()) {
                content.extend_from_slice(format!("{key}\n").as_bytes());
            }
        }
        c.write_as(&file, &content, own(0o600))
    })
}

/// The public keys of whoever runs this program.
fn own_keys() -> Result<String, Failure> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let folder = Path::new(&home).join(".ssh");
    let names = ["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"];
    let keys: String = names.iter().filter_map(|name| std::fs::read_to_string(folder.join(name)).ok()).collect();
    if keys.is_empty() {
        return Err(Failure::new(format!("{}: there is no public key", folder.display())).hint("name one with USER:file:FILE"));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::Crypto;

    /// The C library that guests check passwords with.
    #[test]
    fn every_hash_is_what_crypt_makes_of_it() {
        for crypto in [Crypto::Sha256, Crypto::Sha512, Crypto::Yescrypt] {
            let ours = super::hash("correct horse", crypto).unwrap();
            let theirs =
                Command::new("perl").args(["-e", "print crypt($ARGV[0], $ARGV[1])", "correct horse", &ours]).output().expect("perl");
            assert_eq!(String::from_utf8(theirs.stdout).unwrap(), ours);
        }
    }

    /// OpenSSL hashes the same password with the same salt to the same text.
    #[test]
    fn hashes_are_those_of_others() {
        let ours = super::hash("correct horse", Crypto::Sha512).unwrap();
        let salt = ours.split('$').nth_back(1).unwrap();
        let theirs = Command::new("openssl").args(["passwd", "-6", "-salt", salt, "correct horse"]).output().expect("openssl");
        assert_eq!(String::from_utf8(theirs.stdout).unwrap().trim(), ours.replace("rounds=5000$", ""));
    }
}
