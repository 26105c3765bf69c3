//! `virt-edit`: a guest's files changed in an editor or by an expression.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, ExitCode};

use clap::{Args, FromArgMatches};
use guestfs::{Attributes, Ext, FileType, GuestFs, Stat};

use super::expression::Program;
use super::options::GuestArgs;
use super::{Entry, drives};
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "edit", arguments: Edit::augment_args, run: |matches| run(&Edit::from_arg_matches(matches)?) };

/// Files that one edits are no larger.
pub(super) const LIMIT: u64 = 64 << 20;

/// Change files of a guest that is not running.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-edit -a disk.qcow2 /etc/fstab\n  virt-edit -a disk.qcow2 -b .old -e 's/^root:.*?:/root::/' /etc/shadow\n\n\
                  The editor is $EDITOR, or vi. Never change a guest while it runs."
)]
struct Edit {
    #[command(flatten)]
    guest: GuestArgs,
    /// Keep the old file under its name and this extension
    #[arg(short, long, value_name = "EXTENSION")]
    backup: Option<OsString>,
    /// Change every line by this instead of in an editor: s/REGEX/TEXT/gi, tr/a/b/, /REGEX/d
    #[arg(short, long, alias = "edit", value_name = "EXPRESSION")]
    expr: Option<String>,
    /// Absolute paths in the guest; of a Windows also C:\\…
    #[arg(required = true, value_name = "FILE")]
    files: Vec<OsString>,
}

/// A file that is to be written.
struct Change {
    /// Where it really lies, with no link at its end.
    path: Vec<u8>,
    old: Vec<u8>,
    new: Vec<u8>,
    stat: Stat,
}

fn run(args: &Edit) -> Result<ExitCode, Failure> {
    let program = args.expr.as_deref().map(Program::parse).transpose()?;
    // Reading and editing come first: without a change, nothing is started and nothing written.
    if !args.guest.sources.only_reads() {
        args.guest.sources.put_back()?;
    }
    let reader = args.guest.open()?;
    let mut changes = Vec::new();
    for file in &args.files {
        let place = drives::locate(&reader, file.as_bytes())?;
        if !place.is_on_system_drive() {
            return Err(Failure::new(format!("{}: it is on another drive than the system", guestfs::show(file.as_bytes())))
                .hint("mount that one: -m DEVICE, as virt-inspector names it"));
        }
        let path = &place.path[..];
        let stat = reader.fs().stat(path)?;
        if stat.kind != FileType::Regular {
            return Err(Failure::new(format!("{}: not a regular file", guestfs::show(path))));
        }
        let old = reader.fs().read(path, LIMIT)?;
        let new = match &program {
            Some(program) => program.apply(&old),
            None => in_editor(path, &old)?,
        };
        if new == old {
            args.guest.say(&format!("{} is as it was.", guestfs::show(path)));
        } else {
            changes.push(Change { path: real(reader.fs(), path)?, old, new, stat });
        }
    }
    reader.shutdown()?;
    if changes.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut guest = args.guest.open_writable()?;
    let session = guest.session().ok_or_else(|| Failure::new("a guest is changed in the appliance only"))?;
    for change in &changes {
        if session.read(&change.path, LIMIT)? != change.old {
            return Err(Failure::new(format!("{} was changed by somebody else meanwhile", guestfs::show(&change.path))));
        }
        if let Some(extension) = &args.backup {
            let backup = [change.path.as_slice(), extension.as_bytes()].concat();
            let attributes = Attributes { mode: change.stat.mode, uid: change.stat.uid, gid: change.stat.gid };
            session.write(&backup, &mut change.old.as_slice(), Some(attributes))?;
            for (name, value) in session.xattrs(&change.path)? {
                session.set_xattr(&backup, &name, &value)?;
            }
        }
        session.write(&change.path, &mut change.new.as_slice(), None)?;
    }
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// The path with links at its end followed.
pub(super) fn real(fs: &dyn GuestFs, path: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut path = path.to_vec();
    for _ in 0..40 {
        if fs.lstat(&path)?.kind != FileType::Symlink {
            return Ok(path);
        }
        let target = fs.readlink(&path)?;
        path = if target.starts_with(b"/") {
            target
        } else {
            let folder = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            [&path[..folder], &target].concat()
        };
    }
    Err(Failure::new(format!("{}: too many symbolic links", guestfs::show(&path))))
}

/// What a person makes of a file's content.
pub(super) fn in_editor(path: &[u8], content: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut file = tempfile::Builder::new().prefix("virt-edit-").suffix(&suffix(path)).tempfile()?;
    std::io::Write::write_all(&mut file, content)?;
    let editor = std::env::var("EDITOR").ok().filter(|e| !e.is_empty()).unwrap_or_else(|| "vi".into());
    // As a shell line, since people write EDITOR="code --wait".
    let status = Command::new("/bin/sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(file.path()).status()?;
    if !status.success() {
        return Err(Failure::new(format!("the editor '{editor}' failed: {status}; nothing was changed")));
    }
    let mut new = Vec::new();
    std::fs::File::open(file.path())?.read_to_end(&mut new)?;
    Ok(new)
}

/// The file's extension, for the editor's colours; nothing that a hostile name could hide in.
fn suffix(path: &[u8]) -> String {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let extension = name.rsplit(|b| *b == b'.').next().filter(|e| e.len() < name.len() && e.iter().all(u8::is_ascii_alphanumeric));
    extension.map(|e| format!(".{}", String::from_utf8_lossy(e))).unwrap_or_default()
}
