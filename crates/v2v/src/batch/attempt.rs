//! One guest of a batch, from the lock to the outcome. It can be done again at any time: what is whole is not done twice.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::child::{self, Program};
use super::events::{Event, Watcher};
use super::files;
use super::phase::{self, Phase};
use super::plan::{Guest, Plan};
use super::state::{GuestState, OpenGuest, Outcome, State, Status};
use crate::output::virsh;
use crate::{Error, Result};

/// Options that the batch itself gives to a conversion or takes from it: a plan's guest cannot have them.
pub const OURS: &[&str] =
    &["name", "plan", "report", "json", "events", "parent", "verbose", "quiet", "list", "phase", "replace", "help", "version"];
/// What hands a result over; done here, so that it can be repeated without the conversion.
const HANDING_OVER: &[&str] = &["output", "connect"];

/// Why a guest is not finished.
const NO_COPY: &str = "there is no copy of its disks that could be finished";

/// What one guest is converted with.
pub struct Work<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its state.
    pub state: &'a State,
    /// Converts one guest.
    pub program: &'a Program,
    /// Set when the user wants to stop.
    pub stop: &'a AtomicBool,
    /// Hears what happens.
    pub watcher: &'a dyn Watcher,
    /// Guests that are worked on again even where that is done.
    pub again: &'a [String],
    /// What is done of each guest; all at once when `None`.
    pub phase: Option<Phase>,
}

impl Work<'_> {
    /// Whether there is something to do for a guest.
    pub fn is_due(&self, guest: &Guest) -> Result<bool> {
        self.is_due_in(guest, &self.state.read(&guest.name)?)
    }

    fn is_due_in(&self, guest: &Guest, state: &GuestState) -> Result<bool> {
        Ok(self.again.contains(&guest.name) || phase::is_due(self.plan, guest, state, self.phase)?)
    }

    /// Does with a guest what this batch does, if nobody has yet, and writes down what became of it.
    pub fn convert(&self, guest: &Guest) -> Result<Status> {
        let mut open = self.state.open(&guest.name)?;
        // A result that is there, and only was not handed over yet, is not copied once more.
        let has_result = self.phase.is_some_and(Phase::is_copy) && !self.again.contains(&guest.name) && open.whole()?.is_some();
        if has_result || !self.is_due_in(guest, open.state())? {
            return Ok(open.state().status(false));
        }
        self.watcher.event(&Event::Started { guest: &guest.name });
        let start = std::time::Instant::now();
        let is_finished = open.state().is_finished();
        let ended = match self.phase {
            Some(Phase::Forget) => self.forget(guest, &mut open)?,
            Some(phase @ (Phase::Copy | Phase::Update)) => self.copy(guest, &mut open, phase)?,
            None | Some(Phase::Finish) => self.result(guest, &mut open)?,
        };
        // That the copy of a guest is gone makes its result no other.
        if !(is_finished && self.phase == Some(Phase::Forget)) {
            open.end(ended.outcome, ended.message.clone(), ended.hint.clone())?;
        }
        let status = open.state().status(false);
        self.watcher.event(&Event::Ended {
            guest: &guest.name,
            status,
            seconds: start.elapsed().as_secs(),
            message: ended.message.as_deref(),
            hint: ended.hint.as_deref(),
        });
        Ok(status)
    }

    /// Writes down that a guest was not even begun.
    pub fn refuse(&self, guest: &Guest, why: String, hint: &str) -> Result<()> {
        let mut open = self.state.open(&guest.name)?;
        open.begin(self.phase)?;
        open.end(Outcome::Failed, Some(why.clone()), Some(hint.into()))?;
        let (message, hint) = (Some(why.as_str()), Some(hint));
        self.watcher.event(&Event::Ended { guest: &guest.name, status: Status::Failed, seconds: 0, message, hint });
        Ok(())
    }

    /// Removes what was copied of a guest.
    fn forget(&self, guest: &Guest, open: &mut OpenGuest) -> Result<Ended> {
        if !open.state().is_finished() {
            open.begin(Some(Phase::Forget))?;
        }
        let ran = self.run(guest, open, Some(Phase::Forget), Vec::new())?;
        Ok(if phase::is_begun(self.plan, guest) { ran.failed } else { Ended::well(Outcome::Forgotten) })
    }

    /// Copies the disks of a guest, or what has changed of them.
    fn copy(&self, guest: &Guest, open: &mut OpenGuest, phase: Phase) -> Result<Ended> {
        let anew = phase == Phase::Copy && self.again.contains(&guest.name);
        if phase == Phase::Copy && !anew && phase::kept(self.plan, guest)?.is_some() {
            return Ok(Ended::well(Outcome::Copied));
        }
        open.begin(Some(phase))?;
        let ran = self.run(guest, open, Some(phase), if anew { vec!["--force".into()] } else { Vec::new() })?;
        if ran.is_success && phase::kept(self.plan, guest)?.is_some() {
            return Ok(Ended::well(Outcome::Copied));
        }
        let hint = || format!("where the copy fits no more, '--phase copy --again {}' begins anew", guest.name);
        let hint = ran.failed.hint.or_else(|| (phase == Phase::Update).then(hint));
        Ok(Ended { hint, ..ran.failed })
    }

    /// Sees to it that the guest's result is there, and handed over.
    fn result(&self, guest: &Guest, open: &mut OpenGuest) -> Result<Ended> {
        let again = self.again.contains(&guest.name);
        let ended = match open.whole()?.filter(|_| !again) {
            Some(report) => Ended::converted(&report),
            None => self.whole(guest, open)?,
        };
        if !matches!(ended.outcome, Outcome::Done | Outcome::NoBoot) {
            return Ok(ended);
        }
        // A conversion removes the copy that it was made of; one that was in its way before, or of no use, is here still.
        if guest.options.value("output") != Some("null") && phase::is_begun(self.plan, guest) {
            let ran = self.run(guest, open, Some(Phase::Forget), Vec::new())?;
            if let Some(what) = ran.failed.message.filter(|_| phase::is_begun(self.plan, guest)) {
                let what = format!("it is converted, but something of its copy is left ({what}): '--phase forget' removes it");
                self.watcher.event(&Event::Warning { guest: Some(&guest.name), what: &what });
            }
        }
        if ended.outcome == Outcome::Done { self.hand_over(guest, open, ended) } else { Ok(ended) }
    }

    /// The conversion itself: of the guest's copy, where there is one.
    fn whole(&self, guest: &Guest, open: &mut OpenGuest) -> Result<Ended> {
        // Whoever asked for it again wants this batch's own result replaced, however often that is cut off.
        let replace = open.state().had_result() && !guest.options.is_given("force");
        let is_copied = phase::kept(self.plan, guest)?.is_some();
        let has_none = self.phase == Some(Phase::Finish) && !is_copied;
        if has_none && open.state().is_finished() {
            // Its result stays what it is.
            return Err(Error::Invalid(format!("{}: it is converted already, and {NO_COPY}", guest.name)));
        }
        let last = open.state().attempts.last().and_then(|last| last.message.clone());
        open.begin(Some(Phase::Finish).filter(|_| is_copied || has_none))?;
        if has_none {
            let hint = "--phase copy makes one; without --phase it is converted in one go, which takes longer";
            // Why there is none; and not that once more.
            let why = match last.filter(|last| !last.starts_with(NO_COPY)) {
                Some(last) => format!("; what was tried last said: {last}"),
                None if phase::is_begun(self.plan, guest) => "; a conversion that was cut off has used it up".into(),
                None => String::new(),
            };
            let what = format!("{NO_COPY}{why}");
            return Ok(Ended { outcome: Outcome::Failed, message: Some(what), hint: Some(hint.into()) });
        }
        let mut arguments = vec!["--report".into(), absolute(&open.report_file())?.into()];
        arguments.extend(replace.then(|| OsString::from("--replace")));
        let ran = self.run(guest, open, Some(Phase::Finish).filter(|_| is_copied), arguments)?;
        Ok(open.whole()?.map_or(ran.failed, |report| Ended::converted(&report)))
    }

    /// Runs the program on a guest, in a process of its own.
    fn run(&self, guest: &Guest, open: &OpenGuest, phase: Option<Phase>, more: Vec<OsString>) -> Result<Ran> {
        let log_file = absolute(&open.log_file())?;
        let log = File::options().append(true).create(true).open(&log_file).map_err(|e| files::io_error(&log_file, "create", e))?;
        // To a copy, 'force' would say to begin anew.
        let but = if phase.is_some_and(Phase::is_before_conversion) { &["force"][..] } else { &[] };
        let mut arguments = guest.options.arguments(&[HANDING_OVER, but].concat());
        arguments.extend(phase.map(|phase| OsString::from(format!("--phase={}", phase.argument()))));
        // Giving it to libvirt is left to this process, which can do that again.
        if let Some(output) = guest.options.value("output").filter(|output| *output != "libvirt") {
            arguments.push(format!("--output={output}").into());
        }
        arguments.extend(more);
        arguments.extend([format!("--name={}", guest.name).into(), "--events".into(), OsString::from("--"), guest.source.clone().into()]);
        let (mut failed, name) = (None, guest.name.as_str());
        let mut seen = |event| match event {
            child::Event::Stage { what } => self.watcher.event(&Event::Stage { guest: name, what: &what }),
            child::Event::Progress { percent } => self.watcher.event(&Event::Progress { guest: name, percent }),
            child::Event::Warning { what } => self.watcher.event(&Event::Warning { guest: Some(name), what: &what }),
            child::Event::Failed { message, hint } => failed = Some((message, hint)),
        };
        let status = self.program.run(&arguments, open.lock().shared()?, log, self.stop, &mut seen);
        let status = status.map_err(|e| files::io_error(&self.program.path, "run", e))?;
        let failure = |message: String, hint| Ended { outcome: Outcome::Failed, message: Some(message), hint };
        let failed = match failed {
            _ if self.stop.load(Ordering::Relaxed) => {
                Ended { outcome: Outcome::Interrupted, message: Some("stopped by the user".into()), hint: None }
            }
            Some((message, hint)) => failure(message, hint),
            None => failure(child::ending(status, &log_file), None),
        };
        Ok(Ran { is_success: status.success(), failed })
    }

    /// Gives a whole result to libvirt, where that was asked for.
    fn hand_over(&self, guest: &Guest, open: &OpenGuest, ended: Ended) -> Result<Ended> {
        if guest.options.value("output") != Some("libvirt") {
            return Ok(ended);
        }
        let report = open.whole()?.unwrap_or_default();
        let outputs = report["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let xml = outputs.iter().filter_map(Value::as_str).find(|o| o.ends_with(".xml"));
        let xml = PathBuf::from(xml.ok_or_else(|| Error::Invalid(format!("{}: its report names no XML for libvirt", guest.name)))?);
        let autostart = report["policy"]["autostart"].as_bool().unwrap_or(false);
        Ok(match virsh::define(&xml, &guest.name, autostart, guest.options.value("connect")) {
            Ok(()) => ended,
            Err(e) => Ended {
                outcome: Outcome::Failed,
                message: Some(e.to_string()),
                hint: Some("the next run of the batch only hands it over again".into()),
            },
        })
    }
}

/// What the program did.
struct Ran {
    is_success: bool,
    /// How the attempt ended, unless what it was made for is there.
    failed: Ended,
}

/// How an attempt ended.
struct Ended {
    outcome: Outcome,
    message: Option<String>,
    hint: Option<String>,
}

impl Ended {
    /// With nothing more to say.
    fn well(outcome: Outcome) -> Self {
        Ended { outcome, message: None, hint: None }
    }

    /// With a whole result, whose report this is.
    fn converted(report: &Value) -> Self {
        let check = &report["boot_check"];
        if check["booted"].as_bool() != Some(false) {
            return Ended::well(Outcome::Done);
        }
        let what = check["what"].as_str().unwrap_or_default();
        Ended {
            outcome: Outcome::NoBoot,
            message: Some(what.into()),
            hint: Some("the console's last screen is in the report; '--again NAME' converts it anew".into()),
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| files::io_error(path, "find", e))
}
