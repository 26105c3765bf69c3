//! `img convert` against qemu-img: what it writes is checked and compared there, and its flags mean the same.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// `None`, said aloud, where qemu-img is missing; a failure where everything must be installed.
    fn new() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "qemu-img is missing");
            eprintln!("skipped: qemu-img is missing");
            return None;
        }
        Some(Bench { folder: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, program: &str, line: &str) -> Output {
        Command::new(program).args(line.split_whitespace()).current_dir(self.folder.path()).output().unwrap()
    }

    fn ok(&self, program: &str, line: &str) -> String {
        let output = self.run(program, line);
        assert!(output.status.success(), "{program} {line}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn img(&self, line: &str) -> String {
        self.ok(env!("CARGO_BIN_EXE_img"), line)
    }

    /// The error of a command line that must fail with exit code 1.
    fn refused(&self, line: &str) -> String {
        let output = self.run(env!("CARGO_BIN_EXE_img"), line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        text(&output.stderr)
    }

    fn qemu(&self, line: &str) -> String {
        self.ok("qemu-img", line)
    }

    /// 9.5 MiB with holes, stored zeroes, words and noise.
    fn source(&self) -> PathBuf {
        let path = self.path("source.raw");
        let mut bytes = vec![0; 19 << 19];
        for (i, b) in bytes[100_000..2_000_000].iter_mut().enumerate() {
            *b = ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
        }
        let words = b"the same words again and again. ".repeat(50_000);
        bytes[4 << 20..][..words.len()].copy_from_slice(&words);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn stored(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}

#[test]
fn both_directions_agree_with_qemu_img() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    for (flags, format) in [
        ("-O qcow2", "qcow2"),
        ("-O qcow2 -c", "qcow2"),
        ("-O qcow2 -c -o compression_type=zstd", "qcow2"),
        ("-O qcow2 -o cluster_size=2M -m 3 -W", "qcow2"),
        ("-O qcow2 -o compat=0.10,cluster_size=4096 -S 0", "qcow2"),
        ("-f raw -O raw -S 64k", "raw"),
    ] {
        bench.img(&format!("convert {flags} source.raw out"));
        if format == "qcow2" {
            bench.qemu("check -q out");
        }
        bench.qemu(&format!("compare -f raw -F {format} source.raw out"));
        bench.img(&format!("convert -f {format} -O raw out back.raw"));
        bench.qemu("compare -f raw -F raw source.raw back.raw");
    }
    assert!(stored(&bench.path("back.raw")) < 4 << 20);
    bench.img("convert -O qcow2 -c source.raw packed");
    assert!(stored(&bench.path("packed")) + (1 << 20) < stored(&bench.path("back.raw")), "words get smaller");
}

#[test]
fn several_sources_lie_behind_each_other_and_the_output_replaces_what_was_there() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    bench.qemu("convert -O qcow2 source.raw part.qcow2");
    bench.qemu("convert source.raw part.qcow2 wanted.raw");
    std::fs::write(bench.path("out"), "old").unwrap();
    bench.img("convert -O qcow2 source.raw part.qcow2 out");
    bench.qemu("compare -F qcow2 -f raw wanted.raw out");
    let names: Vec<_> = std::fs::read_dir(bench.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "nothing temporary stays: {names:?}");
}

#[test]
fn a_layer_keeps_to_what_its_source_layer_holds() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    bench.qemu("create -q -f qcow2 -b source.raw -F raw top.qcow2");
    let write = Command::new("qemu-io").args(["-c", "write -P 9 1M 64k", "-c", "write -z 4M 1M"]).arg(bench.path("top.qcow2")).output();
    assert!(write.unwrap().status.success());
    bench.img("convert -O qcow2 -B source.raw -F raw top.qcow2 out");
    bench.qemu("check -q out");
    bench.qemu("compare top.qcow2 out");
    assert!(stored(&bench.path("out")) < 1 << 20, "only the layer was copied");
}

#[test]
fn existing_outputs_are_written_in_place() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    std::fs::write(bench.path("out.raw"), vec![0xee; 12 << 20]).unwrap();
    bench.img("convert -n -O raw source.raw out.raw");
    let (source, out) = (std::fs::read(bench.path("source.raw")).unwrap(), std::fs::read(bench.path("out.raw")).unwrap());
    assert!(out[..source.len()] == source && out[source.len()..].iter().all(|b| *b == 0xee));
    bench.qemu("create -q -f qcow2 small.qcow2 1M");
    assert!(bench.refused("convert -n -O qcow2 source.raw small.qcow2").contains("output file is smaller than input file"));
}

#[test]
fn snapshots_are_kept_and_what_they_share_is_stored_once() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    bench.qemu("convert -O qcow2 source.raw disk.qcow2");
    let io =
        |line: &str| assert!(Command::new("qemu-io").args(["-c", line]).arg(bench.path("disk.qcow2")).output().unwrap().status.success());
    bench.qemu("snapshot -c first disk.qcow2");
    io("write -P 77 1M 300k");
    io("discard 4M 1M");
    bench.qemu("snapshot -c second disk.qcow2");
    bench.qemu("resize disk.qcow2 12M");
    io("write -P 78 10M 64k");
    bench.qemu("snapshot -c third disk.qcow2");
    io("write -z 0 2M");
    for options in ["", "-o compat=1.1,cluster_size=16k", "-o compression_type=zstd,extended_l2=on"] {
        bench.img(&format!("convert --keep-snapshots -O qcow2 {options} disk.qcow2 out"));
        bench.qemu("check -q out");
        bench.qemu("compare disk.qcow2 out");
        for name in ["first", "second", "third"] {
            bench.qemu(&format!("convert -l {name} disk.qcow2 wanted.raw"));
            bench.qemu(&format!("convert -l {name} out found.raw"));
            bench.qemu("compare -s -f raw -F raw wanted.raw found.raw");
        }
        let list = |file: &str| bench.qemu(&format!("snapshot -l {file}"));
        assert_eq!(list("out"), list("disk.qcow2"));
        assert!(stored(&bench.path("out")) < stored(&bench.path("disk.qcow2")) + (2 << 20), "shared clusters are stored once");
    }
    assert!(bench.refused("convert --keep-snapshots -O raw disk.qcow2 out.raw").contains("internal snapshots"));
}

#[test]
fn levels_change_the_size_and_threads_change_nothing() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    for kind in ["zlib", "zstd"] {
        bench.img(&format!("convert -c --level 1 -O qcow2 -o compression_type={kind} source.raw fast"));
        bench.img(&format!("convert -c --level 9 --threads 3 -O qcow2 -o compression_type={kind} source.raw small"));
        bench.img(&format!("convert -c --level 9 -m 1 -O qcow2 -o compression_type={kind} source.raw again"));
        bench.qemu("compare -f qcow2 -F qcow2 fast small");
        let bytes = |name: &str| std::fs::read(bench.path(name)).unwrap();
        assert!(bytes("small").len() <= bytes("fast").len());
        assert!(bytes("small") == bytes("again"), "{kind}");
    }
    assert!(bench.refused("convert -c --level 99 -O qcow2 source.raw out").contains("level"));
}

#[test]
fn what_can_be_read_of_a_damaged_image_is_saved() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    bench.qemu("convert -c -O qcow2 source.raw bad.qcow2");
    let mut bytes = std::fs::read(bench.path("bad.qcow2")).unwrap();
    let middle = bytes.len() / 2;
    // No deflate stream begins so, and several clusters begin here.
    bytes[middle..middle + (128 << 10)].fill(0xff);
    std::fs::write(bench.path("bad.qcow2"), bytes).unwrap();
    bench.refused("convert -O raw bad.qcow2 out.raw");
    let output = bench.run(env!("CARGO_BIN_EXE_img"), "convert --salvage -O raw bad.qcow2 out.raw");
    assert!(
        output.status.success() && text(&output.stderr).contains("img: warning: error while reading offset "),
        "{}",
        text(&output.stderr)
    );
    let (source, out) = (std::fs::read(bench.path("source.raw")).unwrap(), std::fs::read(bench.path("out.raw")).unwrap());
    assert_eq!(source.len(), out.len());
    let lost = source.chunks(65536).zip(out.chunks(65536)).filter(|(a, b)| a != b).count();
    assert!((1..76).contains(&lost), "{lost} clusters of {} lost", source.len() / 65536);
}

#[test]
fn a_pipe_gets_all_in_one_pass() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    bench.qemu("convert -O qcow2 source.raw disk.qcow2");
    for (line, format, wanted) in [
        ("convert -p -O raw disk.qcow2 -", "raw", "source.raw"),
        ("convert -O qcow2 disk.qcow2 -", "qcow2", "source.raw"),
        ("convert -O qcow2 source.raw disk.qcow2 -", "qcow2", "both.raw"),
    ] {
        bench.qemu("convert source.raw disk.qcow2 both.raw");
        let output = bench.run(env!("CARGO_BIN_EXE_img"), line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        std::fs::write(bench.path("out"), output.stdout).unwrap();
        bench.qemu(&format!("compare -f raw -F {format} {wanted} out"));
    }
    for refused in ["-c -O qcow2", "--keep-snapshots -O qcow2", "--bitmaps -O qcow2", "-O qcow2 -B source.raw -F raw"] {
        let output = bench.run(env!("CARGO_BIN_EXE_img"), &format!("convert {refused} disk.qcow2 -"));
        assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{refused}: {}", text(&output.stderr));
    }
}

#[test]
fn a_signal_asks_for_progress() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    let mut child = Command::new(env!("CARGO_BIN_EXE_img"))
        .args(["convert", "-r", "4M", "source.raw", "out.raw"])
        .current_dir(bench.folder.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(Command::new("kill").args(["-USR1", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(status.success() && said.contains("/100%)"), "{said:?}");
}

#[test]
fn progress_looks_like_qemu_imgs() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    let shown = bench.img("convert -p -O qcow2 source.raw out");
    assert!(shown.starts_with("    (0.00/100%)\r") && shown.ends_with("    (100.00/100%)\r\n"), "{shown:?}");
    assert_eq!(bench.img("convert -O qcow2 source.raw out"), "");
}

#[test]
fn failures_leave_no_output() {
    let Some(bench) = Bench::new() else { return };
    bench.source();
    for (line, message) in [
        ("convert -c -O raw source.raw out", "Compression not supported"),
        ("convert -O vhdy source.raw out", "Unknown file format 'vhdy'"),
        ("convert missing.raw out", "missing.raw"),
        ("convert source.raw source.raw", "is the source"),
        ("convert -f qcow2 source.raw out", "source.raw"),
        ("convert -O qcow2 -o nonsense=1 source.raw out", "nonsense"),
        ("convert -O qcow2 -S x source.raw out", "Invalid buffer size for sparse output specified: 'x'."),
        ("convert source.raw nowhere/out", "nowhere/out"),
    ] {
        let said = bench.refused(line);
        assert!(said.contains(message), "{line}: {said}");
    }
    let names: Vec<_> = std::fs::read_dir(bench.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["source.raw"]);
}
