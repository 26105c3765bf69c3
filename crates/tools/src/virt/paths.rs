//! A guest's tree as an iterator over paths, so that two guests can be gone through side by side: without recursion, since a guest's
//! directories may nest as deep as it likes.

use std::collections::HashSet;

use guestfs::{FileType, GuestFs, Stat};

use super::show::join;
use crate::common::Failure;

/// No directory of a sound guest lies deeper.
const DEPTH: usize = 20_000;

/// In which order files come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Names of one directory in order, each directory before what is in it.
    Tree,
    /// Paths as strings: `a`, `a-b`, `a/c`.
    Path,
}

/// Iterates over a file and all that is below it.
pub(super) struct Walk<'a> {
    fs: &'a dyn GuestFs,
    order: Order,
    /// Directories that are being listed, and what is left of them in reverse.
    levels: Vec<(Vec<u8>, Vec<Step>)>,
    /// No directory is in two places; where one is, the filesystem is damaged.
    seen: HashSet<(u64, u64)>,
}

/// A name in a directory, to be told or to be entered.
struct Step {
    name: Vec<u8>,
    enter: bool,
}

/// A file that was come to.
pub(super) struct Found {
    pub(super) path: Vec<u8>,
    pub(super) stat: Stat,
}

impl<'a> Walk<'a> {
    /// The walk that begins at a path, which may be a link.
    pub(super) fn new(fs: &'a dyn GuestFs, path: &[u8], order: Order) -> Result<(Self, Found), Failure> {
        Self::at(fs, path, fs.stat(path)?, order)
    }

    /// The walk that begins at a path and what is known of it.
    pub(super) fn at(fs: &'a dyn GuestFs, path: &[u8], stat: Stat, order: Order) -> Result<(Self, Found), Failure> {
        let mut walk = Walk { fs, order, levels: Vec::new(), seen: HashSet::new() };
        if stat.kind == FileType::Directory {
            walk.enter(path.to_vec(), &stat)?;
        }
        Ok((walk, Found { path: path.to_vec(), stat }))
    }

    fn enter(&mut self, path: Vec<u8>, stat: &Stat) -> Result<(), Failure> {
        if !self.seen.insert((stat.dev, stat.ino)) {
            let message = format!("{}: the directory is in two places", guestfs::show(&path));
            return Err(Failure::new(message).hint("the filesystem is damaged: check it with its fsck"));
        }
        if self.levels.len() >= DEPTH {
            return Err(Failure::new(format!("{}: directories nest too deep", guestfs::show(&path))));
        }
        let mut steps = Vec::new();
        for entry in self.fs.read_dir(&path)? {
            if self.order == Order::Path && entry.kind == FileType::Directory {
                steps.push(Step { name: [&entry.name[..], b"/"].concat(), enter: true });
            }
            steps.push(Step { name: entry.name, enter: false });
        }
        steps.sort_unstable_by(|a, b| b.name.cmp(&a.name));
        self.levels.push((path, steps));
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Found>, Failure> {
        while let Some((directory, steps)) = self.levels.last_mut() {
            let Some(step) = steps.pop() else {
                self.levels.pop();
                continue;
            };
            let name = if step.enter { step.name.strip_suffix(b"/").unwrap_or(&step.name) } else { &step.name };
            let path = join(directory, checked(name)?);
            let stat = self.fs.lstat(&path)?;
            let is_directory = stat.kind == FileType::Directory;
            if is_directory && (step.enter || self.order == Order::Tree) {
                self.enter(path.clone(), &stat)?;
            }
            if !step.enter {
                return Ok(Some(Found { path, stat }));
            }
        }
        Ok(None)
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Found, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// A name from the guest that means one file in its directory.
fn checked(name: &[u8]) -> Result<&[u8], Failure> {
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(Failure::new(format!("the guest has a file called '{}': that is no name", guestfs::show(name))));
    }
    Ok(name)
}
