//! One case: a chain of images is made and written, and read by all.

use std::path::PathBuf;
use std::sync::Arc;

use imgcore::copy::{self, copy};
use imgcore::formats::{CreateOptions, NewImage, Repair};
use imgcore::raw::Raw;
use imgcore::storage::{FileStorage, MemStorage};
use imgcore::{Error, Formats, Image, ImageMut, LocalGate, NoProgress, OpenOptions, Preallocation};

use crate::common::{Random, run};
use crate::kinds::Kind;
use crate::readers;

/// A change to an image's content.
enum Operation {
    Write(u8, u64, u64),
    Compress(u8, u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
}

/// An image of the chain.
struct Layer {
    name: String,
    kind: Kind,
    /// What must be read.
    model: Vec<u8>,
    /// Clusters that this image may hold something for.
    touched: Vec<bool>,
    /// Names and contents of internal snapshots.
    snapshots: Vec<(String, Vec<u8>)>,
    /// The length of the image below.
    below: u64,
    /// Whether imago reads the chain from here on.
    known_to_imago: bool,
}

pub struct Case {
    folder: tempfile::TempDir,
    random: Random,
    formats: Formats,
    pub log: Vec<String>,
    /// What was done, for a summary.
    pub counted: Vec<String>,
}

impl Case {
    pub fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Neighbouring seeds must not begin alike.
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc);
        Case { folder, random, formats: Formats::new(), log: Vec::new(), counted: Vec::new() }
    }

    pub fn run(&mut self) -> Result<(), String> {
        let depth = *self.random.pick(&[1, 1, 2, 2, 3]);
        let mut below: Option<Layer> = None;
        for index in 0..depth {
            let mut layer = self.make(index, below.as_ref())?;
            if !layer.kind.only_converted {
                for _ in 0..self.random.below(4) {
                    self.change(&mut layer)?;
                }
            }
            self.check(&layer)?;
            below = Some(layer);
        }
        let top = below.unwrap();
        self.read(&top)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn coin(&mut self) -> bool {
        self.random.below(2) == 0
    }

    /// Runs a program of QEMU.
    fn qemu(&mut self, program: &str, args: &[&str]) -> Result<String, String> {
        self.log.push(format!("{program} {}", args.join(" ")));
        let (code, text) = run(program, args, self.folder.path());
        // qemu-io says what failed and ends with success all the same.
        if code != 0 || text.contains("failed") || text.contains("rror") {
            return Err(format!("{program} {args:?}: {code}: {text}"));
        }
        Ok(text)
    }

    fn make(&mut self, index: usize, below: Option<&Layer>) -> Result<Layer, String> {
        let name = format!("layer{index}");
        let data_file = self.path(&format!("data{index}")).display().to_string();
        let kind = Kind::random(&mut self.random, below.is_some(), &data_file);
        let size = match below {
            Some(below) if self.coin() => below.model.len() as u64 / kind.unit * kind.unit,
            _ => (1 + self.random.below((4 << 20) / kind.unit)) * kind.unit,
        };
        let mut model = below.map_or(Vec::new(), |b| b.model.clone());
        model.resize(size as usize, 0);
        let convert = below.is_none() && (kind.only_converted || self.random.below(4) == 0);
        let compress = convert && (kind.only_converted || (kind.compressible && !kind.has("preallocation") && self.coin()));
        if convert {
            self.fill(&mut model);
        }
        let mut options = kind.options.clone();
        if let Some(below) = below {
            options.extend([("backing_file", below.name.clone()), ("backing_fmt", below.kind.format.into())]);
        }
        let preallocated = kind.has("preallocation") || kind.has("data_file_raw") || convert;
        let touched = vec![preallocated; size.div_ceil(kind.cluster) as usize];
        let known_to_imago = kind.known_to_imago() && below.is_none_or(|b| b.known_to_imago && b.kind.format != "vmdk");
        let below = below.map_or(0, |b| b.model.len() as u64);
        let mut layer = Layer { name, kind, model, touched, snapshots: Vec::new(), below, known_to_imago };
        let ours = self.coin() && self.create(&layer, &options, convert, compress)?;
        if !ours {
            self.create_theirs(&layer, &options, convert, compress)?;
        }
        // VHD rounds sizes up to its geometry.
        let real = self.open(&layer, None)?.size();
        if real < size || (real != size && layer.kind.format != "vpc") {
            return Err(format!("{}: has {real} bytes, and not {size}", layer.name));
        }
        layer.model.resize(real as usize, 0);
        layer.touched.resize(real.div_ceil(layer.kind.cluster) as usize, preallocated);
        self.counted.push(format!("{} made by {}", layer.kind.format, if ours { "us" } else { "QEMU" }));
        Ok(layer)
    }

    /// Random runs of bytes.
    fn fill(&mut self, model: &mut [u8]) {
        for _ in 0..self.random.below(8) {
            let (at, len) = self.range(model.len() as u64, 1);
            let bytes = self.random.bytes(len);
            model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
        }
    }

    /// A random range at multiples of `unit`, mostly short; not empty unless `size` is less than that.
    fn range(&mut self, size: u64, unit: u64) -> (u64, u64) {
        let units = size / unit;
        let at = self.random.below(units.max(1));
        let most = [4096, 70_000, 300_000, 3 << 20][self.random.below(4) as usize] / unit;
        let len = (1 + self.random.below(most.max(1))).min(units - at);
        (at * unit, len * unit)
    }

    fn create_theirs(&mut self, layer: &Layer, options: &[(&'static str, String)], convert: bool, compress: bool) -> Result<(), String> {
        let text = options.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",");
        let size = layer.model.len().to_string();
        let mut args = vec![];
        if convert {
            std::fs::write(self.path("source"), &layer.model).unwrap();
            args.extend(["convert", "-f", "raw", "-O", layer.kind.format]);
            // A stream is compressed without being asked.
            args.extend((compress && !layer.kind.only_converted).then_some("-c"));
        } else {
            args.extend(["create", "-q", "-f", layer.kind.format]);
        }
        if !text.is_empty() {
            args.extend(["-o", &text]);
        }
        args.extend(if convert { ["source", layer.name.as_str()] } else { [layer.name.as_str(), size.as_str()] });
        self.qemu("qemu-img", &args).map(drop)
    }

    /// The same by us; `false` for what we do not create.
    fn create(&mut self, layer: &Layer, options: &[(&'static str, String)], convert: bool, compress: bool) -> Result<bool, String> {
        let options = options.iter().fold(CreateOptions::new(), |o, (name, value)| o.set(*name, value.as_str()));
        self.log.push(format!("imgcore creates {} {}, converting {convert}, compressing {compress}", layer.name, layer.kind.text()));
        let size = layer.model.len() as u64;
        let driver = self.formats.driver(layer.kind.format).map_err(|e| e.to_string())?;
        let made = NewImage::create(driver, self.path(&layer.name), size, &options).and_then(|new| {
            if convert {
                let source = Raw::open(Arc::new(MemStorage::from_bytes("source", &layer.model)))?;
                let how = copy::Options { target_is_zero: true, compress, ..copy::Options::default() };
                copy(&source, &**new.image(), &how, &NoProgress)?;
            }
            new.commit()
        });
        self.ours(made)
    }

    /// Whether we did it; `false` where we say that we do not do such a thing.
    fn ours<T>(&mut self, result: imgcore::Result<T>) -> Result<bool, String> {
        match result {
            Ok(_) => Ok(true),
            Err(Error::Unsupported { what, format, .. }) => {
                self.log.push(format!("… which is not supported: {what}"));
                self.counted.push(format!("{format} not for us"));
                Ok(false)
            }
            Err(e) => Err(format!("imgcore: {e}")),
        }
    }

    fn open(&self, layer: &Layer, snapshot: Option<&str>) -> Result<Arc<dyn Image>, String> {
        let options = OpenOptions::new(&LocalGate).format(layer.kind.format).snapshot(snapshot);
        self.formats.open(self.path(&layer.name), &options).map_err(|e| format!("imgcore opens {}: {e}", layer.name))
    }

    /// One of the things that can be done to an image between its creation and its end.
    fn change(&mut self, layer: &mut Layer) -> Result<(), String> {
        match self.random.below(8) {
            0 | 1 if layer.kind.snapshots => self.snapshot(layer),
            2 if layer.kind.format == "qcow2" => self.resize(layer),
            3 if layer.kind.is("compat", "1.1") && !layer.kind.has("data_file") => self.bitmap(layer),
            _ => self.write(layer),
        }
    }

    fn operations(&mut self, layer: &mut Layer) -> Vec<Operation> {
        let (size, cluster) = (layer.model.len() as u64, layer.kind.cluster);
        let mut list = Vec::new();
        for _ in 0..1 + self.random.below(12) {
            let pattern = 1 + self.random.below(255) as u8;
            let unit = if self.coin() { 512 } else { 1 };
            let operation = match self.random.below(10) {
                0 | 1 => {
                    let (at, len) = self.range(size, unit);
                    Operation::Zero(at, len)
                }
                2 if layer.kind.discards_to_zero && size >= cluster => {
                    let (at, len) = self.range(size, cluster);
                    Operation::Discard(at, len)
                }
                3 | 4 if layer.kind.compressible => {
                    let at = self.random.below(layer.touched.len() as u64);
                    if layer.touched[at as usize] {
                        continue;
                    }
                    Operation::Compress(pattern, at * cluster, cluster.min(size - at * cluster))
                }
                _ => {
                    let (at, len) = self.range(size, unit);
                    Operation::Write(pattern, at, len)
                }
            };
            let (byte, at, len) = match operation {
                Operation::Write(byte, at, len) | Operation::Compress(byte, at, len) => (byte, at, len),
                Operation::Zero(at, len) | Operation::Discard(at, len) => (0, at, len),
            };
            layer.model[at as usize..(at + len) as usize].fill(byte);
            layer.touched[(at / cluster) as usize..(at + len).div_ceil(cluster) as usize].fill(true);
            list.push(operation);
        }
        list
    }

    fn write(&mut self, layer: &mut Layer) -> Result<(), String> {
        let mut list = self.operations(layer);
        let by_us = self.coin() && {
            self.log.push(format!("imgcore writes to {} what follows", layer.name));
            let options = OpenOptions::new(&LocalGate).format(layer.kind.format);
            let opened = self.formats.open_mut(self.path(&layer.name), &options);
            let image = opened.as_ref().ok().cloned();
            match (self.ours(opened)?, image) {
                (true, Some(image)) => {
                    self.log.push(commands(&list).join("; "));
                    list.iter()
                        .try_for_each(|o| apply(&*image, o))
                        .and_then(|()| image.flush())
                        .map_err(|e| format!("imgcore writes: {e}"))?;
                    true
                }
                _ => false,
            }
        };
        if !by_us {
            // QEMU 10 goes on to compress into a cluster that was given back and has other data meanwhile. What is
            // compressed was not touched before, so it can come first.
            list.sort_by_key(|o| !matches!(o, Operation::Compress(..)));
            let commands = commands(&list);
            let args = commands.iter().flat_map(|c| ["-c", c]);
            let args: Vec<_> = ["-d", "unmap", "-f", layer.kind.format].into_iter().chain(args).chain([layer.name.as_str()]).collect();
            self.qemu("qemu-io", &args)?;
        }
        self.counted.push(format!("{} written by {}", layer.kind.format, if by_us { "us" } else { "QEMU" }));
        Ok(())
    }

    /// Calls `ours` with the image open for changes to its structure, or runs qemu-img with `theirs`.
    fn edit(
        &mut self,
        layer: &Layer,
        theirs: &[&str],
        ours: impl FnOnce(&mut dyn imgcore::ImageEdit) -> imgcore::Result<()>,
    ) -> Result<(), String> {
        if self.coin() {
            return self.qemu("qemu-img", theirs).map(drop);
        }
        self.log.push(format!("imgcore does as qemu-img {}", theirs.join(" ")));
        let options = OpenOptions::new(&LocalGate).format(layer.kind.format);
        let storage = FileStorage::open_writable(self.path(&layer.name));
        let edited = storage.and_then(|storage| ours(&mut *self.formats.open_edit(Arc::new(storage), &options)?));
        edited.map_err(|e| format!("imgcore: {e}"))
    }

    fn snapshot(&mut self, layer: &mut Layer) -> Result<(), String> {
        let count = layer.snapshots.len();
        match self.random.below(4) {
            0 if count > 0 => {
                let (name, model) = layer.snapshots[self.random.below(count as u64) as usize].clone();
                self.edit(layer, &["snapshot", "-q", "-a", &name, &layer.name], |image| image.snapshots()?.apply(&name))?;
                layer.model = model;
                layer.touched.resize(layer.model.len().div_ceil(layer.kind.cluster as usize), true);
                layer.touched.fill(true);
            }
            1 if count > 0 => {
                let (name, _) = layer.snapshots.remove(self.random.below(count as u64) as usize);
                self.edit(layer, &["snapshot", "-q", "-d", &name, &layer.name], |image| image.snapshots()?.delete(&name))?;
            }
            _ => {
                let name = format!("snapshot{}", self.random.next());
                let create = |image: &mut dyn imgcore::ImageEdit| image.snapshots()?.create(&name, (1, 2)).map(drop);
                self.edit(layer, &["snapshot", "-q", "-c", &name, &layer.name], create)?;
                layer.snapshots.push((name, layer.model.clone()));
            }
        }
        self.counted.push("snapshots changed".into());
        Ok(())
    }

    /// Makes it longer. Version 2 with snapshots does not go together with that.
    fn resize(&mut self, layer: &mut Layer) -> Result<(), String> {
        let old = layer.model.len() as u64;
        if layer.kind.is("compat", "0.10") {
            return Ok(());
        }
        let size = old + 512 * (1 + self.random.below(4096));
        let text = size.to_string();
        self.edit(layer, &["resize", "-q", "-f", "qcow2", &layer.name, &text], |image| image.resize(size, Preallocation::Off))?;
        layer.model.resize(size as usize, 0);
        layer.touched.resize(size.div_ceil(layer.kind.cluster) as usize, false);
        // What a longer image below has there must be covered.
        if layer.below > old {
            layer.touched.fill(true);
        }
        self.counted.push("resized".into());
        Ok(())
    }

    fn bitmap(&mut self, layer: &Layer) -> Result<(), String> {
        let name = format!("bitmap{}", self.random.next());
        self.edit(layer, &["bitmap", "--add", &layer.name, &name], |image| image.bitmaps()?.add(&name, None))?;
        self.counted.push("bitmaps added".into());
        Ok(())
    }

    /// Both programs' checks find nothing.
    fn check(&mut self, layer: &Layer) -> Result<(), String> {
        let storage = FileStorage::open(self.path(&layer.name)).map_err(|e| e.to_string())?;
        let options = OpenOptions::new(&LocalGate).format(layer.kind.format);
        match self.formats.check(Arc::new(storage), &options, Repair::None) {
            Ok(report) if report.corruptions + report.leaks + report.check_errors == 0 => {}
            Ok(report) => return Err(format!("our check of {}: {report:?}", layer.name)),
            Err(Error::Unsupported { .. }) => {}
            Err(e) => return Err(format!("our check of {}: {e}", layer.name)),
        }
        let (code, text) = run("qemu-img", &["check", "-f", layer.kind.format, &layer.name], self.folder.path());
        // 63: the format has no check.
        if code == 0 || code == 63 { Ok(()) } else { Err(format!("qemu-img check {}: {text}", layer.name)) }
    }

    /// All read what must be there.
    fn read(&mut self, layer: &Layer) -> Result<(), String> {
        readers::ours(&*self.open(layer, None)?, &layer.model)?;
        self.qemu("qemu-img", &["convert", "-f", layer.kind.format, "-O", "raw", &layer.name, "out"])?;
        readers::same("qemu-img", &std::fs::read(self.path("out")).unwrap(), &layer.model)?;
        if layer.known_to_imago {
            readers::imago(&self.path(&layer.name), layer.kind.format, &layer.model)?;
            self.counted.push("read by imago".into());
        }
        for (name, model) in &layer.snapshots {
            readers::ours(&*self.open(layer, Some(name))?, model)?;
            self.qemu("qemu-img", &["convert", "-l", &format!("snapshot.name={name}"), "-O", "raw", &layer.name, "out"])?;
            // QEMU gives a snapshot the size that the disk has now.
            let mut theirs = std::fs::read(self.path("out")).unwrap();
            theirs.resize(model.len(), 0);
            readers::same("qemu-img of the snapshot", &theirs, model)?;
        }
        Ok(())
    }
}

/// The operations as qemu-io's commands.
fn commands(list: &[Operation]) -> Vec<String> {
    let command = |operation: &Operation| match operation {
        Operation::Write(pattern, at, len) => format!("write -P {pattern} {at} {len}"),
        Operation::Compress(pattern, at, len) => format!("write -c -P {pattern} {at} {len}"),
        Operation::Zero(at, len) => format!("write -z {at} {len}"),
        Operation::Discard(at, len) => format!("discard {at} {len}"),
    };
    list.iter().map(command).collect()
}

fn apply(image: &dyn ImageMut, operation: &Operation) -> imgcore::Result<()> {
    match *operation {
        Operation::Write(pattern, at, len) => image.write_at(&vec![pattern; len as usize], at),
        Operation::Zero(at, len) => image.zero_at(at, len),
        Operation::Discard(at, len) => image.discard(at, len),
        Operation::Compress(pattern, at, len) => {
            let compression = image.compression().ok_or_else(|| Error::Invalid("it does not compress".into()))?;
            let mut cluster = vec![pattern; len as usize];
            cluster.resize(compression.cluster_size() as usize, 0);
            match compression.compressor()(&cluster) {
                Some(packed) => compression.write_packed(&packed, at),
                None => image.write_at(&cluster[..len as usize], at),
            }
        }
    }
}
