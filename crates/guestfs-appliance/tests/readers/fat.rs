//! FAT12, FAT16 and FAT32, with long names and short ones.

use guestfs::{Ext, GuestFs};

use crate::common::*;
use crate::compare::{Spared, filled, open};
use crate::content::{archive, plain, unpack};

/// FAT has no inodes, and the kernel shows its own times for the root directory.
const SPARED: Spared = Spared { ino: true, ctime: true, atime: true, directories: true, blocks: false };

#[test]
fn every_width_reads_as_the_kernel_reads_it() {
    let dir = scratch();
    for (width, mib, cluster, many) in [("12", 24u64, "64", 60), ("16", 64, "4", 300), ("32", 80, "1", 3000)] {
        println!("FAT{width}");
        let tar = archive(&plain(&dir.path().join(width), many));
        let mkfs = ["mkfs.vfat", "-F", width, "-s", cluster, "-n", "LABEL"];
        let disk = formatted(dir.path(), &format!("disk{width}"), mib, &mkfs);
        let tree = filled(&disk, "vfat", "utf8", SPARED, Some(&tar), |session| {
            unpack(session, "", &["--no-same-owner", "--no-same-permissions"]);
            session.write(b"/UPPER.TXT", &mut &b"upper"[..], None).unwrap();
            session.write(b"/lower.txt", &mut &b"lower"[..], None).unwrap();
            session.write("/ÄÖ.TXT".as_bytes(), &mut &b"umlauts"[..], None).unwrap();
        });
        assert_eq!(tree.read(b"/LOWER.txt", 10).unwrap(), b"lower");
        tool(&["fsck.vfat", "-n", disk.to_str().unwrap()]);
        // A program that is not the kernel puts something in, and reads something out.
        std::fs::write(dir.path().join("put"), "by mtools").unwrap();
        tool(&["mcopy", "-i", disk.to_str().unwrap(), dir.path().join("put").to_str().unwrap(), "::/PUT.TXT"]);
        let tree = open(&disk, "vfat").unwrap();
        assert_eq!(tree.read(b"/put.txt", 100).unwrap(), b"by mtools");
        assert_eq!(tree.read_dir(b"/many").unwrap().len(), many + 2);
    }
}
