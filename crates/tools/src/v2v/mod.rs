//! The program `v2v`.

mod args;
mod events;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use guestfs_appliance::Appliance;
use v2v::options::{Events, Host};
use v2v::report::Report;

use crate::common::{Failure, formats, json};
use args::Args;
use events::{Level, Screen};

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let args = Args::parse_from(args::translated(std::env::args_os()));
    match run(&args) {
        Ok(code) => code,
        Err(failure) => failure.report("v2v"),
    }
}

/// The command line, for manual pages and completions.
pub fn command() -> clap::Command {
    Args::command()
}

fn run(args: &Args) -> Result<ExitCode, Failure> {
    let level = match (args.quiet, args.verbose) {
        (true, _) => Level::Quiet,
        (_, true) => Level::Verbose,
        _ => Level::Normal,
    };
    let screen = Screen::new(level)?;
    let note = if args.verbose { |line: &str| eprintln!("  {line}") } else { |_: &str| {} };
    let (formats, appliance) = (formats(), Appliance { accel: args.accel, note, ..Appliance::new() });
    if args.verbose {
        screen.detail(&format!("The appliance runs in {}.", appliance.describe()));
    }
    let host = Host { formats: &formats, engine: &appliance, machines: &appliance, progress: &screen, events: &screen };
    let request = args.request()?;
    let guest = |e: v2v::Error| {
        screen.finish();
        if screen.is_stopped() {
            return Failure::new("stopped; nothing was left behind").code(130);
        }
        let hint = hint(&e);
        let failure = Failure::from(e);
        let name = args.guest.display().to_string();
        let failure = if failure.message().contains(&name) { failure } else { Failure::new(format!("{name}: {}", failure.message())) };
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    };
    if args.plan {
        let plan = v2v::convert::plan(&request, &host).map_err(guest)?;
        screen.finish();
        if args.json {
            json::print(&plan)
        } else {
            print(&plan.text())?
        }
        if let Some(file) = &args.report {
            write_report(file, &plan)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = v2v::convert::convert(&request, &host).map_err(guest)?;
    screen.finish();
    if let Some(file) = &args.report {
        write_report(file, &report)?;
    }
    if args.json {
        json::print(&report);
    } else if level > Level::Quiet {
        print(&next(&report))?;
    }
    match &report.boot_check {
        Some(check) if !check.booted => {
            let screen = check.screen.join("\n  ");
            let message = format!("{}: written, but it does not boot: {}\nThe console ended with:\n  {screen}", report.name, check.what);
            Err(Failure::new(message).hint("'-v' shows the whole console; a slow host may need --check-boot=SECONDS"))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// What to do about an error, beyond what it says itself.
fn hint(error: &v2v::Error) -> Option<&'static str> {
    match error {
        v2v::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("the file's owner or root can read it")
        }
        v2v::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Some("make room, or choose another folder with -os")
        }
        v2v::Error::Step { .. } => Some("'--plan' shows what would be changed up to there; nothing was left behind"),
        _ => None,
    }
}

fn next(report: &Report) -> String {
    let outputs = &report.plan.outputs;
    let find = |end: &str| outputs.iter().find(|o| o.ends_with(end)).map_or("", |o| o);
    let mut text = format!("Converted {}:\n", report.name);
    for output in outputs {
        text += &format!("  {output}\n");
    }
    if let Some(check) = report.boot_check.as_ref().filter(|c| c.booted) {
        text += &format!("It boots: {} ({} s).\n", check.what, check.seconds);
    }
    text += &format!("Next:\n  {} -snapshot    starts it here, and forgets what it writes\n", find("-run.sh"));
    text + &format!("  virsh define {} && virsh start {}\n", find(".xml"), report.name)
}

/// Prints, and takes it well when nobody reads to the end.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn write_report(file: &Path, report: &impl serde::Serialize) -> Result<(), Failure> {
    let text = json::pretty(report) + "\n";
    std::fs::write(file, text).map_err(|e| Failure::new(format!("{}: cannot write the report: {e}", file.display())))
}
