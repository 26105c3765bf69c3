//! A folder of this machine that a guest's files are written into, and nothing outside of it: the kernel resolves every
//! path beneath the folder, and no link is ever followed.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use guestfs::{FileType, Stat, Time};
use rustix::fs::{self, AtFlags, FileType as Kind, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::common::Failure;

/// Bytes of a path that the kernel takes at once.
const AT_ONCE: usize = 4000;

/// The folder.
pub(super) struct Target {
    root: OwnedFd,
    /// What messages call it.
    name: PathBuf,
    /// The directory that was opened last.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Target {
    pub(super) fn open(name: &Path) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(name, flags, Mode::empty()).map_err(|e| {
            Failure::new(format!("{}: {}", name.display(), io::Error::from(e))).hint("name a folder that is there and can be written")
        })?;
        Ok(Target { root, name: name.to_owned(), last: None })
    }

    /// Makes a directory; one that is there is kept, if it is no link.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<(), Failure> {
        if path.is_empty() {
            return Ok(());
        }
        self.within(path, |dir, name| match fs::mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) if kind(dir, name)? == Some(Kind::Directory) => Ok(()),
            made => made,
        })
    }

    /// Makes an empty file, in place of what had the name unless that is a directory.
    pub(super) fn file(&mut self, path: &[u8]) -> Result<File, Failure> {
        self.within(path, |dir, name| {
            clear(dir, name)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
        })
    }

    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Failure> {
        self.within(path, |dir, name| {
            clear(dir, name)?;
            fs::symlinkat(target, dir, name)
        })
    }

    /// Gives a file that was made here a second name.
    pub(super) fn link(&mut self, path: &[u8], existing: &[u8]) -> Result<(), Failure> {
        let (old_dir, old_name) = self.parent(existing).map_err(|e| self.failure(existing, e))?;
        self.within(path, |dir, name| {
            clear(dir, name)?;
            fs::linkat(&old_dir, old_name, dir, name, AtFlags::empty())
        })
    }

    /// Makes a pipe, a socket or a device.
    pub(super) fn special(&mut self, path: &[u8], stat: &Stat) -> Result<(), Failure> {
        let kind = match stat.kind {
            FileType::CharDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Socket => Kind::Socket,
            _ => Kind::Fifo,
        };
        self.within(path, |dir, name| {
            clear(dir, name)?;
            fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, fs::makedev(stat.rdev.0, stat.rdev.1))
        })
    }

    /// Gives a file that was made here what the guest's has: mode, times and the attributes that anybody may set. With
    /// `preserve` also owner, set-id bits and the other attributes, as far as the filesystem takes them.
    pub(super) fn dress(&mut self, path: &[u8], stat: &Stat, xattrs: &[(Vec<u8>, Vec<u8>)], preserve: bool) -> Result<(), Failure> {
        let link = stat.kind == FileType::Symlink;
        self.within(path, |dir, name| {
            if preserve {
                fs::chownat(dir, name, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            if !link {
                let mode = if preserve { stat.mode } else { stat.mode & 0o777 };
                if matches!(stat.kind, FileType::Regular | FileType::Directory) {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let file = File::from(fs::openat(dir, name, flags, Mode::empty())?);
                    for (key, value) in xattrs.iter().filter(|(key, _)| preserve || key.starts_with(b"user.")) {
                        // What this filesystem or this user may not have is left out.
                        let _ = fs::fsetxattr(&file, key.as_slice(), value, XattrFlags::empty());
                    }
                    file.set_permissions(Permissions::from_mode(mode)).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
                } else {
                    fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
                }
            }
            let times = Timestamps { last_access: timespec(stat.atime), last_modification: timespec(stat.mtime) };
            fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    /// Does something with a name in its directory.
    fn within<T>(&mut self, path: &[u8], act: impl FnOnce(&OwnedFd, &[u8]) -> Result<T, Errno>) -> Result<T, Failure> {
        let done = match split(path) {
            ([], []) => act(&self.root, b"."),
            (above, name) => self.go(above).and_then(|()| match &self.last {
                Some((_, dir)) => act(dir, name),
                None => act(&self.root, name),
            }),
        };
        done.map_err(|e| self.failure(path, e))
    }

    /// Makes the directory `path` the one that was opened last.
    fn go(&mut self, path: &[u8]) -> Result<(), Errno> {
        if self.last.as_ref().is_none_or(|(known, _)| known != path) {
            let (start, rest) = match &self.last {
                // From a directory to one in it, however deep both are.
                Some((known, dir)) if path.strip_prefix(known.as_slice()).is_some_and(|rest| rest.starts_with(b"/")) => {
                    (dir, &path[known.len() + 1..])
                }
                _ => (&self.root, path),
            };
            let dir = beneath(start, rest)?;
            self.last = Some((path.to_vec(), dir));
        }
        Ok(())
    }

    fn parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let (above, name) = split(path);
        Ok((beneath(&self.root, above)?, name))
    }

    /// A failure with the name of the file that it is about.
    pub(super) fn failure(&self, path: &[u8], error: impl Into<io::Error>) -> Failure {
        let path = self.name.join(OsStr::from_bytes(path));
        Failure::new(format!("{}: {}", guestfs::show(path.as_os_str().as_bytes()), error.into()))
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|b| *b == b'/').map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]))
}

/// Opens a directory beneath another one, in pieces that the kernel takes.
fn beneath(start: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut dir = fs::openat2(start, ".", flags, Mode::empty(), resolve)?;
    let mut rest = path;
    while !rest.is_empty() {
        let end = match rest.get(..AT_ONCE) {
            None => rest.len(),
            Some(start) => start.iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?,
        };
        dir = fs::openat2(&dir, &rest[..end], flags, Mode::empty(), resolve)?;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(dir)
}

/// Takes away what has the name, unless it is a directory.
fn clear(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        outcome => outcome,
    }
}

fn kind(dir: &OwnedFd, name: &[u8]) -> Result<Option<Kind>, Errno> {
    Ok(Some(Kind::from_raw_mode(fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)))
}

fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() }
}
