//! Tar members as XenServer writes them: V7 headers, no times, no owners.

use crate::tar::BLOCK;

/// The end mark: two blocks of zeroes.
pub(super) const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];

/// The header of a file of `size` bytes. `name` has at most 100 bytes, and `size` at most 8 GiB: every name and size
/// here is made in this crate.
pub(super) fn header(name: &str, size: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000400\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    // The sum is taken with blanks in its own place.
    put(148, "        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Bytes between a member's data of `size` bytes and the next header.
pub(super) fn padding(size: u64) -> usize {
    // Less than a block.
    (size.next_multiple_of(BLOCK) - size) as usize
}

/// Adds a whole member to `out`.
pub(super) fn member(out: &mut Vec<u8>, name: &str, data: &[u8]) {
    out.extend(header(name, data.len() as u64));
    out.extend_from_slice(data);
    out.resize(out.len() + padding(data.len() as u64), 0);
}
