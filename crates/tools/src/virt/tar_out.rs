//! `virt-tar-out`: a folder of a guest as a tar archive.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use guestfs::{Ext, GuestFs};
use imgcore::Storage;
use imgcore::storage::{FileStorage, NewFile};

use super::Entry;
use super::archive::write::Writer;
use super::edit::real;
use super::options::GuestArgs;
use super::show::join;
use super::walk::walk;
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "tar-out", arguments: TarOut::augment_args, run: |matches| run(&TarOut::from_arg_matches(matches)?) };

/// Pack a folder of a guest into a tar archive.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-tar-out -a disk.qcow2 /home homes.tar\n  virt-tar-out -a disk.qcow2 / - | zstd > guest.tar.zst\n\n\
                  Owners are kept as numbers; extended attributes, ACLs and SELinux labels as SCHILY.xattr records, which\n\
                  'tar --xattrs --xattrs-include=*' and virt-tar-in restore; hard links and holes are kept."
)]
struct TarOut {
    #[command(flatten)]
    guest: GuestArgs,
    /// A folder of the guest, by its absolute path
    #[arg(value_name = "DIR")]
    directory: OsString,
    /// The archive to write; - is the standard output
    #[arg(value_name = "TARFILE")]
    archive: OsString,
}

fn run(args: &TarOut) -> Result<ExitCode, Failure> {
    let guest = args.guest.open()?;
    let top = args.directory.as_bytes();
    if args.archive == "-" {
        common::end_with_reader();
        pack(guest.fs(), top, &mut std::io::stdout().lock())?;
    } else {
        common::signals::clean_up();
        to_file(&args.archive, &mut |out| pack(guest.fs(), top, out))?;
    }
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// Writes an archive of a folder.
pub(super) fn pack(fs: &dyn GuestFs, top: &[u8], out: &mut dyn Write) -> Result<(), Failure> {
    let mut out = BufWriter::with_capacity(256 << 10, out);
    let mut archive = Writer::new(&mut out);
    // What the user named may be a link to the folder.
    let top = real(fs, top)?;
    if !fs.is_dir(&top) {
        return Err(Failure::new(format!("{}: not a folder of the guest", guestfs::show(&top))));
    }
    walk(fs, &top, &mut |below, stat| {
        let (path, name) = if below.is_empty() { (top.clone(), b".".to_vec()) } else { (join(&top, below), join(b".", below)) };
        archive.add(fs, &path, &name, stat)
    })?;
    archive.finish()?;
    Ok(out.flush()?)
}

/// Writes a file of this machine, which has its name when it is whole.
pub(super) fn to_file(path: impl AsRef<Path>, write: &mut dyn FnMut(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
    let new = NewFile::create(path)?;
    write(&mut Appended { storage: new.storage(), at: 0 })?;
    Ok(new.commit()?)
}

/// A new file, written from its start to its end.
struct Appended {
    storage: Arc<FileStorage>,
    at: u64,
}

impl Write for Appended {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.storage.write_at(data, self.at).map_err(std::io::Error::other)?;
        self.at += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
