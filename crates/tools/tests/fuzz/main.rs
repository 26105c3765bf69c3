//! Every fuzz target for a few seconds on stable Rust, from seeds that other programs made. `GUESTLIFT_FUZZ_SECONDS=600`
//! runs each for ten minutes, `GUESTLIFT_FUZZ_SEED` begins elsewhere. See docs/fuzzing.md.
//!
//! Each target runs in a process of its own, whose memory is bounded, and which ends itself when an input takes too long.
//! The input at hand is on disk before it is tried: it is what is left of a crash.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};

mod filesystems;
mod mutate;
mod seeds;
#[path = "../../../../fuzz/src/lib.rs"]
mod targets;

use mutate::Mutator;
use targets::TARGETS;

/// All the address space that a target has.
const MEMORY: u64 = 1 << 30;
/// Seconds that one input may take: enough for a busy machine and unoptimised code.
const PATIENCE: u64 = 30;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn fixtures(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/fuzz").join(target);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_none_or(|e| e != "md")).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Starts the test `name` of this program again, alone, as the process that does the work.
fn child(name: &str, target: &str, folder: &Path) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    program.env("GUESTLIFT_FUZZ_TARGET", target).env("GUESTLIFT_FUZZ_FOLDER", folder).env("RUST_BACKTRACE", "1");
    let out = program.output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    if out.status.success() {
        let line = text.lines().find(|l| l.contains(" inputs in ")).unwrap_or("fixtures hold");
        eprintln!("{target}: {line}");
        return;
    }
    let kept = std::env::temp_dir().join(format!("fuzz-{target}-{}", std::process::id()));
    let _ = std::fs::copy(folder.join("input"), &kept);
    panic!("{target}: {} with the input kept as {}:\n{text}", out.status, kept.display());
}

fn limit() {
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) }).unwrap();
}

/// Ends the process when the input that is counted there does not change for too long.
fn watch(inputs: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        loop {
            let before = inputs.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_secs(PATIENCE));
            if inputs.load(Ordering::Relaxed) == before {
                eprintln!("an input takes more than {PATIENCE} seconds");
                std::process::abort();
            }
        }
    });
}

/// In a process of its own: mutated seeds until the time is over.
#[test]
#[ignore = "started by the tests of the targets"]
fn worker() {
    let (Ok(name), Ok(folder)) = (std::env::var("GUESTLIFT_FUZZ_TARGET"), std::env::var("GUESTLIFT_FUZZ_FOLDER")) else { return };
    let (target, folder) = (targets::target(&name), PathBuf::from(folder));
    let mut corpus: Vec<_> = std::fs::read_dir(folder.join("seeds")).unwrap().map(|e| std::fs::read(e.unwrap().path()).unwrap()).collect();
    corpus.sort();
    corpus.extend(fixtures(&name).into_iter().map(|(_, bytes)| bytes));
    let mut mutator = Mutator::new(setting("GUESTLIFT_FUZZ_SEED", 1), corpus);
    let seconds = setting("GUESTLIFT_FUZZ_SECONDS", 2);
    limit();
    let inputs = Arc::new(AtomicU64::new(0));
    watch(inputs.clone());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        let number = inputs.fetch_add(1, Ordering::Relaxed);
        // The seeds themselves come first.
        let input = mutator.input(number, target.mend);
        std::fs::write(folder.join("input"), &input).unwrap();
        (target.run)(&input);
    }
    println!("{} inputs in {seconds} s", inputs.load(Ordering::Relaxed));
}

/// In a process of its own: the inputs that once broke a target.
#[test]
#[ignore = "started by the test of the fixtures"]
fn replay() {
    let (Ok(name), Ok(folder)) = (std::env::var("GUESTLIFT_FUZZ_TARGET"), std::env::var("GUESTLIFT_FUZZ_FOLDER")) else { return };
    let target = targets::target(&name);
    limit();
    let inputs = Arc::new(AtomicU64::new(0));
    watch(inputs.clone());
    // A single one, for looking into it.
    let inputs_of_target = match std::env::var_os("GUESTLIFT_FUZZ_INPUT") {
        Some(path) => vec![(path.clone().into(), std::fs::read(path).unwrap())],
        None => fixtures(&name),
    };
    for (path, bytes) in inputs_of_target {
        println!("{}", path.display());
        std::fs::write(Path::new(&folder).join("input"), &bytes).unwrap();
        (target.run)(&bytes);
        inputs.fetch_add(1, Ordering::Relaxed);
    }
}

fn fuzz(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let seeds = folder.path().join("seeds");
    std::fs::create_dir(&seeds).unwrap();
    if !seeds::make(name, &seeds) {
        return;
    }
    child("worker", name, folder.path());
}

macro_rules! targets {
    ($($test:ident $name:literal),* $(,)?) => {
        $(#[test] fn $test() { fuzz($name); })*

        /// Every target of the table has its test here.
        #[test]
        fn every_target_is_run() {
            assert!(TARGETS.iter().map(|t| t.name).eq([$($name),*]));
        }
    };
}

targets! {
    qcow2 "qcow2",
    vhd "vhd",
    vhdx "vhdx",
    vmdk "vmdk",
    vdi "vdi",
    probed "probed",
    xva "xva",
    xva_legacy "xva-legacy",
    partitions "partitions",
    nbd "nbd",
    appliance_host "appliance-host",
    appliance_agent "appliance-agent",
    ext4 "ext4",
    xfs "xfs",
    btrfs "btrfs",
    vfat "vfat",
    ntfs "ntfs",
    iso9660 "iso9660",
    squashfs "squashfs",
    ufs "ufs",
}

#[test]
fn inputs_that_once_broke_a_target_do_so_no_more() {
    let mut known = 0;
    for target in TARGETS {
        let folder = tempfile::tempdir().unwrap();
        known += fixtures(target.name).len();
        child("replay", target.name, folder.path());
    }
    assert!(known > 0, "the fixtures are missing");
}
