//! `virt-copy-out`: files and folders of a guest to this machine, never outside of the target folder.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::{FileType, GuestFs, Stat, Xattrs};

use super::Entry;
use super::host::Target;
use super::options::GuestArgs;
use super::show::join;
use super::walk::walk;
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
    /// Keep owners, set-id bits, ACLs and labels too
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
    let target = Target::open(Path::new(target))?;
    let guest = args.guest.open()?;
    let wishes = Wishes { preserve: args.preserve, special: args.special };
    copy_out(guest.fs(), sources.iter().map(|s| s.as_bytes()), target, wishes)?;
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// What is made on this machine besides plain files.
#[derive(Clone, Copy, Default)]
pub(super) struct Wishes {
    /// Owners, set-id bits, ACLs and labels too.
    pub preserve: bool,
    /// Pipes, sockets and device files too.
    pub special: bool,
}

/// Copies files and whole folders of a guest.
pub(super) fn copy_out<'s>(
    fs: &dyn GuestFs,
    sources: impl IntoIterator<Item = &'s [u8]>,
    target: Target,
    wishes: Wishes,
) -> Result<(), Failure> {
    let mut copy = Copy { wishes, fs, target, names: HashMap::new(), directories: Vec::new() };
    sources.into_iter().try_for_each(|source| copy.tree(source))?;
    copy.finish()
}

struct Copy<'a> {
    wishes: Wishes,
    fs: &'a dyn GuestFs,
    target: Target,
    /// Where the first of a file's several names was made.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// Directories get their modes and times when all is in them.
    directories: Vec<(Vec<u8>, Stat, Xattrs)>,
}

impl Copy<'_> {
    fn tree(&mut self, source: &[u8]) -> Result<(), Failure> {
        // The path's last word is ours to trust: the user wrote it.
        let name = source.rsplit(|b| *b == b'/').find(|w| !w.is_empty() && *w != b".").unwrap_or_default();
        if name == b".." {
            return Err(Failure::new(format!("{}: ends with '..'", guestfs::show(source))));
        }
        let fs = self.fs;
        walk(fs, source, &mut |below, stat| {
            let from = if below.is_empty() { source.to_vec() } else { join(source, below) };
            let to = match (name.is_empty(), below.is_empty()) {
                (true, _) => below.to_vec(),
                (false, true) => name.to_vec(),
                (false, false) => [name, b"/", below].concat(),
            };
            self.one(&from, &to, stat)
        })
    }

    fn one(&mut self, from: &[u8], to: &[u8], stat: &Stat) -> Result<(), Failure> {
        if stat.kind != FileType::Directory && stat.nlink > 1 {
            if let Some(first) = self.names.get(&(stat.dev, stat.ino)) {
                return self.target.link(to, first);
            }
            self.names.insert((stat.dev, stat.ino), to.to_vec());
        }
        match stat.kind {
            FileType::Directory => {
                self.target.directory(to)?;
                self.directories.push((to.to_vec(), stat.clone(), self.fs.xattrs(from)?));
                return Ok(());
            }
            FileType::Symlink => self.target.symlink(to, &self.fs.readlink(from)?)?,
            FileType::Regular => self.regular(from, to, stat)?,
            _ if self.wishes.special => self.target.special(to, stat)?,
            _ => {
                self.names.remove(&(stat.dev, stat.ino));
                eprintln!(
                    "virt-copy-out: {}: left out, since it is a pipe, a socket or a device (virt-copy-out --special makes it)",
                    guestfs::show(from)
                );
                return Ok(());
            }
        }
        self.target.dress(to, stat, &self.fs.xattrs(from)?, self.wishes.preserve)
    }

    /// Holes stay holes, and zeroes become some.
    fn regular(&mut self, from: &[u8], to: &[u8], stat: &Stat) -> Result<(), Failure> {
        let file = self.target.file(to)?;
        let mut buf = vec![0; stat.size.clamp(4096, 1 << 20) as usize];
        let mut at = 0;
        while let Some(run) = self.fs.next_data(from, at)?.filter(|run| run.start < stat.size && run.end > at) {
            at = at.max(run.start);
            let end = run.end.min(stat.size);
            while at < end {
                let want = buf.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                let n = self.fs.read_at(from, at, &mut buf[..want])?;
                if n == 0 {
                    return Err(Failure::new(format!("{}: ends at {at} instead of {}", guestfs::show(from), stat.size)));
                }
                for part in buf[..n].chunks(64 << 10) {
                    if part.iter().any(|b| *b != 0) {
                        file.write_all_at(part, at).map_err(|e| self.target.failure(to, e))?;
                    }
                    at += part.len() as u64;
                }
            }
        }
        file.set_len(stat.size).map_err(|e| self.target.failure(to, e))
    }

    fn finish(mut self) -> Result<(), Failure> {
        for (path, stat, xattrs) in self.directories.iter().rev() {
            self.target.dress(path, stat, xattrs, self.wishes.preserve)?;
        }
        Ok(())
    }
}
