//! Where SELinux is in force, the files that were written get their labels at the first boot.

use guestfs::Ext;

use crate::Result;
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step { name: "selinux", about: "files that the conversion writes have no SELinux label yet", run };

fn run(cx: &mut Context<'_>) -> Result<()> {
    let Some(config) = cx.text("/etc/selinux/config")? else { return Ok(()) };
    let mode = config.lines().filter_map(|l| l.trim().strip_prefix("SELINUX=")).next_back().map(|m| m.trim().to_string());
    let in_force = matches!(mode.as_deref(), Some("enforcing" | "permissive"));
    if in_force && !cx.fs.changes().is_empty() && !cx.fs.exists(b"/.autorelabel") {
        cx.fs.put(b"/.autorelabel", b"", None)?;
        cx.note("all files are labelled at the first boot, which takes longer and ends with a restart");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn only_where_it_is_in_force_and_something_changed() {
        let with = |mode: &str| {
            MemFs::new().file("/etc/selinux/config", format!("# SELINUX=enforcing\nSELINUX={mode}\n")).file("/etc/modules", "xenfs\n")
        };
        run_step(&with("enforcing"), &STEP, |cx| assert!(cx.fs.is_unchanged()));
        for (mode, relabel) in [("enforcing", true), ("permissive", true), ("disabled", false)] {
            run_step(&with(mode), &super::super::modules::STEP, |cx| {
                cx.run(&STEP).unwrap();
                assert_eq!(cx.fs.exists(b"/.autorelabel"), relabel, "{mode}");
            });
        }
    }
}
