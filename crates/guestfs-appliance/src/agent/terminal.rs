//! A program on a terminal of its own, for a person at the host's end.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fsync, open};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::exec::{ON_TERMINAL, PATH, end_everything, reap};
use super::failure::{Result, because, other};
use super::link::Exchange;
use super::mounts::ROOT;
use crate::protocol::{self, TerminalInput};

/// Where the person finds the guest's tree.
const SYSROOT: &str = "/sysroot";
/// How long keys may wait for a program that does not read; then they are lost, as on a line that is too slow.
const KEYS_WAIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Runs the program until it ends or the host has had enough; gives its exit code. Whatever it started is killed.
pub fn run(argv: &[Vec<u8>], env: &[(Vec<u8>, Vec<u8>)], size: (u16, u16), exchange: &mut Exchange<'_>) -> Result<i32> {
    if argv.first().is_none_or(Vec::is_empty) {
        return Err(other("no program is named"));
    }
    prepare()?;
    let master = open_master()?;
    resize(&master, size)?;
    let name = ptsname(&master, Vec::new())?;
    let slave: File = OpenOptions::new().read(true).write(true).open(OsStr::from_bytes(name.as_bytes()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(ON_TERMINAL).args(argv.iter().map(|a| OsStr::from_bytes(a)));
    command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", "/root");
    command.envs(env.iter().map(|(k, v)| (OsStr::from_bytes(k), OsStr::from_bytes(v))));
    command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(Stdio::from(slave));
    let mut child = command.spawn().map_err(|e| because("starting a process", e))?;
    // Its copies of the terminal's other end: with them open there would be no end to read.
    drop(command);
    let (screen, mut outlet) = (master.try_clone()?, exchange.outlet());
    ioctl_fionbio(&master, true)?;
    thread::scope(|scope| {
        let status = scope.spawn(move || {
            let status = child.wait();
            end_everything();
            status
        });
        scope.spawn(move || {
            // An error means that the host is gone, which the other direction hears as well.
            let _ = show(&screen, &mut |piece| outlet.send_data(piece));
            let _ = outlet.send_end();
        });
        let typed = type_keys(&master, exchange);
        end_everything();
        let status = status.join().map_err(|_| other("a thread failed"))?;
        reap();
        typed?;
        let status = status?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    })
}

/// What a person needs of the appliance besides what commands do.
fn prepare() -> Result<()> {
    match mount("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0620,ptmxmode=0666") {
        // As it was left by another one.
        Ok(()) | Err(Errno::BUSY) => {}
        Err(e) => return Err(because("mounting /dev/pts", e)),
    }
    let _ = fs::create_dir(ROOT);
    let _ = symlink(ROOT, SYSROOT);
    Ok(())
}

fn open_master() -> Result<File> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(|e| because("opening a terminal", e))?;
    grantpt(&master)?;
    unlockpt(&master)?;
    Ok(master.into())
}

fn resize(master: impl AsFd, (rows, columns): (u16, u16)) -> Result<()> {
    Ok(tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// Sends what the terminal shows until nobody has its other end open.
fn show(mut screen: &File, send: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buf = [0; 16 << 10];
    loop {
        match screen.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => send(&buf[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => drop(poll(&mut [PollFd::new(&screen, PollFlags::IN)], None)),
            // So it says that the other end is closed.
            Err(_) => return Ok(()),
        }
    }
}

/// Types what the host sends, until its end.
fn type_keys(mut master: &File, exchange: &mut Exchange<'_>) -> Result<()> {
    while let Some(data) = exchange.next_data()? {
        match protocol::decode(data)? {
            TerminalInput::Size { rows, columns } => resize(master, (rows, columns))?,
            TerminalInput::Keys(keys) => {
                let mut keys = keys.as_slice();
                while !keys.is_empty() {
                    match master.write(keys) {
                        Ok(n) => keys = &keys[n..],
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            if poll(&mut [PollFd::new(&master, PollFlags::OUT)], Some(&KEYS_WAIT))? == 0 {
                                break;
                            }
                        }
                        Err(_) => break,
                    }
                }
            }
        }
    }
    Ok(())
}

/// Unmounts all that lies on a device or in the guest's tree, whoever mounted it, and writes it out.
pub fn unmount_everything() -> Result<()> {
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut first_failure = None;
    for line in mounts.lines().rev() {
        let mut words = line.split(' ').map(unescape);
        let (Some(device), Some(place)) = (words.next(), words.next()) else { continue };
        let below = place == ROOT.as_bytes() || place.starts_with(&[ROOT.as_bytes(), b"/"].concat());
        if !below && !device.starts_with(b"/dev/") {
            continue;
        }
        let unmounted = unmount(place.as_slice(), UnmountFlags::NOFOLLOW);
        let mut outcome = unmounted.map_err(|e| because(&format!("unmounting {}", String::from_utf8_lossy(&place)), e));
        if device.starts_with(b"/dev/") {
            let written = open(device.as_slice(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).and_then(fsync);
            outcome = outcome.and(written.map_err(|e| because(&format!("writing {} out", String::from_utf8_lossy(&device)), e)));
        }
        if let Err(e) = outcome {
            first_failure.get_or_insert(e);
        }
    }
    first_failure.map_or(Ok(()), Err)
}

/// A word of /proc/self/mounts, where blanks, tabs, line ends and backslashes are written in octal.
fn unescape(word: &str) -> Vec<u8> {
    let mut parts = word.split('\\');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                out.extend_from_slice(&part.as_bytes()[3..]);
            }
            None => out.extend_from_slice(part.as_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn mount_points_with_blanks() {
        assert_eq!(super::unescape(r"/guest/a\040b\134c\011"), b"/guest/a b\\c\t");
        assert_eq!(super::unescape(r"\9\"), b"9");
    }
}
