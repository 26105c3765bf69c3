//! `virt-cat`: files of a guest on the standard output.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};

use super::options::GuestArgs;
use super::show::{Out, read_file};
use super::{Entry, drives};
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "cat", arguments: Cat::augment_args, run: |matches| run(&Cat::from_arg_matches(matches)?) };

/// Print files of a guest.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-cat -a disk.qcow2 /etc/fstab\n  virt-cat -a export.xva#Ref:10 /var/log/syslog\n  virt-cat -d guest.xml -m /dev/sda1 /grub/grub.cfg"
)]
struct Cat {
    #[command(flatten)]
    guest: GuestArgs,
    /// Absolute paths in the guest; of a Windows also C:\\…
    #[arg(required = true, value_name = "FILE")]
    files: Vec<OsString>,
}

fn run(args: &Cat) -> Result<ExitCode, Failure> {
    let guest = args.guest.open_confined()?;
    let mut out = Out::new();
    for file in &args.files {
        let place = drives::locate(&guest, file.as_bytes())?;
        read_file(place.fs(), &place.path, &mut |piece| out.bytes(piece))?;
    }
    out.finish()?;
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}
