//! What a conversion did, for `--report`.

use std::time::Instant;

use serde::Serialize;

use crate::bootcheck::BootReport;
use crate::options::Events;
use crate::plan::Plan;
use crate::source::Policy;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The new guest's name.
    pub name: String,
    /// How the Xen host treated it, and the new one should.
    pub policy: Policy,
    /// What was planned and done.
    #[serde(flatten)]
    pub plan: Plan,
    /// The commands that were run in the guest, with what they left.
    pub ran: Vec<Ran>,
    /// The boot check's outcome, where one was asked for.
    pub boot_check: Option<BootReport>,
    /// How long each part took.
    pub timings: Vec<Timing>,
}

impl Report {
    /// Whether all is well: the result booted, or nobody asked.
    pub fn is_success(&self) -> bool {
        self.boot_check.as_ref().is_none_or(|b| b.booted)
    }
}

/// A command that was run in the guest.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// As a person would type it.
    pub command: String,
    /// How long it took.
    pub seconds: f64,
    /// The end of what it wrote.
    pub output: String,
}

impl From<&crate::staged::Ran> for Ran {
    fn from(ran: &crate::staged::Ran) -> Self {
        const KEPT: usize = 4096;
        let all = [&ran.output.stdout[..], &ran.output.stderr[..]].concat();
        let tail = &all[all.len().saturating_sub(KEPT)..];
        Ran { command: ran.command.shown(), seconds: ran.seconds, output: String::from_utf8_lossy(tail).into_owned() }
    }
}

/// How long a part took.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// The part.
    pub stage: String,
    /// Seconds.
    pub seconds: f64,
}

/// Measures the parts of a conversion and announces them.
pub struct Clock<'a> {
    events: &'a dyn Events,
    timings: Vec<Timing>,
}

impl<'a> Clock<'a> {
    /// One that has measured nothing.
    pub fn new(events: &'a dyn Events) -> Self {
        Clock { events, timings: Vec::new() }
    }

    /// Does a part of the work.
    pub fn stage<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        self.events.stage(what);
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        self.events.detail(&format!("{what}: {seconds:.2} s"));
        self.timings.push(Timing { stage: what.into(), seconds });
        result
    }

    /// What was measured.
    pub fn timings(self) -> Vec<Timing> {
        self.timings
    }
}
