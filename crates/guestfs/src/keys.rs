//! Passphrases of encrypted volumes, and which volume each is for.

use std::path::Path;

use zeroize::Zeroizing;

use crate::{Error, Result};

/// Bytes that nobody else shall see: they are wiped from memory when they are no longer needed.
pub type Secret = Zeroizing<Vec<u8>>;

/// A passphrase's file is no longer.
const MAX_LEN: u64 = 8 << 20;

/// Who knows passphrases.
pub trait KeyRing {
    /// The passphrases to try on an encrypted volume, in their order.
    fn keys(&self, device: &str, uuid: &str) -> Vec<Secret>;
}

/// What `--key` named: libguestfs's `ID:key:STRING` and `ID:file:NAME`, where ID is a device, a UUID or `all`.
#[derive(Clone, Default)]
pub struct Keys(Vec<(String, Secret)>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// Adds one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a selector that is none, or a file that cannot be read. The passphrase is not told.
    pub fn add(&mut self, selector: &str) -> Result<()> {
        let mut parts = selector.splitn(3, ':');
        let (Some(id), Some(kind), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::Invalid("a key is written ID:key:PASSPHRASE or ID:file:FILE".into()));
        };
        if id.is_empty() {
            return Err(Error::Invalid("a key's ID is a device, a UUID or 'all'".into()));
        }
        let secret = match kind {
            "key" => Zeroizing::new(value.as_bytes().to_vec()),
            "file" => first_line(Path::new(value))?,
            // Any part of it may be a passphrase with something left out: none is told.
            _ => return Err(Error::Invalid("a key's ID must be followed by 'key' or 'file'".into())),
        };
        self.0.push((id.to_string(), secret));
        Ok(())
    }
}

impl KeyRing for Keys {
    fn keys(&self, device: &str, uuid: &str) -> Vec<Secret> {
        let plain = |id: &str| id.strip_prefix("UUID=").unwrap_or(id).trim_matches('"').to_ascii_lowercase();
        let fits = |id: &str| id == "all" || id == device || !uuid.is_empty() && plain(id) == uuid.to_ascii_lowercase();
        self.0.iter().filter(|(id, _)| fits(id)).map(|(_, secret)| secret.clone()).collect()
    }
}

/// A file's first line, without its end.
fn first_line(file: &Path) -> Result<Secret> {
    use std::io::Read;
    let failed = |e: &dyn std::fmt::Display| Error::Invalid(format!("the key's file {}: {e}", file.display()));
    let opened = std::fs::File::open(file).map_err(|e| failed(&e))?;
    // Grown piece by piece, a vector would leave copies behind.
    let len = opened.metadata().map_err(|e| failed(&e))?.len();
    if len > MAX_LEN {
        return Err(failed(&"it is too large"));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(len as usize + 1));
    opened.take(MAX_LEN).read_to_end(&mut content).map_err(|e| failed(&e))?;
    let end = content.iter().position(|b| *b == b'\n').unwrap_or(content.len());
    content.truncate(end);
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_choose_by_device_uuid_or_all() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "from a file\nand more\n").unwrap();
        let mut keys = Keys::default();
        let file = format!("UUID=ABCD-12:file:{}", dir.path().join("key").display());
        for selector in ["/dev/sda2:key:with:colons", "all:key:any", file.as_str(), "abcd-12:key:by uuid"] {
            keys.add(selector).unwrap();
        }
        let of = |device: &str, uuid: &str| -> Vec<String> {
            keys.keys(device, uuid).iter().map(|k| String::from_utf8(k.to_vec()).unwrap()).collect()
        };
        assert_eq!(of("/dev/sda2", ""), ["with:colons", "any"]);
        assert_eq!(of("/dev/sdb", "abcd-12"), ["any", "from a file", "by uuid"]);
        for wrong in ["x", "x:key", "hush:hush:hush", ":key:hush", "all:file:/nonexistent"] {
            let message = keys.add(wrong).unwrap_err().to_string();
            assert!(!message.contains("hush:") && !message.contains(":hush"), "{message}");
        }
    }
}
