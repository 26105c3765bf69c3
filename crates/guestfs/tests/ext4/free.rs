//! Free space is what dumpe2fs says it is, and nothing is said where something contradicts it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use guestfs::{Error, Result, free, probe};
use imgcore::Image;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

use crate::make::{debugfs, folder, mke2fs, run};
use crate::variants::VARIANTS;

/// Free bytes as ranges.
fn found(path: &Path) -> Result<Vec<(u64, u64)>> {
    let image: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(FileStorage::open(path)?))?);
    let content = probe::probe(image.as_ref(), 0, image.size()).unwrap();
    let mut ranges = Vec::new();
    free::visit(&content, &image, &mut |r| ranges.push((r.start, r.end)))?;
    Ok(ranges)
}

/// The same by dumpe2fs, whose groups are put together.
fn told(path: &Path) -> Vec<(u64, u64)> {
    let text = run("dumpe2fs", &[path.to_str().unwrap()]);
    let unit: u64 = text.lines().find_map(|l| l.strip_prefix("Block size:")).unwrap().trim().parse().unwrap();
    // Of a last cluster it names the first block only.
    let cluster = text.lines().find_map(|l| l.strip_prefix("Cluster size:")).map_or(unit, |size| size.trim().parse().unwrap());
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for range in text.lines().filter_map(|l| l.strip_prefix("  Free blocks: ")).flat_map(|l| l.split(", ")).filter(|r| !r.is_empty()) {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (u64, u64) =
            (from.parse::<u64>().unwrap() * unit, ((to.parse::<u64>().unwrap() + 1) * unit).next_multiple_of(cluster));
        match ranges.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => ranges.push((from, to)),
        }
    }
    ranges
}

#[test]
fn free_space_of_all_variants_is_dumpe2fs_s() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), false);
    let image = dir.path().join("fs.img");
    for (name, options) in VARIANTS {
        println!("{name}");
        mke2fs(&image, 600 << 20, Some(&folder), options);
        let expected = told(&image);
        assert!(expected.iter().map(|(from, to)| to - from).sum::<u64>() > 300 << 20, "{name}");
        assert_eq!(found(&image).unwrap(), expected, "{name}");
    }
}

#[test]
fn nothing_is_free_where_something_contradicts_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("fs.img");
    for options in [&["-t", "ext4"][..], &["-t", "ext4", "-O", "^metadata_csum"]] {
        mke2fs(&image, 64 << 20, None, options);
        let text = run("dumpe2fs", &[image.to_str().unwrap()]);
        let unit: u64 = text.lines().find_map(|l| l.strip_prefix("Block size:")).unwrap().trim().parse().unwrap();
        let bitmap = text.lines().find_map(|l| l.trim().strip_prefix("Block bitmap at ")).unwrap();
        let bitmap: u64 = bitmap.split([' ', ',']).next().unwrap().parse().unwrap();
        // The first blocks hold the superblock and are not free.
        std::fs::File::options().write(true).open(&image).unwrap().write_all_at(&[0xfc], bitmap * unit).unwrap();
        assert!(matches!(found(&image), Err(Error::Corrupt { .. })), "{options:?}");
    }
    mke2fs(&image, 64 << 20, None, &["-t", "ext4"]);
    debugfs(&image, &["set_super_value state 3".into()]);
    assert!(matches!(found(&image), Err(Error::Unsupported { .. })));
    mke2fs(&image, 64 << 20, None, &["-t", "ext2"]);
    debugfs(&image, &["set_super_value state 0".into()]);
    assert!(matches!(found(&image), Err(Error::Unsupported { .. })));
}
