//! XFS: versions 4 and 5, and logs that are not empty.

use guestfs::{Ext, GuestFs};

use crate::common::*;
use crate::compare::{Spared, filled, open, unsupported};
use crate::content::{add_huge, add_posix, archive, huge_is_found, posix, unpack};

const VARIANTS: &[(&str, &[&str])] = &[
    ("v5", &[]),
    ("v5, 1 KiB, directories of 8 KiB", &["-b", "size=1024", "-n", "size=8192", "-m", "reflink=0"]),
    ("v4", &["-m", "crc=0,finobt=0,rmapbt=0,reflink=0"]),
    ("v4, small inodes, no kinds in directories", &["-m", "crc=0,finobt=0", "-i", "size=256", "-n", "ftype=0", "-b", "size=1024"]),
    ("v5, old times", &["-m", "bigtime=0,rmapbt=1", "-i", "size=1024,sparse=1"]),
];

#[test]
fn every_version_reads_as_the_kernel_reads_it() {
    let dir = scratch();
    for (i, (name, options)) in VARIANTS.iter().enumerate() {
        println!("{name}");
        // A directory with a tree of indexes is made once, since the appliance takes some seconds for it.
        let many = if i == 0 { 4000 } else { 300 };
        let tar = archive(&posix(&dir.path().join(i.to_string()), many));
        let mkfs = [&["mkfs.xfs", "-q", "-f", "-l", "size=64m"], *options].concat();
        let disk = formatted(dir.path(), &format!("disk{i}"), 400, &mkfs);
        let tree = filled(&disk, "xfs", "", Spared::default(), Some(&tar), |session| {
            unpack(session, "", &[]);
            add_posix(session, 60_000);
            add_huge(session);
        });
        huge_is_found(&tree);
        assert_eq!(tree.read_dir(b"/many").unwrap().len(), many + 2);
        assert_eq!(tree.read(b"/etc/up", 100).unwrap(), b"root:x:0:0:root:/root:/bin/bash\n");
        tool(&["xfs_repair", "-n", disk.to_str().unwrap()]);
        std::fs::remove_file(disk).unwrap();
    }
}

#[test]
fn a_log_that_is_to_be_replayed_goes_to_the_appliance() {
    let dir = scratch();
    let disk = formatted(dir.path(), "disk", 320, &["mkfs.xfs", "-q", "-f"]);
    assert!(open(&disk, "xfs").is_ok(), "mkfs leaves a clean log");
    let mut session = crate::compare::start(vec![writable(&disk)]);
    session.mount("/dev/vda", b"/", "xfs", "").unwrap();
    session.write(b"/file", &mut &b"content"[..], None).unwrap();
    // The log is written and the filesystem is not unmounted: as a host leaves it that lost its power.
    session.run_tool(&guestfs::engine::Command::new(["xfs_io", "-x", "-c", "fsync", "-c", "shutdown -f", "/guest/file"])).unwrap();
    // What is left to be written fails now, as it should.
    let _ = (session.unmount_all(), session.shutdown());
    let error = unsupported(open(&disk, "xfs"));
    assert!(error.contains("log is to be replayed"), "{error}");
    let mut session = crate::compare::start(vec![read_only(&disk)]);
    session.mount("/dev/vda", b"/", "xfs", "ro").unwrap();
    assert_eq!(session.read(b"/file", 100).unwrap(), b"content");
    session.shutdown().unwrap();
}
