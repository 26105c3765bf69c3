//! Where a modern chunk lies on its disk: its number is a counter, not an offset.
//!
//! An exporter numbers chunks one by one, leaves chunks of zeroes out (a gap in the numbers: one block each), and writes
//! an empty chunk when it was idle (which takes a number and moves nothing). First and last chunk are always there.

/// Follows one disk's chunks in the order of their numbers.
#[derive(Clone, Debug)]
pub(crate) struct Mapper {
    size: u64,
    /// Where the next number without a gap would lie.
    offset: u64,
    /// End of the last bytes stored.
    stored: u64,
    next: u64,
    /// Blocks left out before the first data, whose size is unknown until then.
    waiting: u64,
    /// Size of the first chunk that has data, and so of every block left out.
    block: Option<u64>,
}

impl Mapper {
    /// For a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        Mapper { size, offset: 0, stored: 0, next: 0, waiting: 0, block: None }
    }

    /// Bytes of a block, once known.
    pub fn block(&self) -> Option<u64> {
        self.block
    }

    /// Where chunk `number` with `len` bytes lies: its offset, and how many of its bytes are the disk's (a padded
    /// tail has more). `None` for an empty one.
    pub fn place(&mut self, number: u64, len: u64) -> Result<Option<(u64, u64)>, String> {
        if number < self.next {
            return Err(format!("chunk {number:08} follows chunk {:08}: chunks must come in rising order, each once", self.next - 1));
        }
        if self.next == 0 && number != 0 {
            return Err(format!("the first chunk is {number:08}, not 00000000: the beginning of the disk is missing"));
        }
        let too_far = || format!("chunk {number:08} lies past the disk's end at {} bytes", self.size);
        let gap = number - self.next;
        let next = number.checked_add(1).ok_or_else(too_far)?;
        let block = if len > 0 { *self.block.get_or_insert(len) } else { self.block.unwrap_or(0) };
        let mut waiting = self.waiting.checked_add(gap).ok_or_else(too_far)?;
        let mut offset = self.offset;
        if self.block.is_some() {
            offset = waiting.checked_mul(block).and_then(|n| n.checked_add(offset)).ok_or_else(too_far)?;
            waiting = 0;
        }
        let beyond = if len > 0 { offset >= self.size } else { offset > self.size };
        if beyond {
            return Err(too_far());
        }
        if len > block {
            return Err(format!("chunk {number:08} has {len} bytes, more than the disk's first with {block}"));
        }
        self.next = next;
        self.waiting = waiting;
        self.offset = offset.checked_add(len).ok_or_else(too_far)?;
        if len == 0 {
            return Ok(None);
        }
        self.stored = self.offset;
        Ok(Some((offset, len.min(self.size - offset))))
    }

    /// Checks, after the last chunk, that nothing is missing.
    pub fn finish(&self) -> Result<(), String> {
        if self.stored < self.size {
            return Err(match self.next {
                0 => "truncated: it has no chunks".into(),
                n => format!(
                    "truncated: its chunks end with {:08} at {} of {} bytes, and the last chunk of a disk is always stored",
                    n - 1,
                    self.stored,
                    self.size
                ),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u64, chunks: &[(u64, u64)]) -> Result<Vec<(u64, u64)>, String> {
        let mut m = Mapper::new(size);
        let mut out = Vec::new();
        for (number, len) in chunks {
            out.extend(m.place(*number, *len)?);
        }
        m.finish()?;
        Ok(out)
    }

    #[test]
    fn numbers_are_a_counter() {
        // Gap: one block of zeroes.
        assert_eq!(map(40, &[(0, 10), (2, 10), (3, 10)]), Ok(vec![(0, 10), (20, 10), (30, 10)]));
        // Keep-alives take a number and move nothing, wherever they are.
        assert_eq!(map(30, &[(0, 10), (1, 0), (2, 10), (3, 0), (4, 0), (5, 10)]), Ok(vec![(0, 10), (10, 10), (20, 10)]));
        assert_eq!(map(40, &[(0, 10), (2, 0), (4, 10)]), Ok(vec![(0, 10), (30, 10)]));
        assert_eq!(map(20, &[(0, 0), (1, 10), (2, 10), (3, 0)]), Ok(vec![(0, 10), (10, 10)]));
        assert_eq!(map(30, &[(0, 0), (2, 10), (3, 10)]), Ok(vec![(10, 10), (20, 10)]));
        // Short and padded tails, a single short chunk, an empty disk.
        assert_eq!(map(25, &[(0, 10), (1, 10), (2, 5)]), Ok(vec![(0, 10), (10, 10), (20, 5)]));
        assert_eq!(map(25, &[(0, 10), (1, 10), (2, 10)]), Ok(vec![(0, 10), (10, 10), (20, 5)]));
        assert_eq!(map(5, &[(0, 10)]), Ok(vec![(0, 5)]));
        assert_eq!(map(0, &[]), Ok(vec![]));
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        for (size, chunks, what) in [
            (30, &[(1, 10), (2, 10)][..], "beginning"),
            (30, &[(0, 10), (1, 10)], "truncated"),
            (30, &[(0, 10), (1, 10), (2, 9)], "truncated"),
            (30, &[(0, 10), (2, 0)], "truncated"),
            (30, &[], "no chunks"),
            (30, &[(0, 10), (3, 10)], "past the disk's end"),
            (30, &[(0, 10), (9, 0)], "past the disk's end"),
            (30, &[(0, 10), (u64::MAX, 10)], "past the disk's end"),
            (30, &[(0, 10), (u64::MAX / 10, 10)], "past the disk's end"),
            (30, &[(0, 10), (0, 10)], "rising order"),
            (30, &[(0, 10), (1, 20)], "more than the disk's first"),
            (0, &[(0, 10)], "past the disk's end"),
        ] {
            let e = map(size, chunks).unwrap_err();
            assert!(e.contains(what), "{chunks:?}: {e}");
        }
    }
}
