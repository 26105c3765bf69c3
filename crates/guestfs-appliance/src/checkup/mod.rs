//! What this host has and lacks for appliances, with what to do about it: the substance of `virt doctor`.
//!
//! Every check looks at the very thing that the appliance would use, found the way in which it finds it.

use guestfs::engine::Engine;
use serde::Serialize;
use vmm_mini::probe::{Report, Verdict, probe};

use crate::Appliance;
use crate::accel::{self, Accel};
use crate::locate;

mod host;
mod machines;

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Something is slower or not possible, but no main job.
    Warning,
    /// Without it guests cannot be changed.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is, in a word or two.
    pub name: &'static str,
    /// How grave it is.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do about it, in a line.
    pub fix: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Finding { name, state: State::Ok, detail: detail.into(), fix: None }
    }

    /// Something is not, and what to do.
    pub fn bad(name: &'static str, state: State, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { name, state, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// The command that installs a package.
pub fn install(package: &str) -> String {
    if std::path::Path::new("/usr/bin/apt-get").is_file() {
        format!("sudo apt-get install {package}")
    } else {
        format!("install what Debian calls {package}")
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Checkup {
    /// The probe's whole report.
    pub kvm: Report,
    /// Everything, in order of weight.
    pub findings: Vec<Finding>,
}

/// Looks at everything. The probe runs anew, whatever is cached.
pub fn checkup() -> Checkup {
    let kvm = probe();
    let kernel = locate::kernel();
    let monitor = locate::monitor();
    // Our monitor starts our kernel only: a distribution's looks for its devices over PCI.
    let wanted = accel::wish(None).is_ok_and(|wish| wish != Accel::Tcg);
    let own = wanted && kvm.verdict == Verdict::Works && monitor.is_ok() && kernel.as_ref().is_ok_and(|k| k.modules.is_none());
    let mut findings = vec![
        machines::kvm(&kvm),
        machines::monitor(&monitor),
        machines::qemu(own),
        machines::kernel(&kernel),
        machines::agent(&locate::initramfs()),
        host::temporary(),
        host::cache(),
        host::memory(),
        host::sandbox(),
        machines::firmware(),
    ];
    findings.extend(crate::tools::findings());
    // All is there, so that only the wish can be what cannot be.
    if findings.iter().all(|f| f.state != State::Missing)
        && let Err(e) = Appliance::new().check()
    {
        findings.push(Finding::bad(accel::VARIABLE, State::Missing, e.to_string(), format!("unset {}", accel::VARIABLE)));
    }
    Checkup { kvm, findings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_has_a_way_out() {
        let Checkup { kvm, findings } = checkup();
        assert!(findings.iter().all(|f| (f.state == State::Ok) == f.fix.is_none() && !f.detail.is_empty()), "{findings:#?}");
        let state = |name| findings.iter().find(|f| f.name == name).unwrap().state;
        // KVM is never the only way.
        assert_eq!(state("KVM") == State::Ok, kvm.verdict == Verdict::Works);
        assert!(state("KVM") < State::Missing);
        let names: std::collections::HashSet<_> = findings.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), findings.len());
    }
}
