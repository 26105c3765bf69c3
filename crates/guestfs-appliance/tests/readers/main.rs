//! The readers of `guestfs` against a kernel: filesystems that the real mkfs made and the appliance's kernel filled are
//! read in this process and in the appliance, and both answers are compared entry by entry.

mod btrfs;
#[path = "../appliance/common.rs"]
#[allow(dead_code, reason = "shared with the appliance's own tests")]
mod common;
mod compare;
mod content;
mod fat;
mod iso9660;
mod ntfs;
mod squashfs;
mod subvolumes;
mod ufs;
mod xfs;

/// Kinds, labels, UUIDs and the sizes of what has no reader are told as blkid tells them.
#[test]
fn superblocks_are_told_as_blkid_tells_them() {
    let dir = common::scratch();
    for (i, mkfs) in [
        &["mkfs.exfat", "-L", "Fotos"][..],
        &["mkntfs", "-q", "-F", "-f", "-L", "Windows"],
        &["mkfs.vfat", "-n", "EFI"],
        &["mkfs.btrfs", "-q", "-L", "pool"],
        &["mkfs.xfs", "-q", "-f", "-L", "data"],
    ]
    .into_iter()
    .enumerate()
    {
        let disk = common::formatted(dir.path(), &format!("disk{i}"), 320, mkfs);
        let image = imgcore::raw::Raw::open(std::sync::Arc::new(imgcore::storage::FileStorage::open(&disk).unwrap())).unwrap();
        let content = guestfs::probe::probe(&image, 0, 320 << 20).unwrap();
        let told = common::tool(&["blkid", "-p", "-o", "export", disk.to_str().unwrap()]);
        let word = |key: &str| told.lines().find_map(|l| l.strip_prefix(key)).map(|v| v.replace('\\', ""));
        let ours = (Some(content.kind.to_string()), content.uuid, content.label);
        assert_eq!(ours, (word("TYPE="), word("UUID="), word("LABEL=")), "{mkfs:?}: {told}");
    }
}
