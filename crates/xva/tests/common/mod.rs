//! Archives for tests, made by `scripts/mkxva`, and what should come out of them.

#![allow(dead_code)] // Each test file uses a part of it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use imgcore::{ExtentKind, Image, NoProgress, Result};
use xva::{Appliance, Options, Stream, StreamSink, Xva};

pub const MIB: usize = 1 << 20;

/// Pseudo-random numbers, the same in every run.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A disk with noise, text and blocks of zeroes of `block` bytes.
pub fn disk(seed: u64, size: usize, block: usize) -> Vec<u8> {
    let mut rng = Rng(seed * 2 + 1);
    let mut data = vec![0; size];
    for (i, chunk) in data.chunks_mut(block).enumerate() {
        match (i + seed as usize) % 4 {
            0 => chunk.iter_mut().for_each(|b| *b = (rng.next() >> 40) as u8),
            1 => chunk.fill(i as u8 + 1),
            _ => {}
        }
    }
    data
}

/// A folder with disks, in which archives are made.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub disks: Vec<Vec<u8>>,
    args: Vec<String>,
}

impl Scene {
    /// One disk for each pair of contents and options of `mkxva`.
    pub fn new(disks: &[(Vec<u8>, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut args = Vec::new();
        for (i, (data, options)) in disks.iter().enumerate() {
            let file = dir.path().join(format!("disk{i}.raw"));
            std::fs::write(&file, data).unwrap();
            args.push(format!("{}{options}", file.display()));
        }
        Scene { dir, disks: disks.iter().map(|(d, _)| d.clone()).collect(), args }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the archive `name`.
    pub fn make(&self, name: &str, options: &str) -> PathBuf {
        let out = self.path(name);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/mkxva");
        let made = Command::new(script).arg(&out).args(&self.args).args(options.split_whitespace()).output().expect("mkxva needs python3");
        assert!(made.status.success(), "mkxva {options}: {}", String::from_utf8_lossy(&made.stderr));
        out
    }
}

/// What a stream delivers.
#[derive(Default)]
pub struct Collected {
    pub pieces: Vec<(usize, u64, Vec<u8>)>,
}

impl StreamSink for Collected {
    fn data(&mut self, disk: usize, offset: u64, data: &[u8]) -> Result<()> {
        if let Some((d, o, last)) = self.pieces.iter().rev().find(|(d, _, _)| *d == disk) {
            assert!(*d != disk || o + last.len() as u64 <= offset, "pieces must ascend");
        }
        self.pieces.push((disk, offset, data.to_vec()));
        Ok(())
    }
}

/// Streams bytes, and gives the description and every disk whole.
pub fn stream(raw: &[u8]) -> Result<(Appliance, Vec<Vec<u8>>)> {
    let mut sink = Collected::default();
    let appliance = Stream::open(raw, "stream")?.read(&mut sink, &NoProgress)?;
    let mut disks: Vec<_> = appliance.disks.iter().map(|d| vec![0; d.size as usize]).collect();
    for (disk, offset, data) in sink.pieces {
        disks[disk][offset as usize..][..data.len()].copy_from_slice(&data);
    }
    Ok((appliance, disks))
}

pub fn read_whole(image: &dyn Image) -> Result<Vec<u8>> {
    let mut data = vec![0xEE; image.size() as usize];
    image.read_at(&mut data, 0)?;
    Ok(data)
}

/// The extents of an image: gapless and ascending.
pub fn extents(image: &dyn Image) -> Vec<(u64, u64, ExtentKind)> {
    let mut all: Vec<(u64, u64, ExtentKind)> = Vec::new();
    image
        .extents(0..image.size(), &mut |e| {
            assert_eq!(all.last().map_or(0, |(start, len, _)| start + len), e.start);
            all.push((e.start, e.len, e.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(all.last().map_or(0, |(start, len, _)| start + len), image.size());
    all
}

/// Opens an archive and reads every disk in all ways, which must agree with each other.
pub fn check(path: &Path, options: &Options, expected: &[(&str, &[u8])]) -> Xva {
    let xva = Xva::open(path, options).unwrap();
    for (id, data) in expected {
        let image = xva.disk_by_id(id).unwrap();
        assert_eq!(image.size(), data.len() as u64, "{id}");
        // At random first: a chunk's first read is then mostly a partial one.
        let mut rng = Rng(77);
        for _ in 0..20 {
            let at = rng.below(data.len());
            let len = rng.below((data.len() - at).min(3 * MIB)) + 1;
            let mut buf = vec![0xEE; len];
            image.read_at(&mut buf, at as u64).unwrap();
            assert!(buf == data[at..at + len], "{id}: {len} at {at}");
        }
        assert!(read_whole(&*image).unwrap() == *data, "{id}");
        assert!(image.read_at(&mut [0; 2], data.len() as u64 - 1).is_err());
        for (start, len, kind) in extents(&*image) {
            if kind.reads_zero() {
                assert!(data[start as usize..][..len as usize].iter().all(|b| *b == 0), "{id}: {start}");
            }
        }
    }
    xva.verify(&Counted::default()).unwrap();
    if path.is_file() {
        let (appliance, disks) = stream(&std::fs::read(path).unwrap()).unwrap();
        for (id, data) in expected {
            assert!(disks[appliance.disk(id).unwrap()] == *data, "{id} streamed");
        }
        assert_eq!(
            (&appliance.vms, &appliance.disks, &appliance.warnings),
            (&xva.appliance().vms, &xva.appliance().disks, &xva.appliance().warnings)
        );
    }
    assert!(xva::probe(path));
    xva
}

/// Checks that progress counts no more than it announced.
#[derive(Default)]
pub struct Counted(Mutex<(u64, u64)>);

impl imgcore::Progress for Counted {
    fn total(&self, total: u64) {
        self.0.lock().unwrap().0 = total;
    }
    fn advance(&self, done: u64) {
        let mut counts = self.0.lock().unwrap();
        counts.1 += done;
        assert!(counts.1 <= counts.0);
    }
    fn cancelled(&self) -> bool {
        false
    }
}

/// Says why a test cannot run, which is a failure where everything should be installed.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run: {why}");
    eprintln!("skipped: {why}");
}
