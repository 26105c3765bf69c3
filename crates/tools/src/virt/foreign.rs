//! Flags of libguestfs's programs that scripts give and that mean nothing here, and those that are not there and say so.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::common::Failure;

/// A flag of some programs.
struct Flag {
    programs: &'static [&'static str],
    /// Its names; the first may be a short one.
    names: &'static [&'static str],
    value: Takes,
    /// Why it is refused and what to do instead; empty for one that changes nothing.
    refused: &'static str,
}

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
    /// A value behind `=`, or none.
    Perhaps,
}

use Takes::{Nothing, Perhaps, Value};

const fn ignored(programs: &'static [&'static str], names: &'static [&'static str], value: Takes) -> Flag {
    Flag { programs, names, value, refused: "" }
}

const fn refused(programs: &'static [&'static str], names: &'static [&'static str], value: Takes, refused: &'static str) -> Flag {
    Flag { programs, names, value, refused }
}

/// Programs that libguestfs wrote in OCaml, with flags about how they print.
const PRINTERS: &[&str] = &["get-kernel", "resize", "sparsify"];
/// Those that are guestfish by another name there.
const FISH: &[&str] = &["copy-in", "copy-out", "tar-in", "tar-out", "shell"];
/// Of these, those that do one thing, and find the system without being asked.
const COPIES: &[&str] = &["copy-in", "copy-out", "tar-in", "tar-out"];
const CHANGERS: &[&str] = &["customize", "sysprep"];

const SUBSCRIPTION: &str = "subscriptions are not registered by an option: --network --run-command 'subscription-manager …' does it";
const ATTACH: &str = "a second disk cannot be lent to commands: --copy-in or --upload brings files of this machine";
const REMOTE: &str = "a shell cannot be left running for later commands: give it a script, whose changes are written at its end";
const LIVE: &str = "a running guest is not worked on through its agent";
const NETWORK: &str = "the appliance has no network; virt-customize --network has one for packages";
const SCRIPT: &str = "scripts of this machine do not see the guest's files: --run runs one in the guest, --copy-in and --edit change files";
const KEYS: &str = "what is inside of encrypted volumes is not looked at: sparsify in the guest, with fstrim";

const FLAGS: &[Flag] = &[
    ignored(PRINTERS, &["colors", "color", "colour", "colours"], Nothing),
    ignored(PRINTERS, &["wrap"], Nothing),
    ignored(PRINTERS, &["machine-readable"], Perhaps),
    ignored(&["get-kernel", "resize", "sparsify", "customize", "sysprep"], &["debug-gc"], Nothing),
    ignored(&["df", "alignment-scan"], &["P"], Value),
    ignored(&["make-fs"], &["debug"], Nothing),
    ignored(FISH, &["n", "no-sync"], Nothing),
    ignored(FISH, &["progress-bars", "no-progress-bars"], Nothing),
    ignored(FISH, &["selinux"], Nothing),
    ignored(FISH, &["no-dest-paths", "D"], Nothing),
    ignored(&["shell"], &["pipe-error"], Nothing),
    ignored(COPIES, &["i", "inspector"], Nothing),
    ignored(COPIES, &["w", "rw"], Nothing),
    ignored(&["copy-out", "tar-out"], &["r"], Nothing),
    ignored(&["mount"], &["n", "no-sync"], Nothing),
    ignored(&["mount"], &["selinux"], Nothing),
    ignored(&["mount"], &["dir-cache-timeout"], Value),
    refused(CHANGERS, &["attach"], Value, ATTACH),
    refused(CHANGERS, &["attach-format"], Value, ATTACH),
    refused(CHANGERS, &["sm-attach"], Value, SUBSCRIPTION),
    refused(CHANGERS, &["sm-credentials"], Value, SUBSCRIPTION),
    refused(CHANGERS, &["sm-register"], Nothing, SUBSCRIPTION),
    refused(CHANGERS, &["sm-remove"], Nothing, SUBSCRIPTION),
    refused(CHANGERS, &["sm-unregister"], Nothing, SUBSCRIPTION),
    refused(&["sysprep"], &["mount-options"], Value, "filesystems are mounted as they are found: -m of virt-customize takes options"),
    refused(&["sysprep"], &["script"], Value, SCRIPT),
    refused(&["sysprep"], &["scriptdir"], Value, SCRIPT),
    refused(&["sysprep"], &["dump-pod", "dump-pod-options"], Nothing, "--list-operations tells what there is"),
    refused(&["make-fs", "format"], &["blocksize"], Perhaps, "disks are made with sectors of 512 bytes only"),
    refused(&["sparsify"], &["key"], Value, KEYS),
    refused(&["sparsify"], &["keys-from-stdin"], Nothing, KEYS),
    refused(&["sparsify"], &["echo-keys"], Nothing, KEYS),
    refused(&["rescue"], &["network"], Nothing, NETWORK),
    refused(&["rescue"], &["scratch"], Perhaps, "'img create' makes a disk, which -a adds"),
    refused(FISH, &["network"], Nothing, NETWORK),
    refused(FISH, &["live"], Nothing, LIVE),
    refused(FISH, &["listen"], Nothing, REMOTE),
    refused(FISH, &["remote"], Perhaps, REMOTE),
    refused(FISH, &["csh"], Nothing, REMOTE),
    refused(FISH, &["N", "new"], Value, "disks are not prepared by a word: virt-format and virt-make-fs make them"),
    refused(&["mount"], &["live"], Nothing, LIVE),
    refused(&["mount"], &["w", "rw"], Nothing, "a mount is for reading; virt-copy-in, virt-edit and virt-shell write"),
    refused(&["mount"], &["fd"], Value, "the program goes into the background when the mount is there: wait for its end"),
];

impl Flag {
    fn arg(&self) -> Arg {
        let mut arg = Arg::new(self.id()).hide(true);
        for name in self.names {
            arg = match name.chars().next() {
                Some(short) if name.len() == 1 => arg.short(short),
                _ if arg.get_long().is_none() => arg.long(name),
                _ => arg.alias(name),
            };
        }
        match self.value {
            Nothing => arg.action(ArgAction::Count),
            Value => arg.num_args(1).action(ArgAction::Append),
            Perhaps => arg.num_args(0..=1).require_equals(true).default_missing_value("").action(ArgAction::Append),
        }
    }

    fn id(&self) -> &'static str {
        self.names.last().copied().unwrap_or_default()
    }

    /// As the user wrote it, or could have.
    fn shown(&self) -> String {
        let name = self.names.iter().find(|name| name.len() > 1).or(self.names.first()).copied().unwrap_or_default();
        format!("{}{name}", if name.len() > 1 { "--" } else { "-" })
    }
}

fn of(program: &str) -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().filter(move |flag| flag.programs.contains(&program))
}

/// Adds a program's flags.
pub(super) fn add(program: &str, command: Command) -> Command {
    of(program).fold(command, |command, flag| command.arg(flag.arg()))
}

/// Refuses those that are not there.
pub(super) fn check(program: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let given = |flag: &&Flag| matches.value_source(flag.id()) == Some(ValueSource::CommandLine);
    match of(program).filter(|flag| !flag.refused.is_empty()).find(given) {
        Some(flag) => Err(Failure::new(format!("{} is not there: {}", flag.shown(), flag.refused))),
        None => Ok(()),
    }
}
