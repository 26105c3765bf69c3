//! Appliances: read as a stream, and opened with all their disks at random places.

use std::io::Write;

use super::image::{Random, look};
use imgcore::{NoProgress, Result};
use xva::{Options, Stream, StreamSink, Xva};

/// Checks the order that a stream promises.
#[derive(Default)]
struct Ascending(std::collections::HashMap<usize, u64>);

impl StreamSink for Ascending {
    fn data(&mut self, disk: usize, offset: u64, data: &[u8]) -> Result<()> {
        let end = self.0.entry(disk).or_default();
        assert!(offset >= *end, "a piece at {offset} behind one that ends at {end}");
        *end = offset + data.len() as u64;
        Ok(())
    }
}

/// Takes `data` as an archive.
pub fn run(data: &[u8]) {
    if let Ok(stream) = Stream::open(data, "fuzzed")
        && stream.appliance().disks.iter().all(|d| d.size < 1 << 50)
    {
        let sizes: Vec<_> = stream.appliance().disks.iter().map(|d| d.size).collect();
        let mut sink = Ascending::default();
        let read = stream.read(&mut sink, &NoProgress);
        for (disk, end) in sink.0 {
            assert!(read.is_err() || end <= sizes[disk], "{end} bytes for a disk of {}", sizes[disk]);
        }
    }
    // Archives are opened by name.
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("a temporary file");
    let Ok(archive) = Xva::open(file.path(), &Options::default()) else { return };
    for disk in 0..archive.appliance().disks.len().min(8) {
        if let Ok(image) = archive.disk(disk) {
            look(&*image, &mut Random::of(data));
        }
    }
    let _ = archive.verify(&NoProgress);
}
