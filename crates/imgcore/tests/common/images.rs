//! Images in tests: their whole content, parents in memory, random changes, and what a power cut leaves of a file.

use std::ops::ControlFlow;
use std::sync::Arc;

use imgcore::storage::{MemStorage, Operation};
use imgcore::{Error, Gate, Image, ImageMut, Reference, Result, Storage};

use super::Random;

/// Reads all of an image, and checks the extents against it.
pub fn content(image: &dyn Image) -> Vec<u8> {
    let mut all = vec![0x55; image.size() as usize];
    image.read_at(&mut all, 0).unwrap();
    let mut at = 0;
    image
        .extents(0..image.size(), &mut |e| {
            assert_eq!(e.start, at);
            assert!(e.len > 0);
            at += e.len;
            assert!(!e.kind.reads_zero() || all[e.start as usize..at as usize].iter().all(|b| *b == 0), "{e:?}");
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(at, image.size());
    all
}

/// One random change to an image and to `model`; gives the range. Half of them are of whole sectors.
pub fn change(image: &dyn ImageMut, model: &mut [u8], random: &mut Random, longest: u64) -> std::ops::Range<usize> {
    let size = model.len() as u64;
    let mask = *random.pick(&[0, 511]);
    let offset = random.below(size) & !mask;
    let len = ((random.below(longest) + mask) & !mask).min(size - offset);
    let range = offset as usize..(offset + len) as usize;
    match random.below(5) {
        0 => {
            image.zero_at(offset, len).unwrap();
            model[range.clone()].fill(0);
        }
        1 => {
            image.discard(offset, len).unwrap();
            model[range.clone()].fill(0);
        }
        _ => {
            let data = random.bytes(len);
            image.write_at(&data, offset).unwrap();
            model[range.clone()].copy_from_slice(&data);
        }
    }
    range
}

/// Opens files in memory by their names.
pub struct MemoryGate(pub Vec<Arc<MemStorage>>);

impl Gate for MemoryGate {
    fn open(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        match self.0.iter().find(|storage| storage.name() == reference.target) {
            Some(storage) => Ok(storage.clone()),
            None => Err(Error::io(reference.target, "open", None, std::io::ErrorKind::NotFound.into())),
        }
    }
}

/// The file after a cut behind operation `cut`: all up to the last sync, and a random choice of what came later, of whose
/// writes some are torn between sectors.
pub fn after_cut(start: &MemStorage, log: &[Operation], cut: usize, random: &mut Random) -> Arc<MemStorage> {
    let disk = Arc::new(start.snapshot());
    let synced = log[..cut].iter().rposition(|op| *op == Operation::Sync).map_or(0, |at| at + 1);
    for (index, operation) in log[..cut].iter().enumerate() {
        if index < synced || random.below(2) == 0 {
            operation.apply(&*disk).unwrap();
        } else if let Operation::Write(offset, data) = operation
            && random.below(2) == 0
        {
            let keep = random.below(data.len() as u64 + 1) as usize / 512 * 512;
            disk.write_at(&data[..keep], *offset).unwrap();
        }
    }
    disk
}
