//! What is installed, from the package manager's own database.

use super::{CONFIG_LIMIT, Inspection, System, windows};
use crate::{Error, Ext, GuestFs, Result};

mod apk;
mod dpkg;
mod pacman;
mod rpm;

pub use rpm::RpmFile;

/// An installed package. Absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are libguestfs's")]
pub struct Application {
    pub name: String,
    /// The name for people, where that is another: Windows'.
    pub display_name: String,
    pub epoch: u32,
    pub version: String,
    pub release: String,
    pub arch: String,
    /// Where it is in the guest, as Windows writes it.
    pub install_path: String,
    pub publisher: String,
    pub url: String,
    pub source_package: String,
    pub summary: String,
    pub description: String,
    /// Names that it stands for besides its own.
    pub provides: Vec<String>,
}

/// A database that is one text has a few MiB.
const TEXT_DATABASE_LIMIT: u64 = 64 * CONFIG_LIMIT;
/// No field is longer.
const TEXT_LIMIT: usize = 64 << 10;

/// Lists what a database holds.
type List = fn(&dyn GuestFs) -> Result<Vec<Application>>;

/// The databases that are read, by package format.
const FORMATS: &[(&str, List)] =
    &[("deb", dpkg::applications), ("rpm", rpm::applications), ("apk", apk::applications), ("pacman", pacman::applications)];

/// Installed packages by name. `None` for package formats that are not read.
pub fn applications(fs: &dyn GuestFs, inspection: &Inspection) -> Result<Option<Vec<Application>>> {
    if let System::Windows(windows) = &inspection.system {
        return windows::applications(fs, windows).map(|found| Some(by_name(found)));
    }
    of_format(fs, inspection.release.package_format())
}

/// As [`applications`], from the database of this format, by libguestfs's name: `deb`, `rpm`.
pub fn of_format(fs: &dyn GuestFs, format: &str) -> Result<Option<Vec<Application>>> {
    let Some((_, list)) = FORMATS.iter().find(|(known, _)| *known == format) else { return Ok(None) };
    list(fs).map(|found| Some(by_name(found)))
}

fn by_name(mut found: Vec<Application>) -> Vec<Application> {
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// A database that is one text; empty when it is not there.
fn text(fs: &dyn GuestFs, path: &[u8]) -> Result<String> {
    match fs.read(path, TEXT_DATABASE_LIMIT) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(Error::NotFound(_)) => Ok(String::new()),
        Err(e) => Err(e),
    }
}

/// `EPOCH:REST` in two.
fn epoch(version: &str) -> (u32, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    (epoch.parse().unwrap_or(0), rest)
}
