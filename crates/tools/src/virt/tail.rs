//! `virt-tail`: follows files of a guest, which may be running.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, FromArgMatches};
use guestfs::{Error, FileType, Guest, GuestFs};

use super::options::GuestArgs;
use super::show::Out;
use super::{Entry, drives};
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "tail", arguments: Tail::augment_args, run: |matches| run(Tail::from_arg_matches(matches)?) };

/// How often the disks are looked at.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes read at once.
const CHUNK: u64 = 64 << 10;
/// The last lines are looked for in so many bytes.
const LAST: u64 = 16 << 20;

/// Follow files of a guest: print their last lines and what is added to them, until interrupted.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-tail -a disk.qcow2 /var/log/messages\n  virt-tail -n 100 -d guest.xml /var/log/syslog /var/log/auth.log"
)]
struct Tail {
    #[command(flatten)]
    guest: GuestArgs,
    /// Does nothing: files are always followed
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to begin with
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 10)]
    lines: usize,
    /// Absolute paths in the guest
    #[arg(required = true, value_name = "FILE")]
    files: Vec<OsString>,
}

/// A file that is followed.
struct Followed<'a> {
    path: &'a [u8],
    /// Which file it was and how much of it was printed; `None` when it was not there.
    seen: Option<(u64, u64)>,
}

fn run(mut args: Tail) -> Result<ExitCode, Failure> {
    let lines = args.lines;
    let mut files: Vec<Followed<'_>> = args.files.iter().map(|f| Followed { path: f.as_bytes(), seen: None }).collect();
    let mut out = Out::new();
    let mut last_shown = None;
    let watched = args.guest.watch()?;
    let mut state = watched.state();
    let mut first = true;
    loop {
        match watched.open() {
            Ok(guest) => {
                for (index, file) in files.iter_mut().enumerate() {
                    let header = args.files.len() > 1 && last_shown != Some(index);
                    if show(&guest, file, if first { Some(lines) } else { None }, header, &mut out)? {
                        last_shown = Some(index);
                    }
                }
                guest.shutdown()?;
                out.flush()?;
                first = false;
            }
            Err(failure) if first => return Err(failure),
            // The guest was writing at that moment.
            Err(failure) => watched.say(failure.message()),
        }
        if files.iter().all(|f| f.seen.is_none()) {
            let names: Vec<String> = files.iter().map(|f| guestfs::show(f.path)).collect();
            return Err(Failure::new(format!("there is no file {} to follow", names.join(", "))));
        }
        loop {
            std::thread::sleep(PAUSE);
            let now = watched.state();
            if now.is_none() || now != state {
                state = now;
                break;
            }
        }
    }
}

/// Prints what is new of a file, and says whether there was anything. `header` wants its name before.
fn show(guest: &Guest, file: &mut Followed<'_>, lines: Option<usize>, header: bool, out: &mut Out) -> Result<bool, Failure> {
    let place = drives::locate(guest, file.path)?;
    let (fs, path) = (place.fs(), &place.path[..]);
    let stat = match fs.stat(path) {
        Ok(stat) if stat.kind == FileType::Regular => stat,
        Ok(_) => return Err(Failure::new(format!("{}: it is no regular file", guestfs::show(file.path)))),
        Err(Error::NotFound(_)) => {
            file.seen = None;
            return Ok(false);
        }
        Err(e) => return Err(e.into()),
    };
    let from = match (file.seen, lines) {
        // Rotated or cut: from its beginning.
        (Some((ino, printed)), _) if ino == stat.ino && printed <= stat.size => printed,
        (_, Some(lines)) => last_lines(fs, path, stat.size, lines)?,
        _ => 0,
    };
    file.seen = Some((stat.ino, stat.size));
    if from == stat.size && lines.is_none() {
        return Ok(false);
    }
    if header {
        out.bytes(b"\n\n--- ")?;
        out.name(file.path)?;
        out.bytes(b" ---\n\n")?;
    }
    let mut at = from;
    let mut buf = vec![0; CHUNK as usize];
    while at < stat.size {
        let want = usize::try_from((stat.size - at).min(CHUNK)).unwrap_or(0);
        match fs.read_at(path, at, &mut buf[..want])? {
            0 => break,
            n => {
                out.lines(&buf[..n])?;
                at += n as u64;
            }
        }
    }
    Ok(true)
}

/// Where a file's last lines begin.
fn last_lines(fs: &dyn GuestFs, path: &[u8], size: u64, lines: usize) -> Result<u64, Failure> {
    let mut missing = lines;
    let mut end = size;
    let mut buf = vec![0; CHUNK as usize];
    while end > 0 && size - end < LAST {
        let start = end.saturating_sub(CHUNK);
        let mut filled = 0;
        let len = usize::try_from(end - start).unwrap_or(0);
        while filled < len {
            match fs.read_at(path, start + filled as u64, &mut buf[filled..len])? {
                0 => break,
                n => filled += n,
            }
        }
        for at in (0..filled).rev() {
            // The line end of the last line begins no other.
            let place = start + at as u64 + 1;
            if buf.get(at) == Some(&b'\n') && place < size {
                if missing <= 1 {
                    return Ok(if lines == 0 { size } else { place });
                }
                missing -= 1;
            }
        }
        end = start;
    }
    Ok(if lines == 0 { size } else { end })
}
