//! `virt-ls -l`: what `ls -la` prints, with numbers for owners.

use guestfs::{FileType, GuestFs, Stat};

use super::show::{Out, human, join};
use super::{ls, time};
use crate::common::Failure;

/// The letter of a kind of file.
pub(super) fn letter(kind: FileType, regular: &'static str) -> &'static str {
    match kind {
        FileType::Regular => regular,
        FileType::Directory => "d",
        FileType::Symlink => "l",
        FileType::CharDevice => "c",
        FileType::BlockDevice => "b",
        FileType::Fifo => "p",
        FileType::Socket => "s",
    }
}

struct Line {
    stat: Stat,
    name: Vec<u8>,
    target: Option<Vec<u8>>,
}

/// Prints a directory, or a file alone.
pub(super) fn list(fs: &dyn GuestFs, path: &[u8], human_sizes: bool, out: &mut Out) -> Result<(), Failure> {
    rows(fs, path, human_sizes)?.iter().try_for_each(|row| out.name(row).and_then(|()| out.bytes(b"\n")))
}

/// The rows of that, which hold names as they are.
pub(super) fn rows(fs: &dyn GuestFs, path: &[u8], human_sizes: bool) -> Result<Vec<Vec<u8>>, Failure> {
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    if fs.stat(path)?.kind == FileType::Directory {
        for name in [b".".to_vec(), b"..".to_vec()].into_iter().chain(ls::sorted_names(fs, path)?) {
            lines.push(line(fs, &join(path, &name), name)?);
        }
        let total = lines.iter().map(|l| l.stat.blocks).sum::<u64>() * 512;
        rows.push(format!("total {}", if human_sizes { human(total) } else { total.div_ceil(1024).to_string() }).into_bytes());
    } else {
        lines.push(line(fs, path, path.to_vec())?);
    }
    let width = |of: &dyn Fn(&Stat) -> String| lines.iter().map(|l| of(&l.stat).len()).max().unwrap_or(0);
    let is_device = |s: &Stat| matches!(s.kind, FileType::CharDevice | FileType::BlockDevice);
    let device = |part: fn(&Stat) -> u32| width(&move |s: &Stat| if is_device(s) { part(s).to_string() } else { String::new() });
    let size_text = |s: &Stat| if human_sizes { human(s.size) } else { s.size.to_string() };
    let (major, minor) = (device(|s| s.rdev.0), device(|s| s.rdev.1));
    let devices = if minor == 0 { 0 } else { major + 2 + minor };
    let size = devices.max(width(&|s| if is_device(s) { String::new() } else { size_text(s) }));
    let (links, uid, gid) = (width(&|s| s.nlink.to_string()), width(&|s| s.uid.to_string()), width(&|s| s.gid.to_string()));
    let now = time::now();
    for Line { stat: s, name, target } in &lines {
        let shown = if is_device(s) {
            let major = major.max(size.saturating_sub(minor + 2));
            format!("{:>major$}, {:>minor$}", s.rdev.0, s.rdev.1)
        } else {
            format!("{:>size$}", size_text(s))
        };
        let modes = modes(s);
        let row = format!("{modes} {:>links$} {:>uid$} {:>gid$} {shown} {} ", s.nlink, s.uid, s.gid, time::ls(s.mtime.sec, now));
        let arrow: &[u8] = if target.is_some() { b" -> " } else { b"" };
        rows.push([row.as_bytes(), name, arrow, target.as_deref().unwrap_or_default()].concat());
    }
    Ok(rows)
}

fn line(fs: &dyn GuestFs, path: &[u8], name: Vec<u8>) -> Result<Line, Failure> {
    let stat = fs.lstat(path)?;
    let target = if stat.kind == FileType::Symlink { Some(fs.readlink(path)?) } else { None };
    Ok(Line { stat, name, target })
}

/// `drwxr-xr-x`
fn modes(stat: &Stat) -> String {
    let mut out = letter(stat.kind, "-").to_string();
    for (shift, special, set, plain) in [(6, 0o4000, 's', 'x'), (3, 0o2000, 's', 'x'), (0, 0o1000, 't', 'x')] {
        let bits = stat.mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (bits & 1 != 0, stat.mode & special != 0) {
            (true, true) => set,
            (false, true) => set.to_ascii_uppercase(),
            (true, false) => plain,
            (false, false) => '-',
        });
    }
    out
}
