//! A guest's tree with changes held in memory: steps edit it, the plan prints it, applying writes it in one session.
//!
//! [`Staged`] is itself a [`GuestFs`] and [`GuestFsMut`], so that a step sees what the steps before it did. Every change is also kept in
//! order, with the step that made it: [`Staged::apply`] repeats them on a session and then runs the commands.

mod diff;
pub(crate) mod path;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use guestfs::engine::{Command, Output, Session};
use guestfs::{Attributes, DirEntry, Error, Ext, FileType, GuestFs, GuestFsMut, Result, Stat, StatFs, Time, show};

pub use diff::{FileDiff, Kind};
use path::Found;

/// Inode numbers of staged files start here: above those of any filesystem that steps are likely to see.
const FIRST_INO: u64 = 1 << 62;

/// One change, as it will be repeated on the guest. Paths have their symbolic links resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the GuestFsMut methods")]
pub enum Op {
    Write { path: Vec<u8>, data: Arc<[u8]>, attributes: Option<Attributes> },
    Mkdir { path: Vec<u8>, attributes: Attributes },
    Symlink { target: Vec<u8>, path: Vec<u8> },
    Link { existing: Vec<u8>, path: Vec<u8> },
    Mknod { path: Vec<u8>, kind: FileType, rdev: (u32, u32), attributes: Attributes },
    Rename { from: Vec<u8>, to: Vec<u8> },
    Remove { path: Vec<u8> },
    SetAttributes { path: Vec<u8>, attributes: Attributes },
    SetTimes { path: Vec<u8>, atime: Time, mtime: Time },
    SetXattr { path: Vec<u8>, name: Vec<u8>, value: Vec<u8> },
}

impl Op {
    /// The path that is changed; for a rename the new one.
    pub fn path(&self) -> &[u8] {
        match self {
            Op::Write { path, .. }
            | Op::Mkdir { path, .. }
            | Op::Symlink { path, .. }
            | Op::Link { path, .. }
            | Op::Mknod { path, .. }
            | Op::Rename { to: path, .. }
            | Op::Remove { path }
            | Op::SetAttributes { path, .. }
            | Op::SetTimes { path, .. }
            | Op::SetXattr { path, .. } => path,
        }
    }
}

/// A change and the step that asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The step's name.
    pub step: &'static str,
    /// What is changed.
    pub op: Op,
}

/// A command for the guest's root, run after all changes are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedCommand {
    /// The step's name.
    pub step: &'static str,
    /// Why it is needed, for the plan and the report.
    pub why: String,
    /// The command.
    pub command: Command,
    /// The files that it makes or changes; a `/` at the end stands for what is below that directory.
    pub makes: Vec<String>,
}

impl StagedCommand {
    /// The command as a person would type it.
    pub fn shown(&self) -> String {
        shown(&self.command)
    }
}

/// A command that was run, with what it left.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command.
    pub command: StagedCommand,
    /// What it left.
    pub output: Output,
    /// How long it took.
    pub seconds: f64,
}

fn shown(command: &Command) -> String {
    let word = |w: &Vec<u8>| {
        let text = show(w);
        let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./=:+,@%".contains(c));
        if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    command.argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[derive(Clone)]
enum Entry {
    /// Removed, or renamed away.
    Gone,
    Here(Node),
}

/// A file that differs from the guest's, or has no counterpart there.
#[derive(Clone)]
struct Node {
    /// The guest's file that all that is not set here comes from.
    base: Option<Vec<u8>>,
    kind: FileType,
    ino: u64,
    data: Option<Arc<[u8]>>,
    target: Vec<u8>,
    rdev: (u32, u32),
    attributes: Option<Attributes>,
    times: Option<(Time, Time)>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The guest's tree with changes in memory.
pub struct Staged<'a> {
    base: &'a dyn GuestFs,
    entries: BTreeMap<Vec<u8>, Entry>,
    log: Vec<Change>,
    commands: Vec<StagedCommand>,
    /// Directories that a command takes away again.
    passing: Vec<Vec<u8>>,
    /// Directories that are told as one, with all below them.
    trees: Vec<Vec<u8>>,
    step: &'static str,
    next_ino: u64,
}

impl<'a> Staged<'a> {
    /// A view of `base` without changes.
    pub fn new(base: &'a dyn GuestFs) -> Self {
        Staged {
            base,
            entries: BTreeMap::new(),
            log: Vec::new(),
            commands: Vec::new(),
            passing: Vec::new(),
            trees: Vec::new(),
            step: "",
            next_ino: FIRST_INO,
        }
    }

    /// Marks what follows as the work of this step.
    pub fn begin(&mut self, step: &'static str) {
        self.step = step;
    }

    /// Adds a command to be run in the guest's root after all changes are written, in the order of adding. It must end with status 0.
    ///
    /// [`makes`](Self::makes) says which files it writes.
    pub fn command(&mut self, why: impl Into<String>, command: Command) {
        self.commands.push(StagedCommand { step: self.step, why: why.into(), command, makes: Vec::new() });
    }

    /// Files that the last command makes or changes, for the plan; a `/` at the end stands for what is below that directory.
    pub fn makes(&mut self, files: impl IntoIterator<Item = String>) {
        // Their true places: /lib may be a link.
        let place = |file: String| match self.resolve(file.trim_end_matches('/').as_bytes(), false) {
            Ok(path) => show(&path) + if file.ends_with('/') { "/" } else { "" },
            Err(_) => file,
        };
        let mut places: Vec<String> = files.into_iter().map(place).collect();
        if let Some(command) = self.commands.last_mut() {
            places.retain(|place| !command.makes.contains(place));
            command.makes.append(&mut places);
        }
    }

    /// Says that a command takes this new directory away again: it is no part of what changes.
    pub fn passing(&mut self, dir: &[u8]) {
        self.passing.push(dir.to_vec());
    }

    /// Whether a path is that of such a directory, or below one.
    pub fn is_passing(&self, path: &[u8]) -> bool {
        self.passing.iter().any(|dir| path == dir || path::is_below(path, dir))
    }

    /// Says that nobody wants to read of each file below this new directory.
    pub fn tree(&mut self, dir: &[u8]) -> Result<()> {
        self.trees.push(self.resolve(dir, false)?);
        Ok(())
    }

    /// Whether a command makes this file.
    fn is_made(&self, path: &[u8]) -> bool {
        self.commands.iter().flat_map(|command| &command.makes).any(|made| made.as_bytes() == path)
    }

    /// All changes, in order.
    pub fn changes(&self) -> &[Change] {
        &self.log
    }

    /// All commands, in order.
    pub fn commands(&self) -> &[StagedCommand] {
        &self.commands
    }

    /// The guest's file as it is without the changes.
    pub fn before(&self, path: &[u8]) -> Result<Stat> {
        self.base.lstat(path)
    }

    /// Nothing to write and nothing to run.
    pub fn is_unchanged(&self) -> bool {
        self.log.is_empty() && self.commands.is_empty()
    }

    /// Writes all changes to the guest that is mounted in `session`, then runs the commands.
    ///
    /// # Errors
    /// The first failure ends it; the guest is then half changed and must be thrown away. `guest` names it in messages.
    pub fn apply(&self, guest: &str, session: &mut dyn Session) -> crate::Result<Vec<Ran>> {
        self.write_to(session)?;
        let mut ran = Vec::with_capacity(self.commands.len());
        for staged in &self.commands {
            let start = std::time::Instant::now();
            let output = session.run(&staged.command)?;
            if output.status != 0 {
                let tail = |bytes: &[u8]| {
                    let text = String::from_utf8_lossy(bytes).into_owned();
                    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
                    lines[lines.len().saturating_sub(15)..].iter().map(|l| show(l.as_bytes())).collect::<Vec<_>>().join("\n  ")
                };
                let words = if output.stderr.is_empty() { tail(&output.stdout) } else { tail(&output.stderr) };
                return Err(crate::Error::Step {
                    guest: guest.into(),
                    step: staged.step,
                    what: format!("'{}' in the guest ended with status {}:\n  {words}", staged.shown(), output.status),
                });
            }
            ran.push(Ran { command: staged.clone(), output, seconds: start.elapsed().as_secs_f64() });
        }
        Ok(ran)
    }

    /// Repeats all changes on another tree.
    pub fn write_to<F: GuestFsMut + ?Sized>(&self, to: &mut F) -> Result<()> {
        for (i, change) in self.log.iter().enumerate() {
            match &change.op {
                Op::Write { path, data, attributes } => {
                    if !self.superseded(i, path, attributes.is_some()) {
                        to.write(path, &mut &data[..], *attributes)?;
                    }
                }
                Op::Mkdir { path, attributes } => to.mkdir(path, *attributes)?,
                Op::Symlink { target, path } => to.symlink(target, path)?,
                Op::Link { existing, path } => to.link(existing, path)?,
                Op::Mknod { path, kind, rdev, attributes } => to.mknod(path, *kind, *rdev, *attributes)?,
                Op::Rename { from, to: new } => to.rename(from, new)?,
                Op::Remove { path } => to.remove(path)?,
                Op::SetAttributes { path, attributes } => to.set_attributes(path, *attributes)?,
                Op::SetTimes { path, atime, mtime } => to.set_times(path, *atime, *mtime)?,
                Op::SetXattr { path, name, value } => to.set_xattr(path, name, value)?,
            }
        }
        Ok(())
    }

    /// Whether the write at `i` need not happen, because the file is written again before anything else looks at it.
    fn superseded(&self, i: usize, path: &[u8], sets_attributes: bool) -> bool {
        for later in &self.log[i + 1..] {
            match &later.op {
                Op::Write { path: p, attributes, .. } if p == path => return attributes.is_some() || !sets_attributes,
                Op::Rename { from, to } if from == path || to == path => return false,
                Op::Link { existing, .. } if existing == path => return false,
                op if op.path() == path => return false,
                _ => {}
            }
        }
        false
    }

    fn log(&mut self, op: Op) {
        self.log.push(Change { step: self.step, op });
    }

    /// What lies at a path whose parents are free of symbolic links.
    fn find(&self, path: &[u8]) -> Result<Found<'_>> {
        if let Some(entry) = self.entries.get(path) {
            return match entry {
                Entry::Gone => Err(Error::NotFound(path.to_vec())),
                Entry::Here(node) => Ok(Found::Node(node)),
            };
        }
        let mut up = path;
        while let Some(parent) = path::parent(up) {
            match self.entries.get(parent) {
                Some(Entry::Gone) => return Err(Error::NotFound(path.to_vec())),
                Some(Entry::Here(node)) if node.base.is_none() => return Err(Error::NotFound(path.to_vec())),
                _ => up = parent,
            }
        }
        Ok(Found::Base)
    }

    fn resolve(&self, path: &[u8], follow: bool) -> Result<Vec<u8>> {
        path::resolve(path, follow, &|p| match self.find(p) {
            Ok(Found::Node(node)) if node.kind == FileType::Symlink => Ok(Some(self.link_target(p)?)),
            Ok(Found::Node(_)) => Ok(None),
            Ok(Found::Base) => path::base_link(self.base, p),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        })
    }

    fn link_target(&self, canonical: &[u8]) -> Result<Vec<u8>> {
        match self.find(canonical)? {
            Found::Base => self.base.readlink(canonical),
            Found::Node(Node { base: Some(base), kind: FileType::Symlink, .. }) => self.base.readlink(base),
            Found::Node(node) if node.kind == FileType::Symlink => Ok(node.target.clone()),
            Found::Node(_) => Err(Error::WrongType { path: canonical.to_vec(), what: "not a symbolic link" }),
        }
    }

    fn lstat_canonical(&self, path: &[u8]) -> Result<Stat> {
        let node = match self.find(path)? {
            Found::Base => return self.base.lstat(path),
            Found::Node(node) => node,
        };
        let mut stat = match &node.base {
            Some(base) => self.base.lstat(base)?,
            None => Stat {
                kind: node.kind,
                mode: 0o777,
                uid: 0,
                gid: 0,
                size: node.target.len() as u64,
                nlink: if node.kind == FileType::Directory { 2 } else { 1 },
                ino: node.ino,
                dev: self.device_of(path),
                rdev: node.rdev,
                blocks: 0,
                atime: Time::default(),
                mtime: Time::default(),
                ctime: Time::default(),
            },
        };
        if let Some(data) = &node.data {
            stat.size = data.len() as u64;
            stat.blocks = stat.size.div_ceil(512);
        }
        if let Some(a) = node.attributes {
            (stat.mode, stat.uid, stat.gid) = (a.mode, a.uid, a.gid);
        }
        if let Some((atime, mtime)) = node.times {
            (stat.atime, stat.mtime) = (atime, mtime);
        }
        Ok(stat)
    }

    /// The filesystem of the nearest directory above that the guest has.
    fn device_of(&self, path: &[u8]) -> u64 {
        std::iter::successors(path::parent(path), |p| path::parent(p))
            .find_map(|p| self.base.lstat(p).ok().filter(|s| s.kind == FileType::Directory))
            .map_or(0, |s| s.dev)
    }

    /// The node to change at a canonical path: the staged one, or a new one that inherits from the guest's file.
    fn node_mut(&mut self, path: &[u8]) -> Result<&mut Node> {
        if matches!(self.find(path)?, Found::Base) {
            let stat = self.base.lstat(path)?;
            let node = Node::inheriting(path.to_vec(), stat.kind, stat.ino);
            self.entries.insert(path.to_vec(), Entry::Here(node));
        }
        match self.entries.get_mut(path) {
            Some(Entry::Here(node)) => Ok(node),
            _ => Err(Error::NotFound(path.to_vec())),
        }
    }

    /// Prepares a canonical path for a new file: its directory must be there, the path itself must not.
    fn vacant(&self, path: &[u8]) -> Result<()> {
        let parent = path::parent(path).ok_or_else(|| Error::Invalid("/ cannot be made".into()))?;
        if self.lstat_canonical(parent)?.kind != FileType::Directory {
            return Err(Error::WrongType { path: parent.to_vec(), what: "not a directory" });
        }
        match self.lstat_canonical(path) {
            Ok(_) => Err(Error::Guest { path: path.to_vec(), action: "create", what: "the file exists".into() }),
            Err(Error::NotFound(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn insert(&mut self, path: &[u8], node: Node) {
        self.next_ino += 1;
        self.entries.insert(path.to_vec(), Entry::Here(node));
    }
}

impl Node {
    fn new(kind: FileType, ino: u64, attributes: Attributes) -> Self {
        Node {
            base: None,
            kind,
            ino,
            data: None,
            target: Vec::new(),
            rdev: (0, 0),
            attributes: Some(attributes),
            times: None,
            xattrs: BTreeMap::new(),
        }
    }

    fn inheriting(base: Vec<u8>, kind: FileType, ino: u64) -> Self {
        Node { base: Some(base), attributes: None, ..Node::new(kind, ino, Attributes::root(0)) }
    }
}

impl GuestFs for Staged<'_> {
    fn lstat(&self, path: &[u8]) -> Result<Stat> {
        self.lstat_canonical(&self.resolve(path, false)?)
    }

    fn stat(&self, path: &[u8]) -> Result<Stat> {
        self.lstat_canonical(&self.resolve(path, true)?)
    }

    fn read_dir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        let dir = self.resolve(path, true)?;
        if self.lstat_canonical(&dir)?.kind != FileType::Directory {
            return Err(Error::WrongType { path: path.to_vec(), what: "not a directory" });
        }
        let own = match self.find(&dir)? {
            Found::Node(node) if node.base.is_none() => Vec::new(),
            _ => self.base.read_dir(&dir)?,
        };
        let mut names: BTreeMap<Vec<u8>, DirEntry> = own.into_iter().map(|e| (e.name.clone(), e)).collect();
        for (at, entry) in self.entries.range(path::join(&dir, b"")..) {
            let Some(name) = path::child_of(&dir, at) else {
                if at.starts_with(&path::join(&dir, b"")) {
                    continue;
                }
                break;
            };
            match entry {
                Entry::Gone => drop(names.remove(name)),
                Entry::Here(node) => {
                    names.insert(name.to_vec(), DirEntry { name: name.to_vec(), kind: node.kind, ino: node.ino });
                }
            }
        }
        Ok(names.into_values().collect())
    }

    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        self.link_target(&self.resolve(path, false)?)
    }

    fn read_at(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = self.resolve(path, true)?;
        match self.find(&file)? {
            Found::Base => self.base.read_at(&file, offset, buf),
            Found::Node(node) if node.kind != FileType::Regular => Err(Error::WrongType { path: file, what: "not a regular file" }),
            Found::Node(Node { data: Some(data), .. }) => {
                let rest = usize::try_from(offset).ok().and_then(|o| data.get(o..)).unwrap_or(&[]);
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            }
            Found::Node(Node { base: Some(base), .. }) => self.base.read_at(base, offset, buf),
            Found::Node(_) => Ok(0),
        }
    }

    fn xattrs(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let file = self.resolve(path, false)?;
        match self.find(&file)? {
            Found::Base => self.base.xattrs(&file),
            Found::Node(node) => {
                let mut all: BTreeMap<_, _> = match &node.base {
                    Some(base) => self.base.xattrs(base)?.into_iter().collect(),
                    None => BTreeMap::new(),
                };
                all.extend(node.xattrs.clone());
                Ok(all.into_iter().collect())
            }
        }
    }

    fn statfs(&self, path: &[u8]) -> Result<StatFs> {
        let file = self.resolve(path, true)?;
        let at = std::iter::successors(Some(&file[..]), |p| path::parent(p)).find(|p| self.base.lstat(p).is_ok());
        self.base.statfs(at.unwrap_or(b"/"))
    }
}

impl GuestFsMut for Staged<'_> {
    fn write(&mut self, path: &[u8], content: &mut dyn Read, attributes: Option<Attributes>) -> Result<()> {
        let mut data = Vec::new();
        content.read_to_end(&mut data).map_err(|e| Error::Guest {
            path: path.to_vec(),
            action: "write",
            what: format!("its new content cannot be read: {e}"),
        })?;
        let data: Arc<[u8]> = data.into();
        let file = self.resolve(path, true)?;
        match self.lstat_canonical(&file) {
            Ok(stat) if stat.kind == FileType::Regular => {
                let node = self.node_mut(&file)?;
                node.data = Some(data.clone());
                node.attributes = attributes.or(node.attributes);
            }
            Ok(_) => return Err(Error::WrongType { path: file, what: "not a regular file" }),
            Err(Error::NotFound(_)) => {
                self.vacant(&file)?;
                let mut node = Node::new(FileType::Regular, self.next_ino, attributes.unwrap_or(Attributes::root(0o644)));
                node.data = Some(data.clone());
                self.insert(&file, node);
            }
            Err(e) => return Err(e),
        }
        self.log(Op::Write { path: file, data, attributes });
        Ok(())
    }

    fn mkdir(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        let path = self.resolve(path, false)?;
        self.vacant(&path)?;
        self.insert(&path, Node::new(FileType::Directory, self.next_ino, attributes));
        self.log(Op::Mkdir { path, attributes });
        Ok(())
    }

    fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<()> {
        let path = self.resolve(path, false)?;
        self.vacant(&path)?;
        let mut node = Node::new(FileType::Symlink, self.next_ino, Attributes::root(0o777));
        node.target = target.to_vec();
        self.insert(&path, node);
        self.log(Op::Symlink { target: target.to_vec(), path });
        Ok(())
    }

    fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<()> {
        let existing = self.resolve(existing, false)?;
        let path = self.resolve(path, false)?;
        self.vacant(&path)?;
        let node = match self.find(&existing)? {
            Found::Node(node) => node.clone(),
            Found::Base => {
                let stat = self.base.lstat(&existing)?;
                Node::inheriting(existing.clone(), stat.kind, stat.ino)
            }
        };
        if node.kind == FileType::Directory {
            return Err(Error::WrongType { path: existing, what: "is a directory" });
        }
        self.insert(&path, node);
        self.log(Op::Link { existing, path });
        Ok(())
    }

    fn mknod(&mut self, path: &[u8], kind: FileType, rdev: (u32, u32), attributes: Attributes) -> Result<()> {
        let path = self.resolve(path, false)?;
        self.vacant(&path)?;
        let mut node = Node::new(kind, self.next_ino, attributes);
        node.rdev = rdev;
        self.insert(&path, node);
        self.log(Op::Mknod { path, kind, rdev, attributes });
        Ok(())
    }

    /// Directories cannot be renamed: no step needs it.
    fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let from = self.resolve(from, false)?;
        let to = self.resolve(to, false)?;
        let stat = self.lstat_canonical(&from)?;
        if stat.kind == FileType::Directory {
            return Err(Error::WrongType { path: from, what: "is a directory: only files are renamed here" });
        }
        match self.lstat_canonical(&to) {
            Ok(there) if there.kind == FileType::Directory => return Err(Error::WrongType { path: to, what: "is a directory" }),
            Ok(_) => {}
            Err(Error::NotFound(_)) => self.vacant(&to)?,
            Err(e) => return Err(e),
        }
        if from == to {
            return Ok(());
        }
        let node = self.node_mut(&from)?.clone();
        self.entries.insert(to.clone(), Entry::Here(node));
        self.entries.insert(from.clone(), Entry::Gone);
        self.log(Op::Rename { from, to });
        Ok(())
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let path = self.resolve(path, false)?;
        if self.lstat_canonical(&path)?.kind == FileType::Directory && !self.read_dir(&path)?.is_empty() {
            return Err(Error::Guest { path, action: "remove", what: "the directory is not empty".into() });
        }
        self.entries.insert(path.clone(), Entry::Gone);
        self.log(Op::Remove { path });
        Ok(())
    }

    fn set_attributes(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        let path = self.resolve(path, false)?;
        self.node_mut(&path)?.attributes = Some(attributes);
        self.log(Op::SetAttributes { path, attributes });
        Ok(())
    }

    fn set_times(&mut self, path: &[u8], atime: Time, mtime: Time) -> Result<()> {
        let path = self.resolve(path, false)?;
        self.node_mut(&path)?.times = Some((atime, mtime));
        self.log(Op::SetTimes { path, atime, mtime });
        Ok(())
    }

    fn set_xattr(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
        let path = self.resolve(path, false)?;
        self.node_mut(&path)?.xattrs.insert(name.to_vec(), value.to_vec());
        self.log(Op::SetXattr { path, name: name.to_vec(), value: value.to_vec() });
        Ok(())
    }
}

/// What steps often need on top of [`GuestFsMut`].
impl Staged<'_> {
    /// Makes a directory and those above it that are missing, root's and 0755.
    pub fn mkdir_all(&mut self, path: &[u8]) -> Result<()> {
        if self.is_dir(path) {
            return Ok(());
        }
        if let Some(parent) = path::parent(path) {
            self.mkdir_all(parent)?;
        }
        self.mkdir(path, Attributes::root(0o755))
    }

    /// Writes a file from memory, with the directories above it.
    pub fn put(&mut self, path: &[u8], content: &[u8], attributes: Option<Attributes>) -> Result<()> {
        if let Some(parent) = path::parent(path) {
            self.mkdir_all(parent)?;
        }
        self.write(path, &mut &content[..], attributes)
    }
}

#[cfg(test)]
mod tests;
