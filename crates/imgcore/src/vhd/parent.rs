//! The parent of a differencing disk: how it is named in the file, and finding the image with the right unique id.

use super::FORMAT;
use super::footer::Footers;
use super::header::{Header, Locator};
use crate::formats::{Formats, OpenContext};
use crate::storage::read_padded;
use crate::{Error, Gate, LocalGate, Reference, Result, Storage};

/// Bytes of a locator that are read: paths are shorter.
const MAX_LOCATOR: u64 = 1 << 16;
/// Relative to the child's folder on Windows, UTF-16.
const W2RU: [u8; 4] = *b"W2ru";
/// Absolute on Windows, UTF-16.
const W2KU: [u8; 4] = *b"W2ku";
/// A `file:` URL.
const MACX: [u8; 4] = *b"MacX";
/// The unique id that stands for a raw parent, which has none.
pub(super) const RAW: [u8; 16] = [0; 16];

/// The image that a differencing disk is to be made for.
pub(super) struct Parent {
    pub uuid: [u8; 16],
    pub timestamp: u32,
    path: String,
}

impl Parent {
    /// Looks at the image `path`, which the user named for the image called `from`.
    pub fn find(from: &str, path: &str, format: Option<&str>) -> Result<Self> {
        if path.contains('\\') {
            return Err(Error::Invalid(format!("{path}: a VHD cannot name a parent with a backslash in its name")));
        }
        let formats = Formats::new();
        let storage = LocalGate.open(&Reference { from, target: path, role: "backing file" })?;
        let driver = match format {
            Some(name) => formats.driver(name)?,
            None => formats.probe_storage(&*storage)?,
        };
        let parent = |uuid, timestamp| Parent { uuid, timestamp, path: path.into() };
        match driver.name() {
            "raw" => Ok(parent(RAW, 0)),
            FORMAT => {
                let footers = Footers::read(&*storage)?;
                let footer = footers.choose(storage.name())?;
                Ok(parent(footer.uuid(), footer.timestamp()))
            }
            other => Err(Error::Invalid(format!("{path}: the parent of a VHD is a VHD or a raw image, not {other}"))),
        }
    }

    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The locator to write, and the bytes it tells of.
    pub fn locator(&self, offset: u64, space: u64) -> Result<(Locator, Vec<u8>)> {
        let windows = self.path.replace('/', "\\");
        let (platform, path) = if self.path.starts_with('/') { (W2KU, windows) } else { (W2RU, format!(".\\{windows}")) };
        let bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        if bytes.len() as u64 > space {
            return Err(Error::Invalid(format!("{}: the path is too long for a VHD", self.path)));
        }
        Ok((Locator { platform, space, len: bytes.len() as u64, offset }, bytes))
    }
}

/// What the parent may be called, the likeliest first: relative names, the bare name in the child's folder, absolute ones.
pub(super) fn candidates(storage: &dyn Storage, header: &Header) -> Vec<String> {
    let mut named: Vec<String> = Vec::new();
    let locators = header.locators();
    for platform in [W2RU, MACX, W2KU] {
        for locator in locators.iter().filter(|locator| locator.platform == platform) {
            named.extend(decode(storage, locator));
        }
    }
    named.push(unix_path(&header.parent_name()));
    let mut all: Vec<String> = Vec::new();
    let bare = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let (absolute, relative): (Vec<String>, Vec<String>) = named.iter().cloned().partition(|path| path.starts_with('/'));
    for path in relative.into_iter().chain(named.iter().map(bare)).chain(absolute) {
        if !path.is_empty() && !all.contains(&path) {
            all.push(path);
        }
    }
    all
}

/// The path that a locator's bytes stand for.
fn decode(storage: &dyn Storage, locator: &Locator) -> Option<String> {
    let mut bytes = vec![0; locator.len.min(MAX_LOCATOR) as usize];
    read_padded(storage, &mut bytes, locator.offset).ok()?;
    if locator.platform == MACX {
        return file_url(std::str::from_utf8(&bytes).ok()?.trim_end_matches('\0'));
    }
    let units = bytes.chunks_exact(2).map(|pair| crate::le::u16_at(pair, 0)).take_while(|unit| *unit != 0);
    let path: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    Some(unix_path(&path))
}

/// A path of Windows as one of Unix: no drive, slashes, no `./` at the start.
fn unix_path(path: &str) -> String {
    let path = match path.as_bytes() {
        [drive, b':', ..] if drive.is_ascii_alphabetic() => &path[2..],
        _ => path,
    };
    let path = path.replace('\\', "/");
    path.strip_prefix("./").map_or(path.clone(), str::to_owned)
}

/// The path of a `file:` URL; blktap writes relative ones as `file://./name`.
fn file_url(url: &str) -> Option<String> {
    let rest = url.strip_prefix("file://")?;
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| *byte == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    Some(unix_path(&String::from_utf8(decoded).ok()?))
}

/// The name under which the parent that `header`, read from `storage`, tells of is there.
///
/// # Errors
/// What kept it from being found: the caller's gate or another disk under that name rather than a missing file.
pub(super) fn find(storage: &dyn Storage, header: &Header, context: &OpenContext<'_>) -> Result<String> {
    let wanted = header.parent_uuid();
    let (mut missing, mut refused) = (None, None);
    for target in candidates(storage, header) {
        let reference = Reference { from: storage.name(), target: &target, role: "parent" };
        match is_wanted(&reference, wanted, context) {
            Ok(()) => return Ok(target),
            Err(error @ Error::Io { .. }) => drop(missing.get_or_insert(error)),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    let unnamed = || Error::corrupt(storage.name(), FORMAT, None, "a differencing disk that does not name its parent");
    Err(refused.or(missing).unwrap_or_else(unnamed))
}

/// Whether the referenced file is the image with the id `wanted`.
fn is_wanted(reference: &Reference<'_>, wanted: [u8; 16], context: &OpenContext<'_>) -> Result<()> {
    let storage = context.options.gate.open(reference)?;
    if wanted == RAW {
        return Ok(());
    }
    let found = Footers::read(&*storage)?.choose(storage.name())?.uuid();
    if found == wanted {
        return Ok(());
    }
    let what = format!("its parent '{}' is another disk: it has the unique id {}, not {}", reference.target, uuid(found), uuid(wanted));
    Err(Error::corrupt(reference.from, FORMAT, None, what))
}

/// An id as people write it; VHD has its bytes in that order.
fn uuid(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_other_systems() {
        for (path, expected) in [
            (".\\dir\\parent.vhd", "dir/parent.vhd"),
            ("..\\parent.vhd", "../parent.vhd"),
            ("C:\\dir\\parent.vhd", "/dir/parent.vhd"),
            ("/dev/VG_XenStorage/VHD-1", "/dev/VG_XenStorage/VHD-1"),
        ] {
            assert_eq!(unix_path(path), expected);
        }
        for (url, expected) in [
            ("file://localhost/dir/a%20b.vhd", Some("/dir/a b.vhd")),
            ("file:///dir/parent.vhd", Some("/dir/parent.vhd")),
            ("file://./parent.vhd", Some("parent.vhd")),
            ("file://./100%.vhd", Some("100%.vhd")),
            ("http://host/x", None),
        ] {
            assert_eq!(file_url(url).as_deref(), expected);
        }
    }
}
