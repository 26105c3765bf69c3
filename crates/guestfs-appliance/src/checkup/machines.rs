//! What a machine is made of: KVM, the monitors, the kernel, the agent, firmware.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guestfs::{Error, Result};
use vmm_mini::probe::{Report, Verdict};

use super::{Finding, State, install};
use crate::distro_kernel::Kernel;
use crate::{machine, qemu};

/// A program that has not told its version by then is no working one.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn kvm(report: &Report) -> Finding {
    if report.verdict == Verdict::Works {
        return Finding::ok("KVM", report.to_string());
    }
    let fix = report.fix.clone().unwrap_or_else(|| "nothing to do: QEMU's translator runs the appliance".into());
    Finding::bad("KVM", State::Warning, report.to_string(), fix)
}

pub(super) fn monitor(found: &Result<PathBuf>) -> Finding {
    match found {
        Ok(file) => match version(Command::new(file)) {
            Ok(_) => Finding::ok("monitor", file.display().to_string()),
            Err(e) => Finding::bad("monitor", State::Warning, format!("{}: {e}", file.display()), "install the guestlift package anew"),
        },
        Err(_) => Finding::bad("monitor", State::Warning, "our own monitor on KVM is not installed: QEMU serves", REINSTALL),
    }
}

const REINSTALL: &str = "install the guestlift package, or run scripts/build-agent in the source tree";

/// `spare`: the appliance runs without it here.
pub(super) fn qemu(spare: bool) -> Finding {
    let state = if spare { State::Warning } else { State::Missing };
    let use_ =
        if spare { "only the boot check of v2v and a distribution's kernel need it" } else { "the appliance cannot run without it here" };
    let Ok(program) = qemu::find() else {
        let name = qemu::program();
        return Finding::bad("QEMU", state, format!("{} is not installed: {use_}", name.display()), install(qemu::PACKAGE));
    };
    match version(Command::new(&program)) {
        Ok(text) => Finding::ok("QEMU", text),
        Err(e) => {
            let detail = format!("{} {e}: {use_}", program.display());
            Finding::bad("QEMU", state, detail, install(&format!("--reinstall {}", qemu::PACKAGE)))
        }
    }
}

/// The first line of what `--version` gives.
fn version(mut command: Command) -> Result<String, String> {
    let mut child = command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot be started: {e}"))?;
    let until = Instant::now() + PATIENCE;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            return Err("does not tell its version".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next().filter(|_| output.status.success()) {
        Some(line) => Ok(guestfs::show(line.as_bytes())),
        None => Err(format!("does not tell its version ({})", output.status)),
    }
}

pub(super) fn kernel(found: &Result<Kernel>) -> Finding {
    match found {
        Ok(Kernel { file, modules: None }) => Finding::ok("kernel", file.display().to_string()),
        Ok(Kernel { file, modules: Some(_) }) => {
            let detail = format!("the distribution's {}: slower, and in QEMU only", file.display());
            Finding::bad("kernel", State::Warning, detail, "install the guestlift package, or run scripts/build-kernel in the source tree")
        }
        Err(e) => lacking("kernel", e),
    }
}

pub(super) fn agent(found: &Result<PathBuf>) -> Finding {
    match found {
        Ok(file) => Finding::ok("agent", file.display().to_string()),
        Err(e) => lacking("agent", e),
    }
}

/// An error says what is missing before its colon, and behind that what to do.
fn lacking(name: &'static str, error: &Error) -> Finding {
    let text = error.to_string();
    let (detail, fix) = text.split_once(": ").unwrap_or((&text, REINSTALL));
    Finding::bad(name, State::Missing, detail, fix)
}

pub(super) fn firmware() -> Finding {
    match machine::firmware() {
        Some((code, _)) => Finding::ok("UEFI", code),
        None => {
            let detail = "no firmware is here: the boot check of v2v cannot start guests that use UEFI";
            Finding::bad("UEFI", State::Warning, detail, install("ovmf"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_or_fails_tells_no_version() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            version(command)
        };
        assert_eq!(shell("echo one; echo two").unwrap(), "one");
        assert!(shell("echo one; exit 3").unwrap_err().contains("exit status: 3"));
        let started = Instant::now();
        assert!(shell("exec sleep 60").is_err());
        assert!(started.elapsed() < 2 * PATIENCE, "{:?}", started.elapsed());
        assert!(version(Command::new("/no/such/program")).unwrap_err().contains("cannot be started"));
    }

    #[test]
    fn a_kernel_for_root_only_is_missing_and_says_how_to_open_it() {
        let text = "/boot/vmlinuz-6 could be the appliance's kernel, but only root may read it: run `sudo chmod +r /boot/vmlinuz-6`";
        let finding = kernel(&Err(Error::Missing(text.into())));
        assert_eq!((finding.state, finding.fix.as_deref()), (State::Missing, Some("run `sudo chmod +r /boot/vmlinuz-6`")));
    }
}
