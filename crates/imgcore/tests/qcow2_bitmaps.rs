//! Persistent dirty bitmaps against qemu: what it records we read, what we record it reads, and nothing is silently stale.

mod common;

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Random, have, ok, run};
use imgcore::storage::FileStorage;
use imgcore::{BitmapInfo, Formats, ImageEdit, ImageMut, LocalGate, OpenOptions};

fn tools() -> bool {
    ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"].into_iter().all(have)
}

fn edit(path: &Path) -> Box<dyn ImageEdit> {
    let storage = Arc::new(FileStorage::open_writable(path).unwrap());
    Formats::new().open_edit(storage, &OpenOptions::new(&LocalGate)).unwrap()
}

fn write(path: &Path) -> Arc<dyn ImageMut> {
    Formats::new().open_mut(path, &OpenOptions::new(&LocalGate)).unwrap()
}

fn dirty(path: &Path, name: &str) -> Vec<Range<u64>> {
    edit(path).bitmaps().unwrap().dirty(name).unwrap()
}

/// The dirty ranges as qemu-nbd exports them.
fn dirty_in_qemu(folder: &Path, image: &str, name: &str) -> Vec<Range<u64>> {
    let socket = folder.join("nbd.sock");
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-B", name, "-k"])
        .arg(&socket)
        .arg(image)
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "qemu-nbd does not start");
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd refuses {image}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let map = ok("nbdinfo", &[&format!("--map=qemu:dirty-bitmap:{name}"), &uri], folder);
    server.wait().unwrap();
    let _ = std::fs::remove_file(&socket);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for line in map.lines() {
        let numbers: Vec<u64> = line.split_whitespace().take(3).map(|n| n.parse().unwrap()).collect();
        match ranges.last_mut() {
            _ if numbers[2] == 0 => {}
            Some(last) if last.end == numbers[0] => last.end += numbers[1],
            _ => ranges.push(numbers[0]..numbers[0] + numbers[1]),
        }
    }
    ranges
}

/// Whole granules that `changed` touches, joined.
fn granules(changed: &[Range<u64>], granularity: u64, size: u64) -> Vec<Range<u64>> {
    let mut bits = vec![false; size.div_ceil(granularity) as usize];
    for range in changed.iter().filter(|range| !range.is_empty()) {
        bits[(range.start / granularity) as usize..=((range.end - 1) / granularity) as usize].fill(true);
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (index, _) in (0u64..).zip(&bits).filter(|(_, bit)| **bit) {
        let (start, end) = (index * granularity, ((index + 1) * granularity).min(size));
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[test]
fn what_we_write_is_recorded() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let path = folder.join("a.qcow2");
    let mut random = Random(21);
    for case in 0..12 {
        let cluster_size = *random.pick(&["512", "4k", "64k", "2M"]);
        let options = format!("cluster_size={cluster_size},lazy_refcounts={}", random.pick(&["on", "off"]));
        let size = (random.below(5 << 20) + 100_000) & !511;
        ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size.to_string()], folder);
        let granularity = 512 << random.below(9);
        ok("qemu-img", &["bitmap", "--add", "-g", &granularity.to_string(), "a.qcow2", "fine"], folder);
        edit(&path).bitmaps().unwrap().add("ours", Some(65536)).unwrap();
        ok("qemu-img", &["bitmap", "--add", "--disable", "a.qcow2", "off"], folder);
        let mut changed = Vec::new();
        for _ in 0..3 {
            let image = write(&path);
            for _ in 0..random.below(5) {
                let offset = random.below(size);
                let len = random.below(200_000).min(size - offset);
                match random.below(4) {
                    0 => image.zero_at(offset, len).unwrap(),
                    1 => image.discard(offset, len).unwrap(),
                    _ => image.write_at(&vec![1; len as usize], offset).unwrap(),
                }
                changed.push(offset..offset + len);
            }
            image.flush().unwrap();
            drop(image);
            // And qemu goes on where we stopped.
            let at = random.below(size) & !511;
            ok("qemu-io", &["-c", &format!("write {at} 512"), "a.qcow2"], folder);
            changed.push(at..at + 512);
            ok("qemu-img", &["check", "-q", "a.qcow2"], folder);
        }
        for (name, granularity) in [("fine", granularity), ("ours", 65536)] {
            let expected = granules(&changed, granularity, size);
            assert_eq!(dirty(&path, name), expected, "case {case}: {name}, {options}, {granularity}");
            assert_eq!(dirty_in_qemu(folder, "a.qcow2", name), expected, "case {case}: {name}, {options}, {granularity}");
        }
        assert_eq!(dirty(&path, "off"), []);
    }
}

#[test]
fn bitmaps_are_edited_as_qemu_img_edits_them() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let path = folder.join("a.qcow2");
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "100M"], folder);
    let mut image = edit(&path);
    let bitmaps = image.bitmaps().unwrap();
    bitmaps.add("one", None).unwrap();
    bitmaps.add("two", Some(512)).unwrap();
    bitmaps.add("three", Some(1 << 31)).unwrap();
    bitmaps.set_recording("one", false).unwrap();
    bitmaps.mark("one", &[5..6, 1 << 20..3 << 20]).unwrap();
    bitmaps.mark("two", &[100..101, 90 << 20..(90 << 20) + 1]).unwrap();
    bitmaps.remove("three").unwrap();
    for (name, granularity, error) in [
        ("one", None, "Bitmap already exists: one"),
        ("x", Some(1000), "Granularity must be power of 2 and at least 512"),
        ("x", Some(256), "Granularity must be power of 2 and at least 512"),
        ("x", Some(1 << 32), "Granularity must be power of 2 and at least 512"),
        ("", None, "Bitmap name cannot be empty"),
    ] {
        assert_eq!(bitmaps.add(name, granularity).unwrap_err().to_string(), error);
    }
    assert_eq!(bitmaps.clear("four").unwrap_err().to_string(), "Dirty bitmap 'four' not found");
    let info = |name: &str, granularity, auto| BitmapInfo { name: name.into(), granularity, in_use: false, auto };
    assert_eq!(bitmaps.list(), [info("one", 65536, false), info("two", 512, true)]);
    drop(image);
    ok("qemu-img", &["check", "-q", "a.qcow2"], folder);
    assert_eq!(dirty_in_qemu(folder, "a.qcow2", "one"), [0..65536, 1 << 20..3 << 20]);
    assert_eq!(dirty_in_qemu(folder, "a.qcow2", "two"), [0..512, 90 << 20..(90 << 20) + 512]);
    // What qemu made of them, we see.
    ok("qemu-img", &["bitmap", "--merge", "two", "--enable", "a.qcow2", "one"], folder);
    assert_eq!(dirty(&path, "one"), [0..65536, 1 << 20..3 << 20, 90 << 20..(90 << 20) + 65536]);
    let mut image = edit(&path);
    assert_eq!(image.info().bitmaps, [info("one", 65536, true), info("two", 512, true)]);
    image.bitmaps().unwrap().clear("one").unwrap();
    image.bitmaps().unwrap().remove("two").unwrap();
    // What a snapshot brings back, no bitmap would know.
    image.snapshots().unwrap().create("s", (1, 1)).unwrap();
    assert_eq!(image.snapshots().unwrap().apply("s").unwrap_err().to_string(), "Device has active dirty bitmaps");
    drop(image);
    ok("qemu-img", &["check", "-q", "a.qcow2"], folder);
    let (code, text) = run("qemu-img", &["snapshot", "-a", "s", "a.qcow2"], folder);
    assert!(code == 1 && text.contains("Device has active dirty bitmaps"), "{text}");
    assert_eq!(dirty_in_qemu(folder, "a.qcow2", "one"), []);
    let mut image = edit(&path);
    image.bitmaps().unwrap().remove("one").unwrap();
    drop(image);
    ok("qemu-img", &["check", "-q", "a.qcow2"], folder);
    assert!(!ok("qemu-img", &["info", "a.qcow2"], folder).contains("bitmaps"));
}

#[test]
fn a_crash_leaves_bitmaps_in_use() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let path = folder.join("a.qcow2");
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "10M"], folder);
    ok("qemu-img", &["bitmap", "--add", "a.qcow2", "b"], folder);
    let image = write(&path);
    // Opened and not written, it stays as it is.
    assert!(!ok("qemu-img", &["info", "-U", "a.qcow2"], folder).contains("in-use"));
    image.write_at(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    std::fs::copy(&path, folder.join("crashed.qcow2")).unwrap();
    drop(image);
    assert!(!ok("qemu-img", &["info", "a.qcow2"], folder).contains("in-use"));
    assert!(ok("qemu-img", &["info", "crashed.qcow2"], folder).contains("in-use"));
    ok("qemu-img", &["check", "-q", "crashed.qcow2"], folder);
    let mut crashed = edit(&folder.join("crashed.qcow2"));
    let bitmaps = crashed.bitmaps().unwrap();
    for error in [bitmaps.dirty("b").unwrap_err(), bitmaps.clear("b").unwrap_err(), bitmaps.set_recording("b", true).unwrap_err()] {
        assert!(error.to_string().starts_with("Bitmap 'b' is inconsistent and cannot be used"), "{error}");
    }
    crashed.write_at(&[2; 512], 0).unwrap();
    crashed.flush().unwrap();
    assert!(crashed.info().bitmaps[0].in_use);
    crashed.bitmaps().unwrap().remove("b").unwrap();
    drop(crashed);
    assert_eq!(run("qemu-img", &["check", "-q", "crashed.qcow2"], folder).0, 0);
}

/// Each number of the directory in turn made absurd: a message, not a panic; and the image can still be read.
#[test]
fn damaged_directories_are_refused_for_writing() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "10M"], folder);
    ok("qemu-img", &["bitmap", "--add", "a.qcow2", "b"], folder);
    let good = std::fs::read(folder.join("a.qcow2")).unwrap();
    let extension = good.windows(8).position(|w| w == [0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]).unwrap() + 8;
    let directory = u64::from_be_bytes(good[extension + 16..extension + 24].try_into().unwrap()) as usize;
    let damages: [(usize, &[u8]); 9] = [
        (extension, &[0, 0, 0, 2]),
        (extension + 8, &[0; 8]),
        (extension + 16, &[0, 0, 0, 0, 0, 0, 0, 1]),
        (directory, &[0; 8]),
        (directory + 8, &[0xff; 4]),
        (directory + 8, &[0; 4]),
        (directory + 17, &[70]),
        (directory + 18, &[0xff, 0xff]),
        (directory + 20, &[0xff; 4]),
    ];
    for (at, bytes) in damages {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        let path = folder.join("bad.qcow2");
        std::fs::write(&path, &bad).unwrap();
        let formats = Formats::new();
        let options = OpenOptions::new(&LocalGate);
        formats.open(&path, &options).unwrap().read_at(&mut [0; 512], 0).unwrap();
        assert!(formats.open_mut(&path, &options).is_err(), "{at}: {bytes:?}");
    }
}

#[test]
fn bitmaps_follow_the_size_of_the_disk() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for options in ["cluster_size=64k", "cluster_size=4k"] {
        for name in ["ours.qcow2", "peer.qcow2"] {
            ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, name, "10M"], folder);
            for (bitmap, granularity) in [("b", "64k"), ("fine", "512")] {
                ok("qemu-img", &["bitmap", "--add", "-g", granularity, name, bitmap], folder);
            }
            ok("qemu-io", &["-c", "write 9M 1M", "-c", "write 0 1", name], folder);
        }
        for size in [20 << 20, 9_830_400 + 512, 300 << 20, 1 << 20] {
            ok("qemu-img", &["resize", "-q", "--shrink", "peer.qcow2", &size.to_string()], folder);
            edit(&folder.join("ours.qcow2")).resize(size, imgcore::Preallocation::Off).unwrap();
            ok("qemu-img", &["check", "-q", "ours.qcow2"], folder);
            for bitmap in ["b", "fine"] {
                let expected = dirty_in_qemu(folder, "peer.qcow2", bitmap);
                assert_eq!(dirty(&folder.join("ours.qcow2"), bitmap), expected, "{options}, {size}, {bitmap}");
                assert_eq!(dirty_in_qemu(folder, "ours.qcow2", bitmap), expected, "{options}, {size}, {bitmap}");
            }
        }
        for bitmap in ["b", "fine"] {
            edit(&folder.join("ours.qcow2")).bitmaps().unwrap().remove(bitmap).unwrap();
        }
        ok("qemu-img", &["check", "-q", "ours.qcow2"], folder);
    }
}
