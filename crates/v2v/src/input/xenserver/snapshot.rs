//! A snapshot that is taken for an export, and removed after it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::listing::Vm;
use super::session::{Session, text};
use crate::Result;

/// What their names begin with, so that one which was left behind is known for what it is.
pub(super) const PREFIX: &str = "guestlift-";

/// A snapshot of ours. It is removed when this is dropped.
pub(super) struct Snapshot {
    session: Arc<Session>,
    pub reference: String,
    is_kept: bool,
}

impl Snapshot {
    /// Takes one.
    pub fn take(session: &Arc<Session>, vm: &Vm) -> Result<Self> {
        let name = format!("{PREFIX}{}", vm.name);
        let reference = session.reference("VM.snapshot", json!([vm.reference, name]))?;
        Ok(Snapshot { session: session.clone(), reference, is_kept: false })
    }

    /// Leaves it where it is.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !self.is_kept {
            // What is left of it has a name that tells.
            let _ = remove(&self.session, &self.reference);
        }
    }
}

/// Removes a snapshot with its disks, and nothing that is not part of a snapshot.
pub(super) fn remove(session: &Session, reference: &str) -> Result<()> {
    let record = session.call("VM.get_record", json!([reference]))?;
    if record["is_a_snapshot"] != Value::Bool(true) {
        return Ok(());
    }
    let mut disks = Vec::new();
    for vbd in record["VBDs"].as_array().into_iter().flatten() {
        let vbd = session.call("VBD.get_record", json!([vbd]))?;
        if text(&vbd, "type") != "CD" && vbd["empty"] != Value::Bool(true) {
            disks.push(text(&vbd, "VDI").to_owned());
        }
    }
    session.call("VM.destroy", json!([reference]))?;
    for disk in disks {
        if session.call("VDI.get_is_a_snapshot", json!([disk]))? == Value::Bool(true) {
            session.call("VDI.destroy", json!([disk]))?;
        }
    }
    Ok(())
}
