//! What a staged guest changes, file by file, for people to read.

use std::collections::{BTreeMap, BTreeSet};

use guestfs::{Ext, FileType, GuestFs, Stat, show};
use similar::TextDiff;

use super::{Op, Staged, path};

/// Files above this are not compared line by line.
const TEXT_LIMIT: u64 = 512 << 10;

/// More new files than this in one directory are told as one.
const CROWD: usize = 20;

/// Directories with many new files and nothing else that is touched, which are told as one.
struct Crowds<'a> {
    all: Vec<Crowd>,
    /// Where each path belongs.
    of: BTreeMap<&'a [u8], usize>,
}

struct Crowd {
    dir: Vec<u8>,
    first: Vec<u8>,
    files: usize,
    bytes: u64,
}

impl Crowds<'_> {
    fn of(&self, path: &[u8]) -> Option<&Crowd> {
        self.of.get(path).and_then(|index| self.all.get(*index))
    }

    /// The line that tells the crowd stands for this directory, too.
    fn is_dir_of_one(&self, path: &[u8]) -> bool {
        self.all.iter().any(|crowd| crowd.dir == path)
    }
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Added,
    Changed,
    Removed,
}

/// The difference between a file of the guest and the staged one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FileDiff {
    /// The path, with control characters escaped.
    pub path: String,
    /// What happens to it.
    pub kind: Kind,
    /// The steps that touched it, in order.
    pub steps: Vec<&'static str>,
    /// A unified diff with header for text; one line in words for anything else.
    pub text: String,
}

impl Staged<'_> {
    /// All files that differ from the guest's, by path.
    pub fn diff(&self) -> Vec<FileDiff> {
        let mut touched: BTreeMap<&[u8], Vec<&'static str>> = BTreeMap::new();
        for change in self.changes() {
            let from = match &change.op {
                Op::Rename { from, .. } => Some(&from[..]),
                _ => None,
            };
            for path in from.into_iter().chain([change.op.path()]) {
                let steps = touched.entry(path).or_default();
                if !steps.contains(&change.step) {
                    steps.push(change.step);
                }
            }
        }
        let mut diffs: Vec<FileDiff> = Vec::new();
        let crowds = self.crowds();
        // A file that is removed for a command to make it anew is that command's.
        touched.retain(|path, _| !(self.is_passing(path) || self.is_made(path) && self.lstat(path).is_err()));
        for (path, steps) in touched {
            match crowds.of(path) {
                None if crowds.is_dir_of_one(path) => {}
                None => diffs.extend(self.diff_of(path, steps)),
                Some(crowd) if crowd.first == path => {
                    let text = format!("{} new files, {}\n", crowd.files, imgcore::size::human(crowd.bytes));
                    diffs.push(FileDiff { path: show(&path::join(&crowd.dir, b"")), kind: Kind::Added, steps, text });
                }
                Some(_) => {}
            }
        }
        diffs
    }

    fn crowds(&self) -> Crowds<'_> {
        let touched: BTreeSet<&[u8]> = self.changes().iter().map(|c| c.op.path()).filter(|p| !self.is_passing(p)).collect();
        let is_new = |p: &[u8]| self.base.lstat(p).is_err();
        let mut dirs: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        for path in touched {
            let tree = self.trees.iter().find(|tree| path::is_below(path, tree)).map(Vec::as_slice);
            if let Some(dir) = tree.or(path::parent(path)) {
                dirs.entry(dir).or_default().push(path);
            }
        }
        let mut crowds = Crowds { all: Vec::new(), of: BTreeMap::new() };
        for (dir, paths) in dirs {
            let many = |paths: &[&[u8]]| paths.len() > CROWD && paths.iter().all(|p| is_new(p));
            let Some(first) = paths.first().filter(|_| many(&paths)) else { continue };
            let files = paths.iter().filter_map(|p| self.lstat(p).ok()).filter(|s| s.kind != FileType::Directory);
            let sizes: Vec<u64> = files.map(|s| s.size).collect();
            crowds.of.extend(paths.iter().map(|path| (*path, crowds.all.len())));
            crowds.all.push(Crowd { dir: dir.to_vec(), first: first.to_vec(), files: sizes.len(), bytes: sizes.iter().sum() });
        }
        crowds
    }

    /// The files that one step changed, in order of name; directories that had to be made for them are not told.
    pub fn paths_of(&self, step: &str) -> Vec<String> {
        let crowds = self.crowds();
        let paths: BTreeSet<&[u8]> = {
            let told = |c: &&super::Change| c.step == step && !matches!(c.op, Op::Mkdir { .. }) && !self.is_passing(c.op.path());
            let of_step = self.changes().iter().filter(told);
            // What was there for a moment only is nothing that changed.
            of_step.map(|c| c.op.path()).filter(|p| self.base.lstat(p).is_ok() || self.lstat(p).is_ok()).collect()
        };
        let mut told: Vec<String> = paths
            .into_iter()
            .map(|p| match crowds.of(p) {
                Some(crowd) => show(&path::join(&crowd.dir, b"")),
                None => show(p),
            })
            .collect();
        told.dedup();
        told
    }

    fn diff_of(&self, path: &[u8], steps: Vec<&'static str>) -> Option<FileDiff> {
        let (old, new) = (self.base.lstat(path).ok(), self.lstat(path).ok());
        let shown = show(path);
        let (kind, text) = match (&old, &new) {
            (None, None) => return None,
            (None, Some(stat)) => {
                let text = match self.text(path, stat) {
                    Some(text) => unified(&shown, "", &text, true, false),
                    None => describe(self, path, stat),
                };
                let mode = if stat.kind == FileType::Symlink { String::new() } else { format!("new mode {:04o}\n", stat.mode) };
                (Kind::Added, mode + &text)
            }
            (Some(stat), None) => match text_of(self.base, path, stat) {
                Some(text) => (Kind::Removed, unified(&shown, &text, "", false, true)),
                None => (Kind::Removed, describe(self.base, path, stat)),
            },
            (Some(a), Some(b)) => {
                let mut text = String::new();
                if (a.mode, a.uid, a.gid) != (b.mode, b.uid, b.gid) && b.kind != FileType::Symlink {
                    text += &format!("mode {:04o} {}:{} becomes {:04o} {}:{}\n", a.mode, a.uid, a.gid, b.mode, b.uid, b.gid);
                }
                match (text_of(self.base, path, a), self.text(path, b)) {
                    (Some(old), Some(new)) if old == new => {}
                    (Some(old), Some(new)) => text += &unified(&shown, &old, &new, false, false),
                    _ => {
                        let (old, new) = (describe(self.base, path, a), describe(self, path, b));
                        if a.kind == FileType::Regular && b.kind == FileType::Regular {
                            if !same(self.base, self, path) {
                                text += &format!("{}becomes\n{new}", old);
                            }
                        } else if old != new {
                            text += &format!("{old}becomes\n{new}");
                        }
                    }
                }
                if self.base.xattrs(path).ok() != self.xattrs(path).ok() {
                    text += "extended attributes change\n";
                }
                if text.is_empty() {
                    return None;
                }
                (Kind::Changed, text)
            }
        };
        Some(FileDiff { path: shown, kind, steps, text })
    }

    fn text(&self, path: &[u8], stat: &Stat) -> Option<String> {
        text_of(self, path, stat)
    }
}

fn text_of(fs: &dyn GuestFs, path: &[u8], stat: &Stat) -> Option<String> {
    if stat.kind != FileType::Regular || stat.size > TEXT_LIMIT {
        return None;
    }
    let bytes = fs.read(path, TEXT_LIMIT).ok()?;
    (!bytes.contains(&0)).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn same(a: &dyn GuestFs, b: &dyn GuestFs, path: &[u8]) -> bool {
    let (mut x, mut y) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut at = 0;
    loop {
        match (a.read_at(path, at, &mut x), b.read_at(path, at, &mut y)) {
            (Ok(0), Ok(0)) => return true,
            (Ok(n), Ok(m)) => {
                let n = n.min(m);
                if n == 0 || x[..n] != y[..n] {
                    return false;
                }
                at += n as u64;
            }
            _ => return false,
        }
    }
}

fn describe(fs: &dyn GuestFs, path: &[u8], stat: &Stat) -> String {
    match stat.kind {
        FileType::Regular => format!("binary, {}\n", imgcore::size::human(stat.size)),
        FileType::Directory => "directory\n".into(),
        FileType::Symlink => format!("link to {}\n", fs.readlink(path).map(|t| show(&t)).unwrap_or_default()),
        FileType::CharDevice | FileType::BlockDevice => format!("device {}:{}\n", stat.rdev.0, stat.rdev.1),
        FileType::Fifo => "fifo\n".into(),
        FileType::Socket => "socket\n".into(),
    }
}

fn unified(path: &str, old: &str, new: &str, added: bool, removed: bool) -> String {
    let relative = path.trim_start_matches('/');
    let a = if added { "/dev/null".into() } else { format!("a/{relative}") };
    let b = if removed { "/dev/null".into() } else { format!("b/{relative}") };
    TextDiff::from_lines(old, new).unified_diff().context_radius(3).header(&a, &b).to_string()
}
