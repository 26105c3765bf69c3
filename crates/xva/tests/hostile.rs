//! Archives that are cut, damaged or made to harm: an error, in bounded time and memory, and never a wrong success.

mod common;

use std::fs::File;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use common::{Rng, Scene, disk, stream};
use imgcore::{NoProgress, Result};
use xva::{Options, Stream, StreamSink, Xva};

/// A small archive of small chunks: many headers, two disks.
fn small(options: &str) -> (Scene, Vec<u8>) {
    let scene = Scene::new(&[(disk(1, 40_000, 4096), ",ref=10,device=xvda2"), (disk(2, 16_384, 4096), ",ref=2,device=xvda1")]);
    let raw = std::fs::read(scene.make("small.xva", options)).unwrap();
    (scene, raw)
}

/// Takes everything and keeps nothing.
struct Nowhere;

impl StreamSink for Nowhere {
    fn data(&mut self, _: usize, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

fn run(raw: &[u8]) -> Result<()> {
    Stream::open(raw, "hostile")?.read(&mut Nowhere, &NoProgress).map(|_| ())
}

#[test]
fn a_cut_anywhere_is_an_error() {
    for (options, every_boundary) in [
        ("--chunk 4096 --checksum xxhash --keep-alive 3", true),
        ("--chunk 4096 --checksum none --tail padded", true),
        ("--chunk 4096 --export-vsn 0", true),
        ("--legacy tar --legacy-chunk 10000", true),
        ("--chunk 4096 --compress gzip", false),
        ("--chunk 4096 --compress zstd", false),
    ] {
        let (scene, raw) = small(options);
        stream(&raw).unwrap();
        let mut rng = Rng(5);
        let mut cuts: Vec<usize> = (0..150).map(|_| rng.below(raw.len())).chain(0..20).chain(raw.len() - 20..raw.len()).collect();
        if every_boundary {
            cuts.extend((0..raw.len()).step_by(512).flat_map(|at| [at, at + 1, (at + 511).min(raw.len() - 1)]));
        }
        cuts.sort_unstable_by(|a, b| b.cmp(a));
        let path = scene.path("small.xva");
        let file = File::options().write(true).open(&path).unwrap();
        for cut in cuts {
            let e = run(&raw[..cut]).err().unwrap_or_else(|| panic!("{options}: a stream cut at {cut} of {} passes", raw.len()));
            assert!(!e.to_string().is_empty());
            file.set_len(cut as u64).unwrap();
            if !options.contains("zstd") {
                assert!(Xva::open(&path, &Options::default()).is_err(), "{options}: a file cut at {cut} of {} opens", raw.len());
            }
        }
    }
}

#[test]
fn every_damaged_byte_of_data_is_found() {
    let (_scene, raw) = small("--chunk 4096 --checksum xxhash");
    let xml_end = 512 + raw[512..].windows(512).step_by(512).position(|w| w.starts_with(b"Ref:10/00000000\0")).unwrap() * 512;
    let good = stream(&raw).unwrap().1;
    let mut rng = Rng(9);
    for _ in 0..400 {
        let at = xml_end + rng.below(raw.len() - xml_end);
        let mut bad = raw.clone();
        bad[at] ^= 1 << rng.below(8);
        // Padding and fields that mean nothing may change; nothing else.
        if let Ok((_, disks)) = stream(&bad) {
            assert!(disks == good, "a bit at {at} changed a disk");
        }
    }
}

#[test]
fn mutations_never_panic_nor_hang() {
    let forms = [
        "--chunk 4096 --checksum xxhash --keep-alive 3",
        "--chunk 4096 --export-vsn 0 --tar pax",
        "--legacy tar --legacy-chunk 10000 --tar gnu",
        "--chunk 4096 --compress gzip --pretty",
    ];
    let seeds: Vec<_> = forms.iter().map(|f| small(f)).collect();
    let mut rng = Rng(20_261_121);
    let end = Instant::now() + Duration::from_secs(6);
    let mut rounds = 0;
    while Instant::now() < end || rounds < 50 {
        let (scene, raw) = &seeds[rng.below(seeds.len())];
        let bad = mutate(raw, &mut rng);
        let started = Instant::now();
        let _ = run(&bad);
        let path = scene.path("mutated.xva");
        std::fs::write(&path, &bad).unwrap();
        if let Ok(xva) = Xva::open(&path, &Options::default()) {
            for index in 0..xva.appliance().disks.len() {
                let Ok(image) = xva.disk(index) else { continue };
                let mut buf = vec![0; 10_000.min(image.size() as usize)];
                let _ = image.read_at(&mut buf, 0);
                let last = image.size() - buf.len() as u64;
                let _ = image.read_at(&mut buf, last);
                let mut extents = 0;
                image
                    .extents(0..image.size(), &mut |_| {
                        extents += 1;
                        ControlFlow::Continue(())
                    })
                    .unwrap();
                assert!(extents < 1000);
            }
            let _ = imgcore::formats::DiskSet::details(&xva);
        }
        xva::probe(&path);
        assert!(started.elapsed() < Duration::from_secs(5), "a mutation took {:?}", started.elapsed());
        rounds += 1;
    }
}

/// Flips bits, swaps numbers, repeats or drops blocks; headers mostly get a right checksum again, to come further.
fn mutate(raw: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bad = raw.to_vec();
    for _ in 0..1 + rng.below(4) {
        let blocks = bad.len() / 512;
        let block = rng.below(blocks.max(1)) * 512;
        match rng.below(7) {
            0 => {
                let at = rng.below(bad.len());
                bad[at] ^= 1 << rng.below(8);
            }
            1 if block + 512 <= bad.len() => drop(bad.drain(block..block + 512)),
            2 if block + 512 <= bad.len() => {
                let copy = bad[block..block + 512].to_vec();
                bad.splice(block..block, copy);
            }
            // A digit somewhere becomes another one, or a long number.
            3 | 4 => {
                let start = rng.below(bad.len());
                if let Some(at) = bad[start..].iter().position(u8::is_ascii_digit).map(|n| n + start) {
                    let long: &[u8] =
                        [&b"9"[..], b"-1", b"18446744073709551615", b"9223372036854775807", b"0", b"4294967296"][rng.below(6)];
                    match rng.below(2) {
                        0 => bad[at] = long[0],
                        _ => drop(bad.splice(at..at + 1, long.iter().copied())),
                    }
                }
            }
            5 => {
                let tags: [&[u8]; 6] = [b"<value>", b"</struct>", b"&amp;", b"<!DOCTYPE x>", b"\0", b"<![CDATA["];
                let at = rng.below(bad.len().min(30_000));
                let tag = tags[rng.below(6)];
                bad.splice(at..at, tag.iter().copied());
            }
            // A field of a header, with the header's checksum set right.
            _ if block + 512 <= bad.len() => {
                let header = &mut bad[block..block + 512];
                let at = rng.below(512);
                header[at] = rng.next() as u8;
                if rng.below(3) == 0 {
                    header[124] = 0x80;
                }
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            _ => {}
        }
    }
    bad
}

#[test]
fn claims_that_cost_nothing_to_make_cost_little_to_read() {
    // A name of a kilobyte in 30 million characters of nested tags, on the small stack of a test thread.
    for (open, close) in [("<a>", ""), ("<value><array><data>", "</data></array></value>"), ("<!--", "-->"), ("<a x='", "'>")] {
        let xml = open.repeat(8_000_000 / open.len()) + &close.repeat(8_000_000 / open.len());
        let mut raw = Vec::new();
        let mut header = [0; 512];
        header[..7].copy_from_slice(b"ova.xml");
        header[124..135].copy_from_slice(format!("{:011o}", xml.len()).as_bytes());
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        raw.extend(header);
        raw.extend(xml.as_bytes());
        raw.resize(raw.len().next_multiple_of(512) + 1024, 0);
        let started = Instant::now();
        assert!(run(&raw).is_err());
        assert!(started.elapsed() < Duration::from_secs(20), "{open}: {:?}", started.elapsed());
    }
    // A virtual size of 8 EiB with one chunk is described, not allocated.
    let scene = Scene::new(&[(vec![1; 4096], ",size=4096")]);
    let text = std::fs::read(scene.make("a.xva", "")).unwrap();
    let text = String::from_utf8_lossy(&text)
        .replace("<name>virtual_size</name><value>4096</value>", "<name>virtual_size</name><value>4095</value>");
    stream(text.as_bytes()).unwrap();
    let huge = text.replace("<name>virtual_size</name><value>4095</value>", "<name>virtual_size</name><value>9999</value>");
    assert!(run(huge.as_bytes()).unwrap_err().to_string().contains("truncated"));
}
