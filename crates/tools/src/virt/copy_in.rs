//! `virt-copy-in`: files and folders of this machine into a guest.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::engine::Session;
use guestfs::{Attributes, Ext, FileType, Time};

use super::Entry;
use super::options::GuestArgs;
use super::show::join;
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "copy-in", arguments: CopyIn::augment_args, run: |matches| run(&CopyIn::from_arg_matches(matches)?) };

/// Copy files and folders into a guest that is not running.
#[derive(Args)]
#[command(after_help = "Examples:\n  virt-copy-in -a disk.qcow2 hosts /etc\n  virt-copy-in -a disk.qcow2 site/ notes.txt /srv\n\n\
                        Owners, modes and times are kept as numbers.")]
struct CopyIn {
    #[command(flatten)]
    guest: GuestArgs,
    /// Files and folders of this machine, then a folder of the guest
    #[arg(required = true, num_args = 2.., value_name = "FILE… DIR")]
    paths: Vec<OsString>,
}

fn run(args: &CopyIn) -> Result<ExitCode, Failure> {
    let Some((target, sources)) = args.paths.split_last() else { return Err(Failure::new("name a file and a folder")) };
    // What is missing here is said before an appliance is started.
    for source in sources {
        std::fs::symlink_metadata(source).map_err(|e| at(Path::new(source), e))?;
    }
    let mut guest = args.guest.open_writable()?;
    let session = guest.session().ok_or_else(|| Failure::new("a guest is changed in the appliance only"))?;
    if !session.is_dir(target.as_bytes()) {
        return Err(Failure::new(format!("{}: not a folder of the guest", guestfs::show(target.as_bytes()))));
    }
    for source in sources {
        let path = Path::new(source);
        let name = path.canonicalize().map_err(|e| at(path, e))?;
        let name = name.file_name().ok_or_else(|| Failure::new(format!("{}: has no name to copy to", path.display())))?;
        let name = path.file_name().unwrap_or(name);
        copy(session, path, &join(target.as_bytes(), name.as_bytes()))?;
    }
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

fn at(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

fn copy(session: &mut dyn Session, path: &Path, to: &[u8]) -> Result<(), Failure> {
    let metadata = std::fs::symlink_metadata(path).map_err(|e| at(path, e))?;
    let kind = metadata.file_type();
    let attributes = attributes(&metadata);
    let existing = session.lstat(to).ok().map(|s| s.kind);
    if kind.is_dir() {
        match existing {
            Some(FileType::Directory) => session.set_attributes(to, attributes)?,
            Some(_) => return Err(Failure::new(format!("{}: is there and not a folder", guestfs::show(to)))),
            None => session.mkdir(to, attributes)?,
        }
        let entries: Result<Vec<_>, _> = std::fs::read_dir(path).map_err(|e| at(path, e))?.collect();
        let mut names: Vec<PathBuf> = entries.map_err(|e| at(path, e))?.into_iter().map(|e| e.path()).collect();
        names.sort();
        for child in names {
            let name = child.file_name().unwrap_or_default();
            copy(session, &child, &join(to, name.as_bytes()))?;
        }
    } else {
        match existing {
            Some(FileType::Directory) => return Err(Failure::new(format!("{}: is there and a folder", guestfs::show(to)))),
            // Never through a link of the guest's.
            Some(_) => session.remove(to)?,
            None => {}
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(|e| at(path, e))?;
            return Ok(session.symlink(target.as_os_str().as_bytes(), to)?);
        }
        if kind.is_fifo() {
            session.mknod(to, FileType::Fifo, (0, 0), attributes)?;
        } else if kind.is_file() {
            session.write(to, &mut File::open(path).map_err(|e| at(path, e))?, Some(attributes))?;
        } else {
            eprintln!("virt-copy-in: {}: sockets and devices are not copied", path.display());
            return Ok(());
        }
    }
    Ok(set_times(session, to, &metadata)?)
}

fn attributes(metadata: &Metadata) -> Attributes {
    Attributes { mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid() }
}

fn set_times(session: &mut dyn Session, path: &[u8], m: &Metadata) -> guestfs::Result<()> {
    let nsec = |n: i64| u32::try_from(n).unwrap_or(0);
    let atime = Time { sec: m.atime(), nsec: nsec(m.atime_nsec()) };
    let mtime = Time { sec: m.mtime(), nsec: nsec(m.mtime_nsec()) };
    session.set_times(path, atime, mtime)
}
