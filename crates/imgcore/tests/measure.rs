//! How large images get, against `qemu-img measure`.

mod common;

use common::{Random, have, run};
use imgcore::formats::{CreateOptions, Measured};
use imgcore::{Formats, LocalGate, OpenOptions};

fn options(text: &str) -> CreateOptions {
    text.split(',').fold(CreateOptions::new(), |options, pair| {
        let (name, value) = pair.split_once('=').unwrap();
        options.set(name, value)
    })
}

/// qemu-img's numbers, or its complaint.
fn theirs(folder: &std::path::Path, args: &[&str]) -> Result<Measured, String> {
    let (code, text) = run("qemu-img", &[&["measure"], args].concat(), folder);
    let number = |label: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(label));
        line.map(|number| number.trim().parse::<u64>().unwrap())
    };
    if code != 0 {
        return Err(text);
    }
    Ok(Measured {
        required: number("required size:").unwrap(),
        fully_allocated: number("fully allocated size:").unwrap(),
        bitmaps: number("bitmaps size:"),
    })
}

const OPTIONS: &[&str] = &[
    "lazy_refcounts=off",
    "cluster_size=512",
    "cluster_size=2M",
    "cluster_size=4k,refcount_bits=64",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=1",
    "compat=0.10",
    "preallocation=metadata",
    "preallocation=full",
    "preallocation=falloc,backing_file=x",
    "backing_file=x,backing_fmt=raw",
];

#[test]
fn sizes_are_qemu_imgs() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let formats = Formats::new();
    for text in OPTIONS {
        for size in ["0", "1000", "1M", "123456789", "20G", "3T", "64P"] {
            let bytes = imgcore::size::parse(size).unwrap();
            let ours = formats.driver("qcow2").unwrap().measure(bytes, None, &options(text));
            let theirs = theirs(dir.path(), &["-O", "qcow2", "-o", text, "--size", size]);
            match (ours, theirs) {
                (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{text} {size}"),
                (Err(e), Err(text)) => assert_eq!(format!("qemu-img: {e}\n"), text),
                (ours, theirs) => panic!("{text} {size}: {ours:?} {theirs:?}"),
            }
        }
    }
    let ours = formats.driver("raw").unwrap().measure(1000, None, &CreateOptions::new()).unwrap();
    assert_eq!(ours, theirs(dir.path(), &["-O", "raw", "--size", "1000"]).unwrap());
}

#[test]
fn sources_are_measured_as_qemu_img_does() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(31);
    let formats = Formats::new();
    for case in 0..4 {
        common::ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a.qcow2", "40M"], folder);
        let mut commands = Vec::new();
        for _ in 0..20 {
            let (at, len) = (random.below(39 << 20), random.below(200_000) + 1);
            commands.push(format!("{} {at} {len}", *random.pick(&["write", "write", "write -z"])));
        }
        let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).chain(["a.qcow2"]).collect();
        common::ok("qemu-io", &args, folder);
        common::ok("qemu-img", &["convert", "-O", "raw", "a.qcow2", "a.raw"], folder);
        if case % 2 == 0 {
            common::ok("qemu-img", &["bitmap", "--add", "-g", "4k", "a.qcow2", "first"], folder);
            common::ok("qemu-img", &["bitmap", "--add", "a.qcow2", "second"], folder);
        }
        for name in ["a.qcow2", "a.raw"] {
            let source = formats.open(folder.join(name), &OpenOptions::new(&LocalGate)).unwrap();
            for text in OPTIONS {
                let ours = formats.driver("qcow2").unwrap().measure(0, Some(&*source), &options(text)).unwrap();
                assert_eq!(ours, theirs(folder, &["-O", "qcow2", "-o", text, name]).unwrap(), "{name}: {text}");
            }
            let ours = formats.driver("raw").unwrap().measure(0, Some(&*source), &CreateOptions::new()).unwrap();
            assert_eq!(ours, theirs(folder, &["-O", "raw", name]).unwrap(), "{name}");
        }
    }
}
