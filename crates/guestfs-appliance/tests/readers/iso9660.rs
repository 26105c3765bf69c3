//! ISO 9660: Rock Ridge, Joliet, neither; directories that are too deep for it.

use crate::common::*;
use crate::compare::{Spared, ready_made};
use crate::content::{plain, posix};

/// Where a record lies is how this reader counts inodes, and the kernel has another way.
const SPARED: Spared = Spared { ino: true, ctime: false, atime: false, directories: false, blocks: false };

#[test]
fn every_extension_reads_as_the_kernel_reads_it() {
    let dir = scratch();
    let full = posix(&dir.path().join("full"), 3000);
    // genisoimage cuts a component that is longer than a name can be, and the kernel loses names behind long targets.
    for len in [336, 900, 1023] {
        std::fs::remove_file(full.join(format!("link-{len}"))).unwrap();
    }
    std::os::unix::fs::symlink("/up/../and/down/".repeat(8), full.join("long-link")).unwrap();
    let few = plain(&dir.path().join("few"), 30);
    let image = dir.path().join("image");
    for (folder, options, mount) in [
        (&full, &["-R"][..], ""),
        (&full, &["-R", "-J", "-joliet-long"], ""),
        (&few, &["-J", "-joliet-long"], "iocharset=utf8"),
        (&few, &["-iso-level", "1", "-D"], ""),
        (&few, &["-iso-level", "3", "-r", "-D", "-U"], ""),
    ] {
        println!("{options:?}");
        let base = ["genisoimage", "-quiet", "-V", "DISC", "-o", image.to_str().unwrap()];
        tool(&[&base[..], options, &[folder.to_str().unwrap()]].concat());
        ready_made(&image, "iso9660", mount, SPARED);
    }
}
