//! Big-endian numbers in structures from an image; what lies past the end of the bytes reads as zero.

use crate::le;

/// The 16-bit number at byte `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    le::u16_at(bytes, at).swap_bytes()
}

/// The 32-bit number at byte `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    le::u32_at(bytes, at).swap_bytes()
}

/// The 64-bit number at byte `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    le::u64_at(bytes, at).swap_bytes()
}
