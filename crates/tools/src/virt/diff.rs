//! `virt-diff`: what differs between two guests, or two states of one.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, FromArgMatches};
use guestfs::{Ext, FileType, GuestFs, Time, Xattrs};

use super::Entry;
use super::columns::{Columns, Details};
use super::options::GuestArgs;
use super::paths::{Found, Order, Walk};
use super::show::{Out, Table};
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "diff",
    arguments: |command| Diff::augment_args(command).disable_help_flag(true).arg(super::help_flag()),
    run: |matches| run(Diff::from_arg_matches(matches)?),
};

/// Longer files are told to differ, without their lines.
const TEXT_LIMIT: u64 = 8 << 20;
/// A file with a NUL in so many bytes is none of lines.
const TEXT_PROBE: usize = 32 << 10;
/// After so long a shorter difference is no longer looked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// List the files that differ between two guests.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-diff -a old.qcow2 -A new.qcow2\n  virt-diff --all --checksum=sha256 -a snapshot.img -A disk.img\n  virt-diff --csv -d old.xml -D new.xml"
)]
struct Diff {
    #[command(flatten)]
    guest: GuestArgs,
    /// Add a disk image of the second guest (may be repeated)
    #[arg(short = 'A', value_name = "FILE|URI")]
    second_add: Vec<OsString>,
    /// Add the disks of a libvirt domain as the second guest: an XML file, or a name that virsh knows
    #[arg(short = 'D', value_name = "XMLFILE|NAME")]
    second_domain: Vec<OsString>,
    #[command(flatten)]
    columns: Columns,
    /// The same as --extra-stats --times --uids --xattrs
    #[arg(long)]
    all: bool,
    /// Compare times of access, too
    #[arg(long)]
    atime: bool,
    /// Compare the number of directories' links, too
    #[arg(long, aliases = ["dir-link", "dir-nlink", "dir-nlinks"])]
    dir_links: bool,
    /// Compare directories' times, too
    #[arg(long, alias = "dir-time")]
    dir_times: bool,
    /// Show extended attributes
    #[arg(long, alias = "xattr")]
    xattrs: bool,
}

/// A file of one of the guests with all that is compared.
struct File {
    details: Details,
    xattrs: Xattrs,
}

fn run(mut args: Diff) -> Result<ExitCode, Failure> {
    if args.second_add.is_empty() && args.second_domain.is_empty() {
        return Err(Failure::new("no disk of the second guest was named").hint("add its disk images with -A FILE"));
    }
    if args.all {
        args.columns.show_all();
        args.xattrs = true;
    }
    args.columns.without_atime = !args.atime;
    let (first, second) = args.guest.open_pair(std::mem::take(&mut args.second_add), std::mem::take(&mut args.second_domain))?;
    let mut out = Out::new();
    compare(&args, first.fs(), second.fs(), &mut out)?;
    out.finish()?;
    first.shutdown()?;
    second.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// Goes through both trees side by side, in the order of their paths.
fn compare(args: &Diff, old: &dyn GuestFs, new: &dyn GuestFs, out: &mut Out) -> Result<(), Failure> {
    let (old_below, old_root) = Walk::new(old, b"/", Order::Path)?;
    let (new_below, new_root) = Walk::new(new, b"/", Order::Path)?;
    let (mut old_files, mut new_files) = (std::iter::once(Ok(old_root)).chain(old_below), std::iter::once(Ok(new_root)).chain(new_below));
    let (mut before, mut after) = (old_files.next().transpose()?, new_files.next().transpose()?);
    loop {
        let order = match (&before, &after) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(before), Some(after)) => before.path.cmp(&after.path),
        };
        if order.is_eq() {
            if let (Some(before), Some(after)) = (before, after) {
                args.pair(old, args.file(old, before)?, new, args.file(new, after)?, out)?;
            }
            (before, after) = (old_files.next().transpose()?, new_files.next().transpose()?);
        } else if order.is_lt() {
            if let Some(gone) = before {
                args.print("-", &args.file(old, gone)?, out)?;
            }
            before = old_files.next().transpose()?;
        } else {
            if let Some(come) = after {
                args.print("+", &args.file(new, come)?, out)?;
            }
            after = new_files.next().transpose()?;
        }
    }
}

impl Diff {
    /// What of a file is compared, the rest zeroed as libguestfs has it.
    fn file(&self, fs: &dyn GuestFs, found: Found) -> Result<File, Failure> {
        let mut details = self.columns.details(fs, found)?;
        let stat = &mut details.stat;
        let directory = stat.kind == FileType::Directory;
        if directory && !self.dir_links {
            stat.nlink = 0;
        }
        if directory && !self.dir_times {
            (stat.atime, stat.mtime, stat.ctime) = Default::default();
        }
        if !self.atime {
            stat.atime = Time::default();
        }
        let mut xattrs = fs.xattrs(&details.path)?;
        xattrs.sort();
        Ok(File { details, xattrs })
    }

    fn print(&self, mark: &str, file: &File, out: &mut Out) -> Result<(), Failure> {
        let none = Xattrs::new();
        self.columns.print(Some(mark), &file.details, if self.xattrs { &file.xattrs } else { &none }, out)
    }

    /// One path in both guests.
    fn pair(&self, old: &dyn GuestFs, before: File, new: &dyn GuestFs, after: File, out: &mut Out) -> Result<(), Failure> {
        let mut changed = changes(&before, &after);
        if content_differs(&before.details, &after.details) {
            self.print("=", &before, out)?;
            if !self.columns.csv {
                lines(old, new, &before.details.path, out)?;
                out.bytes(b"@@ End of diff @@\n")?;
            }
            // These change with the content, the others by themselves.
            changed.retain(|name| ["st_mode", "st_uid", "st_gid", "xattrs"].contains(name));
        }
        if !changed.is_empty() {
            self.print("-", &before, out)?;
            self.print("+", &after, out)?;
            let mut row = Table::row(self.columns.csv);
            ["#", "changed:"].iter().chain(&changed).for_each(|field| row.field(field));
            out.bytes(&[row.content(), b"\n"].concat())?;
        }
        Ok(())
    }
}

/// Whether regular files' content differs, or may by their times.
fn content_differs(before: &Details, after: &Details) -> bool {
    let (old, new) = (&before.stat, &after.stat);
    let written = (old.mtime.sec, old.ctime.sec, old.size) != (new.mtime.sec, new.ctime.sec, new.size);
    old.kind == FileType::Regular && new.kind == FileType::Regular && (written || before.checksum != after.checksum)
}

/// The attributes that differ, by libguestfs's names.
fn changes(before: &File, after: &File) -> Vec<&'static str> {
    let (old, new) = (&before.details.stat, &after.details.stat);
    let all = [
        ("st_dev", old.dev != new.dev),
        ("st_ino", old.ino != new.ino),
        ("st_mode", (old.kind, old.mode) != (new.kind, new.mode)),
        ("st_nlink", old.nlink != new.nlink),
        ("st_uid", old.uid != new.uid),
        ("st_gid", old.gid != new.gid),
        ("st_rdev", old.rdev != new.rdev),
        ("st_size", old.size != new.size),
        ("st_blocks", old.blocks != new.blocks),
        ("st_atime_sec", old.atime.sec != new.atime.sec),
        ("st_mtime_sec", old.mtime.sec != new.mtime.sec),
        ("st_ctime_sec", old.ctime.sec != new.ctime.sec),
        ("link", before.details.target != after.details.target),
        ("xattrs", before.xattrs != after.xattrs),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// The lines that differ, as `diff -u` shows them.
fn lines(old: &dyn GuestFs, new: &dyn GuestFs, path: &[u8], out: &mut Out) -> Result<(), Failure> {
    let sizes = [old.stat(path)?.size, new.stat(path)?.size];
    if sizes.iter().any(|size| *size > TEXT_LIMIT) {
        return out.bytes(b"Files too long to show their lines\n");
    }
    let (before, after) = (old.read(path, TEXT_LIMIT)?, new.read(path, TEXT_LIMIT)?);
    if [&before, &after].iter().any(|c| c.iter().take(TEXT_PROBE).any(|b| *b == 0)) {
        return if before == after { Ok(()) } else { out.bytes(b"Binary files differ\n") };
    }
    let diff = similar::TextDiff::configure().timeout(PATIENCE).diff_lines(&before, &after);
    let mut text = Vec::new();
    diff.unified_diff().context_radius(3).to_writer(&mut text)?;
    out.lines(&text)
}
