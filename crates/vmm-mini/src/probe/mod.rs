//! Decides whether this host's /dev/kvm is of use, by running code on it.
//!
//! A host may offer KVM and yet not let guests' kernels run on its processor: some hypervisors emulate them, thousand times slower and
//! with holes. No flag tells. So a processor is put straight into 64-bit mode at the highest privilege with page tables of its own, and
//! runs what emulators lack; then it is timed. That takes milliseconds, and whatever the host does, it ends.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use crate::Error;
use crate::sys::probe::Program;

mod cache;
mod trial;

pub use cache::cached;
use trial::{Failure, Trial};

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// A processor that has not shown after this time what it can never will; the same for how fast it is.
pub const PATIENCE: Duration = Duration::from_millis(400);
/// A machine is made by the kernel alone. That hangs nowhere, but waits for other processors, which may be busy.
const PATIENCE_TO_MAKE: Duration = Duration::from_secs(2);
/// Timing gets no more of it than this: other programs may have most of the host.
const TIMING: Duration = Duration::from_millis(100);
/// For a processor that was called back.
const GRACE: Duration = Duration::from_millis(100);

/// API version of every KVM since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Turns of the loop in a second. Measured: 70 million and more in a busy machine that is itself translated, 2 where it is emulated.
const LEAST_LOOPS: u64 = 20_000_000;
/// Nanoseconds that a step may take. Measured: up to 180,000 in a busy machine that is itself translated.
const MOST_NANOSECONDS: u64 = 500_000;

/// Of what use KVM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Guests' kernels run on the processor.
    Works,
    /// It can be opened, but guests' kernels do not run on the processor.
    Emulated,
    /// It cannot be used at all.
    Unusable,
}

/// How fast a guest's processor is, each the best of several trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// Turns of a loop of two instructions in a second.
    pub loops_per_second: u64,
    /// Nanoseconds to write a page-table entry, drop the old translation and use the new one.
    pub map_nanoseconds: u64,
    /// Nanoseconds to load CR3.
    pub cr3_nanoseconds: u64,
    /// Nanoseconds from the guest to this program and back.
    pub exit_nanoseconds: u64,
}

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// What the user can do about it, if there is anything.
    pub fix: Option<String>,
    /// The processor's speed, if it came so far.
    pub speed: Option<Speed>,
    /// What the probe took, in microseconds.
    pub microseconds: u64,
}

impl Report {
    fn new(verdict: Verdict, reason: impl Into<String>) -> Self {
        Report { verdict, reason: reason.into(), fix: None, speed: None, microseconds: 0 }
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Report { fix: Some(fix.into()), ..self }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        if let Some(Speed { loops_per_second, map_nanoseconds, cr3_nanoseconds, exit_nanoseconds }) = self.speed {
            let millions = loops_per_second / 1_000_000;
            write!(
                f,
                " ({millions} million loops/s, page-table write {map_nanoseconds} ns, CR3 load {cr3_nanoseconds} ns, exit {exit_nanoseconds} ns)"
            )?;
        }
        Ok(())
    }
}

/// Finds out.
pub fn probe() -> Report {
    probe_device(Path::new(DEVICE))
}

fn probe_device(device: &Path) -> Report {
    let started = Instant::now();
    let report = match open(device) {
        Ok(()) => watched(try_out),
        Err(report) => report,
    };
    Report { microseconds: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX), ..report }
}

/// Whether the device can be opened, and is KVM.
fn open(device: &Path) -> Result<(), Report> {
    let name = device.display();
    let path = std::ffi::CString::new(device.as_os_str().as_encoded_bytes()).unwrap_or_default();
    let kvm = Kvm::new_with_path(path).map_err(|e| cannot_open(device, &e.into()))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(()),
        ..0 => Err(Report::new(Verdict::Unusable, format!("{name} is no KVM"))),
        version => Err(Report::new(Verdict::Unusable, format!("{name} speaks version {version} of KVM's interface, not {API_VERSION}"))),
    }
}

fn cannot_open(device: &Path, error: &io::Error) -> Report {
    let name = device.display();
    let unusable = |reason: String| Report::new(Verdict::Unusable, reason);
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            let group = fs::metadata(device).ok().and_then(|m| group_name(m.gid()));
            let fix = match group {
                Some(group) => format!("sudo usermod -aG {group} \"$USER\", then log in again"),
                None => format!("sudo chgrp kvm {name} && sudo chmod 660 {name}, and sudo usermod -aG kvm \"$USER\", then log in again"),
            };
            unusable(format!("{name} is there, but this user may not open it")).fix(fix)
        }
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let module = ["vmx", "svm"].into_iter().find(|flag| flags.split_whitespace().any(|word| word == *flag));
            let fix = match module {
                Some("vmx") => "sudo modprobe kvm_intel; in a container, pass /dev/kvm into it",
                Some(_) => "sudo modprobe kvm_amd; in a container, pass /dev/kvm into it",
                None => {
                    "switch virtualisation on in the machine's firmware, or nested virtualisation on its host if it is a virtual machine"
                }
            };
            unusable(format!("there is no {name}")).fix(fix)
        }
        Some(libc::EBUSY) => busy(),
        _ => unusable(format!("{name} cannot be opened: {error}")),
    }
}

fn busy() -> Report {
    Report::new(Verdict::Unusable, "another hypervisor holds the processor's virtualisation")
        .fix("stop the machines of VirtualBox or VMware")
}

/// The group that the device is meant for; root's is nobody's.
fn group_name(gid: u32) -> Option<String> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (gid != 0 && fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_string())
    })
}

/// Where the trial tells that the machine is made and that its processor can what it must, which are `None`, and then its report.
type Progress = SyncSender<Option<Report>>;

/// Runs the trial on a thread of its own, which gives its report and then takes its time to tear down the machine. If no report comes,
/// the thread is called back.
fn watched(trial: impl FnOnce(&Kicked, Progress) + Send + 'static) -> Report {
    let (sender, receiver) = sync_channel(3);
    let kicked = Arc::new(Kicked { signal: SIGRTMIN(), ready: AtomicBool::new(false) });
    let theirs = kicked.clone();
    let thread = match std::thread::Builder::new().name("kvm-probe".into()).spawn(move || trial(&theirs, sender)) {
        Ok(thread) => thread,
        Err(e) => return Report::new(Verdict::Unusable, format!("a thread cannot be started: {e}")),
    };
    let mut patience = PATIENCE_TO_MAKE;
    loop {
        match receiver.recv_timeout(patience) {
            Ok(Some(report)) => return report,
            Ok(None) => patience = PATIENCE,
            Err(RecvTimeoutError::Disconnected) => return Report::new(Verdict::Unusable, "the probe failed"),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    // One signal does: it stays pending until a run meets it.
    if kicked.ready.load(Ordering::Acquire) {
        let _ = thread.kill(kicked.signal);
        let _ = receiver.recv_timeout(GRACE);
    }
    let milliseconds = patience.as_millis();
    let what = if patience == PATIENCE { "get through a few instructions" } else { "make a machine" };
    Report::new(Verdict::Unusable, format!("KVM did not {what} within {milliseconds} ms"))
}

/// The signal that calls the trial's thread back.
struct Kicked {
    signal: libc::c_int,
    /// Whether the thread has blocked it, so that it ends a processor's run and nothing else.
    ready: AtomicBool,
}

/// The trial: what the processor can, then how fast it is.
fn try_out(kicked: &Kicked, progress: Progress) {
    // Whoever waited may have given up.
    let tell = |news| drop(progress.try_send(news));
    match Trial::new(kicked) {
        Ok(mut trial) => {
            tell(None);
            tell(Some(judge(&mut trial, || tell(None)).unwrap_or_else(|e| refusal(&e))));
            // The machine's end, which can take longer than all before, comes only now.
        }
        Err(e) => tell(Some(refusal(&e))),
    }
}

/// What it means that there is no such machine.
fn refusal(error: &Error) -> Report {
    match error {
        Error::Kvm { error, .. } if error.errno() == libc::EBUSY => busy(),
        error => Report::new(Verdict::Unusable, error.to_string()),
    }
}

/// `able`: the processor can what it must.
fn judge(trial: &mut Trial, able: impl FnOnce()) -> crate::Result<Report> {
    if let Err(failure) = trial.run(Program::Instructions, 1)? {
        return Ok(failure.report());
    }
    able();
    Ok(match measure(trial)? {
        Ok(speed) => Report { speed: Some(speed), ..judge_speed(&speed) },
        Err(failure) => failure.report(),
    })
}

fn judge_speed(speed: &Speed) -> Report {
    let slowest = speed.map_nanoseconds.max(speed.cr3_nanoseconds).max(speed.exit_nanoseconds);
    if speed.loops_per_second < LEAST_LOOPS || slowest > MOST_NANOSECONDS {
        Report::new(Verdict::Emulated, "KVM is here, but guests' kernels run slower on it than in QEMU's translator")
    } else {
        Report::new(Verdict::Works, "guests' kernels run on the processor")
    }
}

/// Times the programs; the failure of one is the inner error.
fn measure(trial: &mut Trial) -> crate::Result<Result<Speed, Failure>> {
    const TIMED: [(Program, [u64; 3]); 4] = [
        (Program::Loop, [1_000, 100_000, 1_000_000]),
        (Program::Map, [10, 100, 1000]),
        (Program::Cr3, [10, 100, 1000]),
        (Program::Exit, [10, 20, 50]),
    ];
    let until = Instant::now() + TIMING;
    // Nanoseconds a turn. Few turns come first: what takes long with them is not tried with many.
    let mut best = [f64::INFINITY; TIMED.len()];
    for (best, (program, turns)) in best.iter_mut().zip(TIMED) {
        for count in turns {
            match trial.run(program, count)? {
                Ok(time) => *best = best.min(time.as_nanos() as f64 / count as f64),
                Err(failure) => return Ok(Err(failure)),
            }
            if Instant::now() > until {
                break;
            }
        }
    }
    let [turn, map, cr3, exit] = best;
    Ok(Ok(Speed {
        loops_per_second: (1e9 / turn) as u64,
        map_nanoseconds: map as u64,
        cr3_nanoseconds: cr3 as u64,
        exit_nanoseconds: exit as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_in_time_and_stays_the_same() {
        let started = Instant::now();
        let (first, second) = (probe(), probe());
        assert!(started.elapsed() < 2 * (PATIENCE_TO_MAKE + 2 * PATIENCE + GRACE), "{:?}", started.elapsed());
        assert_eq!(first.verdict, second.verdict, "{first}; {second}");
        assert_eq!(first.verdict == Verdict::Works, first.speed.is_some_and(|s| s.loops_per_second >= LEAST_LOOPS), "{first}");
        assert!(!first.reason.is_empty());
    }

    /// A turn of a loop is an instruction's time, so this one would take centuries.
    #[test]
    fn a_processor_that_never_comes_back_is_called_back() {
        if open(Path::new(DEVICE)).is_err() {
            // Without KVM the probe runs no processor.
            assert_eq!(probe().verdict, Verdict::Unusable);
            return;
        }
        let (sender, outcome) = sync_channel(1);
        let started = Instant::now();
        let report = watched(move |kicked, progress| {
            let mut trial = Trial::new(kicked).unwrap();
            progress.try_send(None).unwrap();
            sender.send(trial.run(Program::Loop, u64::MAX)).unwrap();
        });
        assert_eq!(report.verdict, Verdict::Unusable);
        assert!(started.elapsed() >= PATIENCE && started.elapsed() < PATIENCE_TO_MAKE + PATIENCE + GRACE, "{:?}", started.elapsed());
        let outcome = outcome.recv_timeout(Duration::from_secs(10)).expect("the thread outlives the probe");
        assert!(matches!(outcome, Ok(Err(Failure::Stopped))), "{outcome:?}");
    }

    #[test]
    fn a_device_that_is_none_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let none = probe_device(&dir.path().join("kvm"));
        assert_eq!(none.verdict, Verdict::Unusable);
        assert!(none.reason.starts_with("there is no ") && none.fix.is_some(), "{none}");
        let other = dir.path().join("file");
        fs::write(&other, "").unwrap();
        assert!(probe_device(&other).reason.contains("is no KVM"), "{}", probe_device(&other));
    }

    #[test]
    fn a_device_for_others_names_its_group() {
        // Whatever this user is: the error is what the kernel would give.
        let report = cannot_open(Path::new("/dev/null"), &io::Error::from_raw_os_error(libc::EACCES));
        assert!(report.reason.contains("may not open it") && report.fix.unwrap().contains("usermod -aG kvm"));
        assert_eq!(group_name(0), None);
    }

    #[test]
    fn slow_processors_are_no_processors() {
        let fast = Speed { loops_per_second: 3_000_000_000, map_nanoseconds: 60, cr3_nanoseconds: 80, exit_nanoseconds: 1200 };
        assert_eq!(judge_speed(&fast).verdict, Verdict::Works);
        assert_eq!(judge_speed(&Speed { loops_per_second: 2_000_000, ..fast }).verdict, Verdict::Emulated);
        assert_eq!(judge_speed(&Speed { map_nanoseconds: 1_000_000, ..fast }).verdict, Verdict::Emulated);
    }
}
