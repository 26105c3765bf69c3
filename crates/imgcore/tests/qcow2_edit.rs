//! Changes to a qcow2 image's structure, against qemu-img: what one makes or changes, the other checks, reads and changes.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Random, have, ok, run};
use imgcore::formats::CreateOptions;
use imgcore::storage::FileStorage;
use imgcore::{Formats, Image, ImageEdit, ImageMut, LocalGate, NoProgress, OpenOptions, Preallocation};

fn edit(path: &Path) -> Box<dyn ImageEdit> {
    let storage = Arc::new(FileStorage::open_writable(path).unwrap());
    Formats::new().open_edit(storage, &OpenOptions::new(&LocalGate)).unwrap()
}

fn read_all(image: &(impl Image + ?Sized)) -> Vec<u8> {
    let mut all = vec![0x55; image.size() as usize];
    image.read_at(&mut all, 0).unwrap();
    all
}

/// Random writes and discards, mirrored in `model`.
fn scribble(image: &(impl ImageMut + ?Sized), model: &mut [u8], random: &mut Random) {
    for _ in 0..random.below(6) + 1 {
        let offset = random.below(model.len() as u64);
        let longest = *random.pick(&[3000, 90_000]);
        let len = random.below(longest).min(model.len() as u64 - offset);
        let range = offset as usize..(offset + len) as usize;
        if random.below(4) == 0 {
            image.discard(offset, len).unwrap();
            model[range].fill(0);
        } else {
            let data = random.bytes(len);
            image.write_at(&data, offset).unwrap();
            model[range].copy_from_slice(&data);
        }
    }
    image.flush().unwrap();
}

fn check_with_qemu(folder: &Path, name: &str, model: &[u8], case: &str) {
    let (code, text) = run("qemu-img", &["check", name], folder);
    assert_eq!(code, 0, "{case}: {text}");
    std::fs::write(folder.join("model.raw"), model).unwrap();
    let (code, text) = run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "model.raw", name], folder);
    assert_eq!(code, 0, "{case}: {text}");
}

fn random_image(folder: &Path, size: u64, random: &mut Random) -> String {
    let mut options = format!("cluster_size={}", random.pick(&["512", "1k", "4k", "64k", "64k"]));
    match random.below(5) {
        0 => options += ",compat=0.10",
        2 => options = "extended_l2=on,cluster_size=16k".into(),
        1 => options += &format!(",refcount_bits={}", random.pick(&["4", "8", "64"])),
        _ => {}
    }
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size.to_string()], folder);
    options
}

#[test]
fn the_backing_file_is_named_as_qemu_img_names_it() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    ok("qemu-img", &["create", "-q", "-f", "raw", "base.raw", "1M"], folder);
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"], folder);
    for options in ["cluster_size=64k", "compat=0.10", "cluster_size=1k", "compression_type=zstd,lazy_refcounts=on"] {
        for (file, format) in
            [(Some("base.raw"), Some("raw")), (Some("base.qcow2"), Some("qcow2")), (Some("base.raw"), Some("raw")), (None, None)]
        {
            for name in ["ours.qcow2", "theirs.qcow2"] {
                if !folder.join(name).exists() {
                    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "1M"], folder);
                }
            }
            edit(&folder.join("ours.qcow2")).set_backing(file, format).unwrap();
            let backing = match (file, format) {
                (Some(file), Some(format)) => vec!["-b", file, "-F", format],
                _ => vec!["-b", ""],
            };
            ok("qemu-img", &[&["rebase", "-u"], &backing[..], &["theirs.qcow2"]].concat(), folder);
            let header = |name: &str| std::fs::read(folder.join(name)).unwrap()[..1024].to_vec();
            assert!(header("ours.qcow2") == header("theirs.qcow2"), "{options}: {file:?}");
            ok("qemu-img", &["check", "-q", "ours.qcow2"], folder);
        }
        for name in ["ours.qcow2", "theirs.qcow2"] {
            std::fs::remove_file(folder.join(name)).unwrap();
        }
    }
    // What does not fit changes nothing.
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "1M"], folder);
    let before = std::fs::read(folder.join("small.qcow2")).unwrap();
    let error = edit(&folder.join("small.qcow2")).set_backing(Some(&"x".repeat(500)), Some("raw")).unwrap_err();
    assert!(error.to_string().ends_with("name is too long"), "{error}");
    assert!(std::fs::read(folder.join("small.qcow2")).unwrap() == before);
}

#[test]
fn sizes_change_and_old_data_stays_away() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(11);
    for case in 0..14 {
        let size = (random.below(2 << 20) + 4096) & !511;
        let options = random_image(folder, size, &mut random);
        let mut model = vec![0; size as usize];
        let backed = random.below(3) == 0;
        if backed {
            let base_size = (random.below(2 * size) + 512) & !511;
            let base = random.bytes(base_size);
            std::fs::write(folder.join("base.raw"), &base).unwrap();
            ok("qemu-img", &["rebase", "-u", "-b", "base.raw", "-F", "raw", "a.qcow2"], folder);
            let there = base.len().min(model.len());
            model[..there].copy_from_slice(&base[..there]);
        }
        let mut snapshot = false;
        for step in 0..6 {
            let case = format!("case {case}.{step}: {options}, backed {backed}");
            let mut image = edit(&folder.join("a.qcow2"));
            assert!(read_all(&*image) == model, "{case}");
            scribble(&*image, &mut model, &mut random);
            let size = match random.below(3) {
                0 => random.below(model.len() as u64) + 512,
                _ => model.len() as u64 + random.below(3 << 20),
            } & !511;
            let grows = size >= model.len() as u64;
            let mode = *random.pick(&[
                Preallocation::Off,
                Preallocation::Off,
                Preallocation::Metadata,
                Preallocation::Falloc,
                Preallocation::Full,
            ]);
            let mode = if grows { mode } else { Preallocation::Off };
            match image.resize(size, mode) {
                Ok(()) => model.resize(size as usize, 0),
                Err(e) => {
                    assert!(snapshot && options.contains("0.10"), "{case}: {e}");
                    assert_eq!(e.to_string(), "Can't resize a v2 image which has snapshots");
                }
            }
            assert!(read_all(&*image) == model, "{case}");
            drop(image);
            check_with_qemu(folder, "a.qcow2", &model, &case);
            if step == 4 && random.below(2) == 0 {
                snapshot = true;
                ok("qemu-img", &["snapshot", "-c", "s", "a.qcow2"], folder);
            }
        }
    }
}

#[test]
fn a_data_file_follows_the_size() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(16);
    for made in ["data_file=d.raw", "data_file=d.raw,data_file_raw=on", "data_file=d.raw,extended_l2=on"] {
        ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", made, "a.qcow2", "1M"], folder);
        let mut model = vec![0; 1 << 20];
        for size in [1_600_000, 700_416, 3 << 20, 512] {
            let mut image = edit(&folder.join("a.qcow2"));
            scribble(&*image, &mut model, &mut random);
            let size = size & !511;
            let mode = if size > 2 << 20 { Preallocation::Metadata } else { Preallocation::Off };
            image.resize(size, mode).unwrap();
            model.resize(size as usize, 0);
            assert!(read_all(&*image) == model, "{made}: {size}");
            drop(image);
            check_with_qemu(folder, "a.qcow2", &model, made);
            let data = std::fs::read(folder.join("d.raw")).unwrap();
            assert_eq!(data.len() as u64, size, "{made}");
            assert!(!made.contains("raw=on") || data == model, "{made}: {size}");
        }
        let mut image = edit(&folder.join("a.qcow2"));
        let refused = image.snapshots().unwrap().create("s", (0, 0)).unwrap_err().to_string();
        assert!(refused.contains("external data file"), "{refused}");
        std::fs::copy(folder.join("d.raw"), folder.join("moved.raw")).unwrap();
        image.amend(&options("data_file=moved.raw"), &NoProgress).unwrap();
        drop(image);
        assert!(ok("qemu-img", &["info", "a.qcow2"], folder).contains("data file: moved.raw"));
        check_with_qemu(folder, "a.qcow2", &model, made);
    }
}

#[test]
fn a_shrunk_file_is_no_longer_than_qemus() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(12);
    for cluster_size in ["512", "4k", "64k"] {
        std::fs::write(folder.join("full.raw"), random.bytes(4 << 20)).unwrap();
        for name in ["ours.qcow2", "theirs.qcow2"] {
            ok("qemu-img", &["convert", "-O", "qcow2", "-o", &format!("cluster_size={cluster_size}"), "full.raw", name], folder);
        }
        let size = (1 << 20) + 512;
        edit(&folder.join("ours.qcow2")).resize(size, Preallocation::Off).unwrap();
        ok("qemu-img", &["resize", "-q", "--shrink", "theirs.qcow2", &size.to_string()], folder);
        let len = |name: &str| std::fs::metadata(folder.join(name)).unwrap().len();
        assert!(len("ours.qcow2") <= len("theirs.qcow2"), "{cluster_size}: {} {}", len("ours.qcow2"), len("theirs.qcow2"));
        ok("qemu-img", &["check", "-q", "ours.qcow2"], folder);
        ok("qemu-img", &["compare", "-q", "ours.qcow2", "theirs.qcow2"], folder);
    }
}

#[test]
fn an_emptied_overlay_reads_as_the_image_below() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(13);
    for case in 0..8 {
        let size = 1 << 20;
        let options = random_image(folder, size, &mut random);
        let base = random.bytes(size);
        std::fs::write(folder.join("base.raw"), &base).unwrap();
        ok("qemu-img", &["rebase", "-u", "-b", "base.raw", "-F", "raw", "a.qcow2"], folder);
        let mut image = edit(&folder.join("a.qcow2"));
        let mut model = base.clone();
        scribble(&*image, &mut model, &mut random);
        if case % 2 == 0 {
            image.snapshots().unwrap().create("kept", (1, 2)).unwrap();
            scribble(&*image, &mut model.clone(), &mut random);
        }
        image.make_empty().unwrap();
        assert!(read_all(&*image) == base);
        drop(image);
        check_with_qemu(folder, "a.qcow2", &base, &options);
        if case % 2 == 0 {
            ok("qemu-img", &["snapshot", "-a", "kept", "a.qcow2"], folder);
            check_with_qemu(folder, "a.qcow2", &model, &options);
        }
    }
}

/// Snapshots taken, applied and deleted in any order, by us and by qemu-img in turn.
#[test]
fn snapshots_are_shared_work() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(14);
    for case in 0..8 {
        let mut size = (random.below(1 << 20) + 4096) & !511;
        let options = random_image(folder, size, &mut random);
        let mut model = vec![0; size as usize];
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        for step in 0..12 {
            let case = format!("case {case}.{step}: {options}");
            let mut image = edit(&folder.join("a.qcow2"));
            assert!(read_all(&*image) == model, "{case}");
            let names: Vec<String> = image.snapshots().unwrap().list().into_iter().map(|s| s.name).collect();
            assert_eq!(names, kept.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "{case}");
            scribble(&*image, &mut model, &mut random);
            if !options.contains("0.10") && random.below(4) == 0 {
                size = (random.below(1 << 20) + 4096) & !511;
                image.resize(size, Preallocation::Off).unwrap();
                model.resize(size as usize, 0);
            }
            let ours = random.below(3) != 0;
            let theirs = |what: &str, name: &str| ok("qemu-img", &["snapshot", what, name, "a.qcow2"], folder);
            let pick = random.below(kept.len().max(1) as u64) as usize;
            match random.below(4) {
                0 if !kept.is_empty() => {
                    let (name, _) = kept.remove(pick);
                    if ours {
                        image.snapshots().unwrap().delete(&name).unwrap();
                    } else {
                        drop(image);
                        theirs("-d", &name);
                        image = edit(&folder.join("a.qcow2"));
                    }
                }
                1 if !kept.is_empty() => {
                    let (name, then) = &kept[pick];
                    model = then.clone();
                    if ours {
                        image.snapshots().unwrap().apply(name).unwrap();
                    } else {
                        drop(image);
                        theirs("-a", name);
                        image = edit(&folder.join("a.qcow2"));
                    }
                }
                _ => {
                    let name = format!("n{step}");
                    if ours {
                        image.snapshots().unwrap().create(&name, (1_700_000_000, 5)).unwrap();
                    } else {
                        drop(image);
                        theirs("-c", &name);
                        image = edit(&folder.join("a.qcow2"));
                    }
                    kept.push((name, model.clone()));
                }
            }
            assert!(read_all(&*image) == model, "{case}");
            scribble(&*image, &mut model, &mut random);
            drop(image);
            check_with_qemu(folder, "a.qcow2", &model, &case);
            for (name, then) in &kept {
                let options = OpenOptions::new(&LocalGate).snapshot(name.as_str());
                assert!(read_all(&*Formats::new().open(folder.join("a.qcow2"), &options).unwrap()) == *then, "{case}: {name}");
                // qemu-img reads a snapshot with the size that the disk has now.
                ok("qemu-img", &["convert", "-O", "raw", "-l", name, "a.qcow2", "snap.raw"], folder);
                let theirs = std::fs::read(folder.join("snap.raw")).unwrap();
                let both = theirs.len().min(then.len());
                assert!(theirs[..both] == then[..both], "{case}: {name}");
            }
        }
    }
}

#[test]
fn counts_that_would_overflow_stop_a_snapshot() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "refcount_bits=2", "a.qcow2", "1M"], folder);
    let mut image = edit(&folder.join("a.qcow2"));
    image.write_at(&[7; 70_000], 100).unwrap();
    image.snapshots().unwrap().create("one", (0, 0)).unwrap();
    image.snapshots().unwrap().create("two", (0, 0)).unwrap();
    let before = std::fs::read(folder.join("a.qcow2")).unwrap();
    let error = image.snapshots().unwrap().create("three", (0, 0)).unwrap_err().to_string();
    assert!(error.contains("a reference count of 2 bits"), "{error}");
    assert!(std::fs::read(folder.join("a.qcow2")).unwrap() == before);
    drop(image);
    ok("qemu-img", &["check", "-q", "a.qcow2"], folder);
}

fn options(text: &str) -> CreateOptions {
    text.split(',').fold(CreateOptions::new(), |options, pair| {
        let (name, value) = pair.split_once('=').unwrap();
        options.set(name, value)
    })
}

#[test]
fn amended_images_keep_their_content() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(15);
    for case in 0..12 {
        let size = (random.below(1 << 20) + 4096) & !511;
        let made = random_image(folder, size, &mut random);
        let mut model = vec![0; size as usize];
        if random.below(2) == 0 {
            let base = random.bytes(size);
            std::fs::write(folder.join("base.raw"), &base).unwrap();
            ok("qemu-img", &["rebase", "-u", "-b", "base.raw", "-F", "raw", "a.qcow2"], folder);
            model = base;
        }
        let mut image = edit(&folder.join("a.qcow2"));
        scribble(&*image, &mut model, &mut random);
        image.snapshots().unwrap().create("s", (0, 0)).unwrap();
        let then = model.clone();
        scribble(&*image, &mut model, &mut random);
        for step in 0..5 {
            let amended = *random.pick(&[
                "compat=1.1",
                "compat=0.10,refcount_bits=16",
                "compat=1.1,refcount_bits=4",
                "compat=v3,refcount_bits=64,lazy_refcounts=on",
                "lazy_refcounts=off",
                "compat=v3,refcount_bits=2",
            ]);
            let result = image.amend(&options(amended), &NoProgress);
            drop(image);
            let case = format!("case {case}.{step}: {made}, {amended}");
            if let Err(e) = result {
                assert!(made.contains("extended") && e.to_string().contains("incompatible features 0x10"), "{case}: {e}");
            } else {
                let info = ok("qemu-img", &["info", "a.qcow2"], folder);
                let bits = options(amended).get("refcount_bits").map(|bits| format!("refcount bits: {bits}\n"));
                assert!(bits.is_none_or(|bits| info.contains(&bits)), "{case}: {info}");
                assert_eq!(
                    info.contains("compat: 0.10"),
                    amended.contains("0.10") || (info.contains("compat: 0.10") && !amended.contains("compat")),
                    "{case}"
                );
            }
            check_with_qemu(folder, "a.qcow2", &model, &case);
            ok("qemu-img", &["convert", "-O", "raw", "-l", "s", "a.qcow2", "snap.raw"], folder);
            assert!(std::fs::read(folder.join("snap.raw")).unwrap() == then, "{case}");
            image = edit(&folder.join("a.qcow2"));
            scribble(&*image, &mut model, &mut random);
        }
    }
}

/// What qemu-img refuses we refuse, in its words.
#[test]
fn amending_is_refused_as_qemu_img_refuses_it() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for (made, amended) in [
        ("compat=1.1", "cluster_size=4k"),
        ("compat=1.1", "preallocation=off"),
        ("compat=1.1", "foo=1"),
        ("compat=1.1", "compat=0.9"),
        ("compat=1.1", "compat=0.10,lazy_refcounts=on"),
        ("compat=0.10", "lazy_refcounts=on"),
        ("compat=1.1", "refcount_bits=3"),
        ("compat=1.1", "refcount_bits=128"),
        ("compat=0.10", "refcount_bits=8"),
        ("refcount_bits=8", "compat=0.10"),
        ("compat=1.1", "compat=0.10,refcount_bits=8"),
        ("extended_l2=on", "compat=0.10"),
        ("compat=1.1", "data_file=x"),
        ("compat=1.1", "data_file_raw=on"),
        ("compat=1.1", "backing_fmt=raw"),
        ("data_file=d.raw", "data_file_raw=on"),
        ("data_file=d.raw", "compat=0.10"),
        ("lazy_refcounts=on", "compat=0.10"),
    ] {
        ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", made, "a.qcow2", "1M"], folder);
        std::fs::copy(folder.join("a.qcow2"), folder.join("b.qcow2")).unwrap();
        let (code, text) = run("qemu-img", &["amend", "-o", amended, "b.qcow2"], folder);
        match edit(&folder.join("a.qcow2")).amend(&options(amended), &NoProgress) {
            Ok(()) => assert_eq!(code, 0, "{made}, {amended}: {text}"),
            Err(e) => assert_eq!(format!("qemu-img: {e}\n").replace("'img rebase'", "'qemu-img rebase'"), text, "{made}, {amended}"),
        }
    }
}
