//! The manifest: checksums of the package's files, which tell whether they arrived as they were exported.

use imgcore::Progress;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::package::{Package, corrupt};
use crate::Result;

const LIMIT: u64 = 1 << 20;
const PIECE: usize = 1 << 20;

/// The checksums of a package.
pub(super) struct Manifest {
    entries: Vec<Entry>,
    shown: String,
}

struct Entry {
    file: String,
    kind: Kind,
    /// Hexadecimal, in lower case.
    sum: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sha1,
    Sha256,
    Sha512,
}

/// A sum that grows with the bytes.
enum Sum {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        match name.trim().to_ascii_uppercase().as_str() {
            "SHA1" => Some(Kind::Sha1),
            "SHA256" => Some(Kind::Sha256),
            "SHA512" => Some(Kind::Sha512),
            _ => None,
        }
    }

    fn begin(self) -> Sum {
        match self {
            Kind::Sha1 => Sum::Sha1(Sha1::new()),
            Kind::Sha256 => Sum::Sha256(Sha256::new()),
            Kind::Sha512 => Sum::Sha512(Box::default()),
        }
    }
}

impl Sum {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Sum::Sha1(sum) => sum.update(bytes),
            Sum::Sha256(sum) => sum.update(bytes),
            Sum::Sha512(sum) => sum.update(bytes),
        }
    }

    fn hex(self) -> String {
        let bytes = match self {
            Sum::Sha1(sum) => sum.finalize().to_vec(),
            Sum::Sha256(sum) => sum.finalize().to_vec(),
            Sum::Sha512(sum) => sum.finalize().to_vec(),
        };
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl Manifest {
    /// The manifest that lies beside the descriptor, if there is one.
    pub fn of(package: &Package) -> Result<Option<Self>> {
        let base = package.descriptor().rsplit_once('.').map_or(package.descriptor(), |(base, _)| base);
        let name = format!("{base}.mf");
        if !package.has(&name) {
            return Ok(None);
        }
        let shown = package.shown(&name);
        let text = String::from_utf8_lossy(&package.read(&name, LIMIT)?).into_owned();
        let mut entries = Vec::new();
        for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let entry =
                parse(text).ok_or_else(|| corrupt(&shown, format!("line {} is no checksum: '{}'", line + 1, text.escape_debug())))?;
            entries.push(entry);
        }
        Ok(Some(Manifest { entries, shown }))
    }

    /// Whether it has a checksum of this file.
    pub fn has(&self, file: &str) -> bool {
        self.entries.iter().any(|e| e.file == file)
    }

    /// Checks a file that was read already.
    pub fn check_bytes(&self, file: &str, bytes: &[u8]) -> Result<()> {
        let Some(entry) = self.entries.iter().find(|e| e.file == file) else { return Ok(()) };
        let mut sum = entry.kind.begin();
        sum.update(bytes);
        self.compare(entry, &sum.hex())
    }

    /// Reads these files and checks them.
    pub fn check(&self, package: &Package, files: &[String], progress: &dyn Progress) -> Result<()> {
        let entries: Vec<&Entry> = self.entries.iter().filter(|e| files.contains(&e.file)).collect();
        let storages = entries.iter().map(|e| package.storage(&e.file)).collect::<Result<Vec<_>>>()?;
        let sizes = storages.iter().map(|s| s.size()).collect::<imgcore::Result<Vec<u64>>>()?;
        progress.total(sizes.iter().fold(0, |all, size| all.saturating_add(*size)));
        let mut piece = vec![0; PIECE];
        for ((entry, storage), size) in entries.into_iter().zip(storages).zip(sizes) {
            let mut sum = entry.kind.begin();
            let mut at = 0;
            while at < size {
                if progress.cancelled() {
                    return Err(imgcore::Error::Cancelled.into());
                }
                let len = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
                let now = &mut piece[..len];
                storage.read_at(now, at)?;
                sum.update(now);
                progress.advance(len as u64);
                at += len as u64;
            }
            self.compare(entry, &sum.hex())?;
        }
        Ok(())
    }

    fn compare(&self, entry: &Entry, found: &str) -> Result<()> {
        if entry.sum == found {
            return Ok(());
        }
        let what = format!("{} has not the checksum that it was exported with: {found}, not {}; copy it again", entry.file, entry.sum);
        Err(corrupt(&self.shown, what))
    }
}

/// Reads `SHA256(disk.vmdk)= 0123…`, with blanks wherever producers write them.
fn parse(line: &str) -> Option<Entry> {
    let (kind, rest) = line.split_once('(')?;
    let (file, sum) = rest.rsplit_once(')')?;
    let sum = sum.trim().strip_prefix('=')?.trim().to_ascii_lowercase();
    let is_sum = !sum.is_empty() && sum.bytes().all(|b| b.is_ascii_hexdigit());
    is_sum.then_some(Entry { file: file.to_owned(), kind: Kind::of(kind)?, sum })
}
