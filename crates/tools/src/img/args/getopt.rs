//! A command line as getopt_long reads it, and its complaints in getopt's words.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// Makes clap take what getopt_long takes: shortened long options, options given again, and values that begin with `-`.
pub(crate) fn like_getopt(command: Command) -> Command {
    command.infer_long_args(true).args_override_self(true).mut_args(|arg| {
        let takes_value = arg.get_action().takes_values() && !arg.is_positional();
        if takes_value { arg.allow_hyphen_values(true) } else { arg }
    })
}

/// What getopt_long would say of `arguments`, where clap failed with `error`; the whole message, with the program's name.
pub(crate) fn complaint(program: &Command, arguments: &[OsString], error: &Error) -> Option<String> {
    let given: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    let command = given.iter().skip(1).find_map(|word| program.find_subcommand(&**word));
    let name = command.map_or_else(|| program.get_name().to_owned(), |c| format!("{} {}", program.get_name(), c.get_name()));
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let (invalid, value) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    let what = match error.kind() {
        ErrorKind::UnknownArgument => match invalid.strip_prefix("--") {
            // clap leaves out the value.
            Some(_) => {
                let written = given.iter().find(|word| word.split('=').next() == Some(invalid)).map_or(invalid, |word| word);
                unknown_long(command.unwrap_or(program), written.trim_start_matches("--"))
            }
            None => format!("invalid option -- '{}'", invalid.trim_start_matches('-')),
        },
        // Only the last word can be an option without its value.
        ErrorKind::InvalidValue if value.is_empty() => match given.last()?.strip_prefix("--") {
            Some(long) => format!("option '--{long}' requires an argument"),
            None => format!("option requires an argument -- '{}'", given.last()?.chars().last()?),
        },
        ErrorKind::InvalidSubcommand => {
            let words = format!("Command not found: {}", context(ContextKind::InvalidSubcommand));
            return Some(format!("{0}: {words}\nTry '{0} --help' for more info", program.get_name()));
        }
        ErrorKind::InvalidValue => {
            let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue) else { return None };
            let valid: Vec<_> = valid.iter().map(|v| format!("'{v}'")).collect();
            let option = invalid.split(' ').next()?;
            let short = command?.get_arguments().find(|a| a.get_long().is_some_and(|l| option.ends_with(l)))?.get_short();
            let short = short.map_or(String::new(), |short| format!(" (-{short})"));
            let words = format!("{option}{short} expects {} not '{value}'", valid.join(" or "));
            return Some(format!("{}: {words}\nTry '{name} --help' for more info", program.get_name()));
        }
        _ => return None,
    };
    Some(format!("{name}: {what}\nTry '{name} --help' for more info"))
}

fn unknown_long(command: &Command, given: &str) -> String {
    let begin = given.split('=').next().unwrap_or(given);
    let meant: Vec<_> =
        command.get_arguments().filter_map(|a| a.get_long()).filter(|l| l.starts_with(begin)).map(|l| format!("'--{l}'")).collect();
    match meant.len() {
        0 => format!("unrecognized option '--{given}'"),
        _ => format!("option '--{given}' is ambiguous; possibilities: {}", meant.join(" ")),
    }
}
