//! The report for people: one HTML file that needs nothing else, made of the plan and the state files at any time.
//!
//! What comes from guests (names, diffs, consoles) is hostile: all of it passes [`text`], and the page forbids scripts and anything
//! from elsewhere by its own policy.

use std::fmt::{self, Write};

use serde_json::Value;

use super::events::Summary;
use super::phase::Phase;
use super::plan::{Guest, Plan};
use super::state::{GuestState, State, Status, now};
use crate::Result;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#1a1a1a;background:#fff}
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2.5em;border-top:1px solid #ccc;padding-top:1em}h3{font-size:1em;margin:1.2em 0 .3em}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3em .8em .3em 0;border-bottom:1px solid #ddd;vertical-align:top}
.n{text-align:right}pre{background:#f4f4f4;padding:.7em;overflow-x:auto;font-size:13px;line-height:1.35}
pre.screen{background:#16181d;color:#e6e6e6}.s{padding:.1em .5em;border-radius:.3em;white-space:nowrap;font-weight:600}
.done{background:#d7f0d9}.no-boot,.interrupted{background:#ffe9b8}.copied{background:#d5e6fb}.failed{background:#ffd3d0}.running,.waiting,.disabled{background:#e6e6e6}
.box{border-left:4px solid #d97706;padding:.2em .8em;margin:.6em 0;background:#fff8e8}.bad{border-color:#c62828;background:#fff0ef}
summary{cursor:pointer}del{background:#ffe3e1;text-decoration:none}ins{background:#e0f5e1;text-decoration:none}
@media(prefers-color-scheme:dark){body{background:#16181d;color:#e2e2e2}th,td{border-color:#3a3d45}pre{background:#22252c}a{color:#8ab4f8}
.done{background:#1e4d24}.no-boot,.interrupted{background:#5c4300}.copied{background:#1d3a5f}.failed{background:#6b1d1a}.running,.waiting,.disabled{background:#3a3d45}
.box{background:#2b2515}.bad{background:#331a19}del{background:#4d2220}ins{background:#1d4022}}
";

/// The report on a plan, as it is now.
pub fn report(plan: &Plan, state: &State) -> Result<String> {
    let mut rows = Vec::new();
    let mut summary = Summary::default();
    for guest in &plan.guests {
        let status = state.status(guest)?;
        summary.count(status);
        let report = state.report(&guest.name)?.unwrap_or(Value::Null);
        rows.push(Row { guest, status, state: state.read(&guest.name)?, report });
    }
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = page(&mut out, plan, &summary, &rows);
    Ok(out)
}

struct Row<'a> {
    guest: &'a Guest,
    status: Status,
    state: GuestState,
    report: Value,
}

fn page(out: &mut String, plan: &Plan, summary: &Summary, rows: &[Row<'_>]) -> fmt::Result {
    let title = format!("Conversion of {} guests: {}", rows.len(), summary.words());
    writeln!(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>")?;
    writeln!(out, "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>")?;
    writeln!(out, "<meta name=\"viewport\" content=\"width=device-width\"/>")?;
    writeln!(out, "<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>", text(&title))?;
    let attempts = || rows.iter().flat_map(|r| &r.state.attempts);
    let begun = attempts().map(|a| a.started).min();
    let ended = attempts().filter_map(|a| a.ended).max();
    write!(out, "<p>Plan: {}. ", text(&plan.file.display().to_string()))?;
    if let Some((begun, ended)) = begun.zip(ended) {
        write!(out, "Work on guests begun {}, ended {}. ", time(begun), time(ended))?;
    }
    writeln!(out, "This page was written {}.</p>", time(now()))?;
    let attention: Vec<_> = rows.iter().filter(|r| matches!(r.status, Status::Failed | Status::NoBoot | Status::Interrupted)).collect();
    if !attention.is_empty() {
        writeln!(out, "<h2>What needs a person</h2>\n<ul>")?;
        for row in attention {
            writeln!(out, "<li>{}: {}</li>", link(row), text(row.message().unwrap_or(row.status.words())))?;
        }
        writeln!(out, "</ul>")?;
    }
    writeln!(out, "<h2>All guests</h2>\n<table>\n<thead><tr><th>Guest</th><th>Outcome</th><th>System</th><th class=\"n\">Disks</th>")?;
    writeln!(out, "<th class=\"n\">Time</th><th>Boot check</th><th class=\"n\">Warnings</th></tr></thead>\n<tbody>")?;
    for row in rows {
        row.overview(out)?;
    }
    writeln!(out, "</tbody>\n</table>")?;
    for (index, row) in rows.iter().enumerate() {
        row.details(out, index)?;
    }
    writeln!(out, "</body>\n</html>")
}

impl Row<'_> {
    fn message(&self) -> Option<&str> {
        self.state.attempts.last()?.message.as_deref()
    }

    fn is_converted(&self) -> bool {
        matches!(self.status, Status::Done | Status::NoBoot)
    }

    fn badge(&self) -> String {
        let class = match self.status {
            Status::Done => "done",
            Status::NoBoot => "no-boot",
            Status::Copied => "copied",
            Status::Failed => "failed",
            Status::Interrupted => "interrupted",
            Status::Running => "running",
            Status::Waiting => "waiting",
            Status::Disabled => "disabled",
        };
        format!("<span class=\"s {class}\">{}</span>", self.status.words())
    }

    /// Its line of the table.
    fn overview(&self, out: &mut String) -> fmt::Result {
        let report = &self.report;
        let size: u64 = items(&report["disks"]).filter_map(|d| d["size"].as_u64()).fold(0, u64::saturating_add);
        let size = if size > 0 { imgcore::size::human(size) } else { String::new() };
        let took = self.state.attempts.last().and_then(|a| a.ended?.checked_sub(a.started)).map(duration).unwrap_or_default();
        let check = match report["boot_check"]["booted"].as_bool() {
            Some(true) => format!("boots ({} s)", report["boot_check"]["seconds"].as_u64().unwrap_or(0)),
            Some(false) => "does not boot".into(),
            None if self.is_converted() => "not asked for".into(),
            None => String::new(),
        };
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{size}</td><td class=\"n\">{took}</td><td>{check}</td><td class=\"n\">{}</td></tr>",
            link(self),
            self.badge(),
            string(&report["guest"]["system"]),
            items(&report["warnings"]).count(),
        )
    }

    /// Its part of the page.
    fn details(&self, out: &mut String, index: usize) -> fmt::Result {
        let report = &self.report;
        writeln!(out, "<h2 id=\"g-{}\">{}. {} {}</h2>", text(&self.guest.name), index + 1, text(&self.guest.name), self.badge())?;
        writeln!(out, "<p>From {}.</p>", text(&self.guest.source.display().to_string()))?;
        if self.status == Status::Copied {
            writeln!(
                out,
                "<p>Its disks are copied. Shut it down, and '--phase finish' copies what has changed since, and converts it.</p>"
            )?;
        }
        if let Some(last) = self.state.attempts.last()
            && let Some(message) = &last.message
        {
            let class = if self.status == Status::Failed { "box bad" } else { "box" };
            write!(out, "<div class=\"{class}\">{}", text(message))?;
            if let Some(hint) = &last.hint {
                write!(out, "<br/>What to do: {}", text(hint))?;
            }
            writeln!(out, "</div>")?;
        }
        if report.is_object() {
            self.conversion(out)?;
        }
        if !self.state.attempts.is_empty() {
            writeln!(out, "<h3>Attempts</h3>\n<table>\n<tr><th>When</th><th>Machine</th><th>Phase</th><th>Outcome</th><th>Time</th></tr>")?;
            for attempt in &self.state.attempts {
                let outcome = attempt.outcome.map_or("running, or cut off", |o| match o {
                    super::state::Outcome::Done => "converted",
                    super::state::Outcome::NoBoot => "converted, but does not boot",
                    super::state::Outcome::Copied => "copied",
                    super::state::Outcome::Forgotten => "copy removed",
                    super::state::Outcome::Failed => "failed",
                    super::state::Outcome::Interrupted => "cut off",
                });
                let took = attempt.ended.and_then(|e| e.checked_sub(attempt.started)).map(duration).unwrap_or_default();
                writeln!(
                    out,
                    "<tr><td>{}</td><td>{}</td><td>{}</td><td>{outcome}</td><td>{took}</td></tr>",
                    time(attempt.started),
                    text(&attempt.host),
                    attempt.phase.map_or("", Phase::name)
                )?;
            }
            writeln!(out, "</table>")?;
        }
        Ok(())
    }

    /// What the conversion's report says.
    fn conversion(&self, out: &mut String) -> fmt::Result {
        let report = &self.report;
        for warning in items(&report["warnings"]) {
            writeln!(out, "<div class=\"box\">{}</div>", string(warning))?;
        }
        let guest = &report["guest"];
        writeln!(out, "<h3>The guest</h3>\n<table>")?;
        for (what, value) in [
            ("System", string(&guest["system"])),
            ("Host name", string(&guest["hostname"])),
            ("On Xen", string(&guest["boot"])),
            ("Source", string(&guest["origin"])),
            ("Memory", guest["memory_mib"].as_u64().map(|m| format!("{m} MiB")).unwrap_or_default()),
            ("Processors", guest["vcpus"].as_u64().map(|v| v.to_string()).unwrap_or_default()),
            ("NICs", items(&guest["macs"]).map(string).collect::<Vec<_>>().join(", ")),
            ("Boot loader", string(&report["boot_loader"])),
        ] {
            if !value.is_empty() {
                writeln!(out, "<tr><th>{what}</th><td>{value}</td></tr>")?;
            }
        }
        writeln!(out, "</table>")?;
        self.disks(out)?;
        self.boot_check(out)?;
        list(out, "Files of the result", items(&report["outputs"]).map(string))?;
        self.changes(out)?;
        let timings: Vec<_> = items(&report["timings"]).collect();
        if !timings.is_empty() {
            writeln!(out, "<h3>Timings</h3>\n<table>")?;
            for timing in timings {
                let seconds = timing["seconds"].as_f64().unwrap_or(0.0);
                writeln!(out, "<tr><td>{}</td><td class=\"n\">{seconds:.1} s</td></tr>", string(&timing["stage"]))?;
            }
            writeln!(out, "</table>")?;
        }
        Ok(())
    }

    fn disks(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "<h3>Disks</h3>\n<table>\n<tr><th>Now</th><th>On Xen</th><th>Content</th><th class=\"n\">Size</th></tr>")?;
        let size = |value: &Value| value["size"].as_u64().map(imgcore::size::human).unwrap_or_default();
        for disk in items(&self.report["disks"]) {
            writeln!(
                out,
                "<tr><td>{}</td><td></td><td>{}</td><td class=\"n\">{}</td></tr>",
                string(&disk["device"]),
                string(&disk["table"]),
                size(disk)
            )?;
            for volume in items(&disk["volumes"]) {
                let anew = if volume["recreated"].as_bool() == Some(true) { ", made anew" } else { "" };
                writeln!(
                    out,
                    "<tr><td>{}</td><td>{}</td><td>{}{anew}</td><td class=\"n\">{}</td></tr>",
                    string(&volume["device"]),
                    string(&volume["was"]),
                    string(&volume["filesystem"]),
                    size(volume)
                )?;
            }
        }
        writeln!(out, "</table>")
    }

    fn boot_check(&self, out: &mut String) -> fmt::Result {
        let check = &self.report["boot_check"];
        if !check.is_object() {
            return Ok(());
        }
        let outcome = if check["booted"].as_bool() == Some(true) { "It boots" } else { "It does not boot" };
        let seconds = check["seconds"].as_u64().unwrap_or(0);
        writeln!(out, "<h3>Boot check</h3>\n<p>{outcome}: {} (after {seconds} s).</p>", string(&check["what"]))?;
        list(out, "Units that failed", items(&check["failed_units"]).map(string))?;
        let screen: Vec<_> = items(&check["screen"]).map(string).collect();
        writeln!(out, "<p>The console's last lines:</p>\n<pre class=\"screen\">{}</pre>", screen.join("\n"))
    }

    /// What was changed inside the guest.
    fn changes(&self, out: &mut String) -> fmt::Result {
        let steps = items(&self.report["steps"]).filter(|s| items(&s["notes"]).next().is_some());
        list(
            out,
            "What was found and decided",
            steps.flat_map(|s| items(&s["notes"]).map(move |n| format!("<b>{}</b>: {}", string(&s["name"]), string(n)))),
        )?;
        let files: Vec<_> = items(&self.report["files"]).collect();
        if !files.is_empty() {
            writeln!(out, "<h3>Changed files of the guest</h3>")?;
        }
        for file in files {
            let steps = items(&file["steps"]).map(string).collect::<Vec<_>>().join(", ");
            writeln!(
                out,
                "<details><summary>{} ({} by {steps})</summary>\n<pre>{}</pre></details>",
                string(&file["path"]),
                string(&file["kind"]),
                diff(file["text"].as_str().unwrap_or_default())
            )?;
        }
        let ran: Vec<_> = items(&self.report["ran"]).collect();
        if !ran.is_empty() {
            writeln!(out, "<h3>Commands that ran in the guest</h3>")?;
        }
        for command in ran {
            let seconds = command["seconds"].as_f64().unwrap_or(0.0);
            writeln!(
                out,
                "<details><summary>{} ({seconds:.1} s)</summary>\n<pre>{}</pre></details>",
                string(&command["command"]),
                string(&command["output"])
            )?;
        }
        Ok(())
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// A value's text, escaped.
fn string(value: &Value) -> String {
    text(value.as_str().unwrap_or_default())
}

fn link(row: &Row<'_>) -> String {
    let name = text(&row.guest.name);
    format!("<a href=\"#g-{name}\">{name}</a>")
}

/// A list with a heading, if there is anything in it. The items are HTML.
fn list(out: &mut String, heading: &str, items: impl Iterator<Item = String>) -> fmt::Result {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return Ok(());
    }
    writeln!(out, "<h3>{heading}</h3>\n<ul>")?;
    for item in items {
        writeln!(out, "<li>{item}</li>")?;
    }
    writeln!(out, "</ul>")
}

/// A unified diff, its lines marked.
fn diff(content: &str) -> String {
    let line = |line: &str| match line.as_bytes() {
        [b'+', ..] if !line.starts_with("+++ ") => format!("<ins>{}</ins>", text(line)),
        [b'-', ..] if !line.starts_with("--- ") => format!("<del>{}</del>", text(line)),
        _ => text(line),
    };
    content.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Text from anywhere, for elements and attributes. Control characters and those that turn the direction of writing are shown, not
/// obeyed.
fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\r' => {}
            '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{61c}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                out.push('\u{fffd}');
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// A moment in UTC: `2026-11-21 22:30 UTC`.
fn time(seconds: u64) -> String {
    // Days to a date by the era method of the proleptic Gregorian calendar: years that begin in March.
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_guests_is_escaped() {
        assert_eq!(text("<script>&\"'\u{1b}[2J\u{202e}x\r\n"), "&lt;script&gt;&amp;&quot;&#39;\u{fffd}[2J\u{fffd}x\n");
        assert_eq!(diff("--- a/x\n+++ b/x\n-<a>\n+b\n c"), "--- a/x\n+++ b/x\n<del>-&lt;a&gt;</del>\n<ins>+b</ins>\n c");
    }

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01 00:00 UTC");
        assert_eq!(time(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(time(1_795_386_660), "2026-11-22 22:31 UTC");
        assert_eq!((duration(59), duration(61), duration(7320)), ("59 s".into(), "1 min 1 s".into(), "2 h 2 min".into()));
        let _no_overflow = time(u64::from(u32::MAX) * 1000);
    }
}
