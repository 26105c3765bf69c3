//! Paths inside a guest: joining, and following symbolic links without ever leaving its root.

use guestfs::{Error, FileType, GuestFs, Result};

use super::Node;

/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

/// Where a path's file comes from.
pub(super) enum Found<'a> {
    /// The guest, unchanged.
    Base,
    /// A change.
    Node(&'a Node),
}

/// `dir` + `/` + `name`.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The directory of a canonical path; `None` for `/`.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    if path == b"/" {
        return None;
    }
    match path.iter().rposition(|&b| b == b'/')? {
        0 => Some(b"/"),
        at => Some(&path[..at]),
    }
}

/// Whether a canonical path lies in a directory, at whatever depth.
pub(super) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(&join(dir, b"")[..]).is_some_and(|rest| !rest.is_empty())
}

/// The name that `path` has directly in `dir`.
pub(super) fn child_of<'p>(dir: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    path.strip_prefix(&join(dir, b"")[..]).filter(|name| !name.is_empty() && !name.contains(&b'/'))
}

/// The target of a symbolic link of the guest; `None` when it is something else or missing.
pub(super) fn base_link(base: &dyn GuestFs, path: &[u8]) -> Result<Option<Vec<u8>>> {
    match base.lstat(path) {
        Ok(stat) if stat.kind == FileType::Symlink => base.readlink(path).map(Some),
        Ok(_) | Err(Error::NotFound(_)) | Err(Error::WrongType { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Tells the target of the symbolic link at a canonical path; `None` for anything else.
pub(crate) type LinkTarget<'a> = &'a dyn Fn(&[u8]) -> Result<Option<Vec<u8>>>;

/// The path without symbolic links, `.` and `..`; `link` tells the target of the symbolic link at a canonical path.
/// The file itself need not be there.
pub(crate) fn resolve(path: &[u8], follow: bool, link: LinkTarget<'_>) -> Result<Vec<u8>> {
    if path.first() != Some(&b'/') {
        return Err(Error::Invalid(format!("{}: not an absolute path", guestfs::show(path))));
    }
    let split = |p: &[u8]| p.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut todo = split(path);
    let mut done: Vec<u8> = b"/".to_vec();
    let mut links = 0;
    while let Some(component) = todo.pop() {
        match &component[..] {
            b"" | b"." => continue,
            b".." => {
                done = parent(&done).unwrap_or(b"/").to_vec();
                continue;
            }
            _ => {}
        }
        let here = join(&done, &component);
        let last = todo.iter().all(|c| c.is_empty() || c == b".");
        if last && !follow {
            done = here;
            continue;
        }
        match link(&here)? {
            None => done = here,
            Some(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::Guest { path: path.to_vec(), action: "follow", what: "too many symbolic links".into() });
                }
                if target.first() == Some(&b'/') {
                    done = b"/".to_vec();
                }
                todo.extend(split(&target));
            }
        }
    }
    Ok(done)
}
