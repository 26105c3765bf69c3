//! Dirty journals: debugfs writes the blocks that turn one filesystem into another into its journal; reading it must
//! give the other, as e2fsck's replay does.

use std::collections::BTreeSet;
use std::path::Path;

use guestfs::Ext;

use crate::assert_same;
use crate::make::{debugfs, folder, mke2fs, open, run};

const BLOCK: usize = 1024;

/// Blocks that differ between two images of the same size.
fn difference(a: &Path, b: &Path) -> (Vec<u64>, Vec<u8>) {
    let (a, b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    let mut numbers = Vec::new();
    let mut content = Vec::new();
    for (number, (x, y)) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate() {
        if x != y {
            numbers.push(number as u64);
            content.extend(y);
        }
    }
    (numbers, content)
}

fn list(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn reading_a_dirty_journal_is_reading_the_replayed_filesystem() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), true);
    let path = |name: &str| dir.path().join(name);
    let variants: &[(&str, &[&str])] = &[
        ("jo", &["-t", "ext3", "-b", "1024"]),
        ("jo", &["-t", "ext4", "-b", "1024", "-O", "64bit,^metadata_csum"]),
        ("jo -c -v 2", &["-t", "ext4", "-b", "1024", "-O", "^64bit"]),
        ("jo -c -v 2", &["-t", "ext4", "-b", "1024", "-O", "64bit"]),
        ("jo -c -v 3", &["-t", "ext4", "-b", "1024", "-O", "^64bit"]),
        ("jo -c -v 3", &["-t", "ext4", "-b", "1024", "-O", "64bit"]),
    ];
    for (open_journal, options) in variants {
        println!("{open_journal} {options:?}");
        let (old, middle, new) = (path("old.img"), path("middle.img"), path("new.img"));
        mke2fs(&old, 16 << 20, Some(&folder), options);
        // A block that begins like one of the journal's own must be escaped in it.
        let mut escaped = 0xc03b_3998u32.to_be_bytes().to_vec();
        escaped.extend([7; 3000]);
        std::fs::write(path("escaped"), &escaped).unwrap();
        std::fs::write(path("other"), "other content").unwrap();
        std::fs::copy(&old, &middle).unwrap();
        debugfs(&middle, &[format!("write {} escaped", path("escaped").display()), "rm /size-100".into(), "mkdir /made".into()]);
        std::fs::copy(&middle, &new).unwrap();
        debugfs(
            &new,
            &[
                format!("write {} /made/other", path("other").display()),
                "ln /size-60 /made/linked".into(),
                "set_inode_field /size-60 links_count 2".into(),
                "rm /link-900".into(),
            ],
        );

        let (first, first_content) = difference(&old, &middle);
        let (second, second_content) = difference(&middle, &new);
        std::fs::write(path("first"), first_content).unwrap();
        std::fs::write(path("second"), second_content).unwrap();
        // In a third transaction a block is first written as garbage, then revoked: a data block of a file.
        let text = run("debugfs", &["-R", "blocks /size-70000", old.to_str().unwrap()]);
        let revoked: u64 = text.split_whitespace().filter_map(|w| w.parse().ok()).nth(3).unwrap();
        std::fs::write(path("garbage"), [0x55; BLOCK]).unwrap();
        let journal = [
            open_journal.to_string(),
            format!("jw -b {} {}", list(&first), path("first").display()),
            format!("jw -b {revoked} {}", path("garbage").display()),
            format!("jw -b {} -r {revoked} {}", list(&second), path("second").display()),
            "jc".into(),
        ];
        let dirty = path("dirty.img");
        std::fs::copy(&old, &dirty).unwrap();
        debugfs(&dirty, &journal);
        let before = std::fs::read(&dirty).unwrap();
        assert!(run("dumpe2fs", &["-h", dirty.to_str().unwrap()]).contains("needs_recovery"));

        let ours = open(&dirty).unwrap();
        assert_eq!(ours.read(b"/escaped", 10_000).unwrap(), escaped);
        assert_eq!(ours.read(b"/made/other", 100).unwrap(), b"other content");
        assert!(!ours.exists(b"/size-100") && !ours.exists(b"/link-900"));
        let replayed = path("replayed.img");
        std::fs::copy(&dirty, &replayed).unwrap();
        run("debugfs", &["-w", "-R", "jr", replayed.to_str().unwrap()]);
        assert!(!run("dumpe2fs", &["-h", replayed.to_str().unwrap()]).contains("needs_recovery"));
        assert_same(&ours, &open(&replayed).unwrap(), b"/");
        run("e2fsck", &["-fn", replayed.to_str().unwrap()]);
        assert!(std::fs::read(&dirty).unwrap() == before, "the image was written");

        torn(&dirty, &first, &path("torn.img"));
    }
}

/// A log whose last transaction has no commit ends before it: with the commit of the first destroyed nothing is replayed.
fn torn(dirty: &Path, first: &[u64], torn: &Path) {
    let mut bytes = std::fs::read(dirty).unwrap();
    let commits: BTreeSet<usize> =
        bytes.chunks(BLOCK).enumerate().filter(|(_, b)| b.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2])).map(|(i, _)| i).collect();
    assert!(commits.len() >= 3 && !first.is_empty());
    let at = *commits.first().unwrap() * BLOCK;
    bytes[at..at + BLOCK].fill(0);
    std::fs::write(torn, bytes).unwrap();
    let fs = open(torn).unwrap();
    assert!(fs.exists(b"/size-100") && !fs.exists(b"/made"));
}

#[test]
fn a_wrong_checksum_in_the_journal_is_corruption() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let image = path("fs.img");
    mke2fs(&image, 16 << 20, None, &["-t", "ext4", "-b", "1024"]);
    std::fs::write(path("other"), "other").unwrap();
    let new = path("new.img");
    std::fs::copy(&image, &new).unwrap();
    debugfs(&new, &[format!("write {} other", path("other").display())]);
    let (blocks, content) = difference(&image, &new);
    std::fs::write(path("content"), content).unwrap();
    debugfs(&image, &["jo -c -v 3".into(), format!("jw -b {} {}", list(&blocks), path("content").display()), "jc".into()]);
    assert!(open(&image).unwrap().exists(b"/other"));
    let mut bytes = std::fs::read(&image).unwrap();
    let descriptor = bytes.chunks(BLOCK).position(|b| b.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 1])).unwrap();
    // Every block of data: whichever is asked for first is wrong.
    for block in 1..=blocks.len() {
        bytes[(descriptor + block) * BLOCK + 500] ^= 1;
    }
    std::fs::write(&image, &bytes).unwrap();
    let outcome = open(&image).map(|fs| fs.read(b"/other", 100));
    let error = match outcome {
        Ok(read) => read.unwrap_err(),
        Err(e) => e,
    };
    assert!(error.to_string().contains("journal: block"), "{error}");
}
