//! Whether GRUB can read the filesystem that it is to start from.

use imgcore::Image;

use crate::{Error, Result};

/// ext4's incompatible features that GRUB 2.06 to 2.12 refuses, of those that mke2fs can set on a filesystem with a system on it.
const INCOMPATIBLE: [(u32, &str); 3] = [(0x400, "ea_inode"), (0x8000, "inline_data"), (0x2_0000, "casefold")];
/// Of the features that are harmless for reading, but not for GRUB: clusters are taken for blocks.
const BIGALLOC: (u32, &str) = (0x200, "bigalloc");

/// Looks at the filesystem at byte `start` of a disk; `Ok` for those that are no ext4.
///
/// # Errors
/// [`Error::Invalid`] with the feature that is in the way, and what to do about it.
pub fn check_readable(image: &dyn Image, start: u64) -> Result<()> {
    let mut superblock = [0; 1024];
    let Some(offset) = start.checked_add(1024).filter(|o| o.checked_add(1024).is_some_and(|end| end <= image.size())) else {
        return Ok(());
    };
    image.read_at(&mut superblock, offset)?;
    let u32_at = |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return Ok(());
    }
    let (incompatible, read_only) = (u32_at(0x60), u32_at(0x64));
    let refused = INCOMPATIBLE.iter().find(|(bit, _)| incompatible & bit != 0);
    match refused.or(Some(&BIGALLOC).filter(|(bit, _)| read_only & bit != 0)) {
        None => Ok(()),
        Some((_, name)) => Err(Error::Invalid(format!(
            "GRUB cannot start from an ext4 filesystem with the feature '{name}': put /boot on a filesystem without it first"
        ))),
    }
}
