//! One guest of a batch, from the lock to the outcome. It can be done again at any time: what is whole is not done twice.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::child::{self, Program};
use super::events::{Event, Watcher};
use super::files;
use super::plan::{Guest, Plan};
use super::state::{OpenGuest, Outcome, State, Status};
use crate::output::virsh;
use crate::{Error, Result};

/// Options that the batch itself gives to a conversion or takes from it: a plan's guest cannot have them.
pub const OURS: &[&str] =
    &["name", "plan", "report", "json", "events", "parent", "verbose", "quiet", "list", "phase", "replace", "help", "version"];
/// What hands a result over; done here, so that it can be repeated without the conversion.
const HANDING_OVER: &[&str] = &["output", "connect"];

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
    /// Guests that are converted again even where they are finished.
    pub again: &'a [String],
}

impl Work<'_> {
    /// Whether there is something to do for a guest.
    pub fn is_due(&self, guest: &Guest) -> Result<bool> {
        Ok(self.again.contains(&guest.name) || !self.state.read(&guest.name)?.is_finished())
    }

    /// Converts a guest, if nobody has yet, and writes down what became of it.
    pub fn convert(&self, guest: &Guest) -> Result<Status> {
        let mut open = self.state.open(&guest.name)?;
        let again = self.again.contains(&guest.name);
        if open.state().is_finished() && !again {
            return Ok(if open.state().outcome() == Some(Outcome::NoBoot) { Status::NoBoot } else { Status::Done });
        }
        self.watcher.event(&Event::Started { guest: &guest.name });
        let start = std::time::Instant::now();
        let ended = match open.whole()?.filter(|_| !again) {
            Some(report) => Ended::converted(&report),
            None => self.run(guest, &mut open)?,
        };
        let ended = match ended.outcome {
            Outcome::Done => self.hand_over(guest, &open, ended)?,
            _ => ended,
        };
        open.end(ended.outcome, ended.message.clone(), ended.hint.clone())?;
        let status = match ended.outcome {
            Outcome::Done => Status::Done,
            Outcome::NoBoot => Status::NoBoot,
            Outcome::Failed => Status::Failed,
            Outcome::Interrupted => Status::Interrupted,
        };
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
        open.begin()?;
        open.end(Outcome::Failed, Some(why.clone()), Some(hint.into()))?;
        let (message, hint) = (Some(why.as_str()), Some(hint));
        self.watcher.event(&Event::Ended { guest: &guest.name, status: Status::Failed, seconds: 0, message, hint });
        Ok(())
    }

    /// The conversion itself, in a process of its own.
    fn run(&self, guest: &Guest, open: &mut OpenGuest) -> Result<Ended> {
        // Whoever asked for it again wants this batch's own result replaced, however often that is cut off.
        let replace = open.state().had_result() && !guest.options.is_given("force");
        open.begin()?;
        let log_file = absolute(&open.log_file())?;
        let log = File::create(&log_file).map_err(|e| files::io_error(&log_file, "create", e))?;
        let mut arguments = guest.options.arguments(HANDING_OVER);
        // Giving it to libvirt is left to this process, which can do that again.
        if let Some(output) = guest.options.value("output").filter(|output| *output != "libvirt") {
            arguments.push(format!("--output={output}").into());
        }
        if replace {
            arguments.push("--replace".into());
        }
        arguments.extend([format!("--name={}", guest.name).into(), "--events".into(), "--report".into()]);
        arguments.push(absolute(&open.report_file())?.into());
        arguments.extend([OsString::from("--"), guest.source.clone().into()]);
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
        Ok(match (open.whole()?, failed) {
            (Some(report), _) => Ended::converted(&report),
            _ if self.stop.load(Ordering::Relaxed) => {
                Ended { outcome: Outcome::Interrupted, message: Some("stopped by the user".into()), hint: None }
            }
            (None, Some((message, hint))) => failure(message, hint),
            (None, None) => failure(child::ending(status, &log_file), None),
        })
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

/// How an attempt ended.
struct Ended {
    outcome: Outcome,
    message: Option<String>,
    hint: Option<String>,
}

impl Ended {
    /// With a whole result, whose report this is.
    fn converted(report: &Value) -> Self {
        let check = &report["boot_check"];
        if check["booted"].as_bool() != Some(false) {
            return Ended { outcome: Outcome::Done, message: None, hint: None };
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
