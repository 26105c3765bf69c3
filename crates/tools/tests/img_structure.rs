//! Commands that change an image's structure, by `img` and by qemu-img: the same words and the same images.

#![allow(missing_docs)]

mod common;

use std::path::Path;

use common::twin::Twin;
use common::{ok, sh};

/// A chain of three, and images alone.
fn chain(folder: &Path) {
    let io = |lines: &[&str], file: &str| {
        ok("qemu-io", &lines.iter().flat_map(|c| ["-c", c]).chain([file]).collect::<Vec<_>>(), folder);
    };
    let make = |line: &str| sh("qemu-img", line, folder);
    make("create -q -f raw a.raw 3M");
    ok("qemu-io", &["-f", "raw", "-c", "write -P 1 1M 64k", "-c", "write -P 8 2M 1M", "a.raw"], folder);
    make("convert -O qcow2 a.raw a.qcow2");
    make("create -q -f qcow2 -b a.qcow2 -F qcow2 mid.qcow2 4M");
    io(&["write -P 5 2M 64k", "write -P 6 100k 3k"], "mid.qcow2");
    make("create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=4k top.qcow2 5M");
    io(&["write -P 7 3M 64k", "write -z 1M 8k", "write -P 9 5111808 64k"], "top.qcow2");
    make("create -q -f qcow2 -b missing.raw -F raw -u orphan.qcow2 4M");
    make("convert -O qcow2 -o compat=0.10 a.raw v2.qcow2");
    make("create -q -f qcow2 -o extended_l2=on -b a.raw -F raw ext.qcow2");
    io(&["write -P 3 2M 5k"], "ext.qcow2");
    make("create -q -f raw big.raw 6M");
    ok("qemu-io", &["-f", "raw", "-c", "write -P 4 0 6M", "big.raw"], folder);
}

#[test]
fn snapshots() {
    let Some(mut twin) = Twin::new(chain) else { return };
    twin.agree_on(
        "snapshot
         snapshot a.qcow2
         snapshot -l a.raw
         snapshot -c x a.raw
         snapshot -d x a.raw
         snapshot -a nope a.qcow2
         snapshot -d nope a.qcow2
         snapshot -c two -l a.qcow2
         snapshot -c a -d b a.qcow2
         snapshot -c x nope
         snapshot -l orphan.qcow2
         snapshot -l a b
         snapshot -c
         snapshot -f raw -l a.qcow2
         ~snapshot -U -c y a.qcow2",
    );
    twin.reset();
    for line in ["snapshot -c one top.qcow2", "snapshot -q -c two top.qcow2", "snapshot -c one top.qcow2"] {
        twin.same_image(line, "top.qcow2");
    }
    for folder in [twin.ours(), twin.theirs()] {
        ok("qemu-io", &["-c", "write -P 33 0 1M", "top.qcow2"], &folder);
    }
    for line in ["snapshot -d 1 top.qcow2", "snapshot -a 1 top.qcow2", "snapshot -d one top.qcow2", "snapshot -a one top.qcow2"] {
        twin.same_image(line, "top.qcow2");
    }
    let list = sh(common::IMG, "snapshot -l top.qcow2", &twin.ours());
    assert_eq!(list, sh("qemu-img", "snapshot -l top.qcow2", &twin.ours()));
    twin.finish();
}

#[test]
fn rebase() {
    let Some(mut twin) = Twin::new(chain) else { return };
    twin.same_images(
        "rebase -b a.qcow2 -F qcow2 top.qcow2
         rebase -b a.raw -F raw top.qcow2
         rebase -b big.raw -F raw top.qcow2
         rebase -b mid.qcow2 -F qcow2 top.qcow2
         rebase -b '' top.qcow2
         rebase -q -c -b a.raw -F raw top.qcow2
         rebase -b v2.qcow2 -F qcow2 -t none -T none top.qcow2
         rebase -u -b a.raw -F raw top.qcow2
         rebase -u -b '' top.qcow2
         rebase -u top.qcow2",
        "top.qcow2",
    );
    twin.same_images("rebase -b big.raw -F raw ext.qcow2\nrebase -b '' ext.qcow2", "ext.qcow2");
    // qemu-img itself loses zeroes here: version 2 has no flag for them.
    twin.reset();
    sh(common::IMG, "rebase -b big.raw -F raw v2.qcow2", &twin.ours());
    sh("qemu-img", "compare a.raw v2.qcow2", &twin.ours());
    twin.agree_on(
        "rebase
         rebase top.qcow2
         rebase -F raw top.qcow2
         rebase -b nope -F raw top.qcow2
         rebase -b a.raw -F nope top.qcow2
         rebase -b a.qcow2 top.qcow2
         rebase -u -b a.raw top.qcow2
         rebase -t foo -b a.raw -F raw top.qcow2
         rebase -T foo -b a.raw -F raw top.qcow2
         rebase -b a.raw -F raw a.raw
         rebase -b a.raw -F raw orphan.qcow2
         rebase -u -b nope -F raw top.qcow2
         rebase -u -b a.raw -F raw orphan.qcow2
         rebase -b top.qcow2 -F qcow2 top.qcow2
         rebase -b a.raw -F qcow2 top.qcow2
         rebase -b a.raw -F raw nope",
    );
    twin.finish();
}

#[test]
fn commit() {
    let Some(mut twin) = Twin::new(chain) else { return };
    for line in ["commit top.qcow2", "commit -q top.qcow2", "commit -d top.qcow2", "commit -r 100M -t none top.qcow2"] {
        twin.reset();
        twin.same_image(line, "mid.qcow2");
        let map = sh("qemu-img", "map --output=json top.qcow2", &twin.ours());
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        let own = map.as_array().unwrap().iter().any(|part| part["depth"] == 0 && part["present"] == true);
        assert_eq!(own, line.contains("-d"), "the image is emptied unless it is dropped: {map}");
        sh("qemu-img", "check -q top.qcow2", &twin.ours());
    }
    for line in ["commit -b a.qcow2 top.qcow2", "commit -b ./a.qcow2 top.qcow2"] {
        twin.reset();
        twin.same_image(line, "a.qcow2");
    }
    twin.reset();
    twin.same_image("commit ext.qcow2", "a.raw");
    let ours = sh(common::IMG, "commit -p mid.qcow2", &twin.ours());
    assert!(ours.starts_with("    (0.00/100%)\r") && ours.ends_with("    (100.00/100%)\r\nImage committed.\n"), "{ours:?}");
    twin.agree_on(
        "commit
         commit a.raw
         commit a.qcow2
         commit nope
         commit orphan.qcow2
         commit -f raw top.qcow2
         commit -b nope top.qcow2
         commit -b top.qcow2 top.qcow2
         commit -r x top.qcow2
         commit -t foo top.qcow2",
    );
    twin.finish();
}

#[test]
fn a_commit_below_a_short_layer_keeps_what_the_chain_reads() {
    // The middle layer ends before the base: what is past its end reads as zeroes, and must do so afterwards.
    let Some(mut twin) = Twin::new(|folder| {
        sh("qemu-img", "create -q -f raw base.raw 4M", folder);
        ok("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4M", "base.raw"], folder);
        sh("qemu-img", "create -q -f qcow2 -b base.raw -F raw mid.qcow2 2M", folder);
        sh("qemu-img", "create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 3M", folder);
        ok("qemu-io", &["-c", "write -P 2 1M 64k", "mid.qcow2"], folder);
        ok("qemu-io", &["-c", "write -P 3 2555904 64k", "top.qcow2"], folder);
    }) else {
        return;
    };
    let wanted = twin.ours().join("wanted");
    sh("qemu-img", &format!("convert -O raw top.qcow2 {}", wanted.display()), &twin.ours());
    let wanted = std::fs::read(wanted).unwrap();
    twin.agree("commit -b base.raw top.qcow2");
    let base = std::fs::read(twin.ours().join("base.raw")).unwrap();
    assert!(base[..wanted.len()] == wanted, "the base reads as the top layer did");
    assert!(base[wanted.len()..].iter().all(|b| *b == 1), "and behind that as before");
    twin.finish();
}

#[test]
fn amend() {
    let Some(mut twin) = Twin::new(chain) else { return };
    twin.same_images(
        "amend -o compat=0.10 a.qcow2
         amend -o compat=0.10 -o size=5M a.qcow2
         amend -o lazy_refcounts=on a.qcow2
         amend -o refcount_bits=64 a.qcow2
         amend -o size=1M a.qcow2
         amend -q -o compat=1.1 a.qcow2",
        "a.qcow2",
    );
    twin.same_images("amend -o compat=1.1,refcount_bits=1 v2.qcow2", "v2.qcow2");
    twin.agree_on(
        "amend
         amend a.qcow2
         amend -o foo=1 a.qcow2
         amend -o cluster_size=4k a.qcow2
         amend -o compat=9 a.qcow2
         amend -o refcount_bits=8 v2.qcow2
         amend -o preallocation=full a.qcow2
         amend -o compat=1.1 a.raw
         amend -f raw -o help
         amend -f qcow2 -o foo a.raw
         amend -o compat=1.1 nope
         amend -t foo -o compat=1.1 a.qcow2
         amend -o help
         amend -f nope -o help
         amend -o compat=1.1 a b
         amend -o data_file=x a.qcow2",
    );
    twin.finish();
}

#[test]
fn bitmaps() {
    let Some(mut twin) = Twin::new(|folder| {
        chain(folder);
        for line in ["bitmap --add a.qcow2 b0", "bitmap --add -g 32k a.qcow2 b1", "bitmap --add --disable mid.qcow2 m"] {
            sh("qemu-img", line, folder);
        }
        ok("qemu-io", &["-c", "write -P 3 1M 100k", "a.qcow2"], folder);
    }) else {
        return;
    };
    twin.same_images(
        "bitmap --add a.qcow2 new
         bitmap --add -g 128k a.qcow2 new
         bitmap --add --disable a.qcow2 new
         bitmap --add --merge b0 --merge b1 a.qcow2 new
         bitmap --remove --add a.qcow2 b1
         bitmap --clear a.qcow2 b0
         bitmap --disable --clear --merge b1 --enable a.qcow2 b0
         bitmap --merge m -b mid.qcow2 -F qcow2 a.qcow2 b0
         bitmap --image-opts --add driver=qcow2,file.filename=a.qcow2 q1
         bitmap --remove a.qcow2 b0
         info a.qcow2
         info --output=json a.qcow2",
        "a.qcow2",
    );
    twin.agree_on(
        "bitmap
         bitmap --add
         bitmap --add a.qcow2
         bitmap --add a.qcow2 b0
         bitmap --add -g 1000 a.qcow2 b2
         bitmap --add -g 256 a.qcow2 b2
         bitmap --add -g 4G a.qcow2 b2
         bitmap --add -g x a.qcow2 b2
         bitmap -g 64k --remove a.qcow2 b2
         bitmap --remove a.qcow2 nope
         bitmap --clear a.qcow2 nope
         bitmap --enable a.qcow2 nope
         bitmap --merge nope a.qcow2 b0
         bitmap --merge b0 a.qcow2 nope
         bitmap --merge b1 -b nope a.qcow2 b0
         bitmap --merge b1 -b a.qcow2 -F qcow2 a.qcow2 b0
         bitmap -b a.qcow2 --add a.qcow2 b5
         bitmap -F qcow2 --merge b1 a.qcow2 b0
         bitmap a.qcow2 b0
         ~bitmap --add a.raw b0
         bitmap --add nope b0
         bitmap --add a.qcow2 b9 extra",
    );
    twin.finish();
}
