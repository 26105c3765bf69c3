//! Appliances that continue a template: like booted ones, but for the time; and a template that is of no use is never more
//! than a reason to boot.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guestfs::engine::{Command, Session};
use guestfs_appliance::{Appliance, ApplianceSession, template};

use crate::common::*;

/// Appliances that must continue a template below `dir`.
fn continuing(dir: &Path) -> Appliance {
    Appliance { templates: Some(dir.join("templates")), note: |why| panic!("{why}"), ..Appliance::new() }
}

/// What appliances said that boot instead. Tests run at once: each looks for its own folder's name.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn notes() -> MutexGuard<'static, Vec<String>> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appliances that may boot, and say why.
fn booting(folder: &Path) -> Appliance {
    Appliance { templates: Some(folder.into()), note: |why| notes().push(why.into()), ..Appliance::new() }
}

fn note_about(word: &str) -> Option<String> {
    notes().iter().find(|n| n.contains(word)).cloned()
}

/// The templates below a folder, and what else lies there.
fn kept(folder: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let all = std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()).filter(|p| !p.ends_with("lock"));
    all.partition(|p| p.join("memory").exists() && !p.file_name().unwrap().to_string_lossy().starts_with('.'))
}

fn run(session: &mut ApplianceSession, argv: &[&str]) -> String {
    let out = guestfs::engine::GuestExec::run_tool(session, &Command::new(argv)).unwrap();
    assert_eq!(out.status, 0, "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn each_has_the_hosts_clock_and_its_own_randomness_and_disks() {
    let dir = scratch();
    let disks: Vec<_> = (1..=7).map(|n| ext4(dir.path(), &format!("disk{n}"), 8 * n)).collect();
    let mut random = HashSet::new();
    for count in [0, 1, 7, 2] {
        let given = disks[..count].iter().enumerate().map(|(i, d)| if i % 2 == 0 { writable(d) } else { read_only(d) });
        let mut session = continuing(dir.path()).boot(given.collect()).unwrap();
        let time: f64 = run(&mut session, &["date", "+%s.%N"]).trim().parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - time).abs() < 5.0, "{now} {time}");
        for source in ["/dev/urandom", "/dev/random", "/proc/sys/kernel/random/boot_id"] {
            assert!(random.insert(run(&mut session, &["od", "-An", "-tx1", "-N32", source])), "{source} repeats itself");
        }
        let sizes: Vec<(String, u64)> = session.devices().unwrap();
        let letters = ('a'..='g').take(count).zip(1..);
        assert_eq!(sizes, letters.map(|(l, n)| (format!("/dev/vd{l}"), (8 * n) << 20)).collect::<Vec<_>>());
        for (disk, (device, _)) in disks.iter().zip(sizes) {
            session.mount(&device, b"/", "ext4", "").unwrap();
            let name = format!("/{count}");
            guestfs::GuestFsMut::write(&mut session, name.as_bytes(), &mut &b"written"[..], None).unwrap();
            session.unmount_all().unwrap();
            assert!(disk.exists());
        }
        Box::new(session).shutdown().unwrap();
    }
    for (number, disk) in disks.iter().enumerate() {
        checked(disk);
        let listed = tool(&["debugfs", "-R", "ls -p /", disk.to_str().unwrap()]);
        assert_eq!(listed.contains("/7/"), number % 2 == 0, "a disk that is only read keeps nothing: {listed}");
    }
    let (templates, rest) = kept(&dir.path().join("templates"));
    assert_eq!((templates.len(), rest.len()), (1, 0), "{templates:?} {rest:?}");
    for (path, mode) in [(&templates[0], 0o700), (&templates[0].join("memory"), 0o600), (&templates[0].join("state"), 0o600)] {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn several_at_once_make_one_and_nobody_waits_for_it() {
    let dir = scratch();
    let folder = dir.path().join("at-once");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| Box::new(booting(&folder).boot(Vec::new()).unwrap()).shutdown().unwrap());
        }
    });
    let (templates, rest) = kept(&folder);
    assert_eq!((templates.len(), rest.len()), (1, 0), "{templates:?} {rest:?}");
    assert!(note_about("another process is making the template").is_some());
}

type Damage = fn(&Path);

fn resize(path: PathBuf, len: u64) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_damaged_template_is_discarded_by_the_command_that_meets_it() {
    let dir = scratch();
    let damages: [(&str, Damage); 6] = [
        ("cut-state", |t| resize(t.join("state"), t.join("state").metadata().unwrap().len() / 2)),
        ("empty-state", |t| resize(t.join("state"), 0)),
        ("cut-memory", |t| resize(t.join("memory"), 1 << 20)),
        ("no-memory", |t| std::fs::remove_file(t.join("memory")).unwrap()),
        ("other-key", |t| std::fs::write(t.join("key"), "boot before\n").unwrap()),
        ("open-to-all", |t| std::fs::set_permissions(t, std::fs::Permissions::from_mode(0o755)).unwrap()),
    ];
    let folder = dir.path().join("damaged");
    drop(booting(&folder).boot(Vec::new()).unwrap());
    let place = kept(&folder).0.remove(0);
    let pristine = dir.path().join("pristine");
    let copy = |from: &Path, to: &Path| drop(tool(&["cp", "-a", "--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]));
    copy(&place, &pristine);
    let disk = ext4(dir.path(), "disk", 8);
    for (name, damage) in damages {
        damage(&place);
        let mut session = booting(&folder).boot(vec![read_only(&disk)]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(session.devices().unwrap().len(), 1, "{name}");
        assert!(!place.exists(), "{name}: it is still there");
        copy(&pristine, &place);
    }
    // It was the damage that was noticed, and the next one is made in its place.
    let sound = Appliance { note: |why| panic!("{why}"), ..booting(&folder) };
    drop(sound.boot(Vec::new()).unwrap());
    std::fs::remove_dir_all(&place).unwrap();
    drop(sound.boot(Vec::new()).unwrap());
    assert!(place.exists());
}

#[test]
fn a_template_that_hangs_is_given_up_in_time() {
    let dir = scratch();
    let folder = dir.path().join("hanging");
    drop(booting(&folder).boot(Vec::new()).unwrap());
    let memory = kept(&folder).0[0].join("memory");
    // Everything of the kernel and the agent, as `jmp .`.
    std::fs::write(&memory, [0xeb, 0xfe].repeat(32 << 20)).unwrap();
    std::fs::File::options().write(true).open(&memory).unwrap().set_len(1024 << 20).unwrap();
    let began = Instant::now();
    drop(booting(&folder).boot(Vec::new()).unwrap());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(!memory.exists());
}

#[test]
fn a_folder_that_cannot_be_used_means_that_appliances_boot() {
    let dir = scratch();
    std::fs::write(dir.path().join("a-file"), "").unwrap();
    let open = dir.path().join("open-folder");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    for (folder, why) in [(dir.path().join("a-file/below"), "a-file"), (open, "open to other users"), ("/proc/templates".into(), "/proc")] {
        drop(booting(&folder).boot(Vec::new()).unwrap_or_else(|e| panic!("{}: {e}", folder.display())));
        assert!(note_about(why).is_some(), "{}: {:?}", folder.display(), notes());
    }
}

/// Run again by the test below as the process that is killed while it makes a template.
#[test]
fn maker_that_is_killed() {
    if std::env::var_os("GUESTLIFT_TEST_MAKER").is_some() {
        drop(Appliance::new().boot(Vec::new()));
    }
}

#[test]
fn a_killed_maker_leaves_nothing_that_the_next_one_does_not_clear() {
    let dir = scratch();
    let folder = dir.path().join("killed");
    let mut maker = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "templates::maker_that_is_killed"])
        .env("GUESTLIFT_TEST_MAKER", "1")
        .env(template::VARIABLE, &folder)
        .env("TMPDIR", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !kept(&folder).1.iter().any(|p| p.join("memory").exists()) {
        assert!(Instant::now() < until && kept(&folder).0.is_empty(), "the maker was not caught at work");
        std::thread::sleep(Duration::from_millis(1));
    }
    maker.kill().unwrap();
    maker.wait().unwrap();
    let (templates, rest) = kept(&folder);
    assert_eq!((templates.len(), rest.len()), (0, 1), "{templates:?} {rest:?}");
    // Older leftovers, and a template of another boot.
    std::fs::create_dir(folder.join(".new-older")).unwrap();
    std::fs::create_dir(folder.join("qemu-0123456789abcdef")).unwrap();
    std::fs::write(folder.join("qemu-0123456789abcdef/key"), "boot before\n").unwrap();
    drop(Appliance { note: |why| panic!("{why}"), ..booting(&folder) }.boot(Vec::new()).unwrap());
    let (templates, rest) = kept(&folder);
    assert_eq!((templates.len(), rest.len()), (1, 0), "{templates:?} {rest:?}");
}

#[test]
fn a_machine_that_cannot_be_saved_is_not_tried_again_and_again() {
    let dir = scratch();
    let folder = dir.path().join("unsaved");
    // A QEMU that refuses files as memory.
    let program = dir.path().join("qemu");
    std::fs::write(
        &program,
        "#!/bin/sh\ncase \"$*\" in *memory-backend-file*) echo once >>$0.log; exit 1;; esac\nexec qemu-system-x86_64 \"$@\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let test = |_| {
        let out = Process::new(env!("CARGO_BIN_EXE_guestlift-appliance"))
            .arg("test")
            .env("GUESTLIFT_QEMU", &program)
            .env(template::VARIABLE, &folder)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    for text in [1, 2].map(test) {
        assert!(text.contains("The appliance boots: ") && text.contains("a template cannot be saved"), "{text}");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("qemu.log")).unwrap(), "once\n");
}
