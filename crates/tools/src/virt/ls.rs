//! `virt-ls`: directories of a guest, in libguestfs's four forms.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::{GuestFs, Xattrs};

use super::columns::Columns;
use super::options::GuestArgs;
use super::paths::{Order, Walk};
use super::show::Out;
use super::{Entry, drives, long};
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
    #[command(flatten)]
    columns: Columns,
    /// Modes, owners, sizes and times; with -R one line a file
    #[arg(short, long)]
    long: bool,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Absolute paths in the guest; of a Windows also C:\\…
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<OsString>,
}

fn run(args: &Ls) -> Result<ExitCode, Failure> {
    if args.columns.csv && !(args.long && args.recursive) {
        return Err(Failure::new("--csv goes with -lR only"));
    }
    if args.columns.csv && args.columns.human_readable {
        return Err(Failure::new("-h and --csv don't go together"));
    }
    let guest = args.guest.open_confined()?;
    let mut out = Out::new();
    for directory in &args.directories {
        let place = drives::locate(&guest, directory.as_bytes())?;
        let (fs, path) = (place.fs(), &place.path[..]);
        match (args.long, args.recursive) {
            (false, false) => plain(fs, path, &mut out)?,
            (true, false) => long::list(fs, path, args.columns.human_readable, &mut out)?,
            (false, true) => names_below(fs, path, &mut out)?,
            (true, true) => {
                let (below, first) = Walk::new(fs, path, Order::Tree)?;
                for found in std::iter::once(Ok(first)).chain(below) {
                    let details = args.columns.details(fs, found?)?;
                    args.columns.print(None, &details, &Xattrs::new(), &mut out)?;
                }
            }
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
    for found in Walk::new(fs, path, Order::Path)?.0 {
        out.name(found?.path.get(path.len()..).unwrap_or_default())?;
        out.bytes(b"\n")?;
    }
    Ok(())
}
