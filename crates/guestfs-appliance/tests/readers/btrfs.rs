//! btrfs: kinds of compression, copies of metadata, subvolumes and snapshots.

use std::sync::Arc;

use guestfs::engine::{Command, Session};
use guestfs::{Ext, GuestFs, Tree};
use imgcore::Image;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

use crate::common::*;
use crate::compare::{Spared, filled, open, unsupported};
use crate::content::{add_huge, add_posix, archive, huge_is_found, posix, unpack};

/// What the kernel keeps back for itself is its own affair.
const SPARED: Spared = Spared { ino: false, ctime: false, atime: false, directories: false, blocks: true };

const VARIANTS: &[(&str, &[&str], &str)] = &[
    ("plain", &[], ""),
    ("zlib, nodes of 4 KiB, in one device twice", &["-n", "4096", "-m", "dup", "-d", "dup"], "compress-force=zlib"),
    ("zstd, no holes, single", &["-m", "single", "-O", "no-holes"], "compress-force=zstd:3"),
    ("lzo, mixed groups", &["-M"], "compress-force=lzo"),
    ("holes, fat metadata, xxhash", &["-O", "^no-holes,^skinny-metadata", "--csum", "xxhash"], "compress=zstd"),
];

fn run(session: &mut dyn Session, argv: &[&str]) {
    let out = session.run_tool(&Command::new(argv)).unwrap();
    assert_eq!(out.status, 0, "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn every_compression_reads_as_the_kernel_reads_it() {
    let dir = scratch();
    for (i, (name, features, options)) in VARIANTS.iter().enumerate() {
        println!("{name}");
        let tar = archive(&posix(&dir.path().join(i.to_string()), 300));
        let disk = formatted(dir.path(), &format!("disk{i}"), 400, &[&["mkfs.btrfs", "-q"], *features].concat());
        let tree = filled(&disk, "btrfs", options, SPARED, Some(&tar), |session| {
            unpack(session, "", &[]);
            add_posix(session, 3000);
            add_huge(session);
        });
        huge_is_found(&tree);
        assert_eq!(tree.read(b"/etc/up", 100).unwrap(), b"root:x:0:0:root:/root:/bin/bash\n");
        tool(&["btrfs", "check", disk.to_str().unwrap()]);
        std::fs::remove_file(disk).unwrap();
    }
}

#[test]
fn a_directory_of_20_000_names_is_the_same() {
    let dir = scratch();
    let folder = posix(dir.path(), 20_000);
    let disk = empty(dir.path(), "disk", 400);
    tool(&["mkfs.btrfs", "-q", "--rootdir", folder.to_str().unwrap(), disk.to_str().unwrap()]);
    let tree = crate::compare::ready_made(&disk, "btrfs", "", SPARED);
    assert_eq!(tree.read_dir(b"/many").unwrap().len(), 20_002);
}

fn subvolume(path: &std::path::Path, options: &str) -> guestfs::Result<Tree> {
    let image: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(FileStorage::open(path).unwrap())).unwrap());
    let len = image.size();
    Ok(Tree::new(guestfs::reader::open_with("btrfs", image, 0, len, options)?))
}

#[test]
fn subvolumes_and_snapshots_are_where_the_kernel_has_them() {
    let dir = scratch();
    let disk = formatted(dir.path(), "disk", 200, &["mkfs.btrfs", "-q"]);
    filled(&disk, "btrfs", "", SPARED, None, |session| {
        for volume in ["@", "@/inner", "@home"] {
            run(session, &["btrfs", "subvolume", "create", &format!("/guest/{volume}")]);
        }
        for i in 0..5 {
            session.write(format!("/@/file-{i}").as_bytes(), &mut format!("{i}").as_bytes(), None).unwrap();
        }
        session.write(b"/@/inner/in", &mut &b"inner"[..], None).unwrap();
        session.write(b"/@home/me", &mut &b"home"[..], None).unwrap();
        run(session, &["btrfs", "subvolume", "snapshot", "-r", "/guest/@", "/guest/@/snapshot"]);
        session.write(b"/@/file-1", &mut &b"changed"[..], None).unwrap();
        run(session, &["btrfs", "subvolume", "set-default", "/guest/@"]);
        // The default is mounted from now on: the comparison looks at all of it, and into the rest below.
    });
    let default = open(&disk, "btrfs").unwrap();
    assert_eq!(default.read(b"/file-1", 100).unwrap(), b"changed");
    assert_eq!(default.read(b"/snapshot/file-1", 100).unwrap(), b"1");
    assert_eq!(default.read(b"/inner/in", 100).unwrap(), b"inner");
    assert_eq!(default.read_dir(b"/snapshot/inner").unwrap(), [], "a snapshot has no subvolumes in it");
    let (inner, outer) = (default.stat(b"/inner").unwrap(), default.stat(b"/").unwrap());
    assert!(inner.ino == outer.ino && inner.dev != outer.dev, "{inner:?} {outer:?}");
    let top = subvolume(&disk, "ro,subvolid=5").unwrap();
    assert_eq!(top.read(b"/@/inner/../file-1", 100).unwrap(), b"changed");
    for options in ["subvol=@home", "compress=zstd,subvol=/@home"] {
        assert_eq!(subvolume(&disk, options).unwrap().read(b"/me", 100).unwrap(), b"home");
    }
    assert_eq!(subvolume(&disk, "subvol=@/snapshot").unwrap().read(b"/file-1", 100).unwrap(), b"1");
    for options in ["subvol=none", "subvol=@/file-1", "subvolid=9999"] {
        let error = subvolume(&disk, options).err().unwrap().to_string();
        assert!(error.contains("no subvolume"), "{error}");
    }
}

#[test]
fn a_damaged_node_is_read_from_its_copy_and_several_devices_go_to_the_appliance() {
    let dir = scratch();
    let content = dir.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("file"), "here").unwrap();
    let disk = empty(dir.path(), "disk", 128);
    tool(&["mkfs.btrfs", "-q", "-m", "dup", "--rootdir", content.to_str().unwrap(), disk.to_str().unwrap()]);
    let mut bytes = std::fs::read(&disk).unwrap();
    // Every node that begins with this filesystem's number, in the first copy of two.
    let fsid = bytes[0x10020..0x10030].to_vec();
    let mut places = std::collections::BTreeMap::new();
    for place in (0..bytes.len()).step_by(4096).filter(|p| *p != 0x10000 && bytes[p + 32..p + 48] == fsid) {
        let address = u64::from_le_bytes(bytes[place + 48..place + 56].try_into().unwrap());
        places.entry(address).or_insert_with(Vec::new).push(place);
    }
    let twice: Vec<usize> = places.values().filter(|copies| copies.len() == 2).map(|copies| copies[0]).collect();
    assert!(twice.len() > 3, "{places:?}");
    for place in twice {
        bytes[place + 200] ^= 0xff;
    }
    std::fs::write(&disk, &bytes).unwrap();
    assert_eq!(open(&disk, "btrfs").unwrap().read(b"/file", 100).unwrap(), b"here");

    // Content is held against its checksums, too: one copy of it is damaged, and then both are.
    let folder = posix(&dir.path().join("more"), 10);
    let disk = empty(dir.path(), "twice", 256);
    tool(&["mkfs.btrfs", "-q", "-m", "dup", "-d", "dup", "--rootdir", folder.to_str().unwrap(), disk.to_str().unwrap()]);
    let content = std::fs::read(folder.join("holes")).unwrap();
    let mut bytes = std::fs::read(&disk).unwrap();
    let places: Vec<usize> = (0..bytes.len()).step_by(4096).filter(|p| bytes[*p..p + 4096] == content[..4096]).collect();
    assert_eq!(places.len(), 2);
    bytes[places[0] + 7] ^= 1;
    std::fs::write(&disk, &bytes).unwrap();
    assert!(open(&disk, "btrfs").unwrap().read(b"/holes", 4 << 20).unwrap() == content);
    bytes[places[1] + 9] ^= 1;
    std::fs::write(&disk, &bytes).unwrap();
    let error = open(&disk, "btrfs").unwrap().read(b"/holes", 4 << 20).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");

    let (one, two) = (empty(dir.path(), "one", 128), empty(dir.path(), "two", 128));
    tool(&["mkfs.btrfs", "-q", "-m", "raid1", one.to_str().unwrap(), two.to_str().unwrap()]);
    let error = unsupported(open(&one, "btrfs"));
    assert!(error.contains("2 devices"), "{error}");
}
