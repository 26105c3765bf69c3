//! What a source's disks tell of how their guest was left: in use, suspended, or damaged.

use imgcore::Image;

use crate::layout::Layout;
use crate::source::Source;

/// The superblock of ext2, ext3 and ext4 lies here on its volume.
const SUPERBLOCK: u64 = 1024;
const MAGIC: (usize, u16) = (0x38, 0xef53);
/// `s_state`, in which 2 stands for "errors detected".
const STATE: usize = 0x3a;
/// `s_feature_incompat`, in which 4 stands for a journal that needs recovery.
const INCOMPAT: usize = 0x60;

/// Warnings for the user, one for each volume that has something.
pub fn warnings(source: &Source, layout: &Layout) -> Vec<String> {
    let mut warnings = Vec::new();
    for volume in layout.volumes() {
        let Some(image) = source.disks.get(volume.disk).and_then(|d| d.image.as_deref()) else { continue };
        let device = &volume.source_device;
        if volume.filesystem == "swsuspend" {
            warnings.push(format!(
                "{device} holds a guest that was suspended to disk: what was in its memory is lost; better start it on Xen once, and shut it down"
            ));
        }
        if !volume.filesystem.starts_with("ext") {
            continue;
        }
        let Some(superblock) = superblock(image, volume.source_offset) else { continue };
        if superblock.errors {
            warnings.push(format!("{device}: its filesystem is marked as damaged; run e2fsck on the source or the result"));
        }
        if superblock.needs_recovery {
            warnings.push(format!(
                "{device} was not unmounted: its journal is replayed, as after a power failure; if the guest is still running on Xen, shut it down \
                 and convert it again"
            ));
        }
    }
    warnings
}

struct Superblock {
    errors: bool,
    needs_recovery: bool,
}

fn superblock(image: &dyn Image, volume: u64) -> Option<Superblock> {
    let offset = volume.checked_add(SUPERBLOCK)?;
    let mut bytes = [0; 256];
    if offset.checked_add(bytes.len() as u64)? > image.size() {
        return None;
    }
    image.read_at(&mut bytes, offset).ok()?;
    let le16 = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (le16(MAGIC.0) == MAGIC.1).then(|| Superblock { errors: le16(STATE) & 2 != 0, needs_recovery: le16(INCOMPAT) & 4 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use imgcore::storage::MemStorage;
    use imgcore::{Formats, NoGate, OpenOptions, Storage};

    fn warnings_of(bytes: &[(u64, u8)]) -> Vec<String> {
        let (mut source, layout) = crate::testing::xen_tools_guest();
        let storage = MemStorage::new("disk", 1 << 20);
        storage.write_at(&[0x53, 0xef], SUPERBLOCK + 0x38).unwrap();
        for (at, byte) in bytes {
            storage.write_at(&[*byte], SUPERBLOCK + at).unwrap();
        }
        let image = Formats::new().open_storage(Arc::new(storage), &OpenOptions::new(&NoGate).format("raw")).unwrap();
        for disk in &mut source.disks {
            disk.image = Some(image.clone());
        }
        warnings(&source, &layout)
    }

    #[test]
    fn a_sound_guest_gives_none() {
        assert!(warnings_of(&[(0x3a, 1)]).is_empty());
    }

    #[test]
    fn dirty_and_damaged_guests_are_told() {
        let dirty = warnings_of(&[(0x60, 0x46)]);
        assert!(dirty.len() == 1 && dirty[0].starts_with("xvda2 was not unmounted"), "{dirty:?}");
        let damaged = warnings_of(&[(0x3a, 2)]);
        assert!(damaged.len() == 1 && damaged[0].contains("marked as damaged"), "{damaged:?}");
    }
}
