//! `v2v batch`: many guests by a plan.

mod args;
mod new_plan;
mod status;
mod table;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{CommandFactory, Parser};
use v2v::batch::attempt::{OURS, Work};
use v2v::batch::child::Program;
use v2v::batch::files::Hold;
use v2v::batch::phase::Phase;
use v2v::batch::plan::Language;
use v2v::batch::state::Status;
use v2v::batch::{Plan, State, files, html, kubernetes, scheduler, slurm};

use super::args::Args as GuestArgs;
use super::events::stop_on_signals;
use crate::common::{Failure, formats, json};
use args::{Args, Command, Runner};
use table::Table;

/// Exit codes, as `--help` says them.
const SOME_FAILED: u8 = 1;
const COULD_NOT_BEGIN: u8 = 2;
const STOPPED: u8 = 130;

/// Runs `v2v batch` on its arguments, the word `batch` first.
pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = arguments.map(|a| if a == "-os" { "--out".into() } else { a });
    let args = Args::parse_from(arguments);
    run(&args).unwrap_or_else(|failure| failure.report("v2v batch"))
}

/// The command line, for manual pages and completions.
pub(super) fn command() -> clap::Command {
    Args::command().name("batch")
}

fn run(args: &Args) -> Result<ExitCode, Failure> {
    match (&args.command, &args.plan) {
        (Some(Command::Status { plan, json }), _) => {
            let (plan, state) = open(plan)?;
            status::print(&plan, &state, *json)
        }
        (Some(Command::Report { plan, html }), _) => {
            let (plan, state) = open(plan)?;
            let file = write_html(&plan, &state, html.as_deref())?;
            println!("{}", file.display());
            Ok(ExitCode::SUCCESS)
        }
        (Some(Command::RunOne { plan, guest, task, tasks, phase, json }), _) => {
            let (plan, state) = open(plan)?;
            let name = match (guest, task, tasks) {
                (_, Some(task), Some(tasks)) => slurm::Tasks::read(tasks, *task).map_err(could_not_begin)?,
                (Some(guest), ..) => guest.clone(),
                _ => return Err(Failure::new("which guest?").code(COULD_NOT_BEGIN)),
            };
            run_one(&plan, &state, &name, *phase, *json)
        }
        (None, Some(plan)) => whole(args, plan),
        (None, None) => Err(Failure::new("which plan?").code(COULD_NOT_BEGIN)),
    }
}

/// Finds guests, or converts those of the plan.
fn whole(args: &Args, file: &Path) -> Result<ExitCode, Failure> {
    let (program, stop) = (program()?, stop_on_signals()?);
    if !args.remote.settings()?.is_empty() && args.from_xenserver.is_empty() {
        let what = "how a server is reached is said with --from-xenserver, for a new plan";
        return Err(Failure::new(what).hint("an old one has it in [defaults], as password-file = \"FILE\"").code(COULD_NOT_BEGIN));
    }
    if !(args.from_dir.is_empty() && args.from_xenserver.is_empty()) {
        let coded = |f: Failure| if f.exit_code() == STOPPED { f } else { f.code(COULD_NOT_BEGIN) };
        new_plan::write(args, file, &program, &stop).map_err(coded)?;
        if !args.run {
            if !args.quiet {
                let phase = args.phase.map(|phase| format!(" --phase {}", phase.name())).unwrap_or_default();
                eprintln!("Next: look through it, then\n  v2v batch {}{phase}", file.display());
            }
            return Ok(ExitCode::SUCCESS);
        }
    }
    let (mut plan, state) = open(file)?;
    if let Some(jobs) = args.jobs {
        plan.jobs = Some(jobs.into());
    }
    for name in &args.again {
        plan.guest(name).map_err(could_not_begin)?;
    }
    match args.runner {
        Runner::Local => local(args, &plan, &state, &program, &stop),
        Runner::Slurm => cluster(args, &plan, &state, |guests| {
            let job = slurm::submit(&plan, &state, guests, &program, args.phase)?;
            eprintln!("Slurm's job {job} has {} tasks; 'v2v batch status {}' shows them", guests.len(), file.display());
            Ok(())
        }),
        Runner::Kubernetes => cluster(args, &plan, &state, |guests| {
            json::print(&kubernetes::manifest(&plan, &state, guests, args.phase)?);
            eprintln!("{} guests; give this to 'kubectl create -f -'", guests.len());
            Ok(())
        }),
    }
}

fn local(args: &Args, plan: &Plan, state: &State, program: &Path, stop: &Arc<AtomicBool>) -> Result<ExitCode, Failure> {
    let table = Table::new(args.json, args.quiet);
    let program = Program { path: program.into(), folder: folder(plan)? };
    let work = Work { plan, state, program: &program, stop, watcher: &table, again: &args.again, phase: args.phase };
    let summary = scheduler::run(&work, &formats()).map_err(could_not_begin)?;
    let html = write_html(plan, state, args.html.as_deref())?;
    if !args.quiet {
        eprintln!("Report: {}", html.display());
        if let Some(next) = args.phase.and_then(next) {
            eprintln!("Next: {next}, 'v2v batch {} --phase finish'", plan.file.display());
        }
    }
    Ok(match () {
        () if stop.load(Ordering::Relaxed) => ExitCode::from(STOPPED),
        () if summary.is_success(args.phase) => ExitCode::SUCCESS,
        () => ExitCode::from(SOME_FAILED),
    })
}

/// What comes after a phase.
fn next(phase: Phase) -> Option<&'static str> {
    let copied = "'--phase update' as often as you like, which makes the last step short; then, with the guests shut down";
    matches!(phase, Phase::Copy | Phase::Update).then_some(copied)
}

/// Hands the guests that are to be worked on to a cluster.
fn cluster(
    args: &Args,
    plan: &Plan,
    state: &State,
    submit: impl FnOnce(&[&v2v::batch::plan::Guest]) -> v2v::Result<()>,
) -> Result<ExitCode, Failure> {
    if !args.again.is_empty() {
        return Err(Failure::new("--again is for this machine")
            .hint("remove the guest's folder in PLAN.state, and its result")
            .code(COULD_NOT_BEGIN));
    }
    // Whoever submits does none of the work: tasks of an earlier submission may be at it.
    let _lock = state.lock(Hold::Together).map_err(could_not_begin)?;
    let due = slurm::due(plan, state, args.phase).map_err(could_not_begin)?;
    if due.is_empty() {
        eprintln!("Nothing is left to do: {}.", scheduler::count(plan, state).map_err(could_not_begin)?.words());
        return Ok(ExitCode::SUCCESS);
    }
    for warning in slurm::warn_of_room(plan, &due, args.phase) {
        eprintln!("Warning: {warning}");
    }
    submit(&due).map_err(could_not_begin)?;
    Ok(ExitCode::SUCCESS)
}

fn run_one(plan: &Plan, state: &State, name: &str, phase: Option<Phase>, json: bool) -> Result<ExitCode, Failure> {
    let guest = plan.guest(name).map_err(could_not_begin)?;
    let (program, stop) = (Program { path: program()?, folder: folder(plan)? }, stop_on_signals()?);
    let _lock = state.lock(Hold::Together).map_err(could_not_begin)?;
    let table = Table::new(json, false);
    let work = Work { plan, state, program: &program, stop: &stop, watcher: &table, again: &[], phase };
    Ok(match work.convert(guest).map_err(could_not_begin)? {
        Status::Done => ExitCode::SUCCESS,
        Status::Copied | Status::Waiting if phase.is_some_and(Phase::is_before_conversion) => ExitCode::SUCCESS,
        Status::Interrupted => ExitCode::from(STOPPED),
        _ => ExitCode::from(SOME_FAILED),
    })
}

/// Reads a plan, in the words of `v2v`'s own command line.
fn open(file: &Path) -> Result<(Plan, State), Failure> {
    let options: Vec<String> =
        GuestArgs::command().get_arguments().filter_map(|a| a.get_long()).filter(|name| !OURS.contains(name)).map(Into::into).collect();
    let check = |arguments: &[OsString]| {
        let words = std::iter::once(OsString::from("v2v")).chain(arguments.iter().cloned());
        let args = GuestArgs::try_parse_from(words).map_err(|e| first_line(&e))?;
        args.request().map(|_| ()).map_err(|f| f.message().to_owned())
    };
    let file = std::path::absolute(file)?;
    let plan = Plan::read(&file, &Language { options: &options, check: &check }).map_err(could_not_begin)?;
    let state = State::of(&file);
    Ok((plan, state))
}

/// What clap says, without its usage and hints.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn write_html(plan: &Plan, state: &State, file: Option<&Path>) -> Result<PathBuf, Failure> {
    let file = file.map_or_else(|| plan.file.with_extension("html"), Path::to_owned);
    files::write_whole(&file, html::report(plan, state)?.as_bytes())?;
    Ok(file)
}

/// This program, which converts one guest when it is called so.
fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| Failure::new(format!("cannot find this program's own file: {e}")).code(COULD_NOT_BEGIN))
}

fn folder(plan: &Plan) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(plan.folder())?)
}

fn could_not_begin(error: v2v::Error) -> Failure {
    Failure::from(error).code(COULD_NOT_BEGIN)
}
