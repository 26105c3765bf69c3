//! `virt-copy-in`: files and folders of this machine into a guest.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::engine::Session;
use guestfs::{Attributes, Error, Ext, FileType, Node, Time, Unpack, What, Xattrs};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

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
                        Owners (as numbers), modes, times, hard links, holes, ACLs and users' attributes are kept. When anything\n\
                        fails, the image is as before.")]
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
    let sources = sources.iter().map(|source| named(Path::new(source))).collect::<Result<Vec<_>, _>>()?;
    let mut guest = args.guest.open_writable()?;
    let session = guest.session().ok_or_else(|| Failure::new("a guest is changed in the appliance only"))?;
    for (source, name) in &sources {
        copy_in(session, source, target.as_bytes(), name)?;
    }
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// A file of this machine, and the name that a copy of it gets.
pub(super) fn named(path: &Path) -> Result<(PathBuf, Vec<u8>), Failure> {
    std::fs::symlink_metadata(path).map_err(|e| at(path, e))?;
    let name = match path.file_name() {
        Some(name) => name.to_owned(),
        // `..` and the like.
        None => path.canonicalize().map_err(|e| at(path, e))?.file_name().unwrap_or_default().to_owned(),
    };
    if name.is_empty() {
        return Err(Failure::new(format!("{}: has no name to copy to", path.display())));
    }
    Ok((path.to_owned(), name.into_encoded_bytes()))
}

/// Copies a file or a whole folder into a folder of the guest.
pub(super) fn copy_in(session: &mut dyn Session, source: &Path, folder: &[u8], name: &[u8]) -> Result<(), Failure> {
    if !session.is_dir(folder) {
        return Err(Failure::new(format!("{}: not a folder of the guest", guestfs::show(folder))));
    }
    let mut failed = None;
    let outcome = session.unpack(folder, &mut |sink| {
        pack(source, name, sink).map_err(|failure| {
            let message = failure.message().to_string();
            failed = Some(failure);
            Error::Invalid(message)
        })
    });
    match (outcome, failed) {
        (Err(Error::Invalid(_)), Some(failure)) => Err(failure),
        (outcome, _) => Ok(outcome?),
    }
}

fn at(path: &Path, error: impl Into<io::Error>) -> Failure {
    Failure::new(format!("{}: {}", path.display(), error.into()))
}

/// Hands over a file and all that is below it. Directories come once more at the end, since what is made in them changes
/// their times.
pub(super) fn pack(source: &Path, name: &[u8], sink: &mut dyn Unpack) -> Result<(), Failure> {
    let mut names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut directories = Vec::new();
    let mut left = vec![(source.to_owned(), name.to_vec())];
    while let Some((path, to)) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path).map_err(|e| at(&path, e))?;
        let kind = metadata.file_type();
        let id = (metadata.dev(), metadata.ino());
        let what = match names.get(&id).filter(|_| !kind.is_dir() && metadata.nlink() > 1) {
            Some(first) => What::Link(first.clone()),
            None if kind.is_dir() => What::Directory,
            None if kind.is_symlink() => {
                What::Symlink(std::fs::read_link(&path).map_err(|e| at(&path, e))?.into_os_string().into_encoded_bytes())
            }
            None if kind.is_file() => What::File,
            None if kind.is_fifo() => What::Special(FileType::Fifo, (0, 0)),
            None => {
                eprintln!("virt-copy-in: {}: sockets and devices are not copied", path.display());
                continue;
            }
        };
        if metadata.nlink() > 1 {
            names.entry(id).or_insert_with(|| to.clone());
        }
        let node = node(&path, to, what, &metadata)?;
        sink.node(&node)?;
        match node.what {
            What::File => content(&path, sink)?,
            What::Directory => {
                let entries = std::fs::read_dir(&path).map_err(|e| at(&path, e))?.collect::<Result<Vec<_>, _>>();
                let mut children: Vec<PathBuf> = entries.map_err(|e| at(&path, e))?.into_iter().map(|e| e.path()).collect();
                children.sort_by(|a, b| b.cmp(a));
                left.extend(children.into_iter().map(|child| {
                    let to = join(&node.path, child.file_name().unwrap_or_default().as_bytes());
                    (child, to)
                }));
                directories.push(node);
            }
            _ => {}
        }
    }
    Ok(directories.iter().rev().try_for_each(|node| sink.node(node))?)
}

fn node(path: &Path, to: Vec<u8>, what: What, m: &Metadata) -> Result<Node, Failure> {
    let nsec = |n: i64| u32::try_from(n).unwrap_or(0);
    let times = (Time { sec: m.atime(), nsec: nsec(m.atime_nsec()) }, Time { sec: m.mtime(), nsec: nsec(m.mtime_nsec()) });
    let attributes = Attributes { mode: m.mode() & 0o7777, uid: m.uid(), gid: m.gid() };
    let xattrs = if matches!(what, What::File | What::Directory) { xattrs(path).map_err(|e| at(path, e))? } else { Vec::new() };
    Ok(Node { path: to, what, attributes, times, xattrs })
}

/// The attributes that mean the same in a guest. This machine's labels do not.
fn xattrs(path: &Path) -> Result<Xattrs, Errno> {
    let mut list = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    let mut found = Vec::new();
    for name in list[..len].split(|b| *b == 0) {
        if name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability" {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
            value.truncate(len);
            found.push((name.to_vec(), value));
        }
    }
    Ok(found)
}

/// A file's data, and its holes as such.
fn content(path: &Path, sink: &mut dyn Unpack) -> Result<(), Failure> {
    let file = File::open(path).map_err(|e| at(path, e))?;
    let size = file.metadata().map_err(|e| at(path, e))?.len();
    let mut buf = vec![0; 256 << 10];
    let mut position = 0;
    while position < size {
        let start = match seek(&file, SeekFrom::Data(position)) {
            Err(Errno::NXIO) => size,
            start => start.map_err(|e| at(path, e))?.min(size),
        };
        if start > position {
            sink.hole(start - position)?;
        }
        position = start;
        let end = if start < size { seek(&file, SeekFrom::Hole(start)).map_err(|e| at(path, e))?.min(size) } else { size };
        while position < end {
            let want = buf.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
            let n = file.read_at(&mut buf[..want], position).map_err(|e| at(path, e))?;
            if n == 0 {
                return Err(Failure::new(format!("{}: became shorter while it was copied", path.display())));
            }
            sink.data(&buf[..n])?;
            position += n as u64;
        }
    }
    Ok(())
}
