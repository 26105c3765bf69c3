//! Arguments that several commands share, and what they mean.

use std::ffi::{OsStr, OsString};

use clap::ValueEnum;

use crate::common::Failure;

mod cache;
mod create_options;
pub(crate) mod getopt;
mod image;
mod keys;
pub(crate) mod numbers;
mod spec;

pub(crate) use cache::CacheMode;
pub(crate) use create_options::{check_options, parse_options, parse_pairs, print_amend_help, print_help, print_options, wants_help};
pub(crate) use image::{ImageArgs, check_objects};
pub(crate) use spec::{ImageSpec, could_not_create, snapshot_name, why_not_open};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// A wrong command line, with the way to the command's help.
pub(crate) fn usage(command: &str, message: &str) -> Failure {
    Failure::new(format!("{message}\nTry 'img {command} --help' for more info"))
}

/// The only positional argument.
pub(crate) fn only<'a>(command: &str, files: &'a [OsString]) -> Result<&'a OsStr, Failure> {
    match files {
        [file] => Ok(file),
        _ => Err(usage(command, "Expecting one image file name")),
    }
}

/// What a [`crate::common::Failure`] says of an error of the host, without the number that Rust adds.
pub(crate) fn host_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
