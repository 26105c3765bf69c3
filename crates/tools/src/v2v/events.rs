//! What a person sees of a running conversion, and how it is stopped.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use imgcore::Progress;
use v2v::batch::child::Event;
use v2v::options::Events;

use crate::common::Failure;
use crate::common::progress::Bar;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Only errors.
    Quiet,
    /// What is being done.
    Normal,
    /// Why, and the console of the boot check.
    Verbose,
}

/// Gives a flag that the first SIGINT, SIGTERM or SIGHUP sets; a second one ends the process at once.
pub(crate) fn stop_on_signals() -> std::io::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, stopped.clone())?;
        signal_hook::flag::register(signal, stopped.clone())?;
    }
    Ok(stopped)
}

/// What happens as JSON lines on the standard output, for the program that has started this one.
#[derive(Default)]
struct Lines {
    total: AtomicU64,
    done: AtomicU64,
    /// The percentage that was said last.
    said: AtomicU64,
}

impl Lines {
    fn print(&self, event: &Event) {
        let mut out = std::io::stdout().lock();
        // When nobody reads it, the one who did has gone, and this process goes too.
        let _ = serde_json::to_writer(&mut out, event).map_err(Into::into).and_then(|()| writeln!(out));
    }

    fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.said.store(0, Ordering::Relaxed);
    }

    fn advance(&self, done: u64) {
        let done = self.done.fetch_add(done, Ordering::Relaxed).saturating_add(done);
        let percent = (u128::from(done) * 100).checked_div(self.total.load(Ordering::Relaxed).into()).map_or(0, |p| p.min(100) as u64);
        if self.said.fetch_max(percent, Ordering::Relaxed) < percent {
            self.print(&Event::Progress { percent: percent as u8 });
        }
    }
}

/// Says on the standard error what happens.
pub(crate) struct Screen {
    level: Level,
    /// Says all of it as JSON on the standard output, too.
    lines: Option<Lines>,
    stage: Mutex<String>,
    bar: Mutex<Option<Bar>>,
    /// Set by the first Ctrl-C.
    stopped: Arc<AtomicBool>,
}

impl Screen {
    /// One that also listens for signals.
    pub fn new(level: Level, lines: bool) -> std::io::Result<Self> {
        let lines = lines.then(Lines::default);
        Ok(Screen { level, lines, stage: Mutex::default(), bar: Mutex::default(), stopped: stop_on_signals()? })
    }

    /// Whether the user wants to stop.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends the bar that may be shown.
    pub fn finish(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(|e| e.into_inner()).take() {
            bar.finish();
        }
    }

    fn line(&self, event: &Event) {
        if let Some(lines) = &self.lines {
            lines.print(event);
        }
    }

    /// Tells the program that reads the lines why this one ends.
    pub fn failed(&self, failure: &Failure) {
        self.line(&Event::Failed { message: failure.message().into(), hint: failure.hint_text().map(Into::into) });
    }

    fn say(&self, least: Level, text: &str) {
        if self.level >= least {
            self.finish();
            eprintln!("{text}");
        }
    }
}

impl Events for Screen {
    fn stage(&self, what: &str) {
        what.clone_into(&mut self.stage.lock().unwrap_or_else(|e| e.into_inner()));
        self.line(&Event::Stage { what: what.into() });
        self.say(Level::Normal, &format!("{what} …"));
    }

    fn detail(&self, what: &str) {
        self.say(Level::Verbose, &format!("  {what}"));
    }

    fn warning(&self, what: &str) {
        self.line(&Event::Warning { what: what.into() });
        self.say(Level::Normal, &format!("Warning: {what}"));
    }

    fn console(&self, bytes: &[u8]) {
        if self.level == Level::Verbose {
            let mut out = std::io::stderr();
            // A guest must not drive the user's terminal.
            let shown: Vec<u8> = if out.is_terminal() {
                bytes.iter().copied().filter(|b| *b >= b' ' && *b != 127 || matches!(b, b'\n' | b'\r' | b'\t')).collect()
            } else {
                bytes.to_vec()
            };
            let _ = out.write_all(&shown);
        }
    }
}

impl Progress for Screen {
    fn total(&self, total: u64) {
        if let Some(lines) = &self.lines {
            lines.begin(total);
        }
        if self.level == Level::Quiet {
            return;
        }
        self.finish();
        let bar = Bar::terminal(self.stage.lock().unwrap_or_else(|e| e.into_inner()).clone());
        bar.total(total);
        *self.bar.lock().unwrap_or_else(|e| e.into_inner()) = Some(bar);
    }

    fn advance(&self, done: u64) {
        if let Some(lines) = &self.lines {
            lines.advance(done);
        }
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(|e| e.into_inner()) {
            bar.advance(done);
        }
    }

    fn cancelled(&self) -> bool {
        self.is_stopped()
    }
}
