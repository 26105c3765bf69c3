//! NTFS: resident, sparse and compressed files, large directories, logs that are not empty.

use guestfs::{Ext, GuestFs};

use crate::common::*;
use crate::compare::{Spared, filled, open, ready_made, unsupported};
use crate::content::{add_huge, archive, huge_is_found, noise, plain, text, unpack};

const SPARED: Spared = Spared { ino: false, ctime: false, atime: true, directories: true, blocks: false };

#[test]
fn the_kernels_own_files_read_as_the_kernel_reads_them() {
    let dir = scratch();
    for (i, (cluster, many)) in [("4096", 3000), ("512", 100), ("65536", 100)].into_iter().enumerate() {
        println!("clusters of {cluster}");
        let tar = archive(&plain(&dir.path().join(cluster), many));
        let disk = formatted(dir.path(), &format!("disk{i}"), 96, &["mkntfs", "-q", "-F", "-f", "-c", cluster]);
        // Only sparse files may be as large as the huge one.
        let options = if cluster == "65536" { "iocharset=utf8,sparse" } else { "iocharset=utf8" };
        let tree = filled(&disk, "ntfs3", options, SPARED, Some(&tar), |session| {
            unpack(session, "", &["--no-same-owner", "--no-same-permissions"]);
            if cluster == "65536" {
                add_huge(session);
            }
        });
        if cluster == "65536" {
            huge_is_found(&tree);
        }
        assert_eq!(tree.read(b"/ETC/Passwd", 100).unwrap(), b"root:x:0:0:root:/root:/bin/bash\n");
        assert_eq!(tree.read_dir(b"/many").unwrap().len(), many + 2);
    }
}

#[test]
fn compressed_files_read_as_the_kernel_reads_them() {
    let dir = scratch();
    let disk = formatted(dir.path(), "disk", 48, &["mkntfs", "-q", "-F", "-f", "-C", "-c", "4096"]);
    let mixed = [text(300_000), noise(100_000, 1), vec![0; 200_000], text(70_000)].concat();
    for (name, content) in
        [("text", text(1_500_000)), ("noise", noise(300_000, 2)), ("mixed", mixed), ("small", text(300)), ("none", vec![])]
    {
        let file = dir.path().join(name);
        std::fs::write(&file, content).unwrap();
        tool(&["ntfscp", "-f", disk.to_str().unwrap(), file.to_str().unwrap(), name]);
    }
    let told = tool(&["ntfsinfo", "-F", "text", disk.to_str().unwrap()]);
    assert!(told.contains("Compression unit"), "{told}");
    ready_made(&disk, "ntfs3", "", SPARED);
}

#[test]
fn a_log_that_is_to_be_replayed_goes_to_the_appliance() {
    let dir = scratch();
    let disk = formatted(dir.path(), "disk", 16, &["mkntfs", "-q", "-F", "-f", "-c", "4096"]);
    // mkntfs fills the log with ones; what Windows writes there first are two restart pages.
    let mut bytes = std::fs::read(&disk).unwrap();
    let log = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..at + 65536].iter().all(|b| *b == 0xff)).unwrap();
    for (flags, clean) in [(0u16, false), (2, true)] {
        for page in [log, log + 4096] {
            bytes[page..page + 4096].fill(0);
            bytes[page..page + 4].copy_from_slice(b"RSTR");
            bytes[page + 24..page + 26].copy_from_slice(&48u16.to_le_bytes());
            bytes[page + 48 + 14..page + 48 + 16].copy_from_slice(&flags.to_le_bytes());
        }
        std::fs::write(&disk, &bytes).unwrap();
        match clean {
            true => assert!(open(&disk, "ntfs").unwrap().read_dir(b"/").unwrap().is_empty()),
            false => assert!(unsupported(open(&disk, "ntfs")).contains("log is to be replayed")),
        }
    }
}
