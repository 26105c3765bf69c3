//! `img` and qemu-img on the same command lines: the same exit codes, output, errors and images.

#![allow(missing_docs)]

mod common;

use std::path::Path;

use common::sh;
use common::twin::Twin;

/// Images of all kinds, made by qemu-img.
fn images(folder: &Path) {
    let io = |line: &str, file: &str| {
        common::ok("qemu-io", &line.split(';').flat_map(|c| ["-c", c]).chain([file]).collect::<Vec<_>>(), folder);
    };
    let make = |line: &str| sh("qemu-img", line, folder);
    make("create -q -f raw a.raw 3M");
    common::ok("qemu-io", &["-f", "raw", "-c", "write -P 1 1M 64k", "a.raw"], folder);
    make("convert -O qcow2 a.raw a.qcow2");
    make("create -q -f raw b.raw 4M");
    make("create -q -f qcow2 -b a.raw -F raw top.qcow2 4M");
    io("write -P 2 0 128k;write -z 2M 64k;write -P 4 3M 100k", "top.qcow2");
    make("create -q -f qcow2 -b missing.raw -u -F raw orphan.qcow2 1M");
    make("create -q -f qcow2 -b orphan.qcow2 -F qcow2 -u orphan2.qcow2 1M");
    std::fs::write(folder.join("odd.raw"), b"four").unwrap();
    make("create -q -f qcow2 -o preallocation=metadata pre.qcow2 5M");
    io("write -P 2 1M 100k;write -z 3M 128k", "pre.qcow2");
}

#[test]
fn compare() {
    let Some(mut twin) = Twin::new(images) else { return };
    twin.agree_on(
        "compare a.raw a.qcow2
         compare a.qcow2 a.raw
         compare -q a.raw b.raw
         compare -p a.raw a.raw -q
         compare a.raw b.raw
         compare b.raw a.raw
         compare top.qcow2 a.raw
         compare a.raw top.qcow2
         compare odd.raw odd.raw
         compare odd.raw a.raw
         compare -s a.raw a.raw
         compare -s a.raw b.raw
         compare --strict a.raw a.qcow2
         compare -s a.qcow2 a.qcow2
         compare -f raw -F qcow2 a.raw a.qcow2
         compare -F qcow2 a.raw -f raw a.qcow2
         compare -U a.raw a.qcow2
         compare -T none a.raw a.qcow2
         compare -T nonsense a.raw a.qcow2
         compare --a-format=raw --b-f qcow2 a.raw a.qcow2
         compare -f raw a.qcow2 a.qcow2
         compare nope a.raw
         compare a.raw nope
         compare -f nope a.raw a.raw
         compare -f qcow2 a.raw a.raw
         compare a.raw orphan.qcow2
         compare what:ever a.raw
         compare
         compare a.raw
         compare a.raw a.raw a.raw
         compare --nonsense
         compare -Z
         compare -f
         compare --image-opts driver=qcow2,file.filename=a.qcow2 driver=raw,file.filename=a.raw
         compare --image-opts -f raw driver=qcow2,file.filename=a.qcow2 driver=raw,file.filename=a.raw
         compare --image-opts a.raw a.raw
         compare --image-opts driver=qcow2,file.filename=a.qcow2,foo=1 driver=raw,file.filename=a.raw
         compare json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a.qcow2\"}} a.raw
         compare json:{\"driver\":\"qcow2\",\"file.filename\":\"a.qcow2\",\"l2-cache-size\":65536} a.raw
         compare json:{} a.raw",
    );
    twin.finish();
}

#[test]
fn dd() {
    let Some(mut twin) = Twin::new(images) else { return };
    twin.same_images(
        "dd if=a.raw of=out
         dd bs=1M count=1 if=a.raw of=out
         dd bs=1M skip=1 if=a.raw of=out
         dd bs=1M skip=1 count=2 if=top.qcow2 of=out
         dd bs=1M skip=5 if=a.raw of=out
         dd bs=1000 count=77 if=top.qcow2 of=out
         dd count=0 if=a.raw of=out
         dd -O qcow2 bs=64k if=a.raw of=out
         dd -f raw -O qcow2 if=a.qcow2 of=out
         dd -U if=a.qcow2 of=out bs=2M
         dd --image-opts if=driver=raw,file.filename=a.raw of=out
         dd if=b.raw if=a.raw of=out",
        "out",
    );
    twin.agree_on(
        "dd
         dd if=a.raw
         dd of=out
         dd if=a.raw of=out bs=0
         dd if=a.raw of=out bs=x
         dd if=a.raw of=out bs=3G
         dd if=a.raw of=out bs=-1
         dd if=a.raw of=out count=x
         dd if=a.raw of=out count=-1
         dd if=a.raw of=out count=1k
         dd if=a.raw of=out skip=x
         dd if=a.raw of=out foo=1
         dd if=a.raw of=out foo
         dd if=nope of=out
         dd -f qcow2 if=a.raw of=out
         dd -O nope if=a.raw of=out
         dd if=a.raw of=nope/out
         dd --image-opts -f raw if=a.raw of=out",
    );
    twin.finish();
}

#[test]
fn resize() {
    let Some(mut twin) = Twin::new(images) else { return };
    twin.agree_on(
        "resize
         resize a.raw
         resize -f raw a.raw x
         resize a.raw +x
         resize a.raw +
         resize a.raw -8M
         resize a.qcow2 -1M
         resize a.qcow2 1M
         resize a.qcow2 0
         resize a.qcow2 9E
         resize a.qcow2 16777216T
         resize --shrink a.qcow2 -8M
         resize --preallocation=foo a.qcow2 10M
         resize --shrink --preallocation=full a.qcow2 1M
         resize nope 10M
         resize a.qcow2 a.qcow2 10M
         resize a.qcow2 --shrink
         resize -f qcow2 a.raw 10M
         resize --image-opts -f raw a.raw 10M",
    );
    twin.finish();
}

#[test]
fn bench() {
    let Some(mut twin) = Twin::new(images) else { return };
    // Times differ.
    twin.agree_on(
        "bench
         bench -c 10 --flush-interval 2 a.qcow2
         bench -c 10 -w --flush-interval 2 -d 8 a.qcow2
         bench -c x a.raw
         bench -d x a.raw
         bench -d 0 a.raw
         bench -t foo a.raw
         bench -i foo a.raw
         bench -s x a.raw
         bench -s 0 a.raw
         bench -o x a.raw
         bench -S x a.raw
         bench -w --pattern 300 a.raw
         bench -c 0 a.raw
         bench -c -1 a.raw
         bench nope",
    );
    let ours = twin.ours();
    for (line, first) in [
        (
            "bench -c 1000 -d 4 top.qcow2",
            "Sending 1000 read requests, 4096 bytes each, 4 in parallel (starting at offset 0, step size 4096)\n",
        ),
        (
            "bench -c 64 -w --flush-interval 16 -d 8 --pattern 7 -s 64k top.qcow2",
            "Sending 64 write requests, 65536 bytes each, 8 in parallel (starting at offset 0, step size 65536)\nSending flush every 16 requests\n",
        ),
        ("bench -c 9 --random=5 top.qcow2", "Sending 9 read requests, 4096 bytes each, 64 in parallel"),
    ] {
        let out = sh(common::IMG, line, &ours);
        assert!(out.starts_with(first), "{line}: {out}");
        assert!(out.lines().last().is_some_and(|l| l.starts_with("Run completed in ") && l.ends_with(" seconds.")), "{out}");
    }
    // All 4 MiB were written, by requests that went around the disk.
    common::ok("qemu-io", &["-c", "read -P 7 0 4M", "top.qcow2"], &ours);
    std::fs::write(ours.join("offsets"), "0\n1M\n3145728\n").unwrap();
    sh(common::IMG, "bench -c 30 --offsets offsets top.qcow2", &ours);
    assert_eq!(common::run(common::IMG, &["bench", "-c", "5", "-s", "10M", "a.raw"], &ours).code, 1);
    twin.finish();
}

#[test]
fn create() {
    let Some(mut twin) = Twin::new(images) else { return };
    twin.same_images(
        "create -f raw x 10M
         create x 1000
         create -f qcow2 x 1G
         create -f qcow2 x 1.5k
         create x -f qcow2 -q 1M
         create -f qcow2 -o compat=0.10 -o cluster_size=4k x 10M
         create -f qcow2 -o size=1M x
         create -f qcow2 -b a.raw -F raw x
         create -f qcow2 -b a.raw -F raw x 10M
         create -f qcow2 -o backing_file=a.raw,backing_fmt=raw x 10M
         create --format=qcow2 --backing a.raw --backing-format raw x
         create -f qcow2 --object secret,id=s,data=x x 1M
         create -f qcow2 -b top.qcow2 -F qcow2 x",
        "x",
    );
    twin.agree_on(
        "create
         create -f qcow2
         create -f qcow2 x
         create -f raw x
         create -f nope x 1M
         create x y
         create x -1M
         create x 9E
         create x 1M 2M
         create -f qcow2 -o size=1M x 1M
         create -f qcow2 -o size=x x
         create -f qcow2 -o nope=1 x 1M
         create -f qcow2 -o , x 1M
         create -f raw -b a.raw x 1M
         create -f raw -F raw x 1M
         create -f qcow2 -b a.raw x
         create -f qcow2 -u -b nowhere.raw -F raw x 1M
         create -f qcow2 -b nowhere.raw -F raw x
         create -f qcow2 -b nowhere.raw -F raw x 1M
         create -f qcow2 -b a.raw -F nope x
         create -f qcow2 -b a.raw -F qcow2 x
         create -f qcow2 -b x -F qcow2 x
         create -f qcow2 -b orphan.qcow2 -F qcow2 x
         create -f qcow2 nope/x 1M
         create -f qcow2 -o cluster_size=1000 x 1M
         create -f qcow2 -o cluster_size=x x 1M
         create -f qcow2 -o compat=9 x 1M
         create -f qcow2 -o refcount_bits=3 x 1M
         create -f qcow2 -o refcount_bits=x x 1M
         create -f qcow2 -o compat=0.10,refcount_bits=1 x 1M
         create -f qcow2 -o compat=0.10,lazy_refcounts=on x 1M
         create -f qcow2 -o lazy_refcounts=maybe x 1M
         create -f qcow2 -o preallocation=foo x 1M
         create -f qcow2 -o cluster_size=512 x 1P
         create -f qcow2 --object foo,id=1 x 1M
         create -f raw -o help x",
    );
    twin.finish();
}

#[test]
fn info_check_and_map() {
    let Some(mut twin) = Twin::new(images) else { return };
    twin.agree_on(
        "info
         info nope
         info a.raw b.raw
         info --output=foo a.raw
         ~info --o json a.raw
         info a.raw -f raw --outp json
         info -f nope a.raw
         info -f qcow2 a.raw
         info file:a.raw
         info what:ever
         info odd.raw
         info orphan.qcow2
         info orphan2.qcow2
         info --backing-chain orphan2.qcow2
         info --backing-chain top.qcow2
         info --output=json --backing-chain top.qcow2
         info --object secret a.raw
         info --object foo,id=x a.raw
         info --image-opts filename=a.qcow2
         info --image-opts file.filename=a.qcow2
         info --image-opts driver=qcow2
         info --image-opts driver=qcow2,file.filename=a.qcow2,l2-cache-size=x
         check
         check a.qcow2
         check a b
         check nope
         check -r foo a.qcow2
         check -U -r all a.qcow2
         check -T foo a.qcow2
         check --output=x a.qcow2
         check a.raw
         check -q a.raw
         check --output=json a.raw
         check --repair=all a.qcow2
         check -q a.qcow2
         check --output json --image-opts driver=qcow2,file.filename=a.qcow2,l2-cache-size=1M
         map
         map a.raw
         map a.qcow2
         map --output=json a.qcow2
         map top.qcow2
         map --output=json top.qcow2
         map pre.qcow2
         map --output=json pre.qcow2
         map -f raw top.qcow2
         map orphan.qcow2
         map --start-offset x a.raw
         map --max-length x a.raw
         map --start-offset -1 a.raw
         map --start-offset 10M a.raw
         map --output=json --start-offset 10M a.raw
         map --output=json --max-length 0 a.raw
         map --max-length 0 a.raw",
    );
    twin.finish();
}

#[test]
fn convert() {
    let fill = |folder: &Path| {
        images(folder);
        sh("qemu-img", "snapshot -c s1 top.qcow2", folder);
        sh("qemu-img", "bitmap --add -g 32k top.qcow2 b0", folder);
        common::ok("qemu-io", &["-c", "write -P 11 1M 1M", "top.qcow2"], folder);
        sh("qemu-img", "create -q -f qcow2 small.qcow2 1M", folder);
        sh("qemu-img", "create -q -f qcow2 big.qcow2 10M", folder);
    };
    let Some(mut twin) = Twin::new(fill) else { return };
    twin.same_images(
        "convert a.raw o
         convert -O qcow2 top.qcow2 o
         convert -c -O qcow2 top.qcow2 o
         convert -O qcow2 a.raw top.qcow2 odd.raw o
         convert --source-format=raw -O qcow2 a.qcow2 o
         convert -B a.raw -F raw -O qcow2 top.qcow2 o
         convert -O qcow2 -o backing_file=a.raw,backing_fmt=raw top.qcow2 o
         convert -l s1 top.qcow2 o
         convert -l snapshot.id=1 top.qcow2 o
         convert -l snapshot.name=s1 -O qcow2 top.qcow2 o
         convert -S 0 a.raw o
         convert -S 64k -m 4 -W -r 1G a.raw o
         convert -t none -T writeback a.raw o
         convert --bitmaps -O qcow2 top.qcow2 o
         convert --bitmaps --skip-broken-bitmaps -c -O qcow2 -o cluster_size=4k top.qcow2 o
         convert --salvage a.raw o
         convert -C a.raw o
         convert --image-opts driver=qcow2,file.filename=a.qcow2 o
         convert -q -p a.raw o
         convert -O qcow2 -o size=1M a.raw o
         convert -U --object secret,id=x,data=y a.raw o
         convert -O qcow2 -o cluster_size=4k,compat=0.10 a.raw o
         convert -O qcow2 -o preallocation=metadata a.raw o",
        "o",
    );
    twin.same_images(
        "convert -n -O qcow2 a.raw big.qcow2
         convert -n --target-is-zero -O qcow2 top.qcow2 big.qcow2
         convert -n --target-image-opts a.raw driver=qcow2,file.filename=big.qcow2",
        "big.qcow2",
    );
    twin.agree_on(
        "convert
         convert a.raw
         convert -O nope a.raw o
         convert -f nope a.raw o
         convert -c a.raw o
         convert -n a.raw o
         convert -n -O qcow2 a.raw small.qcow2
         convert -B a.qcow2 -O qcow2 top.qcow2 o
         convert -B a.qcow2 -F qcow2 top.qcow2 o
         convert -B a.qcow2 -F qcow2 -O qcow2 top.qcow2 top.qcow2 o
         convert -O qcow2 -o backing_file=a.qcow2 a.raw o
         convert -l nope top.qcow2 o
         convert -l snapshot.foo=1 top.qcow2 o
         convert -l s1 a.raw o
         convert -l s1 top.qcow2 top.qcow2 o
         convert -S x a.raw o
         convert -S 100 a.raw o
         convert -S 3G a.raw o
         convert -m 0 a.raw o
         convert -m 17 a.raw o
         convert -m x a.raw o
         convert -r x a.raw o
         convert -t foo a.raw o
         convert -T foo a.raw o
         convert --target-is-zero a.raw o
         convert --bitmaps a.raw o
         convert --bitmaps -O qcow2 a.raw o
         convert --bitmaps -O raw top.qcow2 o
         convert --bitmaps -O qcow2 top.qcow2 top.qcow2 o
         convert --bitmaps -n -O qcow2 top.qcow2 big.qcow2
         convert --skip-broken-bitmaps -O qcow2 top.qcow2 o
         convert -C -S 4k a.raw o
         convert -C -c -O qcow2 a.raw o
         convert --salvage -C a.raw o
         convert --image-opts -f raw a.raw o
         convert --target-image-opts a.raw driver=raw,file.filename=o
         convert --target-image-opts -O raw -n a.raw driver=qcow2,file.filename=big.qcow2
         ~convert a.raw a.raw
         convert -O qcow2 -o foo=1 a.raw o
         convert -n -o size=1M -O qcow2 a.raw big.qcow2
         convert -o preallocation=full -c -O qcow2 a.raw o
         convert nope o
         convert a.raw nope/o
         convert -o help
         convert orphan.qcow2 o",
    );
    twin.finish();
}

#[test]
fn measure() {
    let Some(mut twin) = Twin::new(images) else { return };
    twin.agree_on(
        "measure
         measure --size 1G
         measure --size 1G -O qcow2
         measure -O qcow2 a.raw
         measure -O raw a.qcow2
         measure -O qcow2 top.qcow2
         measure --output json -O qcow2 top.qcow2
         measure -O qcow2 a.raw --size 1
         measure -O foo --size 1G
         measure --size x
         measure --size -1
         measure -O qcow2 --size 9E
         measure -O qcow2 -o help
         measure -O qcow2 -o cluster_size=4k --size 1G
         measure -O qcow2 -o cluster_size=4k,refcount_bits=64,lazy_refcounts=on -o compat=1.1 --size 1T
         measure -O qcow2 -o foo=4k --size 1G
         measure -O qcow2 -o preallocation=full --size 1G
         measure -O qcow2 -o backing_file=x --size 1G
         measure -l nope -O qcow2 a.qcow2
         measure -l foo -O qcow2 a.raw
         measure a.raw b.raw
         measure -f qcow2 --size 1G
         measure --image-opts --size 1G
         measure -l foo --size 1G
         measure --output=foo --size 1G
         measure -U -O raw top.qcow2
         measure -s 1G",
    );
    twin.finish();
}

#[test]
fn command_lines_are_read_as_getopt_reads_them() {
    let Some(mut twin) = Twin::new(images) else { return };
    twin.agree_on(
        "nonsense
         info a.raw --nonsense=1
         info -Z a.raw
         info a.raw -f
         info a.raw --format
         info -fraw a.raw
         info -f qcow2 -f raw a.raw
         info -- a.raw
         info --back top.qcow2
         info --backing-chain --backing-chain top.qcow2
         create -qf qcow2 x 1M
         create -fqcow2 -q x 1M",
    );
    twin.finish();
}
