//! A guest's tree handed over file by file, with paths below its top.

use guestfs::{GuestFs, Stat};

use super::paths::{Order, Walk};
use crate::common::Failure;

/// Takes a file's path and what it is.
type Visitor<'a> = dyn FnMut(&[u8], &Stat) -> Result<(), Failure> + 'a;

/// Hands over `top` and all that is below it: a file's path below `top`, which is empty for itself, and what it is.
/// A directory comes before what is in it, and names in order.
pub(super) fn walk(fs: &dyn GuestFs, top: &[u8], visit: &mut Visitor<'_>) -> Result<(), Failure> {
    let stat = fs.lstat(top)?;
    visit(b"", &stat)?;
    let (walk, _) = Walk::at(fs, top, stat, Order::Tree)?;
    for found in walk {
        let found = found?;
        let below = found.path.get(top.len()..).unwrap_or_default();
        visit(below.strip_prefix(b"/").unwrap_or(below), &found.stat)?;
    }
    Ok(())
}
