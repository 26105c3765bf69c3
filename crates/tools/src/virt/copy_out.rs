//! `virt-copy-out`: files and folders of a guest to this machine, never outside of the target folder.

use std::ffi::{OsStr, OsString};
use std::fs::{File, FileTimes, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, FromArgMatches};
use guestfs::{FileType, GuestFs, Stat, Time};

use super::Entry;
use super::options::GuestArgs;
use super::show::{join, read_file};
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "copy-out", arguments: CopyOut::augment_args, run: |matches| run(&CopyOut::from_arg_matches(matches)?) };

/// Copy files and folders out of a guest.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-copy-out -a disk.qcow2 /etc /var/log/syslog .\n  virt-copy-out -a disk.qcow2 --preserve /home backup/\n\n\
                        Everything that is written lies below the target folder, whatever names and links the guest has."
)]
struct CopyOut {
    #[command(flatten)]
    guest: GuestArgs,
    /// Keep owners and set-id bits too
    #[arg(short, long)]
    preserve: bool,
    /// Make pipes, sockets and device files too
    #[arg(long)]
    special: bool,
    /// Absolute paths in the guest, then a folder of this machine
    #[arg(required = true, num_args = 2.., value_name = "PATH… DIR")]
    paths: Vec<OsString>,
}

fn run(args: &CopyOut) -> Result<ExitCode, Failure> {
    let Some((target, sources)) = args.paths.split_last() else { return Err(Failure::new("name a path and a folder")) };
    let target = PathBuf::from(target);
    if !target.is_dir() {
        return Err(Failure::new(format!("{}: not a folder", target.display())).hint("make it first, or name another"));
    }
    let guest = args.guest.open()?;
    for source in sources {
        let source = source.as_bytes();
        // The path's last word is ours to trust: the user wrote it.
        let name = source.rsplit(|b| *b == b'/').find(|w| !w.is_empty() && *w != b".").unwrap_or_default();
        let to = match name {
            b"" => target.clone(),
            b".." => return Err(Failure::new(format!("{}: ends with '..'", guestfs::show(source)))),
            name => target.join(OsStr::from_bytes(name)),
        };
        args.copy(guest.fs(), source, &to, 0)?;
    }
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |error| Failure::new(format!("{}: {error}", path.display()))
}

impl CopyOut {
    /// `to` has a folder of ours above it, and nothing but names that [`checked`] let through.
    fn copy(&self, fs: &dyn GuestFs, from: &[u8], to: &Path, depth: usize) -> Result<(), Failure> {
        if depth > 2000 {
            return Err(Failure::new(format!("{}: directories nest too deep", guestfs::show(from))));
        }
        let stat = fs.lstat(from)?;
        match stat.kind {
            FileType::Directory => {
                make_folder(to)?;
                for entry in fs.read_dir(from)? {
                    let name = checked(&entry.name)?;
                    self.copy(fs, &join(from, &entry.name), &to.join(name), depth + 1)?;
                }
            }
            FileType::Symlink => {
                clear(to)?;
                return symlink(OsStr::from_bytes(&fs.readlink(from)?), to).map_err(at(to));
            }
            FileType::Regular => write_file(fs, from, to, &stat)?,
            kind if self.special => special(kind, &stat, to)?,
            _ => {
                eprintln!(
                    "virt-copy-out: {}: left out, since it is a pipe, a socket or a device (--special makes it)",
                    guestfs::show(from)
                );
                return Ok(());
            }
        }
        self.finish(&stat, to)
    }

    fn finish(&self, stat: &Stat, to: &Path) -> Result<(), Failure> {
        if self.preserve {
            std::os::unix::fs::lchown(to, Some(stat.uid), Some(stat.gid)).map_err(at(to))?;
        }
        let mode = if self.preserve { stat.mode } else { stat.mode & 0o777 };
        std::fs::set_permissions(to, Permissions::from_mode(mode)).map_err(at(to))?;
        if matches!(stat.kind, FileType::Regular | FileType::Directory)
            && let Ok(file) = File::open(to)
        {
            let times = FileTimes::new().set_accessed(system(stat.atime)).set_modified(system(stat.mtime));
            file.set_times(times).map_err(at(to))?;
        }
        Ok(())
    }
}

/// A name from the guest that means one file in its folder.
fn checked(name: &[u8]) -> Result<&OsStr, Failure> {
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(Failure::new(format!("the guest has a file called '{}': that is no name", guestfs::show(name))));
    }
    Ok(OsStr::from_bytes(name))
}

/// A folder that is there already must be a real one: a link would lead outside.
fn make_folder(to: &Path) -> Result<(), Failure> {
    match std::fs::create_dir(to) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && std::fs::symlink_metadata(to).map_err(at(to))?.is_dir() => Ok(()),
        outcome => outcome.map_err(at(to)),
    }
}

/// Takes away what has the name, unless it is a folder.
fn clear(to: &Path) -> Result<(), Failure> {
    match std::fs::symlink_metadata(to) {
        Ok(m) if m.is_dir() => Err(Failure::new(format!("{}: a folder is in the way", to.display()))),
        Ok(_) => std::fs::remove_file(to).map_err(at(to)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(at(to)(e)),
    }
}

/// Zeroes become holes.
fn write_file(fs: &dyn GuestFs, from: &[u8], to: &Path, stat: &Stat) -> Result<(), Failure> {
    clear(to)?;
    let file = OpenOptions::new().write(true).create_new(true).open(to).map_err(at(to))?;
    let mut offset = 0;
    read_file(fs, from, &mut |piece| {
        for part in piece.chunks(64 << 10) {
            if part.iter().any(|b| *b != 0) {
                file.write_all_at(part, offset).map_err(at(to))?;
            }
            offset += part.len() as u64;
        }
        Ok(())
    })?;
    if offset != stat.size {
        return Err(Failure::new(format!("{}: {offset} bytes instead of {}", guestfs::show(from), stat.size)));
    }
    file.set_len(offset).map_err(at(to))
}

fn special(kind: FileType, stat: &Stat, to: &Path) -> Result<(), Failure> {
    use rustix::fs::{CWD, FileType as Kind, Mode, makedev, mknodat};
    clear(to)?;
    let kind = match kind {
        FileType::CharDevice => Kind::CharacterDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Socket => Kind::Socket,
        _ => Kind::Fifo,
    };
    mknodat(CWD, to, kind, Mode::from_raw_mode(stat.mode & 0o777), makedev(stat.rdev.0, stat.rdev.1)).map_err(|e| at(to)(e.into()))
}

fn system(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|t| t.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}
