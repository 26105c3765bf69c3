//! Damaged filesystems: an error or an answer, never a panic, a hang or unbounded memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestfs::{FileType, GuestFs};
use imgcore::raw::Raw;
use imgcore::storage::MemStorage;
use imgcore::{Image, ImageMut, Overlay};

use crate::make::{debugfs, folder, mke2fs, open_image, run};

/// A small generator of numbers, so that a failure can be made again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Reads all that a tool could ask for, within limits of its own.
fn walk(fs: &dyn GuestFs) {
    let mut pending = vec![b"/".to_vec()];
    let (mut files, mut buf) = (0, vec![0; 64 << 10]);
    while let Some(path) = pending.pop() {
        files += 1;
        if files > 400 || path.len() > 2000 {
            break;
        }
        let Ok(stat) = fs.lstat(&path) else { continue };
        let _ = fs.xattrs(&path);
        match stat.kind {
            FileType::Directory => {
                let entries = fs.read_dir(&path).unwrap_or_default();
                pending.extend(entries.into_iter().map(|e| [path.as_slice(), b"/", &e.name].concat()));
            }
            FileType::Symlink => {
                let _ = (fs.readlink(&path), fs.stat(&path));
            }
            FileType::Regular => {
                for offset in [0, stat.size / 2, stat.size.saturating_sub(100)] {
                    let _ = fs.read_at(&path, offset, &mut buf);
                }
            }
            _ => {}
        }
    }
    let _ = fs.statfs(b"/");
}

/// Blocks that hold structures rather than files' content.
fn metadata(image: &Path, bytes: &[u8]) -> Vec<u64> {
    let inodes = [2u32, 8, 11].into_iter().chain(12..40);
    let mut blocks: Vec<u64> = (0..60).collect();
    for ino in inodes {
        let text = run("debugfs", &["-R", &format!("blocks <{ino}>"), image.to_str().unwrap()]);
        blocks.extend(text.split_whitespace().filter_map(|w| w.parse::<u64>().ok()).take(6));
    }
    blocks.retain(|b| (b + 1) * 1024 <= bytes.len() as u64);
    blocks
}

#[test]
fn thousands_of_damaged_filesystems() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), true);
    let image = dir.path().join("fs.img");
    let variants: &[&[&str]] = &[
        &["-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode,meta_bg,^resize_inode", "-J", "size=1"],
        &["-t", "ext3", "-b", "1024", "-J", "size=1"],
        &["-t", "ext4", "-b", "1024", "-J", "size=1"],
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for options in variants {
        mke2fs(&image, 8 << 20, Some(&folder), options);
        let text = run("debugfs", &["-R", "stat <2>", image.to_str().unwrap()]);
        assert!(text.contains("directory"));
        let value = dir.path().join("value");
        std::fs::write(&value, [9; 600]).unwrap();
        debugfs(&image, &[format!("ea_set -f {} /size-4097 user.x", value.display())]);
        std::fs::write(&value, [7; 1024]).unwrap();
        debugfs(
            &image,
            &["jo -c".into(), format!("jw -b 5000,5001 {}", dir.path().join("two").display()), "jc".into()].map(|c: String| {
                std::fs::write(dir.path().join("two"), [7; 2048]).unwrap();
                c
            }),
        );
        let bytes = std::fs::read(&image).unwrap();
        let targets = metadata(&image, &bytes);
        let base: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(MemStorage::from_bytes("fs", &bytes))).unwrap());
        let started = Instant::now();
        for round in 0..1500 {
            let overlay = Overlay::in_memory(base.clone());
            for _ in 0..=random.below(6) {
                let block = targets[random.below(targets.len() as u64) as usize];
                let at = block * 1024 + random.below(1024);
                let value = [0, 0xff, 1, 0x80, random.below(256) as u8][random.below(5) as usize];
                overlay.write_at(&[value], at).unwrap();
            }
            let one = Instant::now();
            if let Ok(fs) = open_image(Arc::new(overlay)) {
                walk(&fs);
            }
            assert!(one.elapsed() < Duration::from_secs(5), "round {round} of {options:?} took {:?}", one.elapsed());
        }
        println!("{options:?}: {:?}", started.elapsed());
    }
}

#[test]
fn a_truncated_image_is_an_error_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), true);
    let image = dir.path().join("fs.img");
    mke2fs(&image, 8 << 20, Some(&folder), &["-t", "ext4", "-b", "1024"]);
    let bytes = std::fs::read(&image).unwrap();
    for keep in [0, 1000, 1500, 2048, 100_000, 1 << 20] {
        let base: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(MemStorage::from_bytes("fs", &bytes[..keep]))).unwrap());
        match open_image(base) {
            Ok(fs) => walk(&fs),
            Err(e) => assert!(e.to_string().contains("corrupt ext4"), "{e}"),
        }
    }
}

#[test]
fn a_journal_that_claims_to_be_endless_is_refused_before_its_blocks_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    mke2fs(&image, 16 << 20, None, &["-t", "ext4", "-b", "1024"]);
    // The journal's file is as large as it says, so that only the limit stands between it and the memory.
    debugfs(&image, &["set_inode_field <8> size 0x3fffffffc00".into()]);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[1024 + 0x60] |= 4;
    let journal = bytes.windows(8).position(|w| w == [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4]).unwrap();
    bytes[journal + 0x10..journal + 0x14].copy_from_slice(&u32::MAX.to_be_bytes());
    bytes[journal + 0x1c..journal + 0x20].copy_from_slice(&1u32.to_be_bytes());
    std::fs::write(&image, &bytes).unwrap();
    let error = crate::make::open(&image).err().unwrap().to_string();
    assert!(error.contains("4294967295 blocks, more than 10240000"), "{error}");
}
