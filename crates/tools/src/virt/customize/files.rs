//! Operations on a guest's files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use guestfs::engine::Command;
use guestfs::{Attributes, Error, Ext, FileType};

use super::super::copy_in;
use super::super::expression::Program;
use super::super::show::join;
use super::context::{Context, number};
use super::{Action, Value, act};
use crate::common::Failure;

/// `FILE:CONTENT`
pub(super) fn write(value: &Value) -> Result<Action, Failure> {
    let (file, content) = value.pair()?;
    act(move |c| {
        c.say(&format!("Writing: {}", guestfs::show(&file)));
        c.write(&file, &content)
    })
}

/// `FILE:LINE`
pub(super) fn append_line(value: &Value) -> Result<Action, Failure> {
    let (file, line) = value.pair()?;
    act(move |c| {
        c.say(&format!("Appending line to {}", guestfs::show(&file)));
        let mut content = c.read_or_empty(&file)?;
        // The file's own line ends.
        let end: &[u8] = if content.windows(2).any(|w| w == b"\r\n") { b"\r\n" } else { b"\n" };
        if !content.is_empty() && !content.ends_with(b"\n") {
            content.extend_from_slice(end);
        }
        content.extend_from_slice(&line);
        content.extend_from_slice(end);
        c.write(&file, &content)
    })
}

/// `FILE:EXPRESSION`
pub(super) fn edit(value: &Value) -> Result<Action, Failure> {
    let (file, expression) = value.pair()?;
    let program = Program::parse(&String::from_utf8_lossy(&expression))?;
    act(move |c| {
        c.say(&format!("Editing: {}", guestfs::show(&file)));
        let old = c.read(&file)?;
        let new = program.apply(&old);
        if new == old { Ok(()) } else { c.write(&file, &new) }
    })
}

/// `LOCALFILE:DEST`
pub(super) fn upload(value: &Value) -> Result<Action, Failure> {
    let (local, to) = value.pair()?;
    let local = PathBuf::from(OsStr::from_bytes(&local));
    let (_, name) = copy_in::named(&local)?;
    act(move |c| {
        c.say(&format!("Uploading: {} to {}", local.display(), guestfs::show(&to)));
        let at = |e: std::io::Error| Failure::new(format!("{}: {e}", local.display()));
        let mut file = std::fs::File::open(&local).map_err(at)?;
        let m = file.metadata().map_err(at)?;
        let attributes = Attributes { mode: m.mode() & 0o7777, uid: m.uid(), gid: m.gid() };
        let to = if c.session.is_dir(&to) { join(&to, &name) } else { to.clone() };
        Ok(c.session.write(&to, &mut file, Some(attributes))?)
    })
}

/// `LOCALPATH:DIR`
pub(super) fn copy_in(value: &Value) -> Result<Action, Failure> {
    let (local, folder) = value.pair()?;
    let (local, name) = copy_in::named(&PathBuf::from(OsStr::from_bytes(&local)))?;
    act(move |c| {
        c.say(&format!("Copying: {} to {}", local.display(), guestfs::show(&folder)));
        copy_in::copy_in(c.session, &local, &folder, &name)
    })
}

/// `SOURCE:DEST`
pub(super) fn copy(value: &Value) -> Result<Action, Failure> {
    let (from, to) = value.pair()?;
    act(move |c| {
        c.say(&format!("Copying (in image): {} to {}", guestfs::show(&from), guestfs::show(&to)));
        c.session.lstat(&from)?;
        c.run(&Command::new([&b"cp"[..], b"-a", b"--", &from, &to]), "cp")
    })
}

/// `SOURCE:DEST`
pub(super) fn rename(value: &Value) -> Result<Action, Failure> {
    let (from, to) = value.pair()?;
    act(move |c| {
        c.say(&format!("Moving: {} to {}", guestfs::show(&from), guestfs::show(&to)));
        let name = from.rsplit(|b| *b == b'/').find(|w| !w.is_empty()).unwrap_or_default();
        let to = if c.session.is_dir(&to) { join(&to, name) } else { to.clone() };
        match c.session.rename(&from, &to) {
            // To another filesystem it is copied.
            Err(Error::Guest { what, .. }) if what.contains("ross-device") => c.run(&Command::new([&b"mv"[..], b"--", &from, &to]), "mv"),
            moved => Ok(moved?),
        }
    })
}

/// `PATH`
pub(super) fn delete(value: &Value) -> Result<Action, Failure> {
    let pattern = value.path()?;
    act(move |c| {
        c.say(&format!("Deleting: {}", guestfs::show(&pattern)));
        c.remove_matching(&pattern)
    })
}

/// `DIR`
pub(super) fn mkdir(value: &Value) -> Result<Action, Failure> {
    let directory = value.path()?;
    act(move |c| {
        c.say(&format!("Making directory: {}", guestfs::show(&directory)));
        c.make_directories(&directory, Attributes::root(0o755))
    })
}

/// `PERMISSIONS:FILE`; octal with a 0 in front, as libguestfs has it.
pub(super) fn chmod(value: &Value) -> Result<Action, Failure> {
    let (mode, file) = value.pair_to_path()?;
    let text = String::from_utf8_lossy(&mode).into_owned();
    let octal = text.strip_prefix("0o").or(text.strip_prefix('0')).filter(|digits| !digits.is_empty());
    let parsed = octal.map_or_else(|| text.parse().ok(), |digits| u32::from_str_radix(digits, 8).ok());
    let mode = parsed.filter(|mode| *mode <= 0o7777).ok_or_else(|| value.wrong("the mode must be a number, octal with a 0 in front"))?;
    act(move |c| {
        c.say(&format!("Changing permissions of {} to {mode:04o}", guestfs::show(&file)));
        let stat = c.session.stat(&file)?;
        let path = real(c, &file)?;
        Ok(c.session.set_attributes(&path, Attributes { mode, uid: stat.uid, gid: stat.gid })?)
    })
}

/// `USER[:GROUP]:FILE`, names or numbers.
pub(super) fn chown(value: &Value) -> Result<Action, Failure> {
    let text = value.bytes();
    let file_at = text.windows(2).position(|w| w == b":/").ok_or_else(|| value.wrong("the owner comes first, as in USER:GROUP:/FILE"))?;
    let (owner, file) = (text[..file_at].to_vec(), text[file_at + 1..].to_vec());
    act(move |c| {
        c.say(&format!("Changing owner of {} to {}", guestfs::show(&file), guestfs::show(&owner)));
        let mut words = owner.splitn(2, |b| *b == b':');
        let user = words.next().unwrap_or_default();
        let stat = c.session.lstat(&file)?;
        let (uid, own_group) = match number(user) {
            Some(uid) => (uid, None),
            None => c.user(user).map(|user| (user.uid, Some(user.gid)))?,
        };
        let gid = match words.next() {
            None => stat.gid,
            Some(b"") => own_group.unwrap_or(stat.gid),
            Some(group) => number(group).map_or_else(|| group_number(c, group), Ok)?,
        };
        Ok(c.session.set_attributes(&file, Attributes { mode: stat.mode, uid, gid })?)
    })
}

fn group_number(c: &Context<'_>, name: &[u8]) -> Result<u32, Failure> {
    let groups = c.read(b"/etc/group")?;
    let mut lines = groups.split(|b| *b == b'\n').map(|line| line.split(|b| *b == b':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.first() == Some(&name)).and_then(|fields| number(fields.get(2)?));
    found.ok_or_else(|| Failure::new(format!("the guest has no group '{}'", guestfs::show(name))))
}

/// `TARGET:LINK[:LINK…]`
pub(super) fn link(value: &Value) -> Result<Action, Failure> {
    let mut words = value.bytes().split(|b| *b == b':').map(<[u8]>::to_vec);
    let target = words.next().unwrap_or_default();
    let links: Vec<Vec<u8>> = words.collect();
    if target.is_empty() || links.is_empty() || links.iter().any(|l| !l.starts_with(b"/")) {
        return Err(value.wrong("it is TARGET:LINK, where LINK is an absolute path"));
    }
    act(move |c| {
        for link in &links {
            c.say(&format!("Linking: {} -> {}", guestfs::show(link), guestfs::show(&target)));
            c.symlink(&target, link)?;
        }
        Ok(())
    })
}

/// `FILE`
pub(super) fn touch(value: &Value) -> Result<Action, Failure> {
    let file = value.path()?;
    act(move |c| {
        c.say(&format!("Running touch: {}", guestfs::show(&file)));
        match c.session.stat(&file) {
            Err(Error::NotFound(_)) => c.write(&file, b""),
            stat => {
                stat?;
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                let now = guestfs::Time { sec: i64::try_from(now.as_secs()).unwrap_or(0), nsec: now.subsec_nanos() };
                let path = real(c, &file)?;
                Ok(c.session.set_times(&path, now, now)?)
            }
        }
    })
}

/// `FILE`
pub(super) fn truncate(value: &Value) -> Result<Action, Failure> {
    let file = value.path()?;
    act(move |c| {
        c.say(&format!("Truncating: {}", guestfs::show(&file)));
        c.session.stat(&file)?;
        c.write(&file, b"")
    })
}

/// `PATH`
pub(super) fn truncate_recursive(value: &Value) -> Result<Action, Failure> {
    let top = value.path()?;
    act(move |c| {
        c.say(&format!("Recursively truncating: {}", guestfs::show(&top)));
        let mut left = vec![top.clone()];
        while let Some(path) = left.pop() {
            match c.session.lstat(&path)?.kind {
                FileType::Directory => left.extend(c.session.read_dir(&path)?.into_iter().map(|e| join(&path, &e.name))),
                FileType::Regular => c.write(&path, b"")?,
                _ => {}
            }
        }
        Ok(())
    })
}

/// `FILE`: overwritten before it is removed.
pub(super) fn scrub(value: &Value) -> Result<Action, Failure> {
    let file = value.path()?;
    act(move |c| {
        c.say(&format!("Scrubbing: {}", guestfs::show(&file)));
        if c.session.lstat(&file)?.kind != FileType::Regular {
            return Err(Failure::new(format!("{}: not a regular file", guestfs::show(&file))));
        }
        c.run(&Command::new([&b"shred"[..], b"-u", b"--", &file]), "shred")
    })
}

/// Where a path with links at its end leads.
fn real(c: &Context<'_>, path: &[u8]) -> Result<Vec<u8>, Failure> {
    super::super::edit::real(c.session.as_fs(), path)
}
