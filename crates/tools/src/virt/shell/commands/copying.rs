//! Commands that carry files between this machine and the guest.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use guestfs::Ext;

use super::Command;
use crate::common::Failure;
use crate::virt::host::Target;
use crate::virt::show::read_file;
use crate::virt::{copy_in, copy_out, edit, tar_in, tar_out};

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["upload"],
        usage: "LOCALFILE PATH",
        help: "copy a file of this machine (or - for the standard input) to a file of the guest",
        run: |shell, a| {
            let mut content = local_input(a.word(0))?;
            Ok(shell.guest()?.tree_mut()?.write(a.path(1)?, &mut content, None)?)
        },
    },
    Command {
        names: &["download"],
        usage: "PATH LOCALFILE",
        help: "copy a file of the guest to a file of this machine (or - for the standard output)",
        run: |shell, a| {
            let path = a.path(0)?;
            if a.word(1) == b"-" {
                let (guest, out) = shell.parts()?;
                return read_file(guest.fs()?, path, &mut |piece| out.bytes(piece));
            }
            let fs = shell.guest()?.fs()?;
            fs.stat(path)?;
            let mut file = local_output(a.word(1))?;
            read_file(fs, path, &mut |piece| Ok(file.write_all(piece)?))?;
            Ok(file.flush()?)
        },
    },
    Command {
        names: &["copy-in"],
        usage: "LOCAL.. DIR",
        help: "copy files and folders of this machine into a folder of the guest",
        run: |shell, a| {
            let Some((folder, sources)) = a.all().split_last().filter(|(_, sources)| !sources.is_empty()) else {
                return Err(Failure::new("usage: copy-in LOCAL.. DIR"));
            };
            let sources = sources.iter().map(|s| copy_in::named(local(s))).collect::<Result<Vec<_>, _>>()?;
            let session = shell.guest()?.tree_mut()?;
            sources.iter().try_for_each(|(source, name)| copy_in::copy_in(session, source, folder, name))
        },
    },
    Command {
        names: &["copy-out"],
        usage: "PATH.. LOCALDIR",
        help: "copy files and folders of the guest into a folder of this machine",
        run: |shell, a| {
            let Some((target, sources)) = a.all().split_last().filter(|(_, sources)| !sources.is_empty()) else {
                return Err(Failure::new("usage: copy-out PATH.. LOCALDIR"));
            };
            let target = Target::open(local(target))?;
            copy_out::copy_out(shell.guest()?.fs()?, sources.iter().map(Vec::as_slice), target, copy_out::Wishes::default())
        },
    },
    Command {
        names: &["tar-in"],
        usage: "TARFILE DIR [compress:..]",
        help: "unpack an archive of this machine (or - for the standard input) in the guest; compress is gzip, xz or zstd",
        run: |shell, a| {
            let mut input = unpacked(local_input(a.word(0))?, a.option("compress").unwrap_or_default())?;
            tar_in::tar_in(shell.guest()?.tree_mut()?, &mut input, a.path(1)?)
        },
    },
    Command {
        names: &["tgz-in"],
        usage: "TARFILE DIR",
        help: "unpack an archive of this machine that is packed by gzip",
        run: |shell, a| {
            let mut input = unpacked(local_input(a.word(0))?, b"gzip")?;
            tar_in::tar_in(shell.guest()?.tree_mut()?, &mut input, a.path(1)?)
        },
    },
    Command {
        names: &["tar-out"],
        usage: "DIR TARFILE",
        help: "pack a folder of the guest into an archive (or - for the standard output)",
        run: |shell, a| {
            let top = a.path(0)?;
            if a.word(1) == b"-" {
                return tar_out::pack(shell.guest()?.fs()?, top, &mut std::io::stdout().lock());
            }
            let fs = shell.guest()?.fs()?;
            tar_out::to_file(local(a.word(1)), &mut |out| tar_out::pack(fs, top, out))
        },
    },
    Command {
        names: &["tgz-out"],
        usage: "DIR TARFILE",
        help: "pack a folder of the guest into an archive that is packed by gzip",
        run: |shell, a| {
            let (top, fs) = (a.path(0)?, shell.guest()?.fs()?);
            tar_out::to_file(local(a.word(1)), &mut |out| {
                let mut out = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                tar_out::pack(fs, top, &mut out)?;
                out.finish()?;
                Ok(())
            })
        },
    },
    Command {
        names: &["edit", "vi", "emacs"],
        usage: "PATH",
        help: "change a file in your editor ($EDITOR, or vi)",
        run: |shell, a| {
            let guest = shell.guest()?;
            let path = edit::real(guest.fs()?, a.path(0)?)?;
            let old = guest.fs()?.read(&path, edit::LIMIT)?;
            let new = edit::in_editor(&path, &old)?;
            if new == old { Ok(()) } else { Ok(guest.tree_mut()?.write(&path, &mut new.as_slice(), None)?) }
        },
    },
];

fn local(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

/// What a packed file holds.
fn unpacked(input: Box<dyn Read>, method: &[u8]) -> Result<Box<dyn Read>, Failure> {
    Ok(match method {
        b"" => input,
        b"gzip" => Box::new(flate2::read::MultiGzDecoder::new(input)),
        b"xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(input)),
        b"zstd" => Box::new(zstd::Decoder::new(input)?),
        other => return Err(Failure::new(format!("{}: gzip, xz and zstd are known", guestfs::show(other)))),
    })
}

pub(super) fn local_input(name: &[u8]) -> Result<Box<dyn Read>, Failure> {
    if name == b"-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let path = local(name);
    Ok(Box::new(std::fs::File::open(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?))
}

pub(super) fn local_output(name: &[u8]) -> Result<std::fs::File, Failure> {
    let path = local(name);
    std::fs::File::create(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}
