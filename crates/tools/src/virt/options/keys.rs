//! Passphrases of encrypted volumes: from the command line, files, the standard input or the terminal.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use clap::Args;
use guestfs::keys::Secret;
use guestfs::{KeyRing, Keys};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::common::Failure;

/// Longer passphrases there are none.
const MAX_LEN: usize = 8192;
/// What the terminal sends for Control-C while it does not end programs.
const INTERRUPT: u8 = 3;

/// How keys are given.
#[derive(Args)]
pub(in crate::virt) struct KeyArgs {
    /// A key of an encrypted volume: ID:key:PASSPHRASE or ID:file:FILE, where ID is its device, its UUID or 'all' (may be repeated)
    #[arg(long, value_name = "SELECTOR")]
    key: Vec<String>,
    /// Read keys that are not given from the standard input, one a line, instead of the terminal
    #[arg(long)]
    keys_from_stdin: bool,
    /// Show keys that are typed
    #[arg(long)]
    echo_keys: bool,
}

/// Keys that were given, and a user who may know others.
pub(in crate::virt) struct Ring {
    given: Keys,
    from_stdin: bool,
    from_terminal: bool,
    echo: bool,
    /// A user who has been asked for a volume's key is not asked again.
    asked: RefCell<Vec<(String, Option<Secret>)>>,
}

impl KeyArgs {
    /// `from_terminal` asks for what is not given, if there is a terminal.
    pub(super) fn ring(&self, from_terminal: bool) -> Result<Ring, Failure> {
        let mut given = Keys::default();
        self.key.iter().try_for_each(|selector| given.add(selector))?;
        Ok(Ring { given, from_stdin: self.keys_from_stdin, from_terminal, echo: self.echo_keys, asked: RefCell::default() })
    }
}

impl KeyRing for Ring {
    fn keys(&self, device: &str, uuid: &str) -> Vec<Secret> {
        let given = self.given.keys(device, uuid);
        if !given.is_empty() {
            return given;
        }
        let mut asked = self.asked.borrow_mut();
        if let Some((_, answer)) = asked.iter().find(|(id, _)| id == uuid) {
            return answer.clone().into_iter().collect();
        }
        let answer = match (self.from_stdin, self.from_terminal) {
            (true, _) => line(&mut std::io::stdin().lock()),
            (_, true) => ask(device, self.echo),
            _ => None,
        };
        asked.push((uuid.to_string(), answer.clone()));
        answer.into_iter().collect()
    }
}

/// Asks on the terminal; without one nobody can answer.
fn ask(device: &str, echo: bool) -> Option<Secret> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
    write!(terminal, "Enter key or passphrase (\"{}\"): ", guestfs::show(device.as_bytes())).ok()?;
    let answer = {
        let _quiet = if echo { None } else { Some(Quiet::new(&terminal)?) };
        line(&mut terminal)
    };
    if !echo {
        let _ = writeln!(terminal);
    }
    if answer.as_ref().is_some_and(|answer| answer.contains(&INTERRUPT)) {
        std::process::exit(130);
    }
    answer
}

/// A line without its end; `None` for an empty one. No byte of it stays in a buffer that is not wiped.
fn line(from: &mut dyn Read) -> Option<Secret> {
    let mut line = Secret::new(Vec::with_capacity(MAX_LEN));
    let mut byte = [0];
    while line.len() < MAX_LEN && matches!(from.read(&mut byte), Ok(1)) && byte[0] != b'\n' {
        line.push(byte[0]);
        if byte[0] == INTERRUPT {
            break;
        }
    }
    Some(line).filter(|line| !line.is_empty())
}

/// A terminal that shows nothing of what is typed until this is dropped; signals from the keyboard wait, too, or it would stay so.
struct Quiet {
    terminal: File,
    before: Termios,
}

impl Quiet {
    fn new(terminal: &File) -> Option<Self> {
        let before = tcgetattr(terminal).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        let kept = Quiet { terminal: terminal.try_clone().ok()?, before };
        tcsetattr(terminal, OptionalActions::Flush, &quiet).ok()?;
        Some(kept)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
