//! Images written to a pipe, in one pass, against qemu-img.

mod common;

use common::{Random, have, ok};
use imgcore::formats::CreateOptions;
use imgcore::storage::MemStorage;
use imgcore::{Formats, LocalGate, NoGate, NoProgress, OpenOptions};

#[test]
fn streams_are_images_that_qemu_img_accepts() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(51);
    let formats = Formats::new();
    for case in 0..14 {
        let size = random.below(9 << 20) & !511;
        let mut model = vec![0; size as usize];
        for _ in 0..random.below(12) {
            let (at, longest) = (random.below(size.max(1)), *random.pick(&[600, 60_000, 900_000]));
            let data = random.bytes(random.0 % longest);
            let end = size.min(at + data.len() as u64);
            model[at as usize..end as usize].copy_from_slice(&data[..(end - at) as usize]);
        }
        std::fs::write(folder.join("a.raw"), &model).unwrap();
        // The same with holes, and as an image that knows its zeroes.
        ok("qemu-img", &["convert", "-f", "raw", "-O", *random.pick(&["raw", "qcow2"]), "a.raw", "source"], folder);
        let source = formats.open(folder.join("source"), &OpenOptions::new(&LocalGate)).unwrap();
        let mut options = CreateOptions::new().set("cluster_size", *random.pick(&["512", "4k", "64k", "2M"]));
        match random.below(4) {
            0 => options = options.set("compat", "0.10"),
            1 => options = CreateOptions::new().set("extended_l2", "on"),
            _ => options = options.set("refcount_bits", *random.pick(&["1", "16", "64"])),
        }
        let mut stream = Vec::new();
        formats.driver("qcow2").unwrap().write_stream(&*source, &options, &mut stream, &NoProgress).unwrap();
        std::fs::write(folder.join("out.qcow2"), &stream).unwrap();
        let said = ok("qemu-img", &["check", "out.qcow2"], folder);
        ok("qemu-img", &["compare", "-q", "-f", "raw", "-F", "qcow2", "a.raw", "out.qcow2"], folder);
        let end = said.lines().find_map(|line| line.strip_prefix("Image end offset: ")).unwrap();
        assert_eq!(end, stream.len().to_string(), "case {case}: nothing lies behind the image");
        let mut raw = Vec::new();
        formats.driver("raw").unwrap().write_stream(&*source, &CreateOptions::new(), &mut raw, &NoProgress).unwrap();
        assert!(raw == model, "case {case}");
    }
}

#[test]
fn what_a_stream_cannot_hold_is_refused() {
    let formats = Formats::new();
    let source = formats.open_storage(std::sync::Arc::new(MemStorage::new("raw", 1 << 20)), &OpenOptions::new(&NoGate)).unwrap();
    for (name, value) in [("backing_file", "x"), ("preallocation", "full"), ("data_file", "x")] {
        let mut out = Vec::new();
        let options = CreateOptions::new().set(name, value);
        formats.driver("qcow2").unwrap().write_stream(&*source, &options, &mut out, &NoProgress).unwrap_err();
        assert!(out.is_empty());
    }
}
