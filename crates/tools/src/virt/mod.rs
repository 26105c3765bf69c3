//! The program `virt`: libguestfs's small tools under one roof, as `virt cat …` and by name as `virt-cat …`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, Command};

use crate::common::Failure;

mod alignment_scan;
mod archive;
mod cat;
mod checksum;
mod columns;
mod copy_in;
mod copy_out;
mod customize;
mod df;
mod diff;
mod disks;
mod doctor;
mod drives;
mod edit;
mod expression;
mod filesystems;
mod foreign;
mod format;
mod get_kernel;
mod host;
mod inspector;
mod launched;
mod log;
mod long;
mod ls;
mod make_fs;
mod mount;
mod options;
mod paths;
mod rescue;
mod resize;
mod shell;
mod show;
mod sparsify;
mod sysprep;
mod tail;
mod tar_in;
mod tar_out;
mod time;
mod walk;

/// One command of the program: a new one is a new file and a line in [`COMMANDS`].
pub(crate) struct Entry {
    /// Its name, without `virt-`.
    name: &'static str,
    /// Adds its arguments and help to an empty command.
    arguments: fn(Command) -> Command,
    /// Runs it.
    run: fn(&ArgMatches) -> Result<ExitCode, Failure>,
}

const COMMANDS: &[Entry] = &[
    alignment_scan::ENTRY,
    cat::ENTRY,
    copy_in::ENTRY,
    copy_out::ENTRY,
    customize::ENTRY,
    df::ENTRY,
    diff::ENTRY,
    doctor::ENTRY,
    edit::ENTRY,
    filesystems::ENTRY,
    format::ENTRY,
    get_kernel::ENTRY,
    inspector::ENTRY,
    log::ENTRY,
    ls::ENTRY,
    make_fs::ENTRY,
    resize::ENTRY,
    sparsify::ENTRY,
    sysprep::ENTRY,
    tar_in::ENTRY,
    tar_out::ENTRY,
    tail::ENTRY,
    mount::ENTRY,
    rescue::ENTRY,
    shell::ENTRY,
];

/// libguestfs's names for commands that we call otherwise.
const ALSO: &[(&str, &str)] = &[("guestfish", "shell"), ("guestmount", "mount")];

/// The program's command line.
pub fn command() -> Command {
    let program = Command::new("virt")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Looks into and changes the filesystems of guests that are not running")
        .after_help(
            "Examples:\n  virt cat -a disk.qcow2 /etc/fstab\n  virt ls -lR -a disk.qcow2 /etc\n  virt-inspector -a export.xva#Ref:10\n\n\
             Every command is also a program of its own: 'virt-cat' is 'virt cat'.\n\
             'virt COMMAND --help' shows a command's flags with examples.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true);
    COMMANDS.iter().fold(program, |program, entry| program.subcommand(subcommand(entry)))
}

fn subcommand(entry: &Entry) -> Command {
    foreign::add(entry.name, (entry.arguments)(Command::new(entry.name)))
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .arg(clap::Arg::new("version").short('V').long("version").action(clap::ArgAction::Version).help("Print version"))
}

/// `--help` alone, where `-h` means sizes for people.
fn help_flag() -> clap::Arg {
    clap::Arg::new("help").long("help").action(clap::ArgAction::Help).help("Print help")
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs the program on `arguments`. The first is the program's name, which may choose the command: `virt-cat`.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let name = arguments.first().and_then(|a| Path::new(a).file_name()?.to_str()).unwrap_or("virt").to_string();
    let also = ALSO.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
    if let Some(entry) = COMMANDS.iter().find(|c| name.strip_prefix("virt-").or(also) == Some(c.name)) {
        arguments.splice(..1, ["virt".into(), entry.name.into()]);
    }
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::from(e.use_stderr()));
        }
    };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::FAILURE };
    let Some(entry) = COMMANDS.iter().find(|c| c.name == name) else { return ExitCode::FAILURE };
    foreign::check(name, matches).and_then(|()| (entry.run)(matches)).unwrap_or_else(|failure| failure.report(&format!("virt-{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help_with_an_example() {
        command().debug_assert();
        for entry in COMMANDS {
            let help = subcommand(entry).render_long_help().to_string();
            assert!(help.contains("Examples:") && help.contains(&format!("virt-{}", entry.name)), "{help}");
        }
    }

    #[test]
    fn every_file_is_in_the_table() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/virt");
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let stem = name.trim_end_matches(".rs").replace('_', "-");
            assert!(
                [
                    "mod",
                    "options",
                    "show",
                    "time",
                    "long",
                    "checksum",
                    "expression",
                    "foreign",
                    "disks",
                    "archive",
                    "host",
                    "drives",
                    "walk",
                    "columns",
                    "paths",
                    "launched"
                ]
                .contains(&stem.as_str())
                    || COMMANDS.iter().any(|c| c.name == stem),
                "{name} is in no table"
            );
        }
    }
}
