//! Tar archives of a guest's files: POSIX's pax format with the extensions of star and GNU tar, as GNU tar and bsdtar read them.
//!
//! The fields of headers are the `tar` crate's. Its reader and its writer are not used: they lose pax records with line ends
//! in them (names, ACLs, capabilities are binary) and have no sparse files of pax's kind.

pub(super) mod read;
pub(super) mod write;

/// Bytes of a block.
const BLOCK: usize = 512;

/// Extended attributes in pax records, as star began it.
const XATTR: &str = "SCHILY.xattr.";

/// Bytes from the end of `len` bytes of data to the end of their last block.
fn padding(len: u64) -> usize {
    (len.next_multiple_of(BLOCK as u64) - len) as usize
}
