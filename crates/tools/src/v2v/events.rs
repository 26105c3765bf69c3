//! What a person sees of a running conversion, and how it is stopped.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use imgcore::Progress;
use v2v::options::Events;

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

/// Says on the standard error what happens.
pub(crate) struct Screen {
    level: Level,
    stage: Mutex<String>,
    bar: Mutex<Option<Bar>>,
    /// Set by the first Ctrl-C.
    stopped: Arc<AtomicBool>,
}

impl Screen {
    /// One that also listens for SIGINT, SIGTERM and SIGHUP; a second one ends the process at once.
    pub fn new(level: Level) -> std::io::Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, stopped.clone())?;
            signal_hook::flag::register(signal, stopped.clone())?;
        }
        Ok(Screen { level, stage: Mutex::default(), bar: Mutex::default(), stopped })
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
        self.say(Level::Normal, &format!("{what} …"));
    }

    fn detail(&self, what: &str) {
        self.say(Level::Verbose, &format!("  {what}"));
    }

    fn warning(&self, what: &str) {
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
        if self.level == Level::Quiet {
            return;
        }
        self.finish();
        let bar = Bar::terminal(self.stage.lock().unwrap_or_else(|e| e.into_inner()).clone());
        bar.total(total);
        *self.bar.lock().unwrap_or_else(|e| e.into_inner()) = Some(bar);
    }

    fn advance(&self, done: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(|e| e.into_inner()) {
            bar.advance(done);
        }
    }

    fn cancelled(&self) -> bool {
        self.is_stopped()
    }
}
