//! Outputs that cannot be finished: a full disk, a limit on files, a signal. Nothing is left that looks whole, and the
//! message says where it happened.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const IMG: &str = env!("CARGO_BIN_EXE_img");
/// Every way in which an output is written.
const OUTPUTS: [&str; 9] = [
    "-O raw",
    "-O raw -S 0",
    "-O qcow2",
    "-O qcow2 -c",
    "-O qcow2 -o preallocation=full",
    "-O vpc",
    "-O vhdx",
    "-O vmdk -o subformat=streamOptimized",
    "-O xva",
];

/// 16 MiB that do not get smaller.
fn source(folder: &Path) {
    let bytes: Vec<u8> =
        (0..4u32 << 20).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ (i >> 7).wrapping_mul(40_503)).to_le_bytes()).collect();
    std::fs::write(folder.join("source.raw"), bytes).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_output_that_outgrows_a_limit_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    source(folder.path());
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    for output in OUTPUTS {
        // Blocks of 512 bytes, and the error instead of the signal.
        let script = format!("trap '' XFSZ; ulimit -f 2048; exec {IMG} convert {output} source.raw out/disk");
        let run = Command::new("bash").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{output}: {said}");
        assert!(said.contains("File too large") && said.contains("out/disk"), "{output}: {said}");
        assert_eq!(names(&out), [""; 0], "{output}");
        // What was there before is still there.
        std::fs::write(out.join("disk"), "before").unwrap();
        let again = Command::new("bash").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
        assert_eq!(again.status.code(), Some(1), "{output}");
        assert_eq!(std::fs::read(out.join("disk")).unwrap(), b"before", "{output}");
        std::fs::remove_file(out.join("disk")).unwrap();
    }
}

#[test]
fn a_full_filesystem_is_told_of_with_the_offset() {
    let folder = tempfile::tempdir().unwrap();
    source(folder.path());
    std::fs::create_dir(folder.path().join("out")).unwrap();
    // A filesystem of 1 MiB, seen by these commands alone.
    let small = |command: &str| {
        let script = format!("mount -t tmpfs -o size=1m none out && {command}; echo \"status $?\"; ls -A out");
        Command::new("unshare").args(["-rm", "sh", "-c", &script]).current_dir(folder.path()).output().unwrap()
    };
    if !String::from_utf8_lossy(&small("true").stdout).starts_with("status 0") {
        assert!(std::env::var_os("CI").is_none(), "a filesystem must be mounted in a namespace in CI");
        eprintln!("skipped: no filesystem can be mounted in a namespace here");
        return;
    }
    for output in OUTPUTS {
        let run = small(&format!("{IMG} convert {output} source.raw out/disk"));
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(said.contains("No space left on device") && said.contains("out/disk"), "{output}: {said}");
        // Room that is asked for as a whole is missing nowhere in particular.
        assert!(said.contains("offset 0x") || output.contains("preallocation"), "{output}: {said}");
        assert_eq!(String::from_utf8_lossy(&run.stdout), "status 1\n", "{output}: nothing is left");
    }
}

#[test]
fn signals_leave_no_output() {
    let folder = tempfile::tempdir().unwrap();
    source(folder.path());
    let sources = ["source.raw"; 40];
    for (signal, output) in [Signal::INT, Signal::TERM, Signal::KILL]
        .into_iter()
        .flat_map(|signal| ["-O qcow2 -c -m 1", "-O xva -m 1 -o compression=gzip"].map(|o| (signal, o)))
    {
        let mut command = Command::new(IMG);
        command.arg("convert").args(output.split(' ')).args(sources).arg("disk");
        let mut child = command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let busy = || {
            names(folder.path())
                .iter()
                .any(|n| n.ends_with(".partial") && std::fs::metadata(folder.path().join(n)).is_ok_and(|m| m.len() > 0))
        };
        while !busy() {
            assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "{output}: no output was begun");
            std::thread::sleep(Duration::from_millis(2));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{output}: it ended before the signal, or in another way");
        let left = names(folder.path());
        assert!(!left.contains(&"disk".to_string()), "{output}: {left:?}");
        if signal != Signal::KILL {
            assert_eq!(left, ["source.raw"], "{output}");
        }
        left.iter().filter(|n| n.ends_with(".partial")).for_each(|n| std::fs::remove_file(folder.path().join(n)).unwrap());
    }
}
