//! Changes that a log holds: laid over the file for readers, or made to it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::storage::{Lock, read_padded};
use crate::{Error, Result, Storage};

/// What a changed range is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Zeroes.
    Zero,
    /// The log's data sector at this place of the file, with the bytes that it has in the descriptor: its first 8 and its last 4.
    Sector { at: u64, leading: u64, trailing: u32 },
}

/// Changed ranges, later ones over earlier ones. All begin and end at multiples of 4 KiB; data has just one of them.
#[derive(Debug, Default)]
pub(super) struct Patches(BTreeMap<u64, (u64, Source)>);

impl Patches {
    pub fn insert(&mut self, range: Range<u64>, source: Source) {
        if range.is_empty() {
            return;
        }
        // Of an earlier range of zeroes, what lies before and behind stays.
        if let Some((&start, &(end, old))) = self.0.range(..range.start).next_back()
            && end > range.start
        {
            self.0.insert(start, (range.start, old));
            if end > range.end {
                self.0.insert(range.end, (end, old));
            }
        }
        while let Some((&start, &(end, old))) = self.0.range(range.clone()).next() {
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, (end, old));
            }
        }
        self.0.insert(range.start, (range.end, source));
    }

    /// Those that touch `range`, ascending.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Source)> {
        let before = self.0.range(..range.start).next_back().filter(|(_, (end, _))| *end > range.start);
        before.into_iter().chain(self.0.range(range)).map(|(start, (end, source))| (*start..*end, *source))
    }

    /// Makes the changes to `storage`.
    pub fn apply(&self, storage: &dyn Storage) -> Result<()> {
        for (start, (end, source)) in &self.0 {
            match source {
                Source::Zero => storage.zero_at(*start, end - start)?,
                Source::Sector { .. } => storage.write_at(&source.sector(storage)?, *start)?,
            }
        }
        Ok(())
    }
}

impl Source {
    /// The 4 KiB that a data sector stands for.
    fn sector(&self, storage: &dyn Storage) -> Result<[u8; 4096]> {
        let mut bytes = [0; 4096];
        if let Source::Sector { at, leading, trailing } = self {
            read_padded(storage, &mut bytes, *at)?;
            bytes[..8].copy_from_slice(&leading.to_le_bytes());
            bytes[4092..].copy_from_slice(&trailing.to_le_bytes());
        }
        Ok(bytes)
    }
}

/// A file as it will be once its log is replayed; it can only be read.
pub(super) struct Replayed {
    pub storage: Arc<dyn Storage>,
    pub patches: Patches,
    pub size: u64,
}

impl Replayed {
    fn read_only<T>(&self) -> Result<T> {
        Err(Error::Invalid(format!("{}: its log is replayed for reading only", self.name())))
    }
}

impl Storage for Replayed {
    fn name(&self) -> &str {
        self.storage.name()
    }

    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn allocated(&self) -> Option<u64> {
        self.storage.allocated()
    }

    fn identity(&self) -> Option<(u64, u64)> {
        self.storage.identity()
    }

    fn lock(&self, lock: &Lock) -> Result<()> {
        self.storage.lock(lock)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(Error::io(self.name(), "read", Some(offset), std::io::ErrorKind::UnexpectedEof.into()));
        };
        read_padded(&*self.storage, buf, offset)?;
        for (range, source) in self.patches.within(offset..end) {
            let covered = range.start.max(offset)..range.end.min(end);
            let part = &mut buf[(covered.start - offset) as usize..(covered.end - offset) as usize];
            match source {
                Source::Zero => part.fill(0),
                Source::Sector { .. } => {
                    let from = (covered.start - range.start) as usize;
                    part.copy_from_slice(&source.sector(&*self.storage)?[from..from + part.len()]);
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        self.read_only()
    }

    fn zero_at(&self, _: u64, _: u64) -> Result<()> {
        self.read_only()
    }

    fn reserve(&self, _: u64, _: u64) -> Result<()> {
        self.read_only()
    }

    /// Everything may be data: holes are no longer what they were.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.size).then_some(offset..self.size))
    }

    fn set_size(&self, _: u64) -> Result<()> {
        self.read_only()
    }

    fn sync(&self) -> Result<()> {
        self.read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_changes_lie_over_earlier_ones() {
        const K: u64 = 4096;
        let sector = |at| Source::Sector { at, leading: 0, trailing: 0 };
        let mut patches = Patches::default();
        patches.insert(2 * K..10 * K, Source::Zero);
        patches.insert(4 * K..5 * K, sector(1));
        patches.insert(12 * K..13 * K, sector(2));
        patches.insert(9 * K..12 * K, Source::Zero);
        patches.insert(4 * K..5 * K, sector(3));
        patches.insert(12 * K..14 * K, Source::Zero);
        let zero = |range: Range<u64>| (range.start * K..range.end * K, Source::Zero);
        let all: Vec<_> = patches.within(0..u64::MAX).collect();
        assert_eq!(all, [zero(2..4), (4 * K..5 * K, sector(3)), zero(5..9), zero(9..12), zero(12..14)]);
        assert_eq!(patches.within(3 * K..4 * K + 1).count(), 2);
        assert_eq!(patches.within(14 * K..15 * K).count(), 0);
    }
}
