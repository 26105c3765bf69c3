//! `virt-doctor`: what this host has and lacks, and what to do about it.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, FromArgMatches};
use guestfs::engine::Engine;
use guestfs_appliance::Appliance;
use guestfs_appliance::checkup::{Checkup, Finding, State, checkup, install};
use serde_json::json;
use v2v::bootloader::Grub;

use super::Entry;
use super::show::Out;
use crate::common::{Failure, json};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "doctor", arguments: Doctor::augment_args, run: |matches| run(&Doctor::from_arg_matches(matches)?) };

/// Check what this host has and lacks, and say what to do about it.
///
/// The exit code is 0 when guests can be read, changed and converted, and 1 when something that this needs is missing. A warning is
/// something that is slower, or that few guests need.
#[derive(Args)]
#[command(after_help = "Examples:\n  virt-doctor\n  virt-doctor --boot\n  virt-doctor --json | jq .works")]
struct Doctor {
    /// Start an appliance, too, and say how long that took
    #[arg(long)]
    boot: bool,
    /// JSON, with all that is known
    #[arg(long)]
    json: bool,
}

fn run(args: &Doctor) -> Result<ExitCode, Failure> {
    let Checkup { kvm, mut findings } = checkup();
    findings.push(boot_loader());
    if args.boot {
        findings.push(boot());
    }
    let works = findings.iter().all(|f| f.state != State::Missing);
    if args.json {
        json::print(&json!({ "works": works, "appliance": Appliance::new().describe(), "kvm": kvm, "findings": findings }));
    } else {
        let mut out = Out::new();
        out.bytes(render(&findings, &conclusion(works)).as_bytes())?;
        out.finish()?;
    }
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn conclusion(works: bool) -> String {
    if works {
        format!("Guests can be read, changed and converted here. The appliance runs in {}.", Appliance::new().describe())
    } else {
        "Guests cannot be changed or converted here before what is missing is there.".into()
    }
}

/// GRUB's parts for guests that start by BIOS, as v2v finds them.
fn boot_loader() -> Finding {
    match Grub::find(None) {
        Ok(_) => Finding::ok("grub-pc-bin", "boot loaders for guests that have none"),
        Err(_) => {
            let detail = "GRUB for BIOS is not here: v2v cannot convert guests that have no boot loader";
            Finding::bad("grub-pc-bin", State::Warning, detail, install("grub-pc-bin"))
        }
    }
}

/// Starts an appliance, as every change of a guest does.
fn boot() -> Finding {
    let started = Instant::now();
    let outcome = Appliance::new().start(Vec::new(), false).and_then(|session| {
        let answered = started.elapsed();
        session.shutdown()?;
        Ok((answered, started.elapsed()))
    });
    match outcome {
        Ok((answered, ended)) => {
            let (answered, ended) = (answered.as_secs_f64(), ended.as_secs_f64());
            Finding::ok("appliance", format!("answers after {answered:.2} s, ends after {ended:.2} s"))
        }
        Err(e) => {
            Finding::bad("appliance", State::Missing, e.to_string(), "mend what is missing above; else its console's last lines tell more")
        }
    }
}

/// The table for people, with a sentence at its end.
fn render(findings: &[Finding], conclusion: &str) -> String {
    let width = findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut line = |state: &str, name: &str, words: &str| text.push_str(&format!("{state:<7}  {name:<width$}  {words}\n"));
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "missing",
        };
        let mut lines = finding.detail.lines();
        line(state, finding.name, lines.next().unwrap_or_default());
        lines.for_each(|more| line("", "", more));
        if let Some(fix) = &finding.fix {
            line("", "", &format!("fix: {fix}"));
        }
    }
    text + "\n" + conclusion + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_fix_beneath_what_is_not_well() {
        let findings = [
            Finding::ok("KVM", "guests' kernels run on the processor"),
            Finding::bad(
                "QEMU",
                State::Warning,
                "qemu-system-x86_64 is not installed: only the boot check needs it",
                "sudo apt-get install it",
            ),
            Finding::bad("appliance", State::Missing, "QEMU ended\nits console:\nKernel panic", "look above"),
        ];
        let expected = "\
ok       KVM        guests' kernels run on the processor
warning  QEMU       qemu-system-x86_64 is not installed: only the boot check needs it
                    fix: sudo apt-get install it
missing  appliance  QEMU ended
                    its console:
                    Kernel panic
                    fix: look above

Nothing works.
";
        assert_eq!(render(&findings, "Nothing works."), expected);
    }
}
