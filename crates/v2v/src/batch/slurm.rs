//! `--runner slurm`: the guests of a plan as one job array.
//!
//! The plan, its state, the sources and the results lie on storage that all nodes share. Each task works on one guest and can be
//! repeated: Slurm requeues the tasks of a node that is lost.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files;
use super::limits::{self, Need};
use super::phase::{self, Phase};
use super::plan::{Guest, Plan};
use super::state::State;
use crate::input::remote::PASSWORD_VARIABLE;
use crate::{Error, Result};

/// Tasks of an array that begin at the same time, where the plan does not say.
const JOBS: usize = 16;

/// The list of guests that the tasks of an array or job are numbered by, from 0. It stays as it was when it was submitted,
/// whatever becomes of the plan.
pub struct Tasks {
    /// The file: a name in each line.
    pub file: PathBuf,
    /// The guests.
    pub names: Vec<String>,
}

impl Tasks {
    /// Writes the list of these guests.
    pub fn write(state: &State, guests: &[&Guest]) -> Result<Tasks> {
        let names: Vec<String> = guests.iter().map(|g| g.name.clone()).collect();
        // A list of its own for every submission: tasks of an earlier one may still be in the queue.
        let file = state.dir().join(format!(".tasks-{}-{}", super::state::now(), std::process::id()));
        let file = std::path::absolute(&file).map_err(|e| files::io_error(&file, "find", e))?;
        files::write_whole(&file, (names.join("\n") + "\n").as_bytes())?;
        Ok(Tasks { file, names })
    }

    /// The guest of a number.
    pub fn read(file: &Path, number: usize) -> Result<String> {
        let content = files::read(file)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        text.lines().nth(number).map(Into::into).ok_or_else(|| Error::Invalid(format!("{}: has no task {number}", file.display())))
    }
}

/// Submits an array for these guests, and a job that writes the report behind it. Gives the array's number.
pub fn submit(plan: &Plan, state: &State, guests: &[&Guest], program: &Path, phase: Option<Phase>) -> Result<String> {
    let tasks = Tasks::write(state, guests)?;
    let file = std::path::absolute(&plan.file).map_err(|e| files::io_error(&plan.file, "find", e))?;
    let (jobs, last) = (plan.jobs.unwrap_or(JOBS), tasks.names.len().saturating_sub(1));
    let memory = guests.iter().map(|g| Need::of(plan, g, g.facts, phase).memory).max().unwrap_or(0).div_ceil(1 << 20);
    let out = state.dir().join(".slurm-%A_%a.out");
    let script = format!(
        "#!/bin/sh\n# Converts one guest of a plan; can be repeated.\nexec {} batch run-one {} --tasks {} --task \"$SLURM_ARRAY_TASK_ID\"{}\n",
        quoted(program),
        quoted(&file),
        quoted(&tasks.file),
        argument(phase)
    );
    let mut arguments: Vec<OsString> = vec![
        "--parsable".into(),
        "--requeue".into(),
        format!("--job-name=v2v-{}", file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()).into(),
        format!("--array=0-{last}%{jobs}").into(),
        format!("--mem={memory}M").into(),
        "--cpus-per-task=2".into(),
        // A task that is to end is told so, and given time to clean up.
        "--signal=B:TERM@60".into(),
    ];
    arguments.push(with("--output=", &std::path::absolute(&out).map_err(|e| files::io_error(&out, "find", e))?));
    arguments.push(with("--chdir=", file.parent().unwrap_or(Path::new("/"))));
    arguments.extend(plan.slurm.options.iter().map(Into::into));
    let job = sbatch(&arguments, &script)?;
    let report = format!("#!/bin/sh\nexec {} batch report {}\n", quoted(program), quoted(&file));
    let mut arguments: Vec<OsString> = vec![
        "--parsable".into(),
        "--job-name=v2v-report".into(),
        format!("--dependency=afterany:{job}").into(),
        "--output=/dev/null".into(),
    ];
    arguments.extend(plan.slurm.options.iter().map(Into::into));
    sbatch(&arguments, &report)?;
    Ok(job)
}

/// Gives a script to Slurm, and gets its job's number.
fn sbatch(arguments: &[OsString], script: &str) -> Result<String> {
    use std::io::{Seek, Write};
    let mut input = tempfile::tempfile().map_err(|e| files::io_error(Path::new("a temporary file"), "create", e))?;
    let written = input.write_all(script.as_bytes()).and_then(|()| input.rewind());
    written.map_err(|e| files::io_error(Path::new("a temporary file"), "write", e))?;
    // Slurm keeps the environment of a job in its state, on all machines.
    let ran = Command::new("sbatch").args(arguments).env_remove(PASSWORD_VARIABLE).stdin(input).output();
    let ran = ran.map_err(|e| files::io_error(Path::new("sbatch"), "run", e))?;
    if !ran.status.success() {
        return Err(Error::Invalid(format!("sbatch refuses the job: {}", String::from_utf8_lossy(&ran.stderr).trim())));
    }
    // NUMBER or NUMBER;CLUSTER
    let said = String::from_utf8_lossy(&ran.stdout);
    let job = said.trim().split(';').next().unwrap_or_default();
    match job.parse::<u64>() {
        Ok(_) => Ok(job.to_owned()),
        Err(_) => Err(Error::Invalid(format!("sbatch gives no job's number, but: {}", said.trim()))),
    }
}

fn with(option: &str, path: &Path) -> OsString {
    let mut text = OsString::from(option);
    text.push(path);
    text
}

/// A path for a shell.
pub(super) fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

/// What a task is told of the phase.
pub(super) fn argument(phase: Option<Phase>) -> String {
    phase.map(|phase| format!(" --phase {}", phase.name())).unwrap_or_default()
}

/// The guests that a job is to be made of: those that are asked for, and for which there is something to do.
pub fn due<'a>(plan: &'a Plan, state: &State, phase: Option<Phase>) -> Result<Vec<&'a Guest>> {
    let mut due = Vec::new();
    for guest in phase::guests(plan, phase) {
        if phase::is_due(plan, guest, &state.read(&guest.name)?, phase)? {
            due.push(guest);
        }
    }
    Ok(due)
}

/// Says where there is no room for all results together: no task of an array knows of the others.
pub fn warn_of_room(plan: &Plan, guests: &[&Guest], phase: Option<Phase>) -> Vec<String> {
    let mut wanted = std::collections::BTreeMap::new();
    for guest in guests {
        let need = Need::of(plan, guest, guest.facts, phase);
        if let Some((filesystem, free)) = limits::free(&need.out) {
            let entry: &mut (u64, u64, PathBuf) = wanted.entry(filesystem).or_insert((0, free, need.out));
            entry.0 = entry.0.saturating_add(need.disk);
        }
    }
    let short = wanted.into_values().filter(|(need, free, _)| need.saturating_add(plan.keep_free) > *free);
    short
        .map(|(need, free, out)| {
            let (need, free) = (imgcore::size::human(need), imgcore::size::human(free));
            format!("{}: all results together may take {need}, and {free} are free", out.display())
        })
        .collect()
}
