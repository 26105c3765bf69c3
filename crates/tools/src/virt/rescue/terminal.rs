//! The user's terminal: its keys to the appliance and back, and as it was at the end, however that comes.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use guestfs::engine::{Session, Terminal, TerminalInput, TerminalSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGTERM, SIGWINCH};
use signal_hook::low_level::pipe;

use crate::common::Failure;

/// Where descriptions of terminals are.
const TERMINFO: [&str; 4] = ["/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo"];

const CTRL_D: u8 = 4;

const HELP: &str = "\r\nBehind the escape key: q or x ends the shell at once, ? or h prints this, the escape key again sends it.\r\n";

/// The key that commands to this program begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EscapeKey(Option<u8>);

impl FromStr for EscapeKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            b"none" => Ok(EscapeKey(None)),
            [b'^', key @ (b'@'..=b'_' | b'a'..=b'z')] => Ok(EscapeKey(Some(key.to_ascii_uppercase() & 0x1f))),
            _ => Err("write ^x for Ctrl and x, or none".into()),
        }
    }
}

/// What typed bytes mean.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Keys(Vec<u8>),
    Help,
    End,
}

/// Takes commands to this program out of what is typed.
struct Escapes {
    key: EscapeKey,
    /// Whether the last byte was the escape key.
    open: bool,
}

impl Escapes {
    fn read(&mut self, typed: &[u8]) -> Vec<Typed> {
        let (mut out, mut keys) = (Vec::new(), Vec::new());
        for byte in typed {
            match (self.open, byte) {
                (false, byte) if Some(*byte) == self.key.0 => self.open = true,
                (false, byte) => keys.push(*byte),
                (true, command) => {
                    self.open = false;
                    match command {
                        b'q' | b'x' => out.extend([Typed::Keys(std::mem::take(&mut keys)), Typed::End]),
                        b'?' | b'h' => out.extend([Typed::Keys(std::mem::take(&mut keys)), Typed::Help]),
                        byte if Some(*byte) == self.key.0 => keys.push(*byte),
                        _ => {}
                    }
                }
            }
        }
        out.push(Typed::Keys(keys));
        out.retain(|typed| *typed != Typed::Keys(Vec::new()));
        out
    }
}

/// The terminal that this program was started on.
pub(super) struct Screen {
    before: Option<Termios>,
    typing: Mutex<Typing>,
    /// Written to when nobody is to wait any longer.
    stop: UnixStream,
    stopped: UnixStream,
    /// Readable when the window has another size, and when the program is to end.
    resized: UnixStream,
    ended: UnixStream,
    over: AtomicBool,
}

struct Typing {
    escapes: Escapes,
    /// What was typed at once and is not told yet; the end is `None`.
    waiting: VecDeque<Option<TerminalInput>>,
    /// Whether nobody types any more.
    ended: bool,
}

impl Screen {
    pub(super) fn open(key: EscapeKey) -> Result<Self, Failure> {
        // A script may type, too: then there is nothing to restore.
        let before = if io::stdin().is_terminal() { Some(tcgetattr(io::stdin())?) } else { None };
        let (stop, stopped) = UnixStream::pair()?;
        let (resized, signalled) = UnixStream::pair()?;
        pipe::register(SIGWINCH, OwnedFd::from(signalled))?;
        let (ended, signalled) = UnixStream::pair()?;
        pipe::register(SIGHUP, OwnedFd::from(signalled.try_clone()?))?;
        pipe::register(SIGTERM, OwnedFd::from(signalled))?;
        let typing = Mutex::new(Typing { escapes: Escapes { key, open: false }, waiting: VecDeque::new(), ended: false });
        Ok(Screen { before, typing, stop, stopped, resized, ended, over: AtomicBool::new(false) })
    }

    /// What kind of terminal it is.
    pub(super) fn kind(&self) -> String {
        std::env::var("TERM")
            .ok()
            .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._+".contains(&b)))
            .unwrap_or("linux".into())
    }

    /// Gives the appliance the description of this kind of terminal, which editors want.
    pub(super) fn lend_description(&self, session: &mut dyn Session) -> Result<(), Failure> {
        let kind = self.kind();
        let Some(first) = kind.chars().next() else { return Ok(()) };
        let file = TERMINFO.iter().map(|folder| format!("{folder}/{first}/{kind}")).find(|file| Path::new(file).is_file());
        Ok(file.map_or(Ok(()), |file| session.lend(&[&file]))?)
    }

    /// Keys come as they are typed, until what this returns is dropped.
    pub(super) fn raw(&self) -> Result<Option<Raw>, Failure> {
        let Some(before) = &self.before else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(Raw { before: before.clone() }))
    }
}

/// Sets a terminal as it was.
pub(super) struct Raw {
    before: Termios,
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

impl Terminal for Screen {
    fn size(&self) -> TerminalSize {
        match tcgetwinsize(io::stdin()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize { rows: size.ws_row, columns: size.ws_col },
            _ => TerminalSize { rows: 24, columns: 80 },
        }
    }

    fn show(&self, output: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(output)?;
        out.flush()
    }

    fn next(&self) -> Option<TerminalInput> {
        let mut typing = self.typing.lock().unwrap_or_else(|e| e.into_inner());
        loop {
            if self.over.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(input) = typing.waiting.pop_front() {
                return input;
            }
            if typing.ended {
                self.wait_for_stop();
                return None;
            }
            let stdin = io::stdin();
            let mut ready = [stdin.as_fd(), self.stopped.as_fd(), self.resized.as_fd(), self.ended.as_fd()]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return None,
                Ok(_) => {}
            }
            let [typed, stopped, resized, ended] = ready.map(|fd| !fd.revents().is_empty());
            if stopped || ended {
                return None;
            }
            if resized {
                let _ = (&self.resized).read(&mut [0; 64]);
                return Some(TerminalInput::Size(self.size()));
            }
            if typed {
                let mut buf = [0; 4096];
                // Not by the standard library's buffer, which poll does not know of.
                let n = match rustix::io::read(&stdin, &mut buf) {
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                    Ok(n @ 1..) => n,
                    _ => {
                        typing.ended = true;
                        // What a program takes for the end of what a person types.
                        return Some(TerminalInput::Keys(vec![CTRL_D]));
                    }
                };
                for typed in typing.escapes.read(&buf[..n]) {
                    match typed {
                        Typed::Keys(keys) => typing.waiting.push_back(Some(TerminalInput::Keys(keys))),
                        Typed::Help => drop(self.show(HELP.as_bytes())),
                        Typed::End => typing.waiting.push_back(None),
                    }
                }
            }
        }
    }

    fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = (&self.stop).write_all(&[1]);
    }
}

impl Screen {
    /// Nobody types any more; the program may still be at work.
    fn wait_for_stop(&self) {
        let mut ready = [self.stopped.as_fd(), self.ended.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        while poll(&mut ready, None) == Err(rustix::io::Errno::INTR) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let mut escapes = Escapes { key: "^]".parse().unwrap(), open: false };
        let keys = |text: &str| Typed::Keys(text.as_bytes().to_vec());
        assert_eq!(escapes.read(b"ls\r"), [keys("ls\r")]);
        assert_eq!(escapes.read(b"a\x1d?b"), [keys("a"), Typed::Help, keys("b")]);
        assert_eq!(escapes.read(b"a\x1d"), [keys("a")]);
        assert_eq!(escapes.read(b"\x1db\x1dz"), [keys("\x1db")]);
        assert_eq!(escapes.read(b"\x1dq"), [Typed::End]);
        let mut none = Escapes { key: "none".parse().unwrap(), open: false };
        assert_eq!(none.read(b"\x1dq"), [keys("\x1dq")]);
        assert_eq!("^a".parse(), Ok(EscapeKey(Some(1))));
        for bad in ["", "a", "^", "^1", "none "] {
            assert!(bad.parse::<EscapeKey>().is_err(), "{bad}");
        }
    }
}
