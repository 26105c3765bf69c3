//! Checking and repairing damaged images, against `qemu-img check`: the same findings, and repaired images that it
//! accepts.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::{Random, have, ok, run};
use imgcore::formats::{CheckReport, CreateOptions, Repair};
use imgcore::qcow2::Qcow2;
use imgcore::storage::{FileStorage, MemStorage};
use imgcore::{Formats, ImageEdit, ImageMut, NoGate, NoProgress, OpenOptions, Preallocation, Snapshots, Storage};

fn check(storage: Arc<dyn Storage>, repair: Repair) -> imgcore::Result<CheckReport> {
    Formats::new().check(storage, &OpenOptions::new(&NoGate).format("qcow2"), repair)
}

/// qemu-img's exit code, and its corruptions, leaks and check errors where it got so far.
fn theirs(folder: &Path, name: &str, repair: &[&str]) -> (i32, [u64; 3], String) {
    let (code, text) = run("qemu-img", &[&["check", "-f", "qcow2", "--output=json"], repair, &[name]].concat(), folder);
    let number = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("\"{key}\": ")));
        line.and_then(|number| number.trim_end_matches(',').parse().ok()).unwrap_or(0)
    };
    (code, [number("corruptions"), number("leaks"), number("check-errors")], text)
}

fn ours(result: &imgcore::Result<CheckReport>) -> (i32, [u64; 3]) {
    match result {
        Err(_) => (1, [0; 3]),
        Ok(r) => {
            let code = if r.check_errors > 0 {
                1
            } else if r.corruptions > 0 {
                2
            } else if r.leaks > 0 {
                3
            } else {
                0
            };
            (code, [r.corruptions, r.leaks, r.check_errors])
        }
    }
}

fn make(folder: &Path, random: &mut Random) -> String {
    let cluster = *random.pick(&["512", "1k", "4k", "64k"]);
    let options = match random.below(6) {
        0 => format!("cluster_size={cluster},compat=0.10"),
        1 => format!("cluster_size={cluster},refcount_bits={}", random.pick(&["1", "4", "8", "32", "64"])),
        2 => "cluster_size=16k,extended_l2=on".to_owned(),
        _ => format!("cluster_size={cluster}"),
    };
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", "3M"], folder);
    let mut steps = 2;
    if !options.contains("refcount_bits=1") {
        steps += random.below(3);
    }
    for step in 0..steps {
        let mut commands = Vec::new();
        for _ in 0..random.below(6) + 1 {
            let (at, len) = (random.below(2 << 20) & !511, (random.below(200_000) + 512) & !511);
            commands.push(match random.below(5) {
                0 if !options.contains("0.10") => format!("write -z {at} {len}"),
                1 if cluster != "512" => format!("write -c {} 64k", at & !0xffff),
                2 => format!("discard {at} {len}"),
                _ => format!("write {at} {len}"),
            });
        }
        let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).chain(["-d", "unmap", "a.qcow2"]).collect();
        run("qemu-io", &args, folder);
        if step > 0 && step + 1 < steps {
            ok("qemu-img", &["snapshot", "-c", &format!("s{step}"), "a.qcow2"], folder);
        }
    }
    // qemu-img 10.0 loses the snapshots of an image with bitmaps when it repairs it.
    if steps == 2 && !options.contains("0.10") {
        ok("qemu-img", &["bitmap", "--add", "a.qcow2", "b"], folder);
    }
    options
}

fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes.get(at..at + len).map_or(0, |b| b.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
}

/// Places of metadata in the file: where damage can be seen.
fn metadata(image: &[u8]) -> Vec<std::ops::Range<usize>> {
    let cluster = 1 << number(image, 20, 4);
    let offset = |at: usize| number(image, at, 8) & 0xff_ffff_ffff_fe00;
    let (l1, l1_size, table) = (offset(40), number(image, 36, 4), offset(48));
    let mut places = vec![l1..l1 + l1_size * 8, table..table + 64, table..table + 64];
    places.extend((0..l1_size).map(|index| offset(l1 + index * 8)).filter(|l2| *l2 != 0).map(|l2| l2..l2 + cluster));
    places.extend((0..8).map(|index| offset(table + index * 8)).filter(|block| *block != 0).map(|block| block..block + 512.min(cluster)));
    if number(image, 60, 4) > 0 {
        let snapshots = offset(64);
        places.push(snapshots..snapshots + 120);
        let l1 = offset(snapshots);
        places.push(l1..l1 + number(image, snapshots + 8, 4) * 8);
    }
    places
}

fn damage(image: &mut [u8], random: &mut Random) {
    let places = metadata(image);
    for _ in 0..random.below(3) + 1 {
        let place = if random.below(8) == 0 { 36..104 } else { random.pick(&places).clone() };
        let words = (place.end - place.start) as u64 / 8;
        // Where something is, mostly.
        let mut at = 0;
        for _ in 0..20 {
            at = place.start + random.below(words.max(1)) as usize * 8;
            if number(image, at, 8) != 0 {
                break;
            }
        }
        let Some(word) = image.get(at..at + 8) else { continue };
        let mut word: [u8; 8] = word.try_into().unwrap();
        match random.below(6) {
            0 => word = [0; 8],
            1 => word[random.below(8) as usize] = random.next() as u8,
            2 => word[7 - random.below(5) as usize] ^= 1 << random.below(8),
            3 => word = (random.below(image.len() as u64) & !511 | 1 << 63).to_be_bytes(),
            4 => word = (random.below(image.len() as u64) & !65535).to_be_bytes(),
            _ => word[random.below(8) as usize] ^= 1 << random.below(8),
        }
        image[at..at + 8].copy_from_slice(&word);
    }
}

#[test]
fn damage_is_found_and_repaired_as_by_qemu_img() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let cases = std::env::var("CHECK_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let seed = std::env::var("CHECK_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(41);
    let strict = std::env::var_os("CHECK_REPORT").is_none();
    let mut random = Random(seed);
    let mut failures = 0;
    for case in 0..cases {
        let options = make(folder, &mut random);
        let sound = std::fs::read(folder.join("a.qcow2")).unwrap();
        let found = ours(&check(Arc::new(MemStorage::from_bytes("a", &sound)), Repair::None));
        assert_eq!(found, (theirs(folder, "a.qcow2", &[]).0, [0; 3]), "case {case}: {options}");
        for round in 0..4 {
            let mut image = sound.clone();
            damage(&mut image, &mut random);
            std::fs::write(folder.join("b.qcow2"), &image).unwrap();
            let (code, numbers, text) = theirs(folder, "b.qcow2", &[]);
            let result = check(Arc::new(MemStorage::from_bytes("b", &image)), Repair::None);
            let messages = || {
                let ours = result.as_ref().map(|r| r.messages[..r.messages.len().min(8)].join("\n"));
                let theirs: Vec<_> = text.lines().filter(|line| line.starts_with(char::is_alphabetic)).take(8).collect();
                format!("{ours:#?}\n{theirs:#?}")
            };
            let mut report = |what: String| {
                assert!(!strict, "{what}");
                eprintln!("{what}");
                let kept = format!("/tmp/qe/fail-{seed}-{case}-{round}.qcow2");
                std::fs::write(kept, &image).unwrap();
                failures += 1;
            };
            // A header, or the place of an L1 table, that says nonsense is refused before anything is checked.
            // After a read error, numbers depend on what was read before.
            let refused = (result.is_err() && code > 0) || (code == 1 && ours(&result).0 == 1);
            if !refused && ours(&result) != (code, numbers) {
                report(format!(
                    "case {case}.{round} ({options}): ours {:?}, qemu-img's {:?}\n{}",
                    ours(&result),
                    (code, numbers),
                    messages()
                ));
                continue;
            }
            if code < 2 || refused {
                continue;
            }
            for (flag, repair) in [("leaks", Repair::Leaks), ("all", Repair::All)] {
                std::fs::write(folder.join("ours.qcow2"), &image).unwrap();
                std::fs::write(folder.join("theirs.qcow2"), &image).unwrap();
                let storage = Arc::new(FileStorage::open_writable(folder.join("ours.qcow2")).unwrap());
                let repaired = check(storage, repair);
                let (after, ..) = theirs(folder, "theirs.qcow2", &["-r", flag]);
                let (verdict, _, their_text) = theirs(folder, "ours.qcow2", &[]);
                if verdict != ours(&repaired).0 && !(ours(&repaired).0 == 1 && flag == "leaks") {
                    report(format!(
                        "case {case}.{round} ({options}) -r {flag}: ours says {:?}, qemu-img of it {their_text}",
                        ours(&repaired)
                    ));
                    continue;
                }
                // qemu-img can make the file so long that what lay behind its end does so no more.
                let behind = repaired.as_ref().is_ok_and(|r| r.messages.iter().any(|m| m.contains("exceeding the end of the file")));
                if verdict != 0 && after == 0 && repair == Repair::All && !behind {
                    report(format!(
                        "case {case}.{round} ({options}) -r {flag}: qemu-img repairs it, we leave {:?}\n{}",
                        repaired,
                        messages()
                    ));
                }
            }
        }
    }
    assert_eq!(failures, 0);
}

/// Whatever a damaged image says: an error or a result, soon, and never a crash.
#[test]
fn damaged_images_are_edited_or_refused() {
    let sound = |random: &mut Random| {
        let storage = Arc::new(MemStorage::new("a.qcow2", 0));
        let options = CreateOptions::new().set("cluster_size", *random.pick(&["512", "1k", "16k"]));
        let extended = options.get("cluster_size") == Some("16k") && random.below(2) == 0;
        let mut image =
            Qcow2::create(storage.clone(), 1 << 20, &if extended { options.set("extended_l2", "on") } else { options }).unwrap();
        for name in ["s", "t"] {
            for _ in 0..4 {
                let (at, len) = (random.below(900_000), random.below(60_000));
                image.write_at(&random.bytes(len), at).unwrap();
                image.zero_at(random.below(900_000), 40_000).unwrap();
            }
            image.create(name, (1, 2)).unwrap();
        }
        image.write_at(&random.bytes(50_000), 70_000).unwrap();
        image.flush().unwrap();
        drop(image);
        storage.to_vec()
    };
    let edits: [fn(&mut Qcow2) -> imgcore::Result<()>; 9] = [
        |image| image.create("new", (1, 1)).map(|_| ()),
        |image| image.apply("s"),
        |image| image.delete("t"),
        |image| image.resize(90 << 20, Preallocation::Off),
        |image| image.resize(2 << 20, Preallocation::Metadata),
        |image| image.resize(70_144, Preallocation::Off),
        |image| image.make_empty(),
        |image| image.amend(&CreateOptions::new().set("refcount_bits", "64"), &NoProgress),
        |image| image.amend(&CreateOptions::new().set("compat", "0.10").set("refcount_bits", "16"), &NoProgress),
    ];
    let cases = std::env::var("CHECK_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let mut random = Random(std::env::var("CHECK_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(61));
    let (mut done, mut refused) = (0, 0);
    for _ in 0..cases {
        let sound = sound(&mut random);
        for edit in edits {
            let mut bytes = sound.clone();
            damage(&mut bytes, &mut random);
            let storage = Arc::new(MemStorage::from_bytes("b.qcow2", &bytes));
            let started = std::time::Instant::now();
            match Qcow2::open_standalone(storage.clone()).and_then(|mut image| edit(&mut image)) {
                Ok(()) => done += 1,
                Err(_) => refused += 1,
            }
            let _ = check(storage, Repair::All);
            assert!(started.elapsed().as_secs() < 20);
        }
    }
    assert!(done > 0 && refused > 0, "{done} {refused}");
}

#[test]
fn whoever_repairs_clears_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.qcow2");
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "x.qcow2", "1M"], dir.path());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0x80], 88).unwrap();
    let autoclear = || std::fs::read(&path).unwrap()[88];
    let storage = || -> Arc<dyn Storage> { Arc::new(FileStorage::open_writable(&path).unwrap()) };
    check(storage(), Repair::None).unwrap();
    assert_eq!(autoclear(), 0x80, "a mere look changes nothing");
    check(storage(), Repair::All).unwrap();
    assert_eq!(autoclear(), 0);
}
