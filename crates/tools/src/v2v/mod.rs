//! The program `v2v`.

mod args;
mod batch;
mod events;
mod server;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use guestfs_appliance::Appliance;
use v2v::batch::files;
use v2v::input::remote::check_url;
use v2v::options::{Events, Host, Request};
use v2v::output::virsh;
use v2v::phases::{self, Phase};
use v2v::report::Report;

use crate::common::{Failure, formats, json};
use args::{Args, OutputMode};
use events::{Level, Screen};

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    // Only here the word is no guest's name: `v2v ./batch` converts a guest of that name.
    if std::env::args_os().nth(1).is_some_and(|a| a == "batch") {
        return batch::main(std::env::args_os().skip(1));
    }
    let args = Args::parse_from(args::translated(std::env::args_os()));
    if let Some(parent) = args.parent {
        // Whoever has started this process shall not leave it behind, however it ends.
        let bound = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        if bound.is_err() || rustix::process::getppid().map(|p| p.as_raw_pid()) != Some(parent) {
            return ExitCode::FAILURE;
        }
    }
    let level = match (args.quiet, args.verbose) {
        (true, _) => Level::Quiet,
        (_, true) => Level::Verbose,
        _ => Level::Normal,
    };
    let failed = |failure: Failure| failure.report("v2v");
    let screen = match Screen::new(level, args.events) {
        Ok(screen) => screen,
        Err(e) => return failed(e.into()),
    };
    run(&args, level, &screen).unwrap_or_else(|failure| {
        screen.failed(&failure);
        failed(failure)
    })
}

/// The command line, for manual pages and completions.
pub fn command() -> clap::Command {
    Args::command().subcommand(batch::command())
}

fn run(args: &Args, level: Level, screen: &Screen) -> Result<ExitCode, Failure> {
    let note = if args.verbose { |line: &str| eprintln!("  {line}") } else { |_: &str| {} };
    let (formats, appliance) = (formats(), Appliance { accel: args.accel, note, ..Appliance::new() });
    if args.verbose {
        screen.detail(&format!("The appliance runs in {}.", appliance.describe()));
    }
    let host = Host { formats: &formats, engine: &appliance, machines: &appliance, progress: screen, events: screen };
    if args.is_list() {
        check_url(&args.guest)?;
        return server::list(&args.guest, &args.server.remote.remote(), args.json);
    }
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
    if let Some(phase @ (Phase::Copy | Phase::Forget)) = request.phase {
        return first_phase(args, phase, &request, &host, level).map_err(guest);
    }
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
    let mut ready = |report: &Report| match &args.report {
        Some(file) => write_report(file, report),
        None => Ok(()),
    };
    let report = v2v::convert::convert(&request, &host, &mut ready).map_err(guest)?;
    screen.finish();
    if args.output == OutputMode::Libvirt && report.is_success() {
        let xml = request.out.join(format!("{}.xml", report.name));
        virsh::define(&xml, &report.name, report.policy.autostart, args.connect.as_deref())?;
    }
    if args.json {
        json::print(&report);
    } else if level > Level::Quiet && !args.events {
        print(&next(&report, args.output))?;
    }
    match &report.boot_check {
        Some(check) if !check.booted => {
            let screen = check.screen.join("\n  ");
            let written = if args.output == OutputMode::Null { "converted" } else { "written" };
            let message = format!("{}: {written}, but it does not boot: {}\nThe console ended with:\n  {screen}", report.name, check.what);
            Err(Failure::new(message).hint("'-v' shows the whole console; a slow host may need --check-boot=SECONDS"))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Copies the disks of a guest that goes on running, or forgets them.
fn first_phase(args: &Args, phase: Phase, request: &Request, host: &Host<'_>, level: Level) -> v2v::Result<ExitCode> {
    if phase == Phase::Forget {
        let folder = phases::forget(request, host)?;
        if level > Level::Quiet && !args.events {
            println!("Removed {}", folder.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let copied = phases::copy(request, host)?;
    copied.warnings.iter().for_each(|warning| host.events.warning(warning));
    if args.json {
        json::print(&copied);
    } else if level > Level::Quiet && !args.events {
        let what = if copied.again { "what has changed since the last copy" } else { "the disks" };
        println!(
            "Copied {what} to {}\nNext:\n  shut the guest down, then give the same command with '--phase finish'; '--phase copy' again makes that quicker",
            copied.folder.display()
        );
    }
    Ok(ExitCode::SUCCESS)
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

/// What was made, and what to do with it.
fn next(report: &Report, output: OutputMode) -> String {
    let outputs = &report.plan.outputs;
    let find = |end: &str| outputs.iter().find(|o| o.ends_with(end)).map_or("", |o| o);
    let name = &report.name;
    let mut text = match output {
        OutputMode::Null => format!("{name} can be converted; nothing was kept.\n"),
        _ => format!("Converted {name}:\n"),
    };
    for output in outputs {
        text += &format!("  {output}\n");
    }
    if let Some(check) = report.boot_check.as_ref().filter(|c| c.booted) {
        text += &format!("It boots: {} ({} s).\n", check.what, check.seconds);
    }
    match output {
        OutputMode::Null => return text,
        OutputMode::Libvirt => text += &format!("Next:\n  virsh start {name}\n"),
        OutputMode::Kubevirt => {
            text += &format!("Next:\n  kubectl apply -f {}    and the commands at its beginning, which upload the disks\n", find(".yaml"));
            return text;
        }
        OutputMode::Proxmox => {
            text += &format!("Next, on the Proxmox host, with the disks beside it:\n  {}\n", find("-qm.sh"));
            return text;
        }
        OutputMode::Xva => text += &format!("Next:\n  xe vm-import filename={}\n", find(".xva")),
        OutputMode::Local if !find(".cfg").is_empty() => {
            text += &format!("Next:\n  xl create {}\n  virsh define {} && virsh start {name}\n", find(".cfg"), find(".xml"));
        }
        OutputMode::Local | OutputMode::Nbd => {
            text += &format!("Next:\n  {} -snapshot    starts it here, and forgets what it writes\n", find("-run.sh"));
            text += &format!("  virsh define {} && virsh start {name}\n", find(".xml"));
        }
    }
    if report.policy.autostart && output != OutputMode::Libvirt {
        let turn = report.policy.start_order.map_or(String::new(), |n| format!(", as number {n} of those there"));
        text += &format!("  virsh autostart {name}    starts it with its host, as on Xen{turn}\n");
    }
    text
}

/// Prints, and takes it well when nobody reads to the end.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn write_report(file: &Path, report: &impl serde::Serialize) -> v2v::Result<()> {
    files::write_whole(file, (json::pretty(report) + "\n").as_bytes())
}
