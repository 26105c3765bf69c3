//! The members of any tar: where each one's bytes lie. For archives of disks that are not XVA, such as OVA.

use std::ops::Range;
use std::path::Path;

use imgcore::{Error, Result};

use crate::bytes::{HostFile, Walk};
use crate::tar::Tar;

/// More than that no archive of disks has.
const MAX_MEMBERS: usize = 10_000;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path, without a leading `./` or `/`.
    pub name: String,
    /// Where its bytes lie in the archive.
    pub range: Range<u64>,
}

/// The regular files in the archive `path`, in their order. `format` is what messages call it.
///
/// # Errors
/// [`Error::Corrupt`] for an archive that is damaged or was cut off.
pub fn members(path: &Path, format: &'static str) -> Result<Vec<Member>> {
    let file = HostFile::open(path)?;
    let name = path.display().to_string();
    let len = file.len()?;
    let mut tar = Tar::new(Walk::new(&file), &name).of_format(format);
    let mut members = Vec::new();
    while let Some(entry) = tar.next()? {
        let range = entry.data..entry.data.saturating_add(entry.size);
        if range.end > len {
            let what = format!("{} was cut off: it has {} bytes, and the archive ends before them", entry.name, entry.size);
            return Err(Error::corrupt(&name, format, range.start, what));
        }
        if members.len() >= MAX_MEMBERS {
            return Err(Error::corrupt(&name, format, range.start, format!("more than {MAX_MEMBERS} members")));
        }
        if entry.regular {
            members.push(Member { name: entry.name, range });
        }
    }
    Ok(members)
}
