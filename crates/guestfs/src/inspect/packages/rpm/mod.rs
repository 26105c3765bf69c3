//! rpm's database in its three forms: SQLite (Fedora 33, RHEL 9), ndb (SUSE 15), Berkeley DB before.

use super::Application;
use crate::cached::CachedFile;
use crate::{Error, GuestFs, Result};

mod berkeley;
mod header;
mod ndb;
mod sqlite;

/// A database is no larger.
const LIMIT: u64 = 1 << 30;
/// A package's header is no larger, in rpm as well.
const HEADER_LIMIT: usize = 256 << 20;

/// Takes one header after the other.
type Take<'a> = dyn FnMut(&[u8]) + 'a;
/// Hands over every package's header in a database.
type Reader = fn(&CachedFile<'_>, &dyn GuestFs, &[u8], &mut Take<'_>) -> Result<()>;

/// Where the database is; the image-based systems have it below /usr.
const FOLDERS: &[&str] = &["/var/lib/rpm", "/usr/lib/sysimage/rpm", "/usr/share/rpm"];
/// The database's file in each form. What an upgrade left of an older form comes last.
const FORMS: &[(&str, Reader)] =
    &[("rpmdb.sqlite", sqlite::each_header), ("Packages.db", ndb::each_header), ("Packages", berkeley::each_header)];

/// A package file's magic, "Lead" in rpm's manual.
const LEAD_MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
const LEAD: usize = 96;
/// A header's magic and version, and four reserved bytes.
const HEADER_MAGIC: [u8; 4] = [0x8e, 0xad, 0xe8, 0x01];

/// What a package file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RpmFile {
    /// The package.
    pub application: Application,
    /// The names that it needs: packages, features and files. What rpm itself has to have, and what may be missing, is not among them.
    pub requires: Vec<String>,
    /// Its files.
    pub files: Vec<String>,
}

impl RpmFile {
    /// Reads a package file's header; its payload is not looked at.
    ///
    /// # Errors
    /// Words that say why it is no package.
    pub fn parse(package: &[u8]) -> std::result::Result<Self, &'static str> {
        if !package.starts_with(&LEAD_MAGIC) {
            return Err("not an rpm package: it has no lead");
        }
        let body = |at: usize| {
            let header = package.get(at..).ok_or("the file is cut off")?;
            header.strip_prefix(&HEADER_MAGIC).and_then(|h| h.get(4..)).ok_or("a header of the package is damaged")
        };
        // The first one has signatures; the other begins at a multiple of eight.
        let signatures = header::size(body(LEAD)?).ok_or("a header of the package is damaged")?;
        let at =
            signatures.checked_next_multiple_of(8).and_then(|len| len.checked_add(LEAD + 8)).ok_or("a header of the package is damaged")?;
        let blob = body(at)?;
        if header::size(blob).is_none_or(|size| size > HEADER_LIMIT) {
            return Err("a header of the package is damaged");
        }
        header::file(blob).ok_or("the file is cut off, or names no package")
    }
}

/// All packages, in the database's order.
pub(super) fn applications(fs: &dyn GuestFs) -> Result<Vec<Application>> {
    for folder in FOLDERS {
        for (name, each_header) in FORMS {
            let path = format!("{folder}/{name}");
            let Some(file) = CachedFile::open(fs, path.as_bytes())? else { continue };
            if file.size() > LIMIT {
                return Err(corrupt(&file, format_args!("{} bytes are more than any such database has", file.size())));
            }
            let mut found = Vec::new();
            each_header(&file, fs, path.as_bytes(), &mut |blob| found.extend(header::application(blob)))?;
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn corrupt(file: &CachedFile<'_>, what: impl std::fmt::Display) -> Error {
    file.corrupt("rpm database", what)
}
