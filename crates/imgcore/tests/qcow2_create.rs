//! Creation against qemu-img: the same images from the same options, the same words for what cannot be.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{have, ok, run};
use imgcore::Formats;
use imgcore::formats::{CreateOptions, NewImage};

fn create(folder: &Path, format: &str, options: &str) -> Result<(), String> {
    let mut wanted = CreateOptions::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap();
        wanted = wanted.set(name, value);
    }
    let formats = Formats::new();
    let new = NewImage::create(formats.driver(format).unwrap(), folder.join("ours"), 10 << 20, &wanted).map_err(|e| e.to_string())?;
    new.commit().map_err(|e| e.to_string())
}

/// What qemu-img says of an image, without its name and its places in the file.
fn described(folder: &Path, format: &str, name: &str) -> (String, String) {
    let map = ok("qemu-img", &["map", "-f", format, "--output=json", name], folder);
    // Kinds only: runs of one kind that lie apart in the file are one.
    let kinds = map
        .lines()
        .filter_map(|line| Some(line.split_once("\"depth\"")?.1.split(", \"offset\"").next()?.trim_end_matches(['}', ',', ']'])));
    let mut kinds: Vec<_> = kinds.collect();
    kinds.dedup();
    if format == "raw" || folder.join("data").exists() {
        // qemu-img writes the first block of a raw file; whether qemu looks for holes in a data file depends on how full the
        // other file is.
        kinds.clear();
    }
    let info = ok("qemu-img", &["info", "-f", format, name], folder);
    let info = info
        .lines()
        .filter(|l| !["image:", "disk size:", "    filename:", "    file length:", "    disk size:"].iter().any(|n| l.starts_with(n)));
    (kinds.join("\n"), info.collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_same_options_make_the_same_image() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let data = format!("data_file={}", folder.join("data").display());
    let qcow2 = [
        "",
        "compat=0.10",
        "compat=v2",
        "compat=v3",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "compression_type=zstd",
        "preallocation=off",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "extended_l2=on,preallocation=metadata",
        "extended_l2=on,preallocation=full",
        "compat=0.10,preallocation=metadata",
        "cluster_size=512,preallocation=falloc",
    ];
    let with_data = [
        "",
        "data_file_raw=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "extended_l2=on,data_file_raw=on",
        "data_file_raw=on,preallocation=full",
    ];
    let cases = ["", "preallocation=off", "preallocation=falloc", "preallocation=full"].map(|o| ("raw", o.to_owned())).into_iter();
    let cases = cases.chain(qcow2.iter().map(|o| ("qcow2", o.to_string())));
    let cases = cases.chain(with_data.iter().map(|o| ("qcow2", format!("{data},{o}").trim_end_matches(',').to_owned())));
    for (format, options) in cases {
        let arguments = if options.is_empty() { vec![] } else { vec!["-o", &options] };
        ok("qemu-img", &[&["create", "-q", "-f", format][..], &arguments, &["peer", "10M"]].concat(), folder);
        let data_of_peer = std::fs::read(folder.join("data")).ok();
        let expected = described(folder, format, "peer");
        create(folder, format, &options).unwrap_or_else(|e| panic!("{options}: {e}"));
        assert_eq!(described(folder, format, "ours"), expected, "{format}: {options}");
        if format == "qcow2" {
            ok("qemu-img", &["check", "-q", "ours"], folder);
        }
        assert_eq!(std::fs::read(folder.join("data")).ok(), data_of_peer, "{options}");
        let blocks = |name| std::fs::metadata(folder.join(name)).map_or(0, |m| m.blocks() * 512);
        let (ours, peer) = (blocks("ours"), blocks("peer"));
        assert!(ours <= peer + (64 << 10), "{format}: {options}: {ours} and {peer}");
        let reserved = options.contains("falloc") || options.contains("full");
        assert!(!reserved || ours + blocks("data") >= 10 << 20, "{format}: {options}: {ours}");
    }
}

#[test]
fn what_cannot_be_is_said_in_qemus_words() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let cases = [
        ("qcow2", "compat=v5"),
        ("qcow2", "cluster_size=100"),
        ("qcow2", "cluster_size=4M"),
        ("qcow2", "cluster_size=3k"),
        ("qcow2", "refcount_bits=3"),
        ("qcow2", "refcount_bits=128"),
        ("qcow2", "compat=0.10,refcount_bits=8"),
        ("qcow2", "compat=0.10,lazy_refcounts=on"),
        ("qcow2", "compat=0.10,extended_l2=on"),
        ("qcow2", "extended_l2=on,cluster_size=8k"),
        ("qcow2", "compat=0.10,compression_type=zstd"),
        ("qcow2", "compression_type=lzma"),
        ("qcow2", "compat=0.10,data_file=x"),
        ("qcow2", "data_file_raw=on"),
        ("qcow2", "preallocation=some"),
        ("raw", "preallocation=metadata"),
        ("raw", "preallocation=some"),
    ];
    for (format, options) in cases {
        let (code, text) = run("qemu-img", &["create", "-q", "-f", format, "-o", options, "peer", "10M"], folder);
        let expected = text.trim_end().strip_prefix("qemu-img: peer: ").unwrap_or(&text).to_owned();
        assert_eq!((create(folder, format, options), code), (Err(expected), 1), "{format}: {options}");
        assert!(!folder.join("ours").exists(), "{options}");
    }
}
