//! Locks on images, as QEMU takes them on files and block devices (its `block/file-posix.c`).
//!
//! A user of an image says what it does with the file and what others must not do meanwhile. Both are told with shared
//! OFD locks on single bytes, which end with the open file: byte 100 + *n* for a permission in use, byte 200 + *n* for
//! one that is denied to others. Nobody locks a byte for itself alone: whether a permission can be had is seen by asking
//! whether that would be possible.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Error, Result};

/// First byte of the permissions in use.
const USED: i64 = 100;
/// First byte of the permissions that others are denied.
const DENIED: i64 = 200;

/// QEMU's permissions on a file. Its *write unchanged* (2) is of no use to us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    ConsistentRead = 0,
    Write = 1,
    Resize = 3,
}

use Permission::{ConsistentRead, Resize, Write};

impl Permission {
    fn name(self) -> &'static str {
        match self {
            ConsistentRead => "consistent read",
            Write => "write",
            Resize => "resize",
        }
    }
}

/// What a user of a file does with it, and what it denies to others.
#[derive(Clone, Copy)]
pub struct Lock {
    used: &'static [Permission],
    denied: &'static [Permission],
}

impl Lock {
    /// Reads, whatever others do, and tells nobody.
    pub const NONE: Lock = Lock { used: &[], denied: &[] };
    /// Reads, whatever others do: images without metadata may change below a reader.
    pub const READ_SHARED: Lock = Lock { used: &[ConsistentRead], denied: &[] };
    /// Reads a part of an image that others may write, but must not cut.
    pub const READ_PART: Lock = Lock { used: &[ConsistentRead], denied: &[Resize] };
    /// Reads what must not change.
    pub const READ: Lock = Lock { used: &[ConsistentRead], denied: &[Write, Resize] };
    /// Writes what others may write as well.
    pub const WRITE_SHARED: Lock = Lock { used: &[ConsistentRead, Write], denied: &[] };
    /// Writes a part of an image that others may write, but must not cut.
    pub const WRITE_PART: Lock = Lock { used: &[ConsistentRead, Write, Resize], denied: &[Resize] };
    /// Is the only one that writes.
    pub const WRITE: Lock = Lock { used: &[ConsistentRead, Write, Resize], denied: &[Write, Resize] };
    /// Replaces all that is there, read or not.
    pub const REPLACE: Lock = Lock { used: &[Write, Resize], denied: &[Write, Resize] };
}

/// Takes `lock` on `file`, which messages call `name`, until the file is closed. It adds to what is held already.
///
/// A filesystem without such locks gets none, as with QEMU.
///
/// # Errors
/// [`Error::Locked`] when another user of the file is in the way, in this process or another; then nothing may be done
/// with the file but closing it.
pub fn take(file: &File, name: &str, lock: &Lock) -> Result<()> {
    if fcntl(file, FcntlArg::F_OFD_GETLK(&mut byte(0, libc::F_WRLCK))).is_err() {
        return Ok(());
    }
    let fail = |e: Errno| Error::io(name, "lock", None, e.into());
    for (base, permissions) in [(USED, lock.used), (DENIED, lock.denied)] {
        for permission in permissions {
            let at = base + *permission as i64;
            match fcntl(file, FcntlArg::F_OFD_SETLK(&byte(at, libc::F_RDLCK))) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(locked(name, format!("Failed to lock byte {at}"))),
                Err(e) => return Err(fail(e)),
            }
        }
    }
    for (base, permissions, shared) in [(DENIED, lock.used, ""), (USED, lock.denied, "shared ")] {
        for permission in permissions {
            let mut asked = byte(base + *permission as i64, libc::F_WRLCK);
            fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked)).map_err(fail)?;
            if i32::from(asked.l_type) != libc::F_UNLCK {
                return Err(locked(name, format!("Failed to get {shared}\"{}\" lock", permission.name())));
            }
        }
    }
    Ok(())
}

/// Gives all locks on `file` back. Closing it is not enough: a process that is being started shares it for a moment.
pub fn release(file: &File) {
    let all = libc::flock { l_len: 0, ..byte(0, libc::F_UNLCK) };
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&all));
}

fn locked(name: &str, why: String) -> Error {
    Error::Locked { file: name.into(), why }
}

/// A lock of one byte, or the question whether it could be had.
fn byte(at: i64, kind: i32) -> libc::flock {
    libc::flock { l_type: kind as libc::c_short, l_whence: libc::SEEK_SET as libc::c_short, l_start: at, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_one_file_agree_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let with = |held: &Lock, wanted: &Lock| {
            let (one, two) = (open(), open());
            take(&one, "image", held).unwrap();
            take(&two, "image", wanted).err().map(|e| e.to_string())
        };
        for (held, wanted, permission) in [
            (Lock::READ, Lock::READ, None),
            (Lock::READ, Lock::READ_SHARED, None),
            (Lock::READ_SHARED, Lock::WRITE, None),
            (Lock::WRITE_SHARED, Lock::WRITE_SHARED, None),
            (Lock::WRITE, Lock::READ_SHARED, None),
            (Lock::WRITE, Lock::READ, Some("shared \"write\"")),
            (Lock::WRITE, Lock::WRITE, Some("\"write\"")),
            (Lock::READ, Lock::WRITE, Some("\"write\"")),
            (Lock::READ, Lock::REPLACE, Some("\"write\"")),
            (Lock::READ_PART, Lock::WRITE, Some("\"resize\"")),
            (Lock::WRITE_PART, Lock::READ_PART, Some("shared \"resize\"")),
        ] {
            let expected =
                permission.map(|p| format!("Could not open 'image': Failed to get {p} lock\nIs another process using the image [image]?"));
            assert_eq!(with(&held, &wanted), expected);
        }
        // The first two are closed again: nothing of them remains.
        take(&open(), "image", &Lock::WRITE).unwrap();
    }

    #[test]
    fn a_lock_grows_on_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("image")).unwrap();
        take(&file, "image", &Lock::READ).unwrap();
        take(&file, "image", &Lock::WRITE).unwrap();
    }

    #[test]
    fn what_knows_no_locks_is_not_locked() {
        let (pipe, _other) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(pipe));
        take(&file, "pipe", &Lock::WRITE).unwrap();
    }
}
