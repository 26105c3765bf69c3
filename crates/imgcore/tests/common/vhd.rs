//! Changing fields of VHD structures in tests.

use imgcore::Storage;

/// Sets the checksum at byte `at` of a footer (64) or dynamic disk header (36).
pub fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add((*byte).into()));
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Sets bytes of the footer at `offset`, and its checksum.
pub fn set_in_footer(storage: &dyn Storage, offset: u64, at: usize, value: &[u8]) {
    let mut footer = [0; 512];
    storage.read_at(&mut footer, offset).unwrap();
    footer[at..at + value.len()].copy_from_slice(value);
    seal(&mut footer, 64);
    storage.write_at(&footer, offset).unwrap();
}

/// Sets bytes of both footers of a dynamic disk.
pub fn set_in_footers(storage: &dyn Storage, at: usize, value: &[u8]) {
    for offset in [0, storage.size().unwrap() - 512] {
        set_in_footer(storage, offset, at, value);
    }
}
