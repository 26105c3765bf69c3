//! `virt-ls`: directories of a guest, in libguestfs's four forms.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::{FileType, GuestFs, Stat, Time};

use super::options::GuestArgs;
use super::show::{Out, Table, human, join};
use super::{Entry, checksum, long, time};
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "ls",
    arguments: |command| Ls::augment_args(command).disable_help_flag(true).arg(super::help_flag()),
    run: |matches| run(&Ls::from_arg_matches(matches)?),
};

/// List files of a guest.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-ls -a disk.qcow2 /etc\n  virt-ls -l -a disk.qcow2 /boot\n  virt-ls -lR --csv --checksum=sha256 -a disk.qcow2 /usr/bin"
)]
struct Ls {
    #[command(flatten)]
    guest: GuestArgs,
    /// Sizes for people
    #[arg(short, long)]
    human_readable: bool,
    /// Comma-separated values
    #[arg(long)]
    csv: bool,
    /// Modes, owners, sizes and times; with -R one line a file
    #[arg(short, long)]
    long: bool,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// With -lR: checksums of files (crc, md5, sha1, sha224, sha256, sha384, sha512)
    #[arg(long, value_name = "ALGORITHM", num_args = 0..=1, require_equals = true, default_missing_value = "md5")]
    checksum: Option<checksum::Algorithm>,
    /// With -lR: device, inode, links, device number and blocks
    #[arg(long)]
    extra_stats: bool,
    /// With -lR: owner and group
    #[arg(long, alias = "uid")]
    uids: bool,
    /// With -lR: times of access, modification and change
    #[arg(long, alias = "time")]
    times: bool,
    /// With -lR: times in days before now
    #[arg(long)]
    time_days: bool,
    /// With -lR: times in seconds before now
    #[arg(long)]
    time_relative: bool,
    /// With -lR: times in seconds since 1970
    #[arg(long)]
    time_t: bool,
    /// Absolute paths in the guest
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<OsString>,
}

fn run(args: &Ls) -> Result<ExitCode, Failure> {
    if args.csv && !(args.long && args.recursive) {
        return Err(Failure::new("--csv goes with -lR only"));
    }
    if args.csv && args.human_readable {
        return Err(Failure::new("-h and --csv don't go together"));
    }
    let guest = args.guest.open_confined()?;
    let mut out = Out::new();
    for directory in &args.directories {
        let path = directory.as_bytes();
        match (args.long, args.recursive) {
            (false, false) => plain(guest.fs(), path, &mut out)?,
            (true, false) => long::list(guest.fs(), path, args.human_readable, &mut out)?,
            (false, true) => names_below(guest.fs(), path, &mut out)?,
            (true, true) => visit(guest.fs(), path, 0, &mut |path, stat| args.line(guest.fs(), path, stat, &mut out))?,
        }
    }
    out.finish()?;
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// A directory's names in order.
pub(super) fn sorted_names(fs: &dyn GuestFs, path: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut names: Vec<Vec<u8>> = fs.read_dir(path)?.into_iter().map(|e| e.name).collect();
    names.sort();
    Ok(names)
}

fn plain(fs: &dyn GuestFs, path: &[u8], out: &mut Out) -> Result<(), Failure> {
    for name in sorted_names(fs, path)? {
        out.name(&name)?;
        out.bytes(b"\n")?;
    }
    Ok(())
}

/// All paths below, relative to the directory, sorted as whole strings.
fn names_below(fs: &dyn GuestFs, path: &[u8], out: &mut Out) -> Result<(), Failure> {
    let mut paths = Vec::new();
    visit(fs, path, 0, &mut |found, _| {
        let below = found.get(path.len()..).unwrap_or_default();
        if !below.is_empty() {
            paths.push(below.to_vec());
        }
        Ok(())
    })?;
    paths.sort();
    for path in paths {
        out.name(&path)?;
        out.bytes(b"\n")?;
    }
    Ok(())
}

/// Paths in a filesystem nest no deeper; a damaged one may.
const DEPTH: usize = 2000;

/// Takes a file's path and what lstat tells of it.
type Visitor<'a> = dyn FnMut(&[u8], &Stat) -> Result<(), Failure> + 'a;

/// A file and all that is below it, in order.
fn visit(fs: &dyn GuestFs, path: &[u8], depth: usize, take: &mut Visitor<'_>) -> Result<(), Failure> {
    let stat = if depth == 0 { fs.stat(path)? } else { fs.lstat(path)? };
    take(path, &stat)?;
    if stat.kind == FileType::Directory {
        if depth >= DEPTH {
            return Err(Failure::new(format!("{}: directories nest too deep", guestfs::show(path))));
        }
        for name in sorted_names(fs, path)? {
            visit(fs, &join(path, &name), depth + 1, take)?;
        }
    }
    Ok(())
}

impl Ls {
    /// libguestfs's line for one file of `-lR`.
    fn line(&self, fs: &dyn GuestFs, path: &[u8], stat: &Stat, out: &mut Out) -> Result<(), Failure> {
        let mut row = Table::row(self.csv);
        row.field(long::letter(stat.kind, "-"));
        row.field(&format!("{:04o}", stat.mode));
        let size = if self.human_readable { human(stat.size) } else { stat.size.to_string() };
        row.field(&if self.csv { size } else { format!("{size:>10}") });
        if self.uids {
            for id in [stat.uid, stat.gid] {
                row.field(&format!("{id:>4}"));
            }
        }
        if self.times || self.time_t || self.time_relative || self.time_days {
            for t in [stat.atime, stat.mtime, stat.ctime] {
                row.field(&self.time(t));
            }
        }
        if self.extra_stats {
            row.field(&format!("0:{}", stat.dev));
            row.field(&stat.ino.to_string());
            row.field(&stat.nlink.to_string());
            row.field(&format!("{}:{}", stat.rdev.0, stat.rdev.1));
            row.field(&stat.blocks.to_string());
        }
        if let Some(algorithm) = self.checksum {
            if stat.kind == FileType::Regular {
                row.field(&checksum::of_file(fs, path, algorithm)?);
            } else if self.csv {
                row.field("");
            }
        }
        out.bytes(row.text().as_bytes())?;
        row = Table::row(self.csv);
        row.bytes(path);
        if stat.kind == FileType::Symlink {
            let target = fs.readlink(path)?;
            if self.csv {
                row.bytes(&target);
            } else {
                row.raw(b" -> ");
                row.raw(&target);
            }
        }
        out.bytes(if self.csv { b"," } else { b" " })?;
        out.name(row.content())?;
        out.bytes(b"\n")
    }

    fn time(&self, t: Time) -> String {
        let ago = time::now() - t.sec;
        if self.time_days {
            format!("{:>3}", ago.div_euclid(86400))
        } else if self.time_relative {
            ago.to_string()
        } else if self.time_t {
            t.sec.to_string()
        } else {
            time::text(t.sec)
        }
    }
}
