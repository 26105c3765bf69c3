//! All guests of a plan on this machine: so many at a time as were asked for and as fit.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use imgcore::{Formats, size};

use super::attempt::Work;
use super::events::{Event, Summary};
use super::files::Hold;
use super::limits::{self, Need, Short};
use super::look;
use super::phase::{self, Phase};
use super::plan::{Facts, Guest, Plan};
use super::state::{State, Status};
use crate::Result;
use crate::input::remote::is_url;

/// What does not fit now is tried again so often: others free room as well.
const RETRY: Duration = Duration::from_millis(500);

/// Works on every guest of the plan that is enabled and for which there is something to do, and counts where all of them are then.
///
/// That a guest fails is written down, and the others go on. An error is one of the batch itself.
pub fn run(work: &Work<'_>, formats: &Formats) -> Result<Summary> {
    let _lock = work.state.lock(Hold::Alone)?;
    let mut due = Vec::new();
    for guest in phase::guests(work.plan, work.phase) {
        if work.is_due(guest)? {
            due.push(guest);
        }
    }
    let jobs = work.plan.jobs.unwrap_or_else(limits::default_jobs);
    let memory = work.plan.memory.unwrap_or_else(limits::available_memory);
    let guests = phase::guests(work.plan, work.phase).count();
    work.watcher.event(&Event::Begun { guests, finished: guests - due.len(), jobs, memory });
    let needs = needs(work, &due, jobs, formats);
    Running { work, memory, jobs, due, needs }.all();
    let summary = count(work.plan, work.state)?;
    work.watcher.event(&Event::Summary(&summary));
    Ok(summary)
}

/// Where the guests of a plan are.
pub fn count(plan: &Plan, state: &State) -> Result<Summary> {
    let mut summary = Summary::default();
    for guest in &plan.guests {
        summary.count(state.status(guest)?);
    }
    Ok(summary)
}

/// What each conversion takes; a guest about which the plan says nothing is looked at.
fn needs(work: &Work<'_>, due: &[&Guest], jobs: usize, formats: &Formats) -> Vec<Need> {
    // What has changed since a copy is not told by a look.
    let is_looked_at = !matches!(work.phase, Some(Phase::Update | Phase::Forget));
    let unknown: Vec<_> = (0..due.len()).filter(|i| is_looked_at && due[*i].facts.is_none()).collect();
    let wanted: Vec<_> = unknown
        .iter()
        .map(|i| {
            let source = &due[*i].source;
            let path = if is_url(source) { source.clone() } else { work.plan.folder().join(source) };
            let is_packed = super::discover::is_packed(&path);
            look::Wanted {
                source: path,
                is_packed,
                options: look::options(&due[*i].options, work.phase.is_some() || due[*i].options.is_given("force")),
            }
        })
        .collect();
    let seen = look::look_at_all(work.program, &wanted, jobs, formats, work.stop, &mut |_| {});
    let mut found: BTreeMap<usize, Option<Facts>> = unknown.into_iter().zip(seen.into_iter().map(|s| s.facts)).collect();
    due.iter().enumerate().map(|(i, guest)| Need::of(work.plan, guest, guest.facts.or(found.remove(&i).flatten()), work.phase)).collect()
}

struct Running<'a> {
    work: &'a Work<'a>,
    memory: u64,
    jobs: usize,
    due: Vec<&'a Guest>,
    needs: Vec<Need>,
}

impl Running<'_> {
    fn all(&self) {
        let (sender, ended) = mpsc::channel();
        let mut waiting: Vec<usize> = (0..self.due.len()).collect();
        let mut running = BTreeMap::new();
        std::thread::scope(|scope| {
            while !(waiting.is_empty() && running.is_empty()) {
                if self.work.stop.load(Ordering::Relaxed) {
                    waiting.clear();
                }
                while running.len() < self.jobs
                    && let Some(at) = waiting.iter().position(|i| self.fits(*i, &running).is_ok())
                {
                    let index = waiting.remove(at);
                    running.insert(index, self.needs[index].clone());
                    let sender = sender.clone();
                    // The thread lives as long as its conversion, which the kernel ends with it.
                    scope.spawn(move || {
                        let guest = self.due[index];
                        self.tell(guest, self.work.convert(guest).map(|_| ()));
                        let _ = sender.send(index);
                    });
                }
                if running.is_empty() && !waiting.is_empty() {
                    // Nothing runs whose end could make room.
                    self.no_room(waiting.remove(0));
                } else if let Ok(index) = ended.recv_timeout(RETRY) {
                    running.remove(&index);
                }
            }
        });
    }

    /// What keeps one guest from being worked on at all, as a state that cannot be written, keeps no other.
    fn tell(&self, guest: &Guest, outcome: Result<()>) {
        if let Err(e) = outcome {
            let (message, status) = (e.to_string(), Status::Failed);
            let (guest, message) = (guest.name.as_str(), Some(message.as_str()));
            self.work.watcher.event(&Event::Ended { guest, status, seconds: 0, message, hint: None });
        }
    }

    fn fits(&self, index: usize, running: &BTreeMap<usize, Need>) -> Result<(), Short> {
        limits::fits(&self.needs[index], running, self.memory, self.work.plan.keep_free)
    }

    fn no_room(&self, index: usize) {
        let (guest, need) = (self.due[index], &self.needs[index]);
        let left = match self.fits(index, &BTreeMap::new()) {
            Err(Short::Disk(left)) => left,
            _ => 0,
        };
        let what = format!(
            "no room in {}: its result may take {}, and {} can be used there ({} stay free)",
            need.out.display(),
            size::human(need.disk),
            size::human(left),
            size::human(self.work.plan.keep_free)
        );
        let hint = "make room, or give the guest another 'out' in the plan; then run the batch again";
        self.tell(guest, self.work.refuse(guest, what, hint));
    }
}
