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
