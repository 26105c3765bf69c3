//! Image formats: opened, looked at, walked, read, checked; and a copy written, repaired and changed in its structure.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use imgcore::formats::Repair;
use imgcore::raw::Raw;
use imgcore::storage::MemStorage;
use imgcore::vhd::incoming::{self, Content};
use imgcore::{Error, ExtentKind, Formats, Image, ImageMut, NoGate, NoProgress, OpenOptions, Preallocation, copy};

/// Extents that are looked at; a walk may have billions.
const EXTENTS: usize = 2000;
/// Bytes read at a time.
const READ: u64 = 70_000;

/// A small repeatable random source, seeded by the input: the same input does the same.
pub(super) struct Random(u64);

impl Random {
    pub fn of(data: &[u8]) -> Self {
        Random(data.iter().fold(data.len() as u64, |seed, b| seed.wrapping_mul(31).wrapping_add(u64::from(*b))))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 16) % limit.max(1)
    }
}

/// Takes `data` as an image of the format called `format`, which the table must have.
pub fn run(format: &str, data: &[u8]) {
    assert!(Formats::new().driver(format).is_ok(), "no format is called {format}");
    examine(data, Some(format));
}

/// Takes `data` as an image of whichever format claims it.
pub fn run_probed(data: &[u8]) {
    examine(data, None);
}

fn examine(data: &[u8], format: Option<&str>) {
    let formats = Formats::new();
    let options = OpenOptions::new(&NoGate).format(format).without_backing();
    let original = MemStorage::from_bytes("fuzzed", data);
    let mut random = Random::of(data);
    if let Ok(image) = formats.open_storage(Arc::new(original.snapshot()), &options) {
        look(&*image, &mut random);
        for snapshot in image.info().snapshots.iter().take(2) {
            if let Ok(image) = formats.open_storage(Arc::new(original.snapshot()), &options.clone().snapshot(snapshot.id.as_str())) {
                look(&*image, &mut random);
            }
        }
    }
    let checked = formats.check(Arc::new(original.snapshot()), &options, Repair::None);
    if let Ok(image) = formats.open_storage_mut(Arc::new(original.snapshot()), &options) {
        change(&*image, &mut random);
        // Where two things share a place, writing one changes the other.
        if checked.is_ok_and(|report| report.corruptions == 0) {
            look(&*image, &mut random);
        }
    }
    for repair in [Repair::Leaks, Repair::All] {
        let repaired = Arc::new(original.snapshot());
        if formats.check(repaired.clone(), &options, repair).is_ok()
            && let Ok(image) = formats.open_storage(repaired, &options)
        {
            look(&*image, &mut random);
        }
    }
    restructure(&formats, &original, &options, &mut random);
}

/// Reads what an image says of itself, and holds it against what it gives.
pub(super) fn look(image: &dyn Image, random: &mut Random) {
    let (size, info) = (image.size(), image.info());
    assert_eq!(info.virtual_size, size, "info and image tell of different sizes");
    let mut extents = Vec::new();
    let starts = [0, random.below(size), size.saturating_sub(1 + random.below(1 << 20))];
    for start in starts {
        walk(image, start..size, &mut extents);
    }
    for _ in 0..12 {
        let (start, kind) = match extents.len() as u64 {
            0 => (random.below(size), None),
            n => {
                let (range, kind): &(Range<u64>, _) = &extents[random.below(n) as usize];
                (range.start + random.below(range.end - range.start), Some((range.end, *kind)))
            }
        };
        let len = (1 + random.below(READ)).min(size.saturating_sub(start));
        let mut buf = vec![0xa5; len as usize];
        if image.read_at(&mut buf, start).is_ok()
            && let Some((end, kind)) = kind
            && kind.reads_zero()
            && image.backing().is_none()
        {
            let sure = (end - start).min(len) as usize;
            assert!(copy::is_zero(&buf[..sure]), "data at {start:#x}, where the walk said {kind:?}");
        }
    }
    assert!(image.read_at(&mut [0; 512], size).is_err(), "a read past the end");
    assert!(image.read_at(&mut [0; 512], u64::MAX - 100).is_err(), "a read past the end of all");
}

fn walk(image: &dyn Image, range: Range<u64>, extents: &mut Vec<(Range<u64>, ExtentKind)>) {
    let (mut at, mut count) = (range.start, 0);
    let walked = image.extents(range.clone(), &mut |extent| {
        assert!(extent.start == at && extent.len > 0, "an extent at {:#x}+{:#x} where {at:#x} was due", extent.start, extent.len);
        at = extent.start.checked_add(extent.len).expect("an extent's end");
        assert!(at <= range.end, "an extent past the range's end");
        extents.push((extent.start..at, extent.kind));
        count += 1;
        if count < EXTENTS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(walked.is_err() || at == range.end || count == EXTENTS, "a walk that ends at {at:#x} of {:#x}", range.end);
}

/// Writes to an image, which must then give back what was written if it says that all went well.
fn change(image: &dyn ImageMut, random: &mut Random) {
    let size = image.size();
    for round in 0..12u8 {
        let start = random.below(size) / 512 * 512;
        let len = (1 + random.below(READ)).next_multiple_of(512).min(size - start);
        let done = match round % 4 {
            0 | 1 => image.write_at(&vec![round + 1; len as usize], start),
            2 => image.zero_at(start, len),
            _ => image.discard(start, len),
        };
        if done.is_err() {
            return;
        }
        let mut buf = vec![0xa5; len as usize];
        let _ = image.read_at(&mut buf, start);
        if round == 5 && image.flush().is_err() {
            return;
        }
    }
    let _ = image.flush();
}

fn restructure(formats: &Formats, original: &MemStorage, options: &OpenOptions<'_>, random: &mut Random) {
    let open = || formats.open_edit(Arc::new(original.snapshot()), options);
    let Ok(mut image) = open() else { return };
    let size = image.size();
    // What a format cannot do, it says.
    let _: Result<(), Error> = (|| {
        let snapshots = image.snapshots()?;
        let all = snapshots.list();
        snapshots.create("fuzz", (1, 2))?;
        if let Some(first) = all.first() {
            snapshots.apply(&first.id)?;
            snapshots.delete(&first.id)?;
        }
        snapshots.delete("fuzz")
    })();
    let _ = image.flush();
    let _: Result<(), Error> = (|| {
        let mut image = open()?;
        let bitmaps = image.bitmaps()?;
        for bitmap in bitmaps.list().iter().take(3) {
            let _ = bitmaps.dirty(&bitmap.name);
            let _ = bitmaps.clear(&bitmap.name);
        }
        bitmaps.add("fuzz", None)?;
        bitmaps.mark("fuzz", &[0..size.min(4096), size / 2..size])?;
        bitmaps.remove("fuzz")
    })();
    for target in [size / 2, size.saturating_add(random.below(64 << 20))] {
        if let Ok(mut image) = open()
            && image.resize(target / 512 * 512, Preallocation::Off).is_ok()
        {
            look(&*image, random);
        }
    }
    if let Ok(mut image) = open() {
        let _ = image.set_backing(Some("another.raw"), Some("raw"));
        let _ = image.make_empty();
        look(&*image, random);
    }
}

/// A VHD as a file, and as a stream onto a disk of the size that it says.
pub fn run_vhd(data: &[u8]) {
    run("vpc", data);
    let size = data.get(48..56).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
    for content in [Content::Whole, Content::Difference].into_iter().filter(|_| size <= 64 << 20) {
        let disk = Raw::create(Arc::new(MemStorage::new("disk", 0)), size).expect("a disk in memory");
        let _ = incoming::receive(&mut &*data, "stream", content, &disk, &NoProgress);
    }
}
