//! Walks a guest's tree without recursion: damaged filesystems nest without an end.

use guestfs::{FileType, GuestFs, Stat};

use super::show::join;
use crate::common::Failure;

/// No directory of a sound guest lies deeper.
const DEPTH: usize = 20_000;

/// Takes a file's path and what it is.
type Visitor<'a> = dyn FnMut(&[u8], &Stat) -> Result<(), Failure> + 'a;

/// Hands over `top` and all that is below it: a file's path below `top`, which is empty for itself, and what it is.
/// A directory comes before what is in it, and names in order.
pub(super) fn walk(fs: &dyn GuestFs, top: &[u8], visit: &mut Visitor<'_>) -> Result<(), Failure> {
    let stat = fs.lstat(top)?;
    visit(b"", &stat)?;
    if stat.kind != FileType::Directory {
        return Ok(());
    }
    let mut path = top.to_vec();
    // The names that are still to come in each directory on the way, and where its own path ends.
    let mut way = vec![(names(fs, top)?, top.len())];
    while let Some((names_left, end)) = way.last_mut() {
        path.truncate(*end);
        let Some(name) = names_left.next() else {
            way.pop();
            continue;
        };
        path = join(&path, checked(&name)?);
        let stat = fs.lstat(&path)?;
        let below = path.get(top.len()..).unwrap_or_default();
        visit(below.strip_prefix(b"/").unwrap_or(below), &stat)?;
        if stat.kind == FileType::Directory {
            if way.len() >= DEPTH {
                return Err(Failure::new(format!("{}: directories nest too deep", guestfs::show(&path))));
            }
            way.push((names(fs, &path)?, path.len()));
        }
    }
    Ok(())
}

fn names(fs: &dyn GuestFs, path: &[u8]) -> Result<std::vec::IntoIter<Vec<u8>>, Failure> {
    let mut names: Vec<Vec<u8>> = fs.read_dir(path)?.into_iter().map(|e| e.name).collect();
    names.sort();
    Ok(names.into_iter())
}

/// A name from the guest that means one file in its directory.
fn checked(name: &[u8]) -> Result<&[u8], Failure> {
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(Failure::new(format!("the guest has a file called '{}': that is no name", guestfs::show(name))));
    }
    Ok(name)
}
