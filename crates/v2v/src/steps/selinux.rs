//! Where SELinux is in force, what was written gets its labels: by the guest's own setfiles, else all files do at the first boot.

use std::collections::BTreeSet;

use guestfs::engine::Command;
use guestfs::{Ext, GuestFs};

use crate::Result;
use crate::stack::holder;
use crate::staged::path::parent;
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step { name: "selinux", about: "files that the conversion writes have no SELinux label yet", run };

/// Without `-m` nothing is labelled where SELinux is not running. Where it fails, all files are labelled at the first boot.
const SCRIPT: &str = "setfiles -m -i -F \"$@\" || : >/.autorelabel";

fn run(cx: &mut Context<'_>) -> Result<()> {
    let Some(config) = cx.text("/etc/selinux/config")? else { return Ok(()) };
    let setting = |name: &str| {
        let value = config.lines().filter_map(|l| l.trim().strip_prefix(name)?.strip_prefix('=')).next_back();
        value.map(|v| v.trim().trim_matches('"').to_string())
    };
    let in_force = matches!(setting("SELINUX").as_deref(), Some("enforcing" | "permissive"));
    if !in_force || cx.fs.is_unchanged() || cx.fs.exists(b"/.autorelabel") {
        return Ok(());
    }
    let policy = setting("SELINUXTYPE").filter(|p| !p.is_empty() && !p.contains('/')).unwrap_or_else(|| "targeted".into());
    let contexts = format!("/etc/selinux/{policy}/contexts/files/file_contexts");
    let setfiles = ["/sbin/setfiles", "/usr/sbin/setfiles"].iter().any(|p| cx.fs.is_file(p.as_bytes()));
    // Those before its version 2.1 do not know `-m`.
    let is_old = |version: &str| ["1.", "2.0."].iter().any(|old| version.starts_with(old));
    let setfiles = setfiles && !cx.packages.version("policycoreutils").is_some_and(is_old);
    if setfiles && cx.fs.is_file(contexts.as_bytes()) {
        let words = ["/bin/sh", "-c", SCRIPT, "setfiles", &contexts].map(|w| w.as_bytes().to_vec());
        let command = Command::new(words.into_iter().chain(written(cx)));
        cx.fs.command("SELinux is in force: what was written gets its labels", command);
    } else {
        cx.fs.put(b"/.autorelabel", b"", None)?;
        cx.note("all files are labelled at the first boot, which takes longer and ends with a restart");
    }
    Ok(())
}

/// All that is there after the conversion and was written by it; of a new directory only the directory, as setfiles goes down by itself.
fn written(cx: &Context<'_>) -> Vec<Vec<u8>> {
    let changed = cx.fs.changes().iter().map(|c| c.op.path().to_vec()).filter(|p| !cx.fs.is_passing(p) && cx.fs.lstat(p).is_ok());
    let made = cx.fs.commands().iter().flat_map(|c| &c.makes).map(|p| p.trim_end_matches('/').as_bytes().to_vec());
    let all: BTreeSet<Vec<u8>> = changed.chain(made).collect();
    let is_new = |dir: &[u8]| cx.fs.before(dir).is_err();
    // An ESP's files have no labels, and setfiles takes that for a failure.
    let has_labels = |p: &&Vec<u8>| holder(&cx.mounts, &String::from_utf8_lossy(p)).is_none_or(|mount| mount.filesystem != "vfat");
    all.iter().filter(has_labels).filter(|p| !parent(p).is_some_and(|dir| is_new(dir) && all.contains(dir))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Mounted;
    use crate::testing::{MemFs, mounted_subvolume, run_step};

    fn with(mode: &str) -> MemFs {
        MemFs::new()
            .file("/etc/selinux/config", format!("# SELINUX=enforcing\nSELINUX={mode}\nSELINUXTYPE=default\n"))
            .file("/etc/modules", "xenfs\n")
    }

    #[test]
    fn only_where_it_is_in_force_and_something_changed() {
        run_step(&with("enforcing"), &STEP, |cx| assert!(cx.fs.is_unchanged()));
        for (mode, relabel) in [("enforcing", true), ("permissive", true), ("disabled", false)] {
            run_step(&with(mode), &super::super::modules::STEP, |cx| {
                cx.run(&STEP).unwrap();
                assert_eq!(cx.fs.exists(b"/.autorelabel"), relabel, "{mode}");
            });
        }
    }

    #[test]
    fn the_guests_own_tool_labels_what_was_written() {
        let base = with("enforcing").dir("/boot").file("/sbin/setfiles", "").file("/etc/selinux/default/contexts/files/file_contexts", "");
        run_step(&base, &super::super::modules::STEP, |cx| {
            cx.fs.put(b"/boot/grub/i386-pc/a.mod", b"x", None).unwrap();
            cx.fs.put(b"/boot/efi/EFI/centos/grub.cfg", b"x", None).unwrap();
            cx.mounts.push(Mounted { filesystem: "vfat".into(), ..mounted_subvolume("/boot/efi", "") });
            cx.fs.command("test", Command::new(["update-initramfs"]));
            cx.fs.makes(["/boot/initrd.img-6.1".to_string()]);
            cx.run(&STEP).unwrap();
            assert!(!cx.fs.exists(b"/.autorelabel"));
            let words = &cx.fs.commands()[1].command.argv[5..];
            let shown: Vec<_> = words.iter().map(|w| String::from_utf8_lossy(w)).collect();
            assert_eq!(shown, ["/boot/grub", "/boot/initrd.img-6.1", "/etc/modules"]);
        });
    }
}
