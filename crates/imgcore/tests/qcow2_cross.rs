//! qcow2 against qemu-img and qemu-io: what we write they accept, what they write we read.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Random, have, ok};
use imgcore::formats::{CreateOptions, NewImage};
use imgcore::qcow2::{ClusterCompressor, Move, Qcow2};
use imgcore::storage::{FileStorage, MemStorage};
use imgcore::{Formats, Image, ImageMut, LocalGate, OpenOptions};

fn read_all(image: &dyn Image) -> Vec<u8> {
    let mut all = vec![0x55; image.size() as usize];
    image.read_at(&mut all, 0).unwrap();
    all
}

fn open(path: &Path) -> Arc<dyn Image> {
    Formats::new().open(path, &OpenOptions::new(&LocalGate)).unwrap()
}

/// Random changes to `image`, mirrored in `model`.
fn scribble(image: &dyn ImageMut, model: &mut [u8], random: &mut Random, rounds: u64) {
    let size = model.len() as u64;
    for round in 0..rounds {
        let offset = random.below(size);
        let longest = *random.pick(&[700, 5000, 70_000, 500_000]);
        let (offset, len) = match random.below(4) {
            0 => (offset, random.below(longest).min(size - offset)),
            1 => (offset, longest.min(size - offset)),
            _ => (offset & !511, (random.below(longest) & !511).min(size - (offset & !511))),
        };
        let range = offset as usize..(offset + len) as usize;
        match random.below(8) {
            0 => {
                image.zero_at(offset, len).unwrap();
                model[range].fill(0);
            }
            1 => {
                image.discard(offset, len).unwrap();
                model[range].fill(0);
            }
            _ => {
                let data = random.bytes(len);
                image.write_at(&data, offset).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
        if random.below(12) == 0 || round + 1 == rounds {
            image.flush().unwrap();
        }
    }
}

fn check_with_qemu(folder: &Path, name: &str, model: &[u8]) {
    ok("qemu-img", &["check", "-q", name], folder);
    std::fs::write(folder.join("model.raw"), model).unwrap();
    ok("qemu-img", &["compare", "-q", "-f", "raw", "model.raw", name], folder);
}

fn random_options(random: &mut Random) -> CreateOptions {
    let cluster_size = *random.pick(&["512", "1k", "4k", "64k", "64k", "256k", "2M"]);
    let mut options = CreateOptions::new().set("cluster_size", cluster_size);
    if random.below(4) == 0 {
        options = options.set("compat", "0.10");
    } else {
        options = options.set("refcount_bits", *random.pick(&["1", "2", "4", "8", "16", "32", "64"]));
        options = options.set("compression_type", *random.pick(&["zlib", "zstd"]));
        options = options.set("lazy_refcounts", *random.pick(&["on", "off"]));
        if matches!(cluster_size, "64k" | "256k" | "2M") {
            options = options.set("extended_l2", *random.pick(&["on", "off"]));
        }
    }
    options.set("preallocation", *random.pick(&["off", "off", "metadata"]))
}

#[test]
fn what_we_write_qemu_accepts() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(1);
    for case in 0..60 {
        let options = random_options(&mut random);
        let size = (random.below(6 << 20) + 1024) & !511;
        let storage = Arc::new(FileStorage::create(dir.path().join("a.qcow2")).unwrap());
        let image = Qcow2::create(storage, size, &options).unwrap();
        let mut model = vec![0; size as usize];
        scribble(&image, &mut model, &mut random, 40);
        assert!(read_all(&image) == model, "case {case}: {options:?}");
        drop(image);
        check_with_qemu(dir.path(), "a.qcow2", &model);
        // And once more on the image as it was found.
        let image = Formats::new().open_mut(dir.path().join("a.qcow2"), &OpenOptions::new(&LocalGate)).unwrap();
        assert!(read_all(&*image) == model, "case {case}: {options:?}");
        scribble(&*image, &mut model, &mut random, 10);
        drop(image);
        check_with_qemu(dir.path(), "a.qcow2", &model);
    }
}

#[test]
fn layers_and_snapshots_survive_our_writes() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(2);
    for case in 0..25 {
        let cluster_size = *random.pick(&["512", "4k", "16k", "64k", "1M"]);
        let large = !matches!(cluster_size, "512" | "4k");
        let format = *random.pick(if large { &["1.1,extended_l2=on", "1.1", "0.10"][..] } else { &["1.1", "0.10"] });
        let size = (random.below(3 << 20) + 4096) & !511;
        // The image below may be smaller or larger than the one on top.
        let below_size = (size / 2 + random.below(size)) & !511;
        let below: Vec<u8> = random.bytes(below_size);
        std::fs::write(folder.join("below.raw"), &below).unwrap();
        let options = format!("cluster_size={cluster_size},compat={format}");
        ok(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", &options, "-b", "below.raw", "-F", "raw", "top.qcow2", &size.to_string()],
            folder,
        );
        let mut model = below;
        model.resize(size as usize, 0);

        let image = Formats::new().open_mut(folder.join("top.qcow2"), &OpenOptions::new(&LocalGate)).unwrap();
        assert!(read_all(&*image) == model, "case {case}");
        scribble(&*image, &mut model, &mut random, 15);
        drop(image);
        check_with_qemu(folder, "top.qcow2", &model);

        ok("qemu-img", &["snapshot", "-c", "first", "top.qcow2"], folder);
        let first = model.clone();
        let image = Formats::new().open_mut(folder.join("top.qcow2"), &OpenOptions::new(&LocalGate)).unwrap();
        scribble(&*image, &mut model, &mut random, 15);
        assert!(read_all(&*image) == model, "case {case}");
        drop(image);
        check_with_qemu(folder, "top.qcow2", &model);
        ok("qemu-img", &["snapshot", "-a", "first", "top.qcow2"], folder);
        check_with_qemu(folder, "top.qcow2", &first);
        assert!(read_all(&*open(&folder.join("top.qcow2"))) == first, "case {case}");
    }
}

#[test]
fn what_qemu_writes_we_read() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(3);
    for case in 0..40 {
        let cluster_size = *random.pick(&["512", "4k", "64k", "2M"]);
        let mut options = format!("cluster_size={cluster_size}");
        match random.below(5) {
            0 => options += ",compat=0.10",
            1 => options = "extended_l2=on,cluster_size=64k".into(),
            2 => options += ",compression_type=zstd",
            3 => options += &format!(",data_file=ext{case}.raw"),
            _ => options += ",refcount_bits=1",
        }
        ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "b.qcow2", "5M"], folder);
        let mut commands = Vec::new();
        for _ in 0..20 {
            let (offset, len) = (random.below(4 << 20) & !511, (random.below(300_000) + 512) & !511);
            let pattern = random.below(255) + 1;
            let compressed = random.below(4) == 0 && !options.contains("data_file") && cluster_size != "512";
            let cluster = imgcore::size::parse(cluster_size).unwrap().max(65536);
            commands.push(match random.below(5) {
                0 if !options.contains("0.10") => format!("write -z {offset} {len}"),
                1 => format!("discard {offset} {len}"),
                _ if compressed => format!("write -c -P {pattern} {} {cluster}", offset / cluster * cluster % (4 << 20)),
                _ => format!("write -P {pattern} {offset} {len}"),
            });
        }
        let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).chain(["-d", "unmap", "b.qcow2"]).collect();
        // It refuses to write compressed over a cluster that is there; what it then leaves is as good a case.
        common::run("qemu-io", &args, folder);
        ok("qemu-img", &["convert", "-O", "raw", "b.qcow2", "b.raw"], folder);
        let image = open(&folder.join("b.qcow2"));
        assert!(read_all(&*image) == std::fs::read(folder.join("b.raw")).unwrap(), "case {case}: {options} {commands:?}");
        // Extents agree with what is read, and have no gaps.
        let all = read_all(&*image);
        let mut at = 0;
        image
            .extents(0..image.size(), &mut |e| {
                assert_eq!(e.start, at);
                at += e.len;
                let bytes = &all[e.start as usize..at as usize];
                assert!(!e.kind.reads_zero() || bytes.iter().all(|b| *b == 0), "case {case}: {e:?}");
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(at, image.size());
    }
}

#[test]
fn compressed_clusters_are_read_by_qemu() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(4);
    for case in 0..20 {
        let options = random_options(&mut random).without("preallocation");
        let storage = Arc::new(FileStorage::create(dir.path().join("c.qcow2")).unwrap());
        let image = Qcow2::create(storage, 5 << 20, &options).unwrap();
        let cluster = image.cluster_size();
        let mut model = vec![0; 5 << 20];
        let mut compressor = ClusterCompressor::new(image.compression_type());
        for _ in 0..60 {
            let at = random.below((5 << 20) / cluster) * cluster;
            let mut data = random.bytes(cluster);
            data[cluster as usize / 2..].fill(random.next() as u8);
            let len = cluster.min((5 << 20) - at) as usize;
            data[len..].fill(0);
            match compressor.compress(&data) {
                Some(packed) => image.write_compressed_cluster(at, packed).unwrap(),
                None => image.write_at(&data[..len], at).unwrap(),
            }
            model[at as usize..at as usize + len].copy_from_slice(&data[..len]);
            if random.below(5) == 0 {
                scribble(&image, &mut model, &mut random, 1);
            }
        }
        image.flush().unwrap();
        assert!(read_all(&image) == model, "case {case}: {options:?}");
        drop(image);
        check_with_qemu(dir.path(), "c.qcow2", &model);
    }
}

#[test]
fn ranges_move_without_copying() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(5);
    for cluster_size in ["512", "4k", "64k"] {
        let cluster = imgcore::size::parse(cluster_size).unwrap();
        let storage = Arc::new(FileStorage::create(folder.join("d.qcow2")).unwrap());
        let size = 4 << 20;
        let mut image = Qcow2::create(storage, size, &CreateOptions::new().set("cluster_size", cluster_size)).unwrap();
        let mut model = vec![0; size as usize];
        scribble(&image, &mut model, &mut random, 60);
        let moves = [
            Move { source: 0, target: 1 << 20, len: 1 << 20 },
            Move { source: 3 << 20, target: 64 << 20, len: (1 << 20) - cluster + 300 },
            Move { source: 1 << 20, target: 0, len: cluster },
        ];
        let new_size = 65u64 << 20;
        image.remap(new_size, &moves).unwrap();
        let mut moved = vec![0; new_size as usize];
        for m in &moves {
            let (from, to, len) = (m.source as usize, m.target as usize, m.len as usize);
            moved[to..to + len].copy_from_slice(&model[from..from + len]);
        }
        assert!(read_all(&image) == moved);
        scribble(&image, &mut moved, &mut random, 20);
        assert!(read_all(&image) == moved);
        drop(image);
        check_with_qemu(folder, "d.qcow2", &moved);
    }
}

#[test]
fn threads_write_one_image() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for options in [CreateOptions::new(), CreateOptions::new().set("extended_l2", "on").set("cluster_size", "2M")] {
        let storage = Arc::new(FileStorage::create(dir.path().join("t.qcow2")).unwrap());
        let size = 16u64 << 20;
        let image = Qcow2::create(storage, size, &options).unwrap();
        let mut model = vec![0u8; size as usize];
        // Neighbouring threads share clusters: each owns every eighth stripe of 4 KiB.
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let image = &image;
                scope.spawn(move || {
                    for stripe in (thread..size / 4096).step_by(8) {
                        if stripe % 5 != 0 {
                            image.write_at(&vec![stripe as u8 | 1; 4096], stripe * 4096).unwrap();
                        }
                        if stripe % 700 == 0 {
                            image.flush().unwrap();
                        }
                    }
                });
            }
        });
        for stripe in 0..size / 4096 {
            if stripe % 5 != 0 {
                model[(stripe * 4096) as usize..(stripe * 4096 + 4096) as usize].fill(stripe as u8 | 1);
            }
        }
        image.flush().unwrap();
        assert!(read_all(&image) == model);
        drop(image);
        check_with_qemu(dir.path(), "t.qcow2", &model);
    }
}

/// The point of subclusters: a small write to a layer stores what it writes, not a whole cluster.
#[test]
fn a_write_copies_up_no_more_than_subclusters() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut model = Random(8).bytes(4 << 20);
    std::fs::write(folder.join("below.raw"), &model).unwrap();
    let options = "extended_l2=on,cluster_size=2M";
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "-b", "below.raw", "-F", "raw", "top.qcow2"], folder);
    let image = Formats::new().open_mut(folder.join("top.qcow2"), &OpenOptions::new(&LocalGate)).unwrap();
    let (at, len) = ((2 << 20) + 70_000, 3000);
    image.write_at(&vec![0xee; len], at as u64).unwrap();
    model[at..at + len].fill(0xee);
    // Zeroes over half a subcluster and two whole ones.
    image.zero_at(96 << 10, 160 << 10).unwrap();
    model[96 << 10..256 << 10].fill(0);
    image.flush().unwrap();
    let mut own = Vec::new();
    image
        .extents(0..4 << 20, &mut |e| {
            if e.depth == 0 {
                own.push((e.start, e.len, e.kind));
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let sub = 64 << 10;
    let (data, zero) = (imgcore::ExtentKind::Data, imgcore::ExtentKind::Zero);
    assert_eq!(own, [(sub, sub, data), (2 * sub, 2 * sub, zero), ((2 << 20) + sub, sub, data)]);
    drop(image);
    check_with_qemu(folder, "top.qcow2", &model);
    // What qemu then writes into the same clusters goes beside it.
    ok("qemu-io", &["-c", "write -P 7 300k 4k", "-c", "write -z 2112k 64k", "top.qcow2"], folder);
    model[300 << 10..304 << 10].fill(7);
    model[2112 << 10..2176 << 10].fill(0);
    assert!(read_all(&*open(&folder.join("top.qcow2"))) == model);
}

#[test]
fn a_data_file_holds_what_the_guest_sees() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut random = Random(10);
    let (formats, open_options) = (Formats::new(), OpenOptions::new(&LocalGate));
    for case in 0..10 {
        let raw = *random.pick(&["on", "off"]);
        let mut options = CreateOptions::new().set("data_file_raw", raw).set("data_file", folder.join("data.raw").to_str().unwrap());
        options =
            options.set("cluster_size", *random.pick(&["512", "4k", "64k", "2M"])).set("lazy_refcounts", *random.pick(&["on", "off"]));
        if random.below(3) == 0 {
            options = options.set("extended_l2", "on").set("cluster_size", *random.pick(&["16k", "64k"]));
        }
        options = options.set("preallocation", *random.pick(&["off", "metadata", "falloc", "full"]));
        let size = (random.below(4 << 20) + 1024) & !511;
        let new = NewImage::create(formats.driver("qcow2").unwrap(), folder.join("a.qcow2"), size, &options).unwrap();
        let mut model = vec![0; size as usize];
        scribble(&**new.image(), &mut model, &mut random, 12);
        assert!(new.image().compression().is_none());
        new.commit().unwrap();
        for round in 0..3 {
            check_with_qemu(folder, "a.qcow2", &model);
            let data = std::fs::read(folder.join("data.raw")).unwrap();
            assert!(raw == "off" || data == model, "case {case}.{round}: {options:?}");
            if round == 1 {
                let args = ["-c", "write -P 5 1k 3k", "-c", "write -z 0 1k", "a.qcow2"];
                if size >= 4096 {
                    ok("qemu-io", &args, folder);
                    model[1024..4096].fill(5);
                    model[..1024].fill(0);
                }
            }
            let image = formats.open_mut(folder.join("a.qcow2"), &open_options).unwrap();
            assert!(read_all(&*image) == model, "case {case}.{round}: {options:?}");
            scribble(&*image, &mut model, &mut random, 8);
            assert!(read_all(&*image) == model, "case {case}.{round}: {options:?}");
        }
    }
    // A failed creation leaves neither file.
    let fresh = folder.join("fresh.raw");
    let options = CreateOptions::new().set("data_file", fresh.to_str().unwrap()).set("refcount_bits", "3");
    assert!(NewImage::create(formats.driver("qcow2").unwrap(), folder.join("b.qcow2"), 1 << 20, &options).is_err());
    assert!(!fresh.exists() && !folder.join("b.qcow2").exists());
}

/// Counts may lag behind while an image is open, but not after it, and never without the dirty bit.
#[test]
fn lazy_counts_are_right_at_the_end() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lazy.qcow2");
    let dirty = || std::fs::read(&path).unwrap()[79] & 1 == 1;
    let storage = Arc::new(FileStorage::create(&path).unwrap());
    let image = Qcow2::create(storage, 4 << 20, &CreateOptions::new().set("lazy_refcounts", "on")).unwrap();
    let mut model = vec![0; 4 << 20];
    assert!(!dirty());
    scribble(&image, &mut model, &mut Random(11), 30);
    assert!(dirty());
    std::fs::copy(&path, dir.path().join("crashed.qcow2")).unwrap();
    drop(image);
    assert!(!dirty());
    check_with_qemu(dir.path(), "lazy.qcow2", &model);
    // What a crash would have left reads right as it is, and is repaired before it is written, by us as by qemu.
    let (code, text) = common::run("qemu-img", &["check", "crashed.qcow2"], dir.path());
    assert_eq!(code, 2, "{text}");
    assert!(read_all(&*open(&dir.path().join("crashed.qcow2"))) == model);
    let image = Formats::new().open_mut(dir.path().join("crashed.qcow2"), &OpenOptions::new(&LocalGate)).unwrap();
    scribble(&*image, &mut model, &mut Random(12), 10);
    drop(image);
    check_with_qemu(dir.path(), "crashed.qcow2", &model);
}

/// The allocator moves the refcount table when it gets too small; changes of structure afterwards must know where it is.
#[test]
fn the_refcount_table_may_move_before_a_change_of_structure() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grown.qcow2");
    let options = CreateOptions::new().set("cluster_size", "512").set("refcount_bits", "64");
    drop(Qcow2::create(Arc::new(FileStorage::create(&path).unwrap()), 1 << 20, &options).unwrap());
    let storage = Arc::new(FileStorage::open_writable(&path).unwrap());
    let mut image = Formats::new().open_edit(storage, &OpenOptions::new(&LocalGate)).unwrap();
    image.resize(24 << 20, imgcore::Preallocation::Metadata).unwrap();
    let mut model = vec![0; 24 << 20];
    image.write_at(&[5; 5000], 20 << 20).unwrap();
    model[20 << 20..(20 << 20) + 5000].fill(5);
    image.bitmaps().unwrap().add("b", None).unwrap();
    image.snapshots().unwrap().create("s", (1, 2)).unwrap();
    drop(image);
    check_with_qemu(dir.path(), "grown.qcow2", &model);
}

/// Bytes of tables turned into others: errors, wrong data perhaps, but no panic and no endless work.
#[test]
fn damaged_tables_do_not_bring_a_writer_down() {
    let mut random = Random(13);
    let formats = Formats::new();
    let options = OpenOptions::new(&imgcore::NoGate);
    let mut opened = 0;
    for (cluster_size, extended_l2) in [("16k", "on"), ("512", "off")] {
        let memory = Arc::new(MemStorage::new("good.qcow2", 0));
        let create = CreateOptions::new().set("cluster_size", cluster_size).set("extended_l2", extended_l2);
        let image = Qcow2::create(memory.clone(), 2 << 20, &create).unwrap();
        scribble(&image, &mut vec![0; 2 << 20], &mut random, 12);
        drop(image);
        formats.open_edit(memory.clone(), &options).unwrap().bitmaps().unwrap().add("b", Some(512)).unwrap();
        let good = memory.to_vec();
        let words: Vec<usize> = (0..good.len() / 8).filter(|word| good[word * 8..word * 8 + 8] != [0; 8]).collect();
        for _ in 0..300 {
            let mut bad = good.clone();
            for _ in 0..1 + random.below(3) {
                // Metadata comes first in the file, and so more often.
                let word = words[(random.below(words.len() as u64) * random.below(1000) / 1000) as usize] * 8;
                match random.below(4) {
                    0 => bad[word..word + 8].fill(0xff),
                    1 => bad[word..word + 8].copy_from_slice(&good[words[0] * 8..words[0] * 8 + 8]),
                    _ => bad[word + random.below(8) as usize] ^= 1 << random.below(8),
                }
            }
            let Ok(image) = formats.open_storage_mut(Arc::new(MemStorage::from_bytes("bad.qcow2", &bad)), &options) else { continue };
            opened += 1;
            let size = image.size().min(2 << 20);
            for _ in 0..6 {
                let offset = random.below(size);
                let len = size.min(offset + 40_000) - offset;
                // Each may fail or not; it must return.
                let _ = image.write_at(&random.bytes(len), offset);
                let _ = image.zero_at(offset / 2, len);
                let _ = image.read_at(&mut vec![0; len as usize], offset);
                let _ = image.flush();
            }
        }
    }
    assert!(opened > 100);
}
