//! Who runs the appliance's processor: KVM, by our own monitor, or QEMU's translator.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use guestfs::{Error, Result};
use vmm_mini::probe::{self, Verdict};

use crate::locate::{self, Files};
use crate::{on_kvm, qemu};

/// Has the last word where no option says otherwise.
pub const VARIABLE: &str = "GUESTLIFT_ACCEL";

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where it works, QEMU where it does not.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// QEMU with its own translator.
    Tcg,
}

/// The words for them, on command lines and in [`VARIABLE`].
const WORDS: [(&str, Accel); 3] = [("auto", Accel::Auto), ("kvm", Accel::Kvm), ("tcg", Accel::Tcg)];

impl FromStr for Accel {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = WORDS.iter().find(|(w, _)| *w == word).map(|(_, accel)| *accel);
        found.ok_or_else(|| format!("'{}' is none of auto, kvm and tcg", guestfs::show(word.as_bytes())))
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WORDS.iter().filter(|(_, accel)| accel == self).try_for_each(|(word, _)| f.write_str(word))
    }
}

/// What was chosen, and why.
#[derive(Debug)]
pub struct Choice {
    /// The program of our monitor; without it QEMU does the work.
    pub monitor: Option<PathBuf>,
    /// Why, as the end of a sentence.
    pub why: String,
}

/// The user's wish: what is asked for here, or else in the environment.
pub fn wish(asked: Option<Accel>) -> Result<Accel> {
    match (asked, std::env::var_os(VARIABLE).filter(|v| !v.is_empty())) {
        (Some(accel), _) => Ok(accel),
        (None, None) => Ok(Accel::Auto),
        (None, Some(value)) => value.to_string_lossy().parse().map_err(|e| Error::Invalid(format!("{VARIABLE}: {e}"))),
    }
}

/// Chooses for a machine of these files and so many disks.
pub fn choose(wish: Accel, files: &Files, disks: usize) -> Result<Choice> {
    if wish == Accel::Tcg {
        return Ok(Choice { monitor: None, why: "as it was asked for".into() });
    }
    match (usable(files, disks), wish) {
        (Ok((monitor, why)), _) => Ok(Choice { monitor: Some(monitor), why }),
        (Err(why), Accel::Kvm) => Err(Error::Missing(format!("the appliance cannot run on KVM, which was asked for: {why}"))),
        (Err(why), _) => Ok(Choice { monitor: None, why }),
    }
}

/// Whether the chosen engine is there; where neither is, what to install.
pub fn check(choice: &Choice, wish: Accel) -> Result<()> {
    match (&choice.monitor, qemu::find()) {
        (Some(_), _) | (None, Ok(_)) => Ok(()),
        (None, Err(e)) if wish == Accel::Tcg => Err(e),
        (None, Err(qemu)) => Err(Error::Missing(format!("the appliance needs KVM or QEMU, and can have neither: {}; {qemu}", choice.why))),
    }
}

/// Our monitor's program and what speaks for it, or what speaks against it.
fn usable(files: &Files, disks: usize) -> Result<(PathBuf, String), String> {
    if files.modules.is_some() {
        return Err("a distribution's kernel runs in QEMU only".into());
    }
    if disks > on_kvm::MAX_DISKS {
        return Err(format!("on KVM it takes {} disks at most, and these are {disks}", on_kvm::MAX_DISKS));
    }
    let report = locate::cache().map_or_else(probe::probe, |folder| probe::cached(&folder));
    if report.verdict != Verdict::Works {
        return Err(report.fix.map_or_else(|| report.reason.clone(), |fix| format!("{} ({fix})", report.reason)));
    }
    let program = locate::monitor().map_err(|e| e.to_string())?;
    Ok((program, report.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(modules: Option<&str>) -> Files {
        Files { kernel: "/k".into(), modules: modules.map(Into::into), initramfs: "/i".into() }
    }

    #[test]
    fn every_word_means_itself() {
        for (word, accel) in WORDS {
            assert_eq!((word.parse(), accel.to_string()), (Ok(accel), word.to_string()));
        }
        assert!("KVM\u{1b}".parse::<Accel>().unwrap_err().contains("auto, kvm and tcg"));
    }

    #[test]
    fn qemu_gets_what_kvm_cannot_do_and_who_asks_for_kvm_is_told_why_not() {
        for (files, disks, why) in [(files(Some("/m")), 0, "distribution's kernel"), (files(None), 200, "200")] {
            let choice = choose(Accel::Auto, &files, disks).unwrap();
            assert!(choice.monitor.is_none() && choice.why.contains(why), "{choice:?}");
            let error = choose(Accel::Kvm, &files, disks).unwrap_err();
            assert!(matches!(error, Error::Missing(_)) && error.to_string().contains(why), "{error}");
            assert!(choose(Accel::Tcg, &files, disks).unwrap().monitor.is_none());
        }
    }
}
