//! The program `img`: qemu-img's commands with qemu-img's flags, output and exit codes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Arg, ArgMatches, Command};

use self::args::getopt::{complaint, like_getopt};
use crate::common::{self, Failure};

mod amend;
pub(crate) mod args;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod info;
mod map;
mod measure;
mod rebase;
mod resize;
mod serve;
mod snapshot;

/// One command of the program: a new one is a new file and a line in [`COMMANDS`].
pub(crate) struct Entry {
    /// Its name.
    name: &'static str,
    /// Adds its arguments and help to an empty command.
    arguments: fn(Command) -> Command,
    /// Runs it. The exit code is for results that are no failure, such as leaks found by `check`.
    run: fn(&ArgMatches) -> Result<ExitCode, Failure>,
}

const COMMANDS: &[Entry] = &[
    amend::ENTRY,
    bench::ENTRY,
    bitmap::ENTRY,
    check::ENTRY,
    commit::ENTRY,
    compare::ENTRY,
    convert::ENTRY,
    create::ENTRY,
    dd::ENTRY,
    info::ENTRY,
    map::ENTRY,
    measure::ENTRY,
    rebase::ENTRY,
    resize::ENTRY,
    serve::ENTRY,
    snapshot::ENTRY,
];

static NAME: OnceLock<&'static str> = OnceLock::new();

/// What the program calls itself: under qemu-img's name it is that, for scripts that read its words.
pub(crate) fn name() -> &'static str {
    NAME.get().copied().unwrap_or("img")
}

/// Says something that is no failure.
pub(crate) fn warn(what: &str) {
    eprintln!("{}: {what}", name());
}

/// The whole command line, for parsing and for manual pages.
pub fn command() -> Command {
    let program = Command::new(name())
        .version(env!("CARGO_PKG_VERSION"))
        .about("Creates, converts and examines disk images")
        .after_help(
            "Examples:\n  img info disk.qcow2\n  img convert -p -O qcow2 disk.raw disk.qcow2\n  img convert export.xva#Ref:10 disk.qcow2\n\n\
             'img COMMAND --help' shows a command's flags with examples.",
        )
        .arg(
            Arg::new("spool")
                .long("spool")
                .value_name("DIR")
                .value_parser(clap::value_parser!(PathBuf))
                .global(true)
                .help("Folder with room for unpacking an XVA that is packed as a whole; needed for zstd"),
        )
        .arg(Arg::new("trace").short('T').long("trace").value_name("TRACE").hide(true).help("Accepted as qemu-img does"))
        .subcommand_required(true)
        .arg_required_else_help(true);
    COMMANDS.iter().fold(program, |program, entry| program.subcommand(like_getopt((entry.arguments)(Command::new(entry.name)))))
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs the program on `arguments`, of which the first is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.first().is_some_and(|called| Path::new(called).file_name().is_some_and(|n| n == "qemu-img")) {
        let _ = NAME.set("qemu-img");
    }
    let mut program = command();
    let matches = match program.try_get_matches_from_mut(&arguments) {
        Ok(matches) => matches,
        Err(e) => {
            match complaint(&program, &arguments, &e) {
                Some(complaint) => eprintln!("{complaint}"),
                None => drop(e.print()),
            }
            // qemu-img ends with 1 on a wrong command line, clap with 2.
            return ExitCode::from(u8::from(e.use_stderr()));
        }
    };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::FAILURE };
    let Some(entry) = COMMANDS.iter().find(|c| c.name == name) else { return ExitCode::FAILURE };
    if let Some(folder) = matches.get_one::<PathBuf>("spool") {
        common::spool_into(folder.clone());
    }
    // That one ends in its own way.
    if entry.name != serve::ENTRY.name {
        common::signals::clean_up();
    }
    if matches!(name, "bench" | "check" | "compare" | "info" | "map" | "measure") {
        common::end_with_reader();
    }
    (entry.run)(matches).unwrap_or_else(|failure| failure.report(self::name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help_with_an_example() {
        command().debug_assert();
        for entry in COMMANDS {
            let mut command = (entry.arguments)(Command::new(entry.name));
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:") && help.contains(&format!("img {}", entry.name)), "{help}");
        }
    }

    #[test]
    fn every_file_is_in_the_table() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/img");
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let stem = name.trim_end_matches(".rs");
            assert!(["mod", "args"].contains(&stem) || COMMANDS.iter().any(|c| c.name == stem), "{name} is in no table");
        }
    }
}
