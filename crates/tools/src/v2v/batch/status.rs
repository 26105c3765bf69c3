//! `v2v batch status`.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;
use v2v::batch::events::Summary;
use v2v::batch::phase::Phase;
use v2v::batch::state::{Status, now};
use v2v::batch::{Plan, State};

use super::table::clean;
use crate::common::{Failure, json as pretty};

/// Where a guest is, with the phase where that is not the same.
fn with_phase(status: Status, phase: Option<Phase>) -> String {
    match (status, phase) {
        (Status::Failed | Status::Running | Status::Interrupted, Some(phase)) => format!("{} ({})", status.words(), phase.name()),
        _ => status.words().to_owned(),
    }
}

/// Prints where every guest is. The exit code says whether all is well, as that of the batch does.
pub(super) fn print(plan: &Plan, state: &State, as_json: bool) -> Result<ExitCode, Failure> {
    let mut summary = Summary::default();
    let (mut rows, mut lines) = (Vec::new(), String::new());
    for guest in &plan.guests {
        let (status, known) = (state.status(guest)?, state.read(&guest.name)?);
        summary.count(status);
        let last = known.attempts.last();
        let seconds = last.and_then(|a| match status {
            Status::Running => now().checked_sub(a.started),
            _ => a.ended?.checked_sub(a.started),
        });
        let message = last.and_then(|a| a.message.as_deref());
        rows.push(json!({
            "guest": guest.name, "source": guest.source, "status": status, "phase": last.and_then(|a| a.phase), "attempts": known.attempts.len(),
            "seconds": seconds, "message": message,
        }));
        let time = seconds.map(|s| format!("{s} s")).unwrap_or_default();
        let words = last.map_or_else(|| status.words().to_owned(), |last| with_phase(status, last.phase));
        let message = message.map(|m| clean(m.lines().next().unwrap_or_default())).unwrap_or_default();
        lines += format!("{:<24} {words:<28} {time:>8}  {message}", guest.name).trim_end();
        lines.push('\n');
    }
    if as_json {
        pretty::print(&json!({ "summary": summary, "guests": rows }));
    } else {
        // Nobody may read to the end.
        let _ = std::io::stdout().write_all(format!("{lines}\n{}\n", summary.words()).as_bytes());
    }
    Ok(ExitCode::from(u8::from(!summary.is_success(None))))
}
