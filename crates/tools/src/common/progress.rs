//! Progress shown to people: a bar on a terminal, or qemu-img's `-p` line.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use imgcore::{Progress, size};

/// Work done sooner than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(250);
const REFRESH: Duration = Duration::from_millis(100);
const WIDTH: usize = 24;

enum Style {
    Silent,
    /// On the standard error.
    Bar {
        what: String,
    },
    /// `    (12.34/100%)` on the standard output, as qemu-img prints it.
    Qemu,
}

struct Shown {
    last: Instant,
    percent: f64,
    any: bool,
}

/// Shows how far long work is.
pub struct Bar {
    style: Style,
    total: AtomicU64,
    done: AtomicU64,
    started: Instant,
    shown: Mutex<Shown>,
    /// Set by a signal that asks how far the work is.
    asked: Arc<AtomicBool>,
}

impl Bar {
    /// A bar called `what` if the standard error is a terminal, else nothing.
    pub fn terminal(what: impl Into<String>) -> Self {
        Self::new(if std::io::stderr().is_terminal() { Style::Bar { what: what.into() } } else { Style::Silent })
    }

    /// qemu-img's `-p` line if `shown`, else nothing until a SIGUSR1 asks for a line on the standard error.
    pub fn qemu(shown: bool) -> Self {
        let bar = Self::new(if shown { Style::Qemu } else { Style::Silent });
        let _ = signal_hook::flag::register(signal_hook::consts::SIGUSR1, bar.asked.clone());
        bar
    }

    /// For work whose output goes through the standard output: a bar called `what` on a terminal if `shown`.
    pub fn beside_output(shown: bool, what: &str) -> Self {
        if shown { Self::terminal(what) } else { Self::new(Style::Silent) }
    }

    fn new(style: Style) -> Self {
        let now = Instant::now();
        let bar = Bar {
            style,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            started: now,
            shown: Mutex::new(Shown { last: now, percent: 0.0, any: false }),
            asked: Arc::default(),
        };
        if matches!(bar.style, Style::Qemu) {
            bar.show(true);
        }
        bar
    }

    /// Removes the bar, or ends qemu-img's line at 100 %.
    pub fn finish(&self) {
        match self.style {
            Style::Silent => {}
            Style::Bar { .. } if self.shown.lock().unwrap_or_else(|e| e.into_inner()).any => eprint!("\r\x1b[K"),
            Style::Bar { .. } => {}
            Style::Qemu if self.shown.lock().unwrap_or_else(|e| e.into_inner()).percent >= 100.0 => println!(),
            Style::Qemu => println!("    (100.00/100%)\r"),
        }
    }

    fn show(&self, first: bool) {
        // Whoever finds another thread printing has nothing newer to say.
        let Ok(mut shown) = self.shown.try_lock() else { return };
        let (total, done) = (self.total.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
        let part = if total == 0 { 0.0 } else { (done as f64 / total as f64).min(1.0) };
        if self.asked.swap(false, Ordering::Relaxed) && !matches!(self.style, Style::Qemu) {
            eprintln!("    ({:.2}/100%)", part * 100.0);
        }
        match &self.style {
            Style::Silent => {}
            Style::Qemu if first || part * 100.0 >= shown.percent + 1.0 => {
                print!("    ({:.2}/100%)\r", part * 100.0);
                let _ = std::io::stdout().flush();
                shown.percent = part * 100.0;
            }
            Style::Qemu => {}
            Style::Bar { what } if self.started.elapsed() >= PATIENCE && (!shown.any || shown.last.elapsed() >= REFRESH) => {
                let filled = (part * WIDTH as f64) as usize;
                let speed = size::human((done as f64 / self.started.elapsed().as_secs_f64()) as u64);
                eprint!(
                    "\r{what} [{}{}] {:3.0} % of {}, {speed}/s\x1b[K",
                    "#".repeat(filled),
                    " ".repeat(WIDTH - filled),
                    part * 100.0,
                    size::human(total)
                );
                let _ = std::io::stderr().flush();
                (shown.last, shown.any) = (Instant::now(), true);
            }
            Style::Bar { .. } => {}
        }
    }
}

impl Progress for Bar {
    fn total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, done: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
        self.show(false);
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// Passes progress on, and holds whoever reports it back so that the work keeps to a rate.
pub struct Limited<'a> {
    inner: &'a dyn Progress,
    /// Bytes a second; 0 for as fast as can be.
    rate: u64,
    started: Instant,
    done: AtomicU64,
}

impl<'a> Limited<'a> {
    /// At most `rate` bytes a second from now on; 0 does not limit.
    pub fn new(inner: &'a dyn Progress, rate: u64) -> Self {
        Limited { inner, rate, started: Instant::now(), done: AtomicU64::new(0) }
    }
}

impl Progress for Limited<'_> {
    fn total(&self, total: u64) {
        self.inner.total(total);
    }

    fn advance(&self, done: u64) {
        self.inner.advance(done);
        let all = self.done.fetch_add(done, Ordering::Relaxed) + done;
        if self.rate > 0 {
            let due = Duration::try_from_secs_f64(all as f64 / self.rate as f64).unwrap_or(Duration::MAX);
            std::thread::sleep(due.saturating_sub(self.started.elapsed()));
        }
    }

    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}
