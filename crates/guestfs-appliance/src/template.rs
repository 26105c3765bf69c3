//! Templates: booted appliances that are kept as files, so that the next ones need not boot.
//!
//! This is the cache and its keys. A monitor saves into a [`Draft`] and restores from a [`Template`]; each keeps two
//! files, which mean something to it alone:
//!
//! ```text
//! ~/.cache/guestlift/templates/    0700
//!     lock                         held by whoever makes a template
//!     qemu-1a2b3c4d5e6f7890/       0700, named by the monitor and a digest of the key
//!         key                      the whole key
//!         memory                   the machine's memory, mapped copy-on-write by whoever restores it
//!         state                    of processor and devices
//!     qemu-1a2b3c4d5e6f7890.bad    why there is no such template, for an hour
//!     .new-xxxxxx/                 one in the making
//! ```
//!
//! A key names everything that a template depends on. The host's boot is part of it: files that a crash of the host left
//! half-written are never used, and neither is a template of another host that shares the directory. So nothing needs
//! to be synchronised. A template is as trusted as any other file of the user's own: it must belong to the user, and
//! nobody else may have access.

use std::fs::{self, File, Metadata, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use guestfs::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::locate::{self, Files};
use crate::monitor::failure;

/// Says where templates are kept instead of in the cache, or with `off` that there are to be none.
pub const VARIABLE: &str = "GUESTLIFT_TEMPLATES";

/// Templates of this boot that are kept besides a new one.
const KEPT: usize = 3;
/// How long a template may take from the start to the agent's first answer, which it does in a tenth of a second.
/// Then the machine is booted.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a machine that cannot be saved, or not restored, is left alone.
const BAD_FOR: Duration = Duration::from_secs(3600);

const NEW: &str = ".new-";
const BAD: &str = "bad";
const KEY: &str = "key";

/// The directory for templates, if the environment has not turned them off.
pub fn folder() -> Option<PathBuf> {
    match std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        Some(off) if off == "off" => None,
        Some(folder) => Some(folder.into()),
        None => Some(locate::cache()?.join("templates")),
    }
}

/// What a template depends on, a line each.
pub struct Key {
    monitor: &'static str,
    lines: String,
}

impl Key {
    /// The key of a template of `monitor`'s. Every one depends on the host's boot, on the monitor's program, and on what it boots.
    pub fn new(monitor: &'static str, program: &Path, files: &Files) -> Result<Self> {
        let mut key = Key { monitor, lines: String::new() };
        let boot = "/proc/sys/kernel/random/boot_id";
        let id = fs::read_to_string(boot).map_err(|e| failure(format!("{boot}: {e}")))?;
        key.add("boot", id.trim_end());
        key.add_file("program", program)?;
        key.add_file("kernel", &files.kernel)?;
        key.add_file("initramfs", &files.initramfs)?;
        Ok(key)
    }

    /// Adds a property.
    pub fn add(&mut self, name: &str, value: &str) {
        self.lines.push_str(&format!("{name} {}\n", value.escape_debug()));
    }

    /// Adds a file by what changes whenever its content does.
    fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let meta = fs::metadata(path).map_err(|e| failure(format!("{}: {e}", path.display())))?;
        let (changed, modified) = ((meta.ctime(), meta.ctime_nsec()), (meta.mtime(), meta.mtime_nsec()));
        let identity = format!("{} {} {} {changed:?} {modified:?}", meta.dev(), meta.ino(), meta.len());
        self.add(name, &format!("{} {identity}", path.display()));
        Ok(())
    }

    /// Where it is in the cache. Two keys of one name are told apart by the file that has the whole of one.
    fn name(&self) -> String {
        let mut digest = DefaultHasher::new();
        self.lines.hash(&mut digest);
        format!("{}-{:016x}", self.monitor, digest.finish())
    }
}

/// A template that may be restored.
pub struct Template {
    /// The machine's memory.
    pub memory: PathBuf,
    /// The state of processor and devices.
    pub state: PathBuf,
    dir: PathBuf,
    new: bool,
}

impl Template {
    fn at(dir: PathBuf, new: bool) -> Self {
        Template { memory: dir.join("memory"), state: dir.join("state"), dir, new }
    }

    /// Whether it is this user's and has this very key.
    fn check(&self, key: &Key) -> Result<()> {
        check_ours(&self.dir, Metadata::is_dir)?;
        for file in [&self.memory, &self.state] {
            check_ours(file, Metadata::is_file)?;
        }
        match fs::read_to_string(self.dir.join(KEY)) {
            Ok(lines) if lines == key.lines => Ok(()),
            Ok(_) => Err(failure(format!("{} is of another key", self.dir.display()))),
            Err(e) => Err(failure(format!("{}: {e}", self.dir.display()))),
        }
    }

    /// Removes it, since a machine that was restored from it did not work. One that never worked is not made again soon.
    pub fn discard(self, why: &Error) {
        let _ = fs::remove_dir_all(&self.dir);
        if self.new {
            mark_bad(&self.dir, why);
        }
    }
}

/// A template in the making, for [`Cache::get`]'s caller to fill. Unless it gets whole nothing of it stays.
pub struct Draft {
    /// Where the memory belongs.
    pub memory: PathBuf,
    /// Where the state belongs.
    pub state: PathBuf,
    dir: TempDir,
}

/// The templates below one directory.
pub struct Cache(PathBuf);

impl Cache {
    /// Those below `folder`, which is made if it is missing.
    pub fn open(folder: &Path) -> Result<Self> {
        let failed = |e| failure(format!("{}: {e}", folder.display()));
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        check_ours(folder, Metadata::is_dir)?;
        Ok(Cache(folder.into()))
    }

    /// The template with this key. When there is none, `make` makes it; unless somebody else is at that, or it failed
    /// lately: then the error says so.
    pub fn get(&self, key: &Key, make: impl FnOnce(&Draft) -> Result<()>) -> Result<Template> {
        let place = self.0.join(key.name());
        if let Some(template) = find(&place, key)? {
            return Ok(template);
        }
        let bad = place.with_extension(BAD);
        if let Ok(meta) = fs::metadata(&bad)
            && meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()).is_some_and(|age| age < BAD_FOR)
        {
            return Err(failure(fs::read_to_string(&bad).unwrap_or_default()));
        }
        let _lock = self.lock()?;
        // Whoever held the lock before us may have made it.
        if let Some(template) = find(&place, key)? {
            return Ok(template);
        }
        self.clear(key);
        self.make(&place, key, make).inspect_err(|why| mark_bad(&place, why))
    }

    /// The right to make templates; nobody waits for it.
    fn lock(&self) -> Result<File> {
        let path = self.0.join("lock");
        let failed = |e: io::Error| failure(format!("{}: {e}", path.display()));
        let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(failure("another process is making the template")),
            Err(e) => Err(failed(e.into())),
        }
    }

    fn make(&self, place: &Path, key: &Key, make: impl FnOnce(&Draft) -> Result<()>) -> Result<Template> {
        let failed = |e: io::Error| failure(format!("{}: {e}", self.0.display()));
        let dir = tempfile::Builder::new().prefix(NEW).permissions(Permissions::from_mode(0o700)).tempdir_in(&self.0).map_err(failed)?;
        let draft = Draft { memory: dir.path().join("memory"), state: dir.path().join("state"), dir };
        make(&draft)?;
        fs::write(draft.dir.path().join(KEY), &key.lines).map_err(failed)?;
        for file in [&draft.memory, &draft.state] {
            fs::set_permissions(file, Permissions::from_mode(0o600)).map_err(failed)?;
        }
        fs::rename(draft.dir.path(), place).map_err(failed)?;
        // There is nothing left for it to remove.
        let _ = draft.dir.keep();
        Ok(Template::at(place.into(), true))
    }

    /// Removes what killed makers left, templates of other boots, and those that were not used for longest. Whoever
    /// restores one of them at this moment boots instead.
    fn clear(&self, key: &Key) {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            let of_this_boot = |lines: String| lines.lines().next() == key.lines.lines().next();
            if path.extension().is_some_and(|e| e == BAD) {
                let _ = fs::remove_file(path);
            } else if fs::read_to_string(path.join(KEY)).is_ok_and(of_this_boot) {
                let used = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                kept.push((used, path));
            } else if path.is_dir() {
                let _ = fs::remove_dir_all(path);
            }
        }
        kept.sort();
        for (_, path) in kept.iter().rev().skip(KEPT) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// The template at `place`, if there is one. What may not be used as one is removed.
fn find(place: &Path, key: &Key) -> Result<Option<Template>> {
    if !place.is_dir() {
        return Ok(None);
    }
    let template = Template::at(place.into(), false);
    if let Err(why) = template.check(key) {
        template.discard(&why);
        return Err(why);
    }
    // The order in which templates were used is that of these times.
    let _ = File::open(place).and_then(|dir| dir.set_modified(SystemTime::now()));
    Ok(Some(template))
}

/// Only what belongs to this user, and to nobody else, is used.
fn check_ours(path: &Path, is_kind: impl Fn(&Metadata) -> bool) -> Result<()> {
    let failed = |what: String| Err(failure(format!("{} {what}", path.display())));
    match fs::symlink_metadata(path) {
        Err(e) => failed(format!("cannot be looked at: {e}")),
        Ok(meta) if !is_kind(&meta) => failed("is something else than it should be".into()),
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => failed("belongs to another user".into()),
        Ok(meta) if meta.mode() & 0o077 != 0 => failed("is open to other users".into()),
        Ok(_) => Ok(()),
    }
}

fn mark_bad(place: &Path, why: &Error) {
    let _ = fs::write(place.with_extension(BAD), why.to_string());
}
