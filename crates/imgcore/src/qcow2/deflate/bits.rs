//! Bits into bytes, the first bit lowest.

/// Writes into a slice that the caller has made sure is long enough.
pub(super) struct BitWriter<'a> {
    out: &'a mut [u8],
    /// Whole bytes written.
    at: usize,
    /// What is not yet written, `count` bits of it.
    bits: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Self {
        BitWriter { out, at: 0, bits: 0, count: 0 }
    }

    /// Bits that still fit.
    pub(super) fn room(&self) -> u64 {
        (self.out.len() - self.at) as u64 * 8 - u64::from(self.count)
    }

    /// Bits to the next byte boundary.
    pub(super) fn to_boundary(&self) -> u32 {
        self.count.wrapping_neg() % 8
    }

    /// Adds `count` bits; at most 56 between two calls of [`flush`](Self::flush).
    #[inline(always)]
    pub(super) fn put(&mut self, value: u64, count: u32) {
        self.bits |= value << self.count;
        self.count += count;
    }

    /// Moves whole bytes out, so that fewer than eight bits wait.
    #[inline(always)]
    pub(super) fn flush(&mut self) {
        let whole = (self.count / 8) as usize;
        match self.out.get_mut(self.at..).and_then(|rest| rest.first_chunk_mut::<8>()) {
            // Bytes past the whole ones are written over by the next call.
            Some(rest) => *rest = self.bits.to_le_bytes(),
            None => self.out[self.at..self.at + whole].copy_from_slice(&self.bits.to_le_bytes()[..whole]),
        }
        self.at += whole;
        self.bits >>= whole * 8;
        self.count %= 8;
    }

    /// Flushes if another code might not fit.
    #[inline(always)]
    pub(super) fn make_room(&mut self) {
        if self.count > 40 {
            self.flush();
        }
    }

    /// Copies bytes; only on a byte boundary.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.flush();
        debug_assert_eq!(self.count, 0);
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Fills the last byte with zeros; the number of bytes written.
    pub(super) fn finish(mut self) -> usize {
        self.count += self.to_boundary();
        self.flush();
        self.at
    }
}
