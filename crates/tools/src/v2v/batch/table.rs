//! What a person or a script sees of a running batch.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use v2v::batch::events::{Event, Watcher};

/// A terminal is drawn on no more often.
const REFRESH: Duration = Duration::from_millis(100);

/// Shows events: as a live table where the standard error is a terminal, else as lines; as JSON on the standard output, too.
pub(super) struct Table {
    json: bool,
    style: Style,
    shown: Mutex<Shown>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Quiet,
    Lines,
    Live,
}

#[derive(Default)]
struct Shown {
    running: BTreeMap<String, Row>,
    guests: usize,
    ended: usize,
    /// Lines on the terminal that the next drawing replaces.
    lines: usize,
    last: Option<Instant>,
}

struct Row {
    since: Instant,
    stage: String,
    percent: Option<u8>,
}

impl Table {
    pub fn new(json: bool, quiet: bool) -> Self {
        let style = match std::io::stderr().is_terminal() {
            _ if quiet => Style::Quiet,
            true => Style::Live,
            false if json => Style::Quiet,
            false => Style::Lines,
        };
        Table { json, style, shown: Mutex::default() }
    }
}

impl Watcher for Table {
    fn event(&self, event: &Event<'_>) {
        let mut shown = self.shown.lock().unwrap_or_else(|e| e.into_inner());
        if self.json {
            let mut out = std::io::stdout().lock();
            // A script that has stopped reading does not stop the conversions.
            let _ = serde_json::to_writer(&mut out, event).map_err(Into::into).and_then(|()| writeln!(out));
        }
        let line = shown.note(event);
        let is_progress = matches!(event, Event::Progress { .. } | Event::Stage { .. });
        match self.style {
            Style::Quiet => {
                if let Event::Ended { guest, message: Some(message), .. } = event {
                    eprintln!("v2v batch: {guest}: {}", clean(message));
                }
            }
            Style::Lines => {
                if let Some(line) = line {
                    eprintln!("{line}");
                }
            }
            Style::Live if is_progress && shown.last.is_some_and(|l| l.elapsed() < REFRESH) => {}
            Style::Live => shown.draw(line.filter(|_| !matches!(event, Event::Started { .. })).as_deref()),
        }
    }
}

impl Shown {
    /// Takes an event in, and gives the line that stays of it.
    fn note(&mut self, event: &Event<'_>) -> Option<String> {
        match event {
            Event::Begun { guests, finished, jobs, memory } => {
                (self.guests, self.ended) = (*guests, *finished);
                let before = if *finished > 0 { format!(", {finished} of them finished before") } else { String::new() };
                Some(format!("{guests} guests{before}; {jobs} at a time, within {} of memory", imgcore::size::human(*memory)))
            }
            Event::Started { guest } => {
                self.running.insert((*guest).into(), Row { since: Instant::now(), stage: "Begins".into(), percent: None });
                Some(format!("{guest}: begins"))
            }
            Event::Stage { guest, what } => {
                if let Some(row) = self.running.get_mut(*guest) {
                    (row.stage, row.percent) = (clean(what), None);
                }
                None
            }
            Event::Progress { guest, percent } => {
                if let Some(row) = self.running.get_mut(*guest) {
                    row.percent = Some(*percent);
                }
                None
            }
            Event::Warning { guest: Some(guest), what } => Some(format!("{guest}: warning: {}", clean(what))),
            Event::Warning { guest: None, what } => Some(format!("Warning: {}", clean(what))),
            Event::Ended { guest, status, seconds, message, hint } => {
                self.running.remove(*guest);
                self.ended += 1;
                let mut line = format!("{guest}: {} ({seconds} s)", status.words());
                if let Some(message) = message {
                    line += &format!(": {}", clean(message));
                }
                if let Some(hint) = hint {
                    line += &format!("\n  Hint: {}", clean(hint));
                }
                Some(line)
            }
            Event::Summary(summary) => {
                self.running.clear();
                Some(summary.words())
            }
        }
    }

    /// Replaces the table on the terminal; `line` goes above it and stays.
    fn draw(&mut self, line: Option<&str>) {
        // Some terminals do not know their size, and say 0.
        let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok().filter(|w| w.ws_row > 0 && w.ws_col > 0);
        let (rows, columns) = size.map_or((24, 80), |w| (usize::from(w.ws_row), usize::from(w.ws_col)));
        let mut text = match self.lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        };
        if let Some(line) = line {
            text += line;
            text.push('\n');
        }
        self.lines = 0;
        if !self.running.is_empty() {
            for (name, row) in self.running.iter().take(rows.saturating_sub(3).max(1)) {
                let percent = row.percent.map(|p| format!("{p} %")).unwrap_or_default();
                let line = format!("  {name:<24} {:<28} {percent:>5} {:>6} s", row.stage, row.since.elapsed().as_secs());
                text.extend(line.chars().take(columns.saturating_sub(1)));
                text.push('\n');
                self.lines += 1;
            }
            let line = format!("  {} of {} ended, {} running", self.ended, self.guests, self.running.len());
            text.extend(line.chars().take(columns.saturating_sub(1)));
            text.push('\n');
            self.lines += 1;
        }
        eprint!("{text}");
        let _ = std::io::stderr().flush();
        self.last = Some(Instant::now());
    }
}

/// Text of a guest for a terminal: its control characters are not obeyed.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}
