//! `virt-tar-in`: a tar archive unpacked in a guest.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::engine::Session;
use guestfs::{Error, Ext, Node, Unpack, What};

use super::Entry;
use super::archive::read::Reader;
use super::options::GuestArgs;
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "tar-in", arguments: TarIn::augment_args, run: |matches| run(&TarIn::from_arg_matches(matches)?) };

/// Unpack a tar archive in a guest that is not running.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-tar-in -a disk.qcow2 homes.tar /home\n  zstdcat guest.tar.zst | virt-tar-in -a disk.qcow2 - /\n\n\
                  Nothing outside of the folder is changed, whatever names and links the archive has. When anything fails, the\n\
                  image is as before."
)]
struct TarIn {
    #[command(flatten)]
    guest: GuestArgs,
    /// The archive to read, not compressed; - is the standard input
    #[arg(value_name = "TARFILE")]
    archive: OsString,
    /// A folder of the guest, by its absolute path
    #[arg(value_name = "DIR")]
    directory: OsString,
}

fn run(args: &TarIn) -> Result<ExitCode, Failure> {
    let mut input: Box<dyn Read> = if args.archive == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        let path = Path::new(&args.archive);
        Box::new(File::open(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?)
    };
    let mut guest = args.guest.open_writable()?;
    let session = guest.session().ok_or_else(|| Failure::new("a guest is changed in the appliance only"))?;
    tar_in(session, &mut input, args.directory.as_bytes())?;
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// Unpacks an archive in a folder of the guest.
pub(super) fn tar_in(session: &mut dyn Session, input: &mut dyn Read, directory: &[u8]) -> Result<(), Failure> {
    if !session.is_dir(directory) {
        return Err(Failure::new(format!("{}: not a folder of the guest", guestfs::show(directory))));
    }
    Ok(session.unpack(directory, &mut |sink| unpack(input, sink).map_err(|f| Error::Invalid(f.message().to_string())))?)
}

/// Hands an archive's members over. Directories come once more at the end, since what is made in them changes their times.
pub(super) fn unpack(input: &mut dyn Read, sink: &mut dyn Unpack) -> Result<(), Failure> {
    let mut reader = Reader::new(input);
    let mut directories: Vec<Node> = Vec::new();
    while let Some(node) = reader.next()? {
        sink.node(&node)?;
        match node.what {
            What::Directory => directories.push(node),
            What::File => reader.content(sink)?,
            _ => {}
        }
    }
    if reader.absolute {
        eprintln!("virt-tar-in: names in the archive begin with /, which was taken off");
    }
    Ok(directories.iter().rev().try_for_each(|node| sink.node(node))?)
}
