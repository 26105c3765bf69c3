//! The shell for a person: a prompt, with completion of commands and of paths in the guest.

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use guestfs::FileType;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};

use super::Shell;
use super::commands::{COMMANDS, find};
use crate::common::Failure;

const PROMPT: &str = "><fs> ";

/// Takes commands until the end; what fails is told, and nothing ends by it.
pub(super) fn run(mut shell: Shell<'_>) -> Result<ExitCode, Failure> {
    println!("'help' lists the commands, 'help COMMAND' explains one; 'exit' ends, and keeps what was changed.");
    shell.interactive = true;
    let shell = Rc::new(RefCell::new(shell));
    let mut editor: Editor<Completion<'_>, MemHistory> =
        Editor::with_history(Config::builder().auto_add_history(true).build(), MemHistory::new())?;
    editor.set_helper(Some(Completion { shell: shell.clone() }));
    loop {
        match editor.readline(PROMPT) {
            Ok(line) => {
                let mut shell = shell.borrow_mut();
                if let Err(e) = shell.line(line.as_bytes(), &mut std::io::stdin().lock()) {
                    e.report("virt-shell");
                }
                if shell.over {
                    break;
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(e) => return Err(e.into()),
        }
    }
    shell.borrow_mut().finish()?;
    Ok(ExitCode::SUCCESS)
}

struct Completion<'a> {
    shell: Rc<RefCell<Shell<'a>>>,
}

impl Completer for Completion<'_> {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..position).unwrap_or_default();
        let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let (earlier, word) = before.split_at(start);
        let words: Vec<&str> = earlier.split_whitespace().collect();
        let found = match words.split_first() {
            None => commands(word),
            Some((&"help", [])) => commands(word),
            Some((name, arguments)) => {
                let command = find(name.trim_start_matches('-').as_bytes());
                let wanted = command.ok().and_then(|c| c.argument(arguments.len()));
                self.shell.try_borrow_mut().map_or(Vec::new(), |mut shell| match wanted {
                    Some(kind) if kind.starts_with("DEVICE") || word.starts_with("/dev/") => devices(&mut shell, word),
                    Some(_) if word.starts_with('/') => paths(&mut shell, word),
                    _ => Vec::new(),
                })
            }
        };
        Ok((start, found.into_iter().map(|text| Pair { display: guestfs::show(text.as_bytes()), replacement: text }).collect()))
    }
}

fn commands(word: &str) -> Vec<String> {
    let names = COMMANDS.iter().flat_map(|group| group.iter()).flat_map(|c| c.names.iter());
    let mut found: Vec<String> = names.filter(|name| name.starts_with(word)).map(|name| format!("{name} ")).collect();
    found.sort();
    found
}

fn devices(shell: &mut Shell<'_>, word: &str) -> Vec<String> {
    let volumes = shell.guest().and_then(|guest| guest.volumes());
    let names = volumes.map(|v| v.volumes.iter().map(|v| v.device.clone()).collect::<Vec<_>>()).unwrap_or_default();
    names.into_iter().filter(|name| name.starts_with(word)).map(|name| name + " ").collect()
}

/// Paths in the guest that need no quotes.
fn paths(shell: &mut Shell<'_>, word: &str) -> Vec<String> {
    let (folder, start) = word.split_at(word.rfind('/').map_or(0, |at| at + 1));
    let entries = shell.guest().and_then(|guest| Ok(guest.fs()?.read_dir(folder.as_bytes())?)).unwrap_or_default();
    let plain =
        |name: &str| name.starts_with(start) && !name.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\''));
    let mut found: Vec<String> = entries
        .into_iter()
        .filter_map(|e| {
            let name = String::from_utf8(e.name).ok().filter(|name| plain(name))?;
            Some(format!("{folder}{name}{}", if e.kind == FileType::Directory { "/" } else { " " }))
        })
        .collect();
    found.sort();
    found
}

impl Hinter for Completion<'_> {
    type Hint = String;
}
impl Highlighter for Completion<'_> {}
impl Validator for Completion<'_> {}
impl Helper for Completion<'_> {}
