//! What became of each guest so far, in files beside the plan: `PLAN.state/NAME/state.json`, the report and the log.
//!
//! A guest's folder is written only by whoever holds its lock. A process that dies leaves an attempt without an outcome; the next
//! one that gets the lock looks whether its result is whole, which the report and the result's files tell, and goes on from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::{self, Hold, Lock};
use super::phase::Phase;
use crate::{Error, Result};

/// Whoever was killed may take a moment to go.
const BATCH_PATIENCE: Duration = Duration::from_secs(2);
/// A conversion goes only when its last write to a disk is done.
const GUEST_PATIENCE: Duration = Duration::from_secs(60);

/// The folder of a batch's state.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

/// What became of one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestState {
    /// Each time that work on it was begun, in order.
    pub attempts: Vec<Attempt>,
}

/// One time that work on a guest was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Seconds since 1970.
    pub started: u64,
    /// As `started`.
    pub ended: Option<u64>,
    /// The machine that did it.
    pub host: String,
    /// What was done; `None` for a conversion in one go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// `None` while it runs, and when whoever did it was killed.
    pub outcome: Option<Outcome>,
    /// Why it ended so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The result is there, whole.
    Done,
    /// The result is there, whole, and does not boot.
    NoBoot,
    /// The disks were copied, for another phase to finish.
    Copied,
    /// What was copied was removed.
    Forgotten,
    /// There is no result.
    Failed,
    /// It was stopped before its end.
    Interrupted,
}

/// Where a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Converted.
    Done,
    /// Converted, and does not boot.
    NoBoot,
    /// Its disks are copied, and it is converted when it is shut down.
    Copied,
    /// Its copy or its conversion failed.
    Failed,
    /// It is being copied or converted.
    Running,
    /// Its copy or its conversion was cut off, and is begun anew next time.
    Interrupted,
    /// Its conversion has not begun.
    Waiting,
    /// The plan says not to convert it.
    Disabled,
}

impl Status {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Status::Done => "converted",
            Status::NoBoot => "converted, but does not boot",
            Status::Copied => "copied",
            Status::Failed => "failed",
            Status::Running => "running",
            Status::Interrupted => "cut off",
            Status::Waiting => "waiting",
            Status::Disabled => "disabled",
        }
    }
}

impl GuestState {
    /// How its last attempt ended; `None` before the first one, and while one runs.
    pub fn outcome(&self) -> Option<Outcome> {
        self.attempts.last()?.outcome
    }

    /// Whether there is nothing left to do: it has a result.
    pub fn is_finished(&self) -> bool {
        matches!(self.outcome(), Some(Outcome::Done | Outcome::NoBoot))
    }

    /// Whether any of its attempts came to a result.
    pub fn had_result(&self) -> bool {
        self.attempts.iter().any(|a| matches!(a.outcome, Some(Outcome::Done | Outcome::NoBoot)))
    }

    pub(super) fn status(&self, is_held: bool) -> Status {
        match (self.attempts.last(), self.outcome()) {
            (None, _) if is_held => Status::Running,
            (None, _) => Status::Waiting,
            (_, Some(Outcome::Done)) => Status::Done,
            (_, Some(Outcome::NoBoot)) => Status::NoBoot,
            (_, Some(_)) if is_held => Status::Running,
            (_, Some(Outcome::Copied)) => Status::Copied,
            (_, Some(Outcome::Forgotten)) => Status::Waiting,
            (_, Some(Outcome::Failed)) => Status::Failed,
            (_, Some(Outcome::Interrupted)) => Status::Interrupted,
            (_, None) if is_held => Status::Running,
            (_, None) => Status::Interrupted,
        }
    }
}

impl State {
    /// The state of a plan. Nothing is made yet.
    pub fn of(plan: &Path) -> State {
        State { dir: plan.with_extension("state") }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the lock of the whole batch: alone for a process that does all of it, together for those that do one guest each.
    pub fn lock(&self, hold: Hold) -> Result<Lock> {
        fs::create_dir_all(&self.dir).map_err(|e| files::io_error(&self.dir, "create", e))?;
        Lock::take(&self.dir.join(".lock"), hold, BATCH_PATIENCE)?.ok_or_else(|| {
            Error::Invalid(format!(
                "{}: another batch is at work on this plan; wait for it ('v2v batch status' shows it), or stop it",
                self.dir.display()
            ))
        })
    }

    /// Takes the lock of one guest, to work on it.
    pub fn open(&self, name: &str) -> Result<OpenGuest> {
        let dir = self.guest_dir(name);
        fs::create_dir_all(&dir).map_err(|e| files::io_error(&dir, "create", e))?;
        let lock = Lock::take(&dir.join("lock"), Hold::Alone, GUEST_PATIENCE)?;
        let lock = lock.ok_or_else(|| Error::Invalid(format!("{name}: is being converted by another process")))?;
        let state = self.read(name)?;
        Ok(OpenGuest { dir, lock, state })
    }

    /// What became of a guest so far.
    pub fn read(&self, name: &str) -> Result<GuestState> {
        Ok(files::read_json(&self.guest_dir(name).join("state.json"))?.unwrap_or_default())
    }

    /// Where a guest is now.
    pub fn status(&self, guest: &super::plan::Guest) -> Result<Status> {
        let state = self.read(&guest.name)?;
        let lock = self.guest_dir(&guest.name).join("lock");
        // A finished guest's lock is left alone: asking whether it is held means to hold it for a moment.
        let is_held = !state.is_finished() && lock.exists() && Lock::take(&lock, Hold::Together, Duration::ZERO)?.is_none();
        Ok(match state.status(is_held) {
            Status::Waiting | Status::Copied if !guest.enabled => Status::Disabled,
            status => status,
        })
    }

    /// The report of a guest's last conversion.
    pub fn report(&self, name: &str) -> Result<Option<Value>> {
        files::read_json(&self.guest_dir(name).join("report.json"))
    }

    fn guest_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A guest that this process alone works on.
pub struct OpenGuest {
    dir: PathBuf,
    lock: Lock,
    state: GuestState,
}

impl OpenGuest {
    /// What became of it so far.
    pub fn state(&self) -> &GuestState {
        &self.state
    }

    /// Its lock.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Where its conversion leaves the report.
    pub fn report_file(&self) -> PathBuf {
        self.dir.join("report.json")
    }

    /// Where its conversion leaves what it says.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }

    /// The report, where there is one and every file of its result is there: the last attempt came to its end.
    ///
    /// A conversion writes the report after it has seen to it that no other result is in the way, and before its own gets its
    /// place; and the report is removed before another conversion begins.
    pub fn whole(&self) -> Result<Option<Value>> {
        let report = files::read_json::<Value>(&self.report_file())?.filter(|_| !self.state.attempts.is_empty());
        let Some(report) = report else { return Ok(None) };
        let outputs = report["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let there = outputs.iter().all(|o| o.as_str().is_some_and(|o| Path::new(o).is_file()));
        Ok(Some(report).filter(|_| there))
    }

    /// Begins a conversion, or a phase of one: what the attempt before left is forgotten.
    pub fn begin(&mut self, phase: Option<Phase>) -> Result<()> {
        self.cut_off();
        self.state.attempts.push(Attempt {
            started: now(),
            ended: None,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            phase,
            outcome: None,
            message: None,
            hint: None,
        });
        self.save()?;
        files::remove(&self.log_file())?;
        files::remove(&self.report_file())
    }

    /// Ends the last attempt. One that was cut off when its result was whole ended when its report was written.
    pub fn end(&mut self, outcome: Outcome, message: Option<String>, hint: Option<String>) -> Result<()> {
        let is_result = matches!(outcome, Outcome::Done | Outcome::NoBoot);
        let ended = if is_result { files::written(&self.report_file()) } else { now() };
        if let Some(last) = self.state.attempts.last_mut() {
            (last.ended, last.outcome, last.message, last.hint) = (Some(ended.max(last.started)), Some(outcome), message, hint);
        }
        self.save()
    }

    /// The last attempt, if whoever made it was killed, gets an outcome.
    fn cut_off(&mut self) {
        if let Some(last) = self.state.attempts.last_mut().filter(|a| a.outcome.is_none()) {
            last.outcome = Some(Outcome::Interrupted);
            last.message = Some("whoever converted it was killed".into());
        }
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.state).map_err(|e| Error::Invalid(e.to_string()))?;
        files::write_whole(&self.dir.join("state.json"), (text + "\n").as_bytes())
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_to_be_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::of(&dir.path().join("plan.toml"));
        let guest = super::super::plan::Guest {
            name: "web".into(),
            source: "web.cfg".into(),
            enabled: true,
            line: 1,
            facts: None,
            options: Default::default(),
        };
        assert_eq!(state.status(&guest).unwrap(), Status::Waiting);
        let open = state.open("web").unwrap();
        assert_eq!(state.status(&guest).unwrap(), Status::Running);
        drop(open);
        assert_eq!(state.status(&guest).unwrap(), Status::Waiting);
        assert_eq!(state.status(&super::super::plan::Guest { enabled: false, ..guest }).unwrap(), Status::Disabled);
    }

    #[test]
    fn an_attempt_without_an_end_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::of(&dir.path().join("plan.toml"));
        assert_eq!(state.dir(), dir.path().join("plan.state"));
        let mut guest = state.open("web").unwrap();
        guest.begin(None).unwrap();
        drop(guest);
        assert_eq!(state.read("web").unwrap().status(false), Status::Interrupted);
        assert_eq!(state.read("web").unwrap().status(true), Status::Running);
        let mut guest = state.open("web").unwrap();
        guest.begin(None).unwrap();
        guest.end(Outcome::Done, None, None).unwrap();
        let outcomes: Vec<_> = state.read("web").unwrap().attempts.iter().map(|a| a.outcome).collect();
        assert_eq!(outcomes, [Some(Outcome::Interrupted), Some(Outcome::Done)]);
        assert!(guest.state().is_finished());
    }

    #[test]
    fn a_result_is_whole_when_its_report_and_all_its_files_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut guest = State::of(&dir.path().join("p.toml")).open("web").unwrap();
        let (disk, xml) = (dir.path().join("web-vda.qcow2"), dir.path().join("web.xml"));
        guest.begin(None).unwrap();
        assert!(guest.whole().unwrap().is_none());
        fs::write(&disk, "").unwrap();
        let report = serde_json::json!({ "outputs": [disk, xml] });
        files::write_whole(&guest.report_file(), report.to_string().as_bytes()).unwrap();
        assert!(guest.whole().unwrap().is_none(), "a half result passed for a whole one");
        fs::write(&xml, "").unwrap();
        assert!(guest.whole().unwrap().is_some());
        guest.begin(None).unwrap();
        assert!(guest.whole().unwrap().is_none(), "another attempt's report passed for this one's");
    }
}
