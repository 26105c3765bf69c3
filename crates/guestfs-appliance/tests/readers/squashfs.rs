//! squashfs: every compressor, with and without fragments.

use crate::common::*;
use crate::compare::{Spared, ready_made};
use crate::content::posix;

const VARIANTS: &[&[&str]] = &[
    &["-comp", "gzip"],
    &["-comp", "xz", "-b", "1M"],
    &["-comp", "zstd", "-b", "4096"],
    &["-comp", "lz4", "-no-fragments"],
    &["-comp", "lzo", "-always-use-fragments"],
    &["-comp", "gzip", "-noI", "-noD", "-noF", "-noX", "-no-exports"],
];

#[test]
fn every_compressor_reads_as_the_kernel_reads_it() {
    let dir = scratch();
    let folder = posix(dir.path(), 3000);
    for (i, len) in [3usize, 700, 30_000].into_iter().enumerate() {
        let value = format!("0x{}", "5a".repeat(len));
        tool(&["setfattr", "-n", &format!("user.{i}"), "-v", &value[..value.len().min(6000)], folder.join("text-2000").to_str().unwrap()]);
    }
    for options in VARIANTS {
        println!("{options:?}");
        let image = dir.path().join("image");
        let pseudo = ["-p", "console c 644 7 8 5 1", "-p", "disk b 600 0 0 259 1000"];
        let base = ["mksquashfs", folder.to_str().unwrap(), image.to_str().unwrap(), "-quiet", "-no-progress", "-noappend"];
        tool(&[&base[..], &pseudo, options].concat());
        ready_made(&image, "squashfs", "", Spared::default());
    }
}
