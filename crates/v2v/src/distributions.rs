//! Whole conversions of distributions' configuration files: `tests/fixtures/distributions`, whose README tells the format.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::bootloader::Grub;
use crate::guest::{cpio::Writer, rpm};
use crate::staged::Staged;
use crate::step::{Context, Options, Package};
use crate::steps;
use crate::testing::{MemFs, bzimage, xen_tools_guest};

/// Set to have the plans written anew.
const UPDATE: &str = "UPDATE_PLANS";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/distributions")
}

/// A guest's files, and the packages given for it.
fn guest(text: &str) -> (MemFs, Vec<Package>) {
    let (mut fs, mut packages) = (MemFs::new().dir("/boot"), Vec::new());
    let mut file: Option<(&str, String)> = None;
    for line in text.lines().chain(["=== "]) {
        if let Some(path) = line.strip_prefix("=== ") {
            if let Some((path, content)) = file.replace((path, String::new())) {
                fs = fs.file(path, content);
            }
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        match (&mut file, &words[..]) {
            (Some((_, content)), ["@GRUBENV"]) => *content += &"#".repeat(1024 - content.len()),
            (Some((_, content)), _) => writeln!(content, "{line}").unwrap(),
            (None, ["@", "kernel", path, release]) => fs = fs.file(path, bzimage(release)),
            (None, ["@", "xen-kernel", path]) => fs = fs.file(path, [0x1f; 0x300]),
            (None, ["@", "initrd", path, modules @ ..]) => {
                let mut cpio = Writer::default();
                modules.iter().for_each(|m| cpio.file(&format!("lib/modules/x/kernel/{m}.ko"), b"elf"));
                fs = fs.file(path, cpio.finish());
            }
            (None, ["@", "modules", release]) => {
                let names = ["virtio", "virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net"];
                let dep: String = names.iter().map(|m| format!("kernel/{m}.ko:\n")).collect();
                fs = fs.file(&format!("/lib/modules/{release}/modules.dep"), dep);
                fs = names.iter().fold(fs, |fs, m| fs.file(&format!("/lib/modules/{release}/kernel/{m}.ko"), m));
            }
            (None, ["@", "link", path, target]) => fs = fs.link_to(path, target),
            (None, ["@", "program", path]) => fs = fs.file(path, "#!/bin/sh\n"),
            (None, ["@", "dir", path]) => fs = fs.dir(path),
            (None, ["@", "package", name, release]) => {
                let image = format!("/boot/vmlinuz-{release}");
                packages.push(Package { name: name.to_string(), data: rpm::tests::package("kernel-default", &[&image], &[], &[]) });
            }
            _ => panic!("what is {line:?}?"),
        }
    }
    (fs, packages)
}

/// What people read of a plan.
fn plan(text: &str) -> String {
    let (fs, kernel_packages) = guest(text);
    let grub = tempfile::tempdir().unwrap();
    for file in ["boot.img", "normal.mod", "moddep.lst"] {
        std::fs::write(grub.path().join(file), file).unwrap();
    }
    let options = Options { kernel_packages, grub: Some(Grub::find(Some(grub.path())).unwrap()), ..Options::default() };
    let (source, layout) = xen_tools_guest();
    let mut cx = Context::new(&source, &layout, &options, Staged::new(&fs)).unwrap();
    steps::run_all(&mut cx).unwrap_or_else(|e| panic!("{e}"));
    let mut out = format!("family: {}\nboot loader: {}\n", cx.family.name, cx.facts.boot_loader);
    for report in &cx.reports {
        report.notes.iter().for_each(|note| writeln!(out, "{}: {note}", report.name).unwrap());
        report.warnings.iter().for_each(|warning| writeln!(out, "{}: warning: {warning}", report.name).unwrap());
    }
    cx.fs.commands().iter().for_each(|command| writeln!(out, "command: {}", command.shown()).unwrap());
    for diff in cx.fs.diff().into_iter().filter(|diff| !diff.text.ends_with("directory\n") && !diff.path.starts_with("/boot/grub/i386-pc"))
    {
        writeln!(out, "== {} {}", serde_json::to_value(diff.kind).unwrap().as_str().unwrap(), diff.path).unwrap();
        // Of our own menu only what differs from guest to guest.
        let ours = diff.text.lines().any(|l| l.starts_with("+# Written by v2v"));
        let told = |l: &&str| !ours || l.contains("linux $2") || l.contains("legacy_configfile");
        let lines = diff.text.lines().filter(told).filter(|l| !["new mode", "---", "+++"].iter().any(|w| l.starts_with(w)));
        lines.for_each(|line| writeln!(out, "{}", line.trim_end_matches(|c: char| c == '#' && line.len() > 200)).unwrap());
    }
    out
}

#[test]
fn every_distribution_is_planned_as_reviewed() {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|e| e == "guest"));
    names.sort();
    assert!(names.len() >= 14, "{names:?}");
    let mut wrong = String::new();
    for path in names {
        let now = plan(&std::fs::read_to_string(&path).unwrap());
        let expected = path.with_extension("plan");
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&expected, &now).unwrap();
        }
        let reviewed = std::fs::read_to_string(&expected).unwrap_or_default();
        if reviewed != now {
            let diff = similar::TextDiff::from_lines(&reviewed, &now).unified_diff().to_string();
            writeln!(wrong, "{}:\n{diff}", path.display()).unwrap();
        }
        // A person may convert a result again; nothing of Xen is left in it for a machine to find.
        let leftover =
            now.lines().find(|l| l.starts_with('+') && ["hvc0", "xvc0", "xvda", "xenblk", "xen-blkfront"].iter().any(|w| l.contains(w)));
        assert_eq!(leftover, None, "{}", path.display());
    }
    assert!(wrong.is_empty(), "{wrong}");
}
