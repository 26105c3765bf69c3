//! What happens in a batch, for tables and scripts.

use serde::Serialize;

use super::phase::Phase;
use super::state::Status;

/// Hears what happens. It is called from several threads.
pub trait Watcher: Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
}

/// Something that happened. `--json` prints it as a line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The batch begins.
    Begun {
        /// Guests that are to be converted.
        guests: usize,
        /// Those that were finished before.
        finished: usize,
        /// At most so many at a time.
        jobs: usize,
        /// Bytes of memory that all may take together.
        memory: u64,
    },
    /// A conversion begins.
    Started {
        /// The guest.
        guest: &'a str,
    },
    /// A part of one begins.
    Stage {
        /// The guest.
        guest: &'a str,
        /// The part.
        what: &'a str,
    },
    /// How far that part is.
    Progress {
        /// The guest.
        guest: &'a str,
        /// Of 100.
        percent: u8,
    },
    /// What the user should look at.
    Warning {
        /// The guest; `None` when it is about the batch.
        guest: Option<&'a str>,
        /// In words.
        what: &'a str,
    },
    /// A conversion ended.
    Ended {
        /// The guest.
        guest: &'a str,
        /// How.
        status: Status,
        /// How long it took.
        seconds: u64,
        /// Why, when all is not well.
        message: Option<&'a str>,
        /// What to do about it.
        hint: Option<&'a str>,
    },
    /// The batch ends.
    Summary(&'a Summary),
}

/// How many guests are where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Converted, now or before.
    pub done: usize,
    /// Converted, and they do not boot.
    pub no_boot: usize,
    /// Copied, for another phase to convert.
    pub copied: usize,
    /// Not converted.
    pub failed: usize,
    /// Being converted, by another process.
    pub running: usize,
    /// Not begun, or cut off.
    pub waiting: usize,
    /// Not asked for.
    pub disabled: usize,
}

impl Summary {
    /// Counts one more.
    pub fn count(&mut self, status: Status) {
        *match status {
            Status::Done => &mut self.done,
            Status::NoBoot => &mut self.no_boot,
            Status::Copied => &mut self.copied,
            Status::Failed => &mut self.failed,
            Status::Running => &mut self.running,
            Status::Interrupted | Status::Waiting => &mut self.waiting,
            Status::Disabled => &mut self.disabled,
        } += 1;
    }

    /// Whether every guest that was asked for is converted, and boots as far as anybody looked; or nothing failed of a phase before that.
    pub fn is_success(&self, phase: Option<Phase>) -> bool {
        let not_well = self.failed + self.running;
        match phase {
            Some(phase) if phase.is_before_conversion() => not_well == 0,
            _ => not_well + self.no_boot + self.copied + self.waiting == 0,
        }
    }

    /// In words: `18 converted, 2 failed`.
    pub fn words(&self) -> String {
        let all = [
            (self.done, "converted"),
            (self.no_boot, "converted but not booting"),
            (self.copied, "copied"),
            (self.failed, "failed"),
            (self.running, "running"),
            (self.waiting, "not finished"),
            (self.disabled, "disabled"),
        ];
        let said: Vec<_> = all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if said.is_empty() { "no guests".into() } else { said.join(", ") }
    }
}
