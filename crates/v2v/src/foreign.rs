//! Systems that are not converted, told by what lies on their disks.

use guestfs::{Ext, GuestFs, Tree, reader};
use imgcore::Image;
use imgcore::partition::{Guid, PartitionType};

use crate::disk_build::{DiskContents, Found};
use crate::source::Source;

/// Types of partitions that name their system.
const MBR_TYPES: [(u8, &str); 4] = [(0xa5, "FreeBSD"), (0xa6, "OpenBSD"), (0xa9, "NetBSD"), (0xbf, "Solaris")];
const GPT_TYPES: [(u128, &str); 5] = [
    (0x516e7cb6_6ecf_11d6_8ff8_00022d09712b, "FreeBSD (UFS)"),
    (0x516e7cba_6ecf_11d6_8ff8_00022d09712b, "FreeBSD (ZFS)"),
    (0x824cc7a0_36a8_11e3_890a_952519ad3f61, "OpenBSD"),
    (0x49f48d5a_b10e_11dc_b99b_0019d1879648, "NetBSD"),
    (0x6a898cc3_1dd2_11b2_99a6_080020736631, "ZFS"),
];

/// Places and values of UFS's magic number, and the one of ZFS's first label.
const UFS: [(u64, u32); 2] = [(65536 + 0x55c, 0x1954_0119), (8192 + 0x55c, 0x0001_1954)];
const ZFS_UBERBLOCKS: std::ops::Range<u64> = (128 << 10)..(256 << 10);
const ZFS: u64 = 0x00ba_b10c;

/// A system that is not converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it is, and where that is seen: `Windows (xvda2 has NTFS with a folder Windows)`.
    pub what: String,
    /// Windows.
    pub is_windows: bool,
}

/// The first that is found on a source's disks.
pub fn find(source: &Source, contents: &[DiskContents]) -> Option<Foreign> {
    source.disks.iter().zip(contents).find_map(|(disk, contents)| {
        let image = disk.image.as_ref()?;
        let named = |number: Option<u32>| number.map_or(disk.target.clone(), |n| format!("{} partition {n}", disk.target));
        contents.volumes.iter().find_map(|volume| {
            let kind = contents.table.as_ref().and_then(|t| t.partitions.iter().find(|p| Some(p.number) == volume.number)).map(|p| p.kind);
            if is_windows(image.clone(), volume) {
                let what = format!("Windows ({} has NTFS with a folder Windows)", named(volume.number));
                return Some(Foreign { what, is_windows: true });
            }
            let what = kind.and_then(by_type).or_else(|| by_magic(image.as_ref(), volume))?;
            Some(Foreign { what: format!("{what} ({})", named(volume.number)), is_windows: false })
        })
    })
}

fn is_windows(image: std::sync::Arc<dyn Image>, volume: &Found) -> bool {
    if volume.content.as_ref().is_none_or(|c| c.kind != "ntfs") {
        return false;
    }
    let Ok(reader) = reader::open("ntfs", image, volume.start, volume.len) else { return false };
    let tree = Tree::new(reader);
    let names = tree.read_dir(b"/").unwrap_or_default();
    names.iter().any(|entry| entry.name.eq_ignore_ascii_case(b"windows") && tree.is_dir(&[b"/", &entry.name[..]].concat()))
}

fn by_type(kind: PartitionType) -> Option<&'static str> {
    match kind {
        PartitionType::Mbr(kind) => MBR_TYPES.iter().find(|(k, _)| *k == kind).map(|(_, name)| *name),
        PartitionType::Gpt(kind) => GPT_TYPES.iter().find(|(k, _)| Guid::from_printed(*k) == kind).map(|(_, name)| *name),
        PartitionType::Nested(_) => None,
    }
}

fn by_magic(image: &dyn Image, volume: &Found) -> Option<&'static str> {
    let read = |offset: u64| {
        let mut bytes = [0; 8];
        let end = offset.checked_add(8).filter(|end| *end <= volume.len)?;
        let at = volume.start.checked_add(offset)?;
        (volume.start.checked_add(end)? <= image.size() && image.read_at(&mut bytes, at).is_ok()).then_some(bytes)
    };
    let u32_at = |offset| read(offset).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if UFS.iter().any(|(offset, magic)| u32_at(*offset) == Some(*magic)) {
        return Some("a BSD with UFS");
    }
    // Uberblocks are a KiB each, or as large as the pool's sectors: a power of two, so that each is at one of these places.
    let is_zfs = ZFS_UBERBLOCKS
        .step_by(1024)
        .any(|offset| read(offset).is_some_and(|b| [u64::from_le_bytes(b), u64::from_be_bytes(b)].contains(&ZFS)));
    is_zfs.then_some("a system on ZFS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use imgcore::raw::Raw;
    use imgcore::storage::{MemStorage, Storage};

    fn found(bytes: &[(u64, &[u8])]) -> Option<String> {
        let storage = MemStorage::new("disk", 1 << 20);
        for (offset, bytes) in bytes {
            storage.write_at(bytes, *offset).unwrap();
        }
        let (mut source, _) = crate::testing::xen_tools_guest();
        source.disks.truncate(1);
        source.disks[0].target = "xvda".into();
        source.disks[0].image = Some(Arc::new(Raw::open(Arc::new(storage)).unwrap()));
        let contents = crate::disk_build::examine(&source).unwrap();
        find(&source, &contents).map(|f| f.what)
    }

    #[test]
    fn by_partition_type_and_by_magic() {
        assert_eq!(found(&[]), None);
        let mut partition = [0; 16];
        (partition[4], partition[8], partition[12]) = (0xa6, 64, 64);
        assert_eq!(found(&[(446, &partition), (510, &[0x55, 0xaa])]).as_deref(), Some("OpenBSD (xvda partition 1)"));
        assert_eq!(found(&[(65536 + 0x55c, &0x1954_0119_u32.to_le_bytes())]).as_deref(), Some("a BSD with UFS (xvda)"));
        assert_eq!(found(&[(129 << 10, &0x00ba_b10c_u64.to_le_bytes())]).as_deref(), Some("a system on ZFS (xvda)"));
    }
}
