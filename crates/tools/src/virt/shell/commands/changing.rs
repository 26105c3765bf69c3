//! Commands that change the mounted tree.

use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use guestfs::engine::Session;
use guestfs::{Attributes, Error, Ext, FileType, Stat, Time};

use super::looking::real;
use super::{Arguments, Command};
use crate::common::Failure;
use crate::virt::shell::Shell;
use crate::virt::show::{join, read_file};
use crate::virt::walk::walk;

/// Files that are taken as a whole are no larger.
const LIMIT: u64 = 1 << 30;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["write"],
        usage: "PATH CONTENT",
        help: "replace or make a file",
        run: |shell, a| Ok(shell.guest()?.tree_mut()?.write(a.path(0)?, &mut a.word(1), None)?),
    },
    Command {
        names: &["write-append"],
        usage: "PATH CONTENT",
        help: "write behind a file's end",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            let path = a.path(0)?;
            let old = match session.read(path, LIMIT) {
                Err(Error::NotFound(_)) => Vec::new(),
                read => read?,
            };
            Ok(session.write(path, &mut old.chain(a.word(1)), None)?)
        },
    },
    Command {
        names: &["touch"],
        usage: "PATH",
        help: "make an empty file, or set a file's times to now",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            let path = a.path(0)?;
            if !session.exists(path) {
                session.write(path, &mut std::io::empty(), None)?;
            }
            let now = now();
            Ok(session.set_times(&real(session.as_fs(), path)?, now, now)?)
        },
    },
    Command {
        names: &["truncate"],
        usage: "PATH",
        help: "make a file empty",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            session.stat(a.path(0)?)?;
            Ok(session.write(a.path(0)?, &mut std::io::empty(), None)?)
        },
    },
    Command {
        names: &["truncate-size"],
        usage: "PATH SIZE",
        help: "cut a file, or lengthen it by zeroes",
        run: |shell, a| {
            let size: u64 = a.unsigned(1)?;
            let session = shell.guest()?.tree_mut()?;
            if size > LIMIT {
                return Err(Failure::new("this command makes files of 1 GiB at most"));
            }
            let mut content = session.read(a.path(0)?, LIMIT)?;
            content.resize(usize::try_from(size)?, 0);
            Ok(session.write(a.path(0)?, &mut content.as_slice(), None)?)
        },
    },
    Command {
        names: &["mkdir"],
        usage: "DIR",
        help: "make a directory",
        run: |shell, a| Ok(shell.guest()?.tree_mut()?.mkdir(a.path(0)?, Attributes::root(0o755))?),
    },
    Command {
        names: &["mkdir-mode"],
        usage: "DIR MODE",
        help: "make a directory with a mode (0755 is octal)",
        run: |shell, a| {
            let mode: u32 = a.unsigned(1)?;
            Ok(shell.guest()?.tree_mut()?.mkdir(a.path(0)?, Attributes::root(mode & 0o7777))?)
        },
    },
    Command {
        names: &["mkdir-p"],
        usage: "DIR",
        help: "make a directory and those above it",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            let path = a.path(0)?;
            for (end, _) in path.iter().enumerate().filter(|(at, b)| **b == b'/' && *at > 0).chain([(path.len(), &b'/')]) {
                let folder = &path[..end];
                if !session.is_dir(folder) {
                    session.mkdir(folder, Attributes::root(0o755))?;
                }
            }
            Ok(())
        },
    },
    Command { names: &["rm"], usage: "PATH", help: "remove a file", run: |shell, a| remove_file(shell.guest()?.tree_mut()?, a.path(0)?) },
    Command {
        names: &["rm-f"],
        usage: "PATH",
        help: "remove a file if it is there",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            match session.lstat(a.path(0)?) {
                Err(Error::NotFound(_)) => Ok(()),
                _ => remove_file(session, a.path(0)?),
            }
        },
    },
    Command {
        names: &["rmdir"],
        usage: "DIR",
        help: "remove an empty directory",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            if session.lstat(a.path(0)?)?.kind != FileType::Directory {
                return Err(Failure::new(format!("{}: not a directory", guestfs::show(a.word(0)))));
            }
            Ok(session.remove(a.path(0)?)?)
        },
    },
    Command {
        names: &["rm-rf"],
        usage: "PATH",
        help: "remove a path and all below it",
        run: |shell, a| remove_all(shell.guest()?.tree_mut()?, a.path(0)?),
    },
    Command {
        names: &["mv", "rename"],
        usage: "PATH PATH",
        help: "rename a file or directory, or move it into a directory",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            let to = target(session, a)?;
            Ok(session.rename(a.path(0)?, &to)?)
        },
    },
    Command { names: &["cp"], usage: "PATH PATH", help: "copy a file's content", run: |shell, a| copy(shell, a, false, false) },
    Command {
        names: &["cp-r"],
        usage: "PATH PATH",
        help: "copy a directory and all below it",
        run: |shell, a| copy(shell, a, true, false),
    },
    Command {
        names: &["cp-a"],
        usage: "PATH PATH",
        help: "copy a path and all below it with owners, modes, times and attributes",
        run: |shell, a| copy(shell, a, true, true),
    },
    Command {
        names: &["ln"],
        usage: "PATH PATH",
        help: "make a hard link to the first path at the second",
        run: |shell, a| Ok(shell.guest()?.tree_mut()?.link(a.path(0)?, a.path(1)?)?),
    },
    Command {
        names: &["ln-f"],
        usage: "PATH PATH",
        help: "the same, in place of what is there",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            if session.lstat(a.path(1)?).is_ok() {
                remove_file(session, a.path(1)?)?;
            }
            Ok(session.link(a.path(0)?, a.path(1)?)?)
        },
    },
    Command {
        names: &["ln-s"],
        usage: "TARGET PATH",
        help: "make a symbolic link at the path",
        run: |shell, a| Ok(shell.guest()?.tree_mut()?.symlink(a.word(0), a.path(1)?)?),
    },
    Command {
        names: &["ln-sf"],
        usage: "TARGET PATH",
        help: "the same, in place of what is there",
        run: |shell, a| {
            let session = shell.guest()?.tree_mut()?;
            if session.lstat(a.path(1)?).is_ok() {
                remove_file(session, a.path(1)?)?;
            }
            Ok(session.symlink(a.word(0), a.path(1)?)?)
        },
    },
    Command {
        names: &["mkfifo"],
        usage: "MODE PATH",
        help: "make a pipe",
        run: |shell, a| {
            let mode: u32 = a.unsigned(0)?;
            Ok(shell.guest()?.tree_mut()?.mknod(a.path(1)?, FileType::Fifo, (0, 0), Attributes::root(mode & 0o7777))?)
        },
    },
    Command {
        names: &["mknod"],
        usage: "MODE MAJOR MINOR PATH",
        help: "make a character device (mknod-b a block device)",
        run: |shell, a| device(shell, a, FileType::CharDevice),
    },
    Command {
        names: &["mknod-c"],
        usage: "MODE MAJOR MINOR PATH",
        help: "make a character device",
        run: |shell, a| device(shell, a, FileType::CharDevice),
    },
    Command {
        names: &["mknod-b"],
        usage: "MODE MAJOR MINOR PATH",
        help: "make a block device",
        run: |shell, a| device(shell, a, FileType::BlockDevice),
    },
    Command {
        names: &["chmod"],
        usage: "MODE PATH",
        help: "change a file's mode (0755 is octal)",
        run: |shell, a| {
            let mode: u32 = a.unsigned(0)?;
            change(shell, a.path(1)?, true, |old| Attributes { mode: mode & 0o7777, ..old })
        },
    },
    Command { names: &["chown"], usage: "UID GID PATH", help: "change a file's owner and group", run: |shell, a| own(shell, a, true) },
    Command {
        names: &["lchown"],
        usage: "UID GID PATH",
        help: "change owner and group of a file, even if it is a link",
        run: |shell, a| own(shell, a, false),
    },
    Command {
        names: &["setxattr", "lsetxattr"],
        usage: "NAME VALUE LENGTH PATH",
        help: "set an extended attribute of a file",
        run: |shell, a| {
            let len: usize = a.unsigned(2)?;
            let value = a.word(1).get(..len).ok_or_else(|| Failure::new("the value is shorter than its length"))?;
            Ok(shell.guest()?.tree_mut()?.set_xattr(a.path(3)?, a.word(0), value)?)
        },
    },
    Command {
        names: &["utimens"],
        usage: "PATH ATIME ATIME-NSEC MTIME MTIME-NSEC",
        help: "set a file's times, in seconds since 1970 and nanoseconds",
        run: |shell, a| {
            let time = |at: usize| Ok::<_, Failure>(Time { sec: a.number(at)?, nsec: a.unsigned(at + 1)? });
            let (atime, mtime) = (time(1)?, time(3)?);
            Ok(shell.guest()?.tree_mut()?.set_times(a.path(0)?, atime, mtime)?)
        },
    },
];

fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: i64::try_from(now.as_secs()).unwrap_or(0), nsec: now.subsec_nanos() }
}

fn remove_file(session: &mut dyn Session, path: &[u8]) -> Result<(), Failure> {
    if session.lstat(path)?.kind == FileType::Directory {
        return Err(Failure::new(format!("{}: is a directory", guestfs::show(path))));
    }
    Ok(session.remove(path)?)
}

fn remove_all(session: &mut dyn Session, path: &[u8]) -> Result<(), Failure> {
    let mut found = Vec::new();
    let walked = walk(session.as_fs(), path, &mut |below, _| {
        found.push(beneath(path, below));
        Ok(())
    });
    if session.lstat(path).is_err_and(|e| matches!(e, Error::NotFound(_))) {
        return Ok(());
    }
    walked?;
    // What is in a directory comes behind it.
    Ok(found.iter().rev().try_for_each(|path| session.remove(path))?)
}

/// What [`walk`] calls `below`, as a path.
fn beneath(top: &[u8], below: &[u8]) -> Vec<u8> {
    if below.is_empty() { top.to_vec() } else { join(top, below) }
}

/// Where the second path leads for the first: into a directory, or to that very name.
fn target(session: &dyn Session, a: &Arguments) -> Result<Vec<u8>, Failure> {
    let (from, to) = (a.path(0)?, a.path(1)?);
    let name = from.split(|b| *b == b'/').rfind(|w| !w.is_empty()).unwrap_or_default();
    Ok(if session.is_dir(to) { join(to, name) } else { to.to_vec() })
}

fn device(shell: &mut Shell<'_>, a: &Arguments, kind: FileType) -> Result<(), Failure> {
    let (mode, rdev): (u32, _) = (a.unsigned(0)?, (a.unsigned(1)?, a.unsigned(2)?));
    Ok(shell.guest()?.tree_mut()?.mknod(a.path(3)?, kind, rdev, Attributes::root(mode & 0o7777))?)
}

fn own(shell: &mut Shell<'_>, a: &Arguments, follow: bool) -> Result<(), Failure> {
    let (uid, gid) = (a.unsigned(0)?, a.unsigned(1)?);
    change(shell, a.path(2)?, follow, |old| Attributes { uid, gid, ..old })
}

fn change(shell: &mut Shell<'_>, path: &[u8], follow: bool, how: impl Fn(Attributes) -> Attributes) -> Result<(), Failure> {
    let session = shell.guest()?.tree_mut()?;
    let path = if follow { real(session.as_fs(), path)? } else { path.to_vec() };
    let attributes = attributes(&session.lstat(&path)?);
    Ok(session.set_attributes(&path, how(attributes))?)
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes { mode: stat.mode, uid: stat.uid, gid: stat.gid }
}

/// Copies within the guest: what cp(1) does with nothing, `-r` or `-a`.
fn copy(shell: &mut Shell<'_>, a: &Arguments, folders: bool, everything: bool) -> Result<(), Failure> {
    let session = shell.guest()?.tree_mut()?;
    let from = a.path(0)?;
    let to = target(session, a)?;
    if [from, b"/"].concat() == to.get(..from.len() + 1).unwrap_or_default() {
        return Err(Failure::new("a directory cannot be copied into itself"));
    }
    let from = if everything { from.to_vec() } else { real(session.as_fs(), from)? };
    if !folders && session.lstat(&from)?.kind == FileType::Directory {
        return Err(Failure::new(format!("{}: is a directory", guestfs::show(&from))));
    }
    let mut all = Vec::new();
    walk(session.as_fs(), &from, &mut |below, _| {
        all.push(below.to_vec());
        Ok(())
    })?;
    for below in &all {
        copy_one(session, &beneath(&from, below), &beneath(&to, below), everything)?;
    }
    if everything {
        // Only when nothing is put into directories any more do their times stay.
        for below in all.iter().rev() {
            let stat = session.lstat(&beneath(&from, below))?;
            session.set_times(&beneath(&to, below), stat.atime, stat.mtime)?;
        }
    }
    Ok(())
}

fn copy_one(session: &mut dyn Session, from: &[u8], to: &[u8], everything: bool) -> Result<(), Failure> {
    let stat = session.lstat(from)?;
    let there = session.lstat(to).ok().map(|s| s.kind);
    let new = if everything { attributes(&stat) } else { Attributes::root(stat.mode & 0o777 & !0o022) };
    match stat.kind {
        FileType::Directory if there == Some(FileType::Directory) => session.set_attributes(to, new)?,
        FileType::Directory => session.mkdir(to, new)?,
        FileType::Regular => {
            // The session does one thing at a time: reading and writing take turns.
            let mut spool = tempfile::tempfile()?;
            read_file(session.as_fs(), from, &mut |piece| Ok(std::io::Write::write_all(&mut spool, piece)?))?;
            std::io::Seek::rewind(&mut spool)?;
            let keep = !everything && there.is_some();
            session.write(to, &mut spool, Some(new).filter(|_| !keep))?;
        }
        FileType::Symlink => {
            let target = session.readlink(from)?;
            if there.is_some() {
                remove_file(session, to)?;
            }
            session.symlink(&target, to)?;
            if everything {
                session.set_attributes(to, new)?;
            }
            return Ok(());
        }
        kind => session.mknod(to, kind, stat.rdev, new)?,
    }
    if everything {
        for (name, value) in session.xattrs(from)? {
            session.set_xattr(to, &name, &value)?;
        }
    }
    Ok(())
}
