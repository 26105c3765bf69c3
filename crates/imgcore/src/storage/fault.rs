//! Storage that fails on purpose: shared test equipment for what happens on a bad disk or at a power cut.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Lock, Storage};
use crate::{Error, Result};

/// One change that reached a [`FaultStorage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes written at an offset.
    Write(u64, Vec<u8>),
    /// A range made zero: offset and length.
    Zero(u64, u64),
    /// The size set.
    SetSize(u64),
    /// All before it is durable.
    Sync,
}

impl Operation {
    /// Does the same to `storage`.
    pub fn apply(&self, storage: &dyn Storage) -> Result<()> {
        match self {
            Operation::Write(offset, data) => storage.write_at(data, *offset),
            Operation::Zero(offset, len) => storage.zero_at(*offset, *len),
            Operation::SetSize(size) => storage.set_size(*size),
            Operation::Sync => storage.sync(),
        }
    }
}

#[derive(Default)]
struct State {
    count: u64,
    fail_at: Option<u64>,
    cut_at: Option<(u64, usize)>,
    fail_reads: bool,
    log: Option<Vec<Operation>>,
}

/// Passes everything on to another storage until the time set for a fault. Changes (writes, zeroes, resizes, syncs) are
/// numbered from 0; reads are not counted.
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
}

impl FaultStorage {
    /// No fault set.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        FaultStorage { inner, state: Mutex::default() }
    }

    /// Change number `n` fails and leaves nothing behind; those after it work again.
    pub fn fail_at(self, n: u64) -> Self {
        self.state().fail_at = Some(n);
        self
    }

    /// The power is cut in change number `n`: of a write `keep` bytes arrive, and from then on every change fails.
    pub fn cut_at(self, n: u64, keep: usize) -> Self {
        self.state().cut_at = Some((n, keep));
        self
    }

    /// Keeps every change that goes through, for [`log`](FaultStorage::log).
    pub fn recording(self) -> Self {
        self.state().log = Some(Vec::new());
        self
    }

    /// Makes all reads fail from now on, or work again.
    pub fn set_fail_reads(&self, fail: bool) {
        self.state().fail_reads = fail;
    }

    /// How many changes were tried.
    pub fn changes(&self) -> u64 {
        self.state().count
    }

    /// The changes that went through, if they are recorded. Replaying those before a [`Operation::Sync`] and any choice
    /// of the later ones gives what a power cut may leave.
    pub fn log(&self) -> Vec<Operation> {
        self.state().log.clone().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn change(&self, operation: Operation) -> Result<()> {
        let mut state = self.state();
        let n = state.count;
        state.count += 1;
        let fault = || Error::io(self.name(), "write", None, io::Error::other("fault set by the test"));
        if let Some((cut, keep)) = state.cut_at
            && n >= cut
        {
            if let Operation::Write(offset, data) = &operation
                && n == cut
            {
                self.inner.write_at(&data[..keep.min(data.len())], *offset)?;
            }
            return Err(fault());
        }
        if state.fail_at == Some(n) {
            return Err(fault());
        }
        operation.apply(&*self.inner)?;
        if let Some(log) = &mut state.log {
            log.push(operation);
        }
        Ok(())
    }
}

impl Storage for FaultStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn size(&self) -> Result<u64> {
        self.inner.size()
    }

    fn allocated(&self) -> Option<u64> {
        self.inner.allocated()
    }

    fn identity(&self) -> Option<(u64, u64)> {
        self.inner.identity()
    }

    fn lock(&self, lock: &Lock) -> Result<()> {
        self.inner.lock(lock)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if self.state().fail_reads {
            return Err(Error::io(self.name(), "read", Some(offset), io::Error::other("fault set by the test")));
        }
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.change(Operation::Write(offset, data.to_vec()))
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.change(Operation::Zero(offset, len))
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        // What it shows is that the storage grows.
        let end = offset.saturating_add(len);
        if end > self.inner.size()? { self.set_size(end) } else { Ok(()) }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.change(Operation::SetSize(size))
    }

    fn sync(&self) -> Result<()> {
        self.change(Operation::Sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;

    #[test]
    fn fails_once_or_stays_cut() {
        let memory = Arc::new(MemStorage::new("mem", 0));
        let storage = FaultStorage::new(memory.clone()).fail_at(1).cut_at(3, 2).recording();
        storage.write_at(b"aaaa", 0).unwrap();
        storage.write_at(b"bbbb", 4).unwrap_err();
        storage.write_at(b"cccc", 4).unwrap();
        storage.write_at(b"dddd", 8).unwrap_err();
        storage.sync().unwrap_err();
        assert_eq!(memory.to_vec(), b"aaaaccccdd");
        assert_eq!(storage.changes(), 5);
        assert_eq!(storage.log(), [Operation::Write(0, b"aaaa".into()), Operation::Write(4, b"cccc".into())]);
        storage.set_fail_reads(true);
        storage.read_at(&mut [0], 0).unwrap_err();
    }
}
