//! `virt-shell`: guestfish's most used commands, from the command line, a script or a person.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use clap::{Args, FromArgMatches};
use imgcore::storage::Undo;

use self::commands::Arguments;
use self::line::Line;
use super::Entry;
use super::launched::{Launched, ShellDisk};
use super::options::{GuestArgs, Sources};
use crate::common::{Failure, signals};

mod commands;
mod interactive;
mod line;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "shell",
    arguments: |command| ShellArgs::augment_args(command).mut_arg("ro", |ro| ro.short('r')).disable_help_flag(true).arg(super::help_flag()),
    run: |matches| run(&ShellArgs::from_arg_matches(matches)?),
};

/// Look into and change a guest by guestfish's commands.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-shell --ro -a disk.qcow2 -i cat /etc/fstab\n  virt-shell -a disk.qcow2 -m /dev/sda2 write /etc/motd hello : ll /etc/motd\n  \
                        virt-shell -a disk.qcow2 -i -f script\n  virt-shell --ro -a disk.qcow2 -i\n\n\
                        Commands are separated by ':', an argument of its own; options of this program end at '--'. Without commands they are read\n\
                        from the terminal or the standard input. 'help' lists them, 'help COMMAND' explains one.\n\
                        The first command that fails ends a script, and then the disks are as they were before: changes are kept aside until the\n\
                        end ('exit', 'shutdown' or the end of the commands). A '-' before a command lets its failure be.\n\
                        Called by the name guestfish it is the same program."
)]
struct ShellArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Find the operating system and mount its filesystems
    #[arg(short, long, conflicts_with = "mount")]
    inspector: bool,
    /// Keep changes (as it is without --ro)
    #[arg(short = 'w', long, conflicts_with = "ro")]
    rw: bool,
    /// Read commands from this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "commands")]
    file: Option<PathBuf>,
    /// List the commands, or explain one
    #[arg(short = 'h', long, value_name = "COMMAND", num_args = 0..=1, default_missing_value = "")]
    cmd_help: Option<OsString>,
    /// Commands, separated by ':'
    #[arg(value_name = "COMMAND")]
    commands: Vec<OsString>,
}

/// What commands work with.
struct Shell<'a> {
    args: &'a ShellArgs,
    /// Disks that commands added, and their formats and whether they are only read.
    added: Vec<(OsString, Option<String>, bool)>,
    guest: Option<Launched<'a>>,
    out: Output,
    over: bool,
    interactive: bool,
}

/// Where a command's output goes: the standard output, or a program of this machine.
struct Output {
    pipe: Option<Child>,
    terminal: bool,
}

impl Output {
    /// Bytes as they are.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match self.pipe.as_mut().and_then(|child| child.stdin.as_mut()) {
            Some(stdin) => stdin.write_all(bytes),
            None => std::io::stdout().lock().write_all(bytes),
        };
        match written {
            // Whoever reads has had enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// What comes from the guest and a line end; terminals get no control characters but line ends.
    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        if self.terminal && self.pipe.is_none() {
            let lines: Vec<String> =
                line.split(|b| *b == b'\n').map(|l| l.split(|b| *b == b'\t').map(guestfs::show).collect::<Vec<_>>().join("\t")).collect();
            self.text(&lines.join("\n"))?;
        } else {
            self.bytes(line)?;
        }
        self.bytes(b"\n")
    }

    fn finish(&mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.pipe.take() {
            drop(child.stdin.take());
            child.wait()?;
        }
        Ok(std::io::stdout().flush()?)
    }
}

fn run(args: &ShellArgs) -> Result<ExitCode, Failure> {
    let out = Output { pipe: None, terminal: std::io::stdout().is_terminal() };
    let mut shell = Shell { args, added: Vec::new(), guest: None, out, over: false, interactive: false };
    if let Some(name) = &args.cmd_help {
        commands::help(&mut shell.out, Some(name.as_bytes()).filter(|n| !n.is_empty()))?;
        return Ok(ExitCode::SUCCESS);
    }
    // Changes that are being committed are committed whole.
    signals::clean_up();
    if args.inspector || args.guest.has_mounts() {
        shell.launch()?;
    }
    if !args.commands.is_empty() {
        shell.words(&args.commands)?;
    } else if let Some(file) = &args.file {
        let opened = std::fs::File::open(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())))?;
        shell.script(&mut BufReader::new(opened))?;
    } else if std::io::stdin().is_terminal() {
        return interactive::run(shell);
    } else {
        shell.script(&mut std::io::stdin().lock())?;
    }
    shell.finish()?;
    Ok(ExitCode::SUCCESS)
}

impl<'a> Shell<'a> {
    /// Opens the disks.
    fn launch(&mut self) -> Result<(), Failure> {
        if self.guest.is_some() {
            return Err(Failure::new("the guest is launched already"));
        }
        let (mut disks, undo) = (Vec::new(), Undo::default());
        let named = &self.args.guest.sources;
        if !named.is_empty() || self.added.is_empty() {
            open(named, self.args.guest.sources.only_reads(), &undo, &mut disks)?;
        }
        for (path, format, read_only) in &self.added {
            open(&named.with_disk(path.clone(), format.clone()), *read_only, &undo, &mut disks)?;
        }
        let mut guest = Launched::new("virt-shell", &self.args.guest, disks, undo)?;
        let options = if self.args.guest.sources.only_reads() { "ro" } else { "" };
        for mut mount in self.args.guest.mounts()? {
            mount.device = commands::device(mount.device.as_bytes())?;
            if mount.options.is_empty() {
                mount.options = options.into();
            }
            guest.mount(mount)?;
        }
        if self.args.inspector {
            guest.mount_root(options)?;
        }
        self.guest = Some(guest);
        Ok(())
    }

    /// Adds a disk for when the guest is launched.
    fn add(&mut self, file: &[u8], format: Option<String>, read_only: bool) -> Result<(), Failure> {
        if self.guest.is_some() {
            return Err(Failure::new("disks are added before 'run'"));
        }
        self.added.push((OsString::from_vec(file.to_vec()), format, read_only));
        Ok(())
    }

    /// The launched guest.
    fn guest(&mut self) -> Result<&mut Launched<'a>, Failure> {
        Ok(self.parts()?.0)
    }

    /// The launched guest, and where output goes.
    fn parts(&mut self) -> Result<(&mut Launched<'a>, &mut Output), Failure> {
        let guest = self.guest.as_mut().ok_or_else(|| Failure::new("the guest is not launched").hint("say 'run' first"))?;
        Ok((guest, &mut self.out))
    }

    /// Runs the commands of the command line.
    fn words(&mut self, words: &[OsString]) -> Result<(), Failure> {
        for command in words.split(|word| word == ":") {
            let mut words: Vec<Vec<u8>> = command.iter().map(|w| w.clone().into_vec()).collect();
            let Some(name) = words.first_mut() else { continue };
            let forgiving = name.starts_with(b"-");
            if forgiving {
                name.remove(0);
            }
            self.command(&words, forgiving)?;
            if self.over {
                break;
            }
        }
        Ok(())
    }

    fn script(&mut self, lines: &mut dyn BufRead) -> Result<(), Failure> {
        let mut line = Vec::new();
        while !self.over && lines.read_until(b'\n', &mut line)? > 0 {
            self.line(&line, lines)?;
            line.clear();
        }
        Ok(())
    }

    /// Runs one line; what it takes of the text behind it is in `more`.
    fn line(&mut self, line: &[u8], more: &mut dyn BufRead) -> Result<(), Failure> {
        match line::parse(line).map_err(Failure::new)? {
            Line::Nothing => Ok(()),
            Line::Local(command) => {
                let status = local(&command).status()?;
                if status.success() { Ok(()) } else { Err(Failure::new(format!("the local command failed: {status}"))) }
            }
            Line::Generate(command) => {
                let output = local(&command).stderr(Stdio::inherit()).output()?;
                self.script(&mut output.stdout.as_slice())
            }
            Line::Command { mut words, forgiving, pipe } => {
                // They last as long as the command does.
                let _documents = words.iter_mut().map(|word| here_document(word, more)).collect::<Result<Vec<_>, _>>()?;
                if let Some(pipe) = pipe {
                    self.out.pipe = Some(local(&pipe).stdin(Stdio::piped()).spawn()?);
                }
                self.command(&words, forgiving)
            }
        }
    }

    /// Sends the command's output through a program of this machine, unless the user does already.
    fn page(&mut self, program: &[u8]) -> Result<(), Failure> {
        if self.out.pipe.is_none() {
            self.out.pipe = Some(local(program).stdin(Stdio::piped()).spawn()?);
        }
        Ok(())
    }

    fn command(&mut self, words: &[Vec<u8>], forgiving: bool) -> Result<(), Failure> {
        let outcome = self.run_command(words);
        let finished = self.out.finish();
        match outcome.and(finished) {
            Err(e) if forgiving => {
                e.report("virt-shell");
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn run_command(&mut self, words: &[Vec<u8>]) -> Result<(), Failure> {
        let Some((name, rest)) = words.split_first() else { return Ok(()) };
        if self.args.guest.traces() {
            eprintln!("{}", words.iter().map(|w| guestfs::show(w)).collect::<Vec<_>>().join(" "));
        }
        let command = commands::find(name)?;
        let arguments = Arguments::new(command, rest)?;
        (command.run)(self, &arguments).map_err(|e| {
            let message = format!("{}: {}", command.name(), e.message());
            e.reworded(message)
        })
    }

    /// Ends the work on the guest, with its changes on its disks.
    fn finish(&mut self) -> Result<(), Failure> {
        self.guest.take().map_or(Ok(()), Launched::finish)
    }
}

/// Opens the disks that are named.
fn open(sources: &Sources, read_only: bool, undo: &Undo, disks: &mut Vec<ShellDisk>) -> Result<(), Failure> {
    if read_only {
        disks.extend(sources.disks()?.into_iter().map(|disk| ShellDisk::ReadOnly(disk.image)));
    } else {
        disks.extend(sources.disks_mut(undo)?.into_iter().map(|disk| ShellDisk::Writable(disk.image)));
    }
    Ok(())
}

/// `-<<END` stands for a file of the lines that follow, up to one that is `END`: becomes its name.
fn here_document(word: &mut Vec<u8>, more: &mut dyn BufRead) -> Result<Option<tempfile::NamedTempFile>, Failure> {
    let Some(end) = word.strip_prefix(b"-<<").filter(|end| !end.is_empty()) else { return Ok(None) };
    let mut file = tempfile::NamedTempFile::new()?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if more.read_until(b'\n', &mut line)? == 0 {
            return Err(Failure::new(format!("there is no line '{}' that would end the text", guestfs::show(end))));
        }
        if line.strip_suffix(b"\n").unwrap_or(&line) == end {
            break;
        }
        file.write_all(&line)?;
    }
    *word = file.path().as_os_str().as_bytes().to_vec();
    Ok(Some(file))
}

/// A command for this machine's shell.
fn local(command: &[u8]) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(std::ffi::OsStr::from_bytes(command));
    shell
}
