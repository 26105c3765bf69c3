//! Images in use: `img` and QEMU's programs keep each other out in the same cases, with the same words.

#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use common::{IMG, have, run, sh};
use imgcore::storage::FileStorage;
use imgcore::{Formats, LocalGate, OpenOptions};

/// A program of QEMU that has an image open until it is dropped.
struct Holder(Child);

impl Holder {
    /// Starts `program`, writes `ask` to it and waits for so many lines as the sign that it has opened its image.
    fn start(program: &str, args: &str, ask: &str, lines: usize, folder: &Path) -> Holder {
        let mut command = Command::new(program);
        command.args(args.split(' ')).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(ask.as_bytes()).unwrap();
        let said = BufReader::new(child.stdout.as_mut().unwrap()).lines().take(lines).count();
        assert_eq!(said, lines, "{program} {args} opened nothing");
        Holder(child)
    }

    fn qemu_io(args: &str, folder: &Path) -> Holder {
        Holder::start("qemu-io", args, "length\n", 1, folder)
    }

    /// A machine that has not started its guest yet, with `blockdev` as its disk.
    fn machine(blockdev: &str, folder: &Path) -> Holder {
        let args = format!(
            "-machine q35,accel=tcg -S -nodefaults -display none -qmp stdio -blockdev {blockdev},node-name=d -device virtio-blk-pci,drive=d"
        );
        Holder::start("qemu-system-x86_64", &args, "{\"execute\": \"qmp_capabilities\"}\n", 2, folder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn images() -> Option<tempfile::TempDir> {
    if !["qemu-img", "qemu-io", "qemu-nbd", "qemu-system-x86_64"].iter().all(|t| have(t)) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    sh("qemu-img", "create -q -f raw r.raw 1M", dir.path());
    sh("qemu-img", "create -q -f qcow2 q.qcow2 1M", dir.path());
    sh("qemu-img", "create -q -f qcow2 -b q.qcow2 -F qcow2 top.qcow2", dir.path());
    sh("qemu-img", "create -q -f qcow2 -b r.raw -F raw onraw.qcow2", dir.path());
    sh("qemu-img", "create -q -f qcow2 -o data_file=d.raw data.qcow2 1M", dir.path());
    Some(dir)
}

/// The words about locks in what a program printed, without the way to the file: QEMU names the first image of a chain.
fn refusal(err: &str) -> Vec<&str> {
    let lines = err.lines().filter(|l| l.contains(" lock") || l.contains("Is another process"));
    lines.map(|l| l.rfind("Failed to").map_or(l, |at| &l[at..])).collect()
}

/// Both programs with the same arguments: refused with the same words, or both not; counts the refusals.
fn agree(commands: &[&str], folder: &Path) -> usize {
    let mut refused = 0;
    for command in commands {
        let args: Vec<_> = command.split(' ').collect();
        let (ours, theirs) = (run(IMG, &args, folder), run("qemu-img", &args, folder));
        assert_eq!(refusal(&ours.err), refusal(&theirs.err), "{command}: {} and {}", ours.err, theirs.err);
        assert_eq!(ours.code, theirs.code, "{command}: {} and {}", ours.err, theirs.err);
        refused += usize::from(!refusal(&theirs.err).is_empty());
    }
    refused
}

const READERS: [&str; 15] = [
    "info r.raw",
    "info q.qcow2",
    "info -U q.qcow2",
    "info top.qcow2",
    "map r.raw",
    "map --output=json top.qcow2",
    "map -U --output=json q.qcow2",
    "map --output=json data.qcow2",
    "check q.qcow2",
    "convert -f raw -O raw r.raw o.raw",
    "convert -O raw q.qcow2 o.raw",
    "convert -U -f raw -O raw r.raw o.raw",
    "compare r.raw q.qcow2",
    "measure -O qcow2 q.qcow2",
    "dd -f qcow2 if=q.qcow2 of=copy.raw",
];

const WRITERS: [&str; 4] = [
    "check -r all q.qcow2",
    "resize -q -f qcow2 q.qcow2 1M",
    "convert -n -f raw -O raw o.raw r.raw",
    "convert -n -f raw -O qcow2 o.raw q.qcow2",
];

#[test]
fn what_qemu_holds_is_refused_as_qemu_img_refuses_it() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    std::fs::write(folder.join("o.raw"), vec![0; 1 << 20]).unwrap();
    let check = |holder: Holder, refused: [usize; 2]| {
        assert_eq!([agree(&READERS, folder), agree(&WRITERS, folder)], refused);
        drop(holder);
    };
    check(Holder::qemu_io("-f qcow2 q.qcow2", folder), [7, 3]);
    check(Holder::qemu_io("-f qcow2 -r q.qcow2", folder), [0, 3]);
    check(Holder::qemu_io("-f qcow2 -r top.qcow2", folder), [0, 3]);
    check(Holder::qemu_io("-f raw r.raw", folder), [1, 0]);
    check(Holder::qemu_io("-f raw -r r.raw", folder), [0, 0]);
    check(Holder::qemu_io("-f qcow2 data.qcow2", folder), [1, 0]);
    check(Holder::qemu_io("-f raw d.raw", folder), [0, 0]);
    check(Holder::machine("driver=raw,file.driver=file,file.filename=r.raw", folder), [1, 1]);
    check(Holder::machine("driver=qcow2,file.driver=file,file.filename=q.qcow2", folder), [7, 3]);
    check(Holder::machine("driver=qcow2,file.driver=file,file.filename=top.qcow2", folder), [2, 3]);
    // Nobody is left.
    assert_eq!([agree(&READERS, folder), agree(&WRITERS, folder)], [0, 0]);
}

#[test]
fn an_image_in_use_is_not_replaced() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    let commands = [
        "create -q -f qcow2 q.qcow2 2M",
        "create -q -f raw q.qcow2 2M",
        "convert -f raw -O qcow2 r.raw q.qcow2",
        "info --output=json r.raw",
    ];
    let holder = Holder::qemu_io("-f qcow2 q.qcow2", folder);
    let before = std::fs::read(folder.join("q.qcow2")).unwrap();
    for command in &commands[..3] {
        let ran = run(IMG, &command.split(' ').collect::<Vec<_>>(), folder);
        assert_eq!(ran.code, 1);
        assert!(ran.err.contains("Failed to get \"write\" lock\nIs another process using the image [q.qcow2]?"), "{}", ran.err);
    }
    assert_eq!(std::fs::read(folder.join("q.qcow2")).unwrap(), before);
    drop(holder);
    for command in commands {
        sh(IMG, command, folder);
    }
}

#[test]
fn the_other_programs_say_what_to_do() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    let _holder = Holder::machine("driver=raw,file.driver=file,file.filename=r.raw", folder);
    let ran = run(env!("CARGO_BIN_EXE_virt"), &["filesystems", "-a", "r.raw"], folder);
    assert!(ran.code == 1 && ran.err.contains("[r.raw]?\nHint: shut down the guest"), "{}", ran.err);
    let ran = run(env!("CARGO_BIN_EXE_v2v"), &["-i", "disk", "r.raw", "--out", "out"], folder);
    assert!(ran.code == 1 && ran.err.contains("[r.raw]?\nA running guest would change it"), "{}", ran.err);
}

#[test]
fn what_we_hold_is_refused_by_qemu() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    let formats = Formats::new();
    let storage = |name: &str, write: bool| {
        let path = folder.join(name);
        Arc::new(if write { FileStorage::open_writable(path) } else { FileStorage::open(path) }.unwrap())
    };
    let plain = OpenOptions::new(&LocalGate);
    let qemu = |command: &str| {
        let ran = run("qemu-img", &command.split(' ').collect::<Vec<_>>(), folder);
        refusal(&ran.err).first().map(|line| line.to_string())
    };
    let words = |words: &str| Some(format!("Failed to get {words} lock"));

    let held = formats.open_storage_mut(storage("q.qcow2", true), &plain).unwrap();
    assert_eq!(qemu("info q.qcow2"), words("shared \"write\""));
    assert_eq!(qemu("check -r all q.qcow2"), words("\"write\""));
    assert_eq!(qemu("map top.qcow2"), words("shared \"write\""));
    assert_eq!(qemu("info -U q.qcow2"), None);
    drop(held);
    assert_eq!(qemu("check -r all q.qcow2"), None);

    let held = formats.open_storage(storage("top.qcow2", false), &plain).unwrap();
    assert_eq!(qemu("map top.qcow2"), None);
    for name in ["top.qcow2", "q.qcow2"] {
        assert_eq!(qemu(&format!("check -r all {name}")), words("\"write\""));
    }
    drop(held);

    let held = formats.open_storage(storage("r.raw", false), &plain.clone().format("raw")).unwrap();
    assert_eq!(qemu("resize -q -f raw r.raw 1M"), None);
    drop(held);
    let held = formats.open_storage(storage("onraw.qcow2", false), &plain.clone().exclusive()).unwrap();
    assert_eq!(qemu("resize -q -f raw r.raw 1M"), words("\"write\""));
    drop(held);
    let held = formats.open_storage(storage("onraw.qcow2", false), &plain.clone().force_share(true)).unwrap();
    assert_eq!(qemu("resize -q -f qcow2 onraw.qcow2 1M"), None);
    drop(held);
    let held = formats.open_storage(storage("data.qcow2", false), &plain).unwrap();
    assert_eq!(qemu("resize -q -f raw d.raw 1M"), words("\"resize\""));
    drop(held);
    assert!(formats.open_storage_mut(storage("r.raw", true), &plain.clone().force_share(true)).is_err());
}
