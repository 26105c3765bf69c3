//! A batch in two phases ([`crate::phases`]): what is asked for of each guest, and whether that is done.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::discover;
use super::plan::{Guest, Plan};
use super::state::GuestState;
use crate::Result;
use crate::input::remote::is_url;
use crate::phases::{self, Kept};

/// What a batch does of each guest, where it does not do all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Copies the disks of guests that were not copied yet; they may run.
    Copy,
    /// Copies what has changed of those that were copied; they may run.
    Update,
    /// Converts those that were copied, and are shut down now.
    Finish,
    /// Removes copies, and the snapshots that are kept for them.
    Forget,
}

impl Phase {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Copy => "copy",
            Phase::Update => "update",
            Phase::Finish => "finish",
            Phase::Forget => "forget",
        }
    }

    /// What the program that works on one guest calls it: a second copy is an update.
    pub(super) fn argument(self) -> &'static str {
        match self {
            Phase::Update => Phase::Copy.name(),
            phase => phase.name(),
        }
    }

    /// Whether disks are copied in it, and no more.
    pub(super) fn is_copy(self) -> bool {
        matches!(self, Phase::Copy | Phase::Update)
    }

    /// Whether a guest is not converted in it.
    pub fn is_before_conversion(self) -> bool {
        self != Phase::Finish
    }
}

/// The guests that a batch is about. Also what was copied of one that is not wanted any more can be forgotten.
pub(super) fn guests(plan: &Plan, phase: Option<Phase>) -> impl Iterator<Item = &Guest> {
    plan.guests.iter().filter(move |guest| guest.enabled || phase == Some(Phase::Forget))
}

/// The folder that a guest's result goes to.
pub(super) fn out(plan: &Plan, guest: &Guest) -> PathBuf {
    guest.options.value("out").map_or_else(std::env::temp_dir, |out| plan.folder().join(out))
}

/// A guest's copy, where there is a whole one.
pub(super) fn kept(plan: &Plan, guest: &Guest) -> Result<Option<Kept>> {
    phases::kept(&out(plan, guest), &guest.name)
}

/// Whether anything is there of a guest's copy.
pub(super) fn is_begun(plan: &Plan, guest: &Guest) -> bool {
    phases::place(&out(plan, guest), &guest.name).exists()
}

/// Whether there is something to do for a guest: all that is left, or what a phase is for.
pub fn is_due(plan: &Plan, guest: &Guest, state: &GuestState, phase: Option<Phase>) -> Result<bool> {
    Ok(match phase {
        Some(Phase::Forget) => is_begun(plan, guest),
        _ if state.is_finished() => false,
        None | Some(Phase::Finish) => true,
        Some(Phase::Copy) => (kept(plan, guest)?.is_none() || is_cut_off(state)) && changes(plan, guest),
        Some(Phase::Update) => kept(plan, guest)?.is_some(),
    })
}

/// Whether whoever copied last did not live to write down how that ended.
fn is_cut_off(state: &GuestState) -> bool {
    state.attempts.last().is_some_and(|last| last.outcome.is_none() && last.phase == Some(Phase::Copy))
}

/// Whether a guest's source may become another: an export does not, and is converted in one go.
fn changes(plan: &Plan, guest: &Guest) -> bool {
    is_url(&guest.source) || !discover::is_packed(&plan.folder().join(&guest.source))
}
