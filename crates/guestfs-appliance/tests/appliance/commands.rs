//! Commands in a guest's root, borrowed tools, and block devices.

use std::path::Path;
use std::time::{Duration, Instant};

use guestfs::engine::{Command, Disk, Engine, Session};
use guestfs::{Error, Ext};
use guestfs_appliance::{Appliance, Limits};

use crate::common::*;

fn start(disks: Vec<Disk>) -> Box<dyn Session> {
    Engine::start(&Appliance::new(), disks, true).unwrap_or_else(|e| panic!("{e}"))
}

/// An ext4 disk with a shell, some programs and their libraries: the host's own, as small a guest as there is.
fn guest(dir: &Path) -> std::path::PathBuf {
    let tree = dir.join("tree");
    for d in ["bin", "etc", "proc", "sys", "dev", "run", "tmp", "root"] {
        std::fs::create_dir_all(tree.join(d)).unwrap();
    }
    for program in ["sh", "cat", "ls", "sleep", "env", "id", "head", "tty", "date", "mount"] {
        let path = ["/usr/bin", "/bin"].iter().map(|d| Path::new(d).join(program)).find(|p| p.is_file()).unwrap();
        for word in tool(&["ldd", path.to_str().unwrap()]).split_whitespace().filter(|w| w.starts_with('/')) {
            let to = tree.join(word.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(word, to).unwrap();
        }
        std::fs::copy(&path, tree.join("bin").join(program)).unwrap();
    }
    let disk = empty(dir, "guest", 64);
    tool(&["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap(), disk.to_str().unwrap()]);
    disk
}

fn sh(script: &str) -> Command {
    Command::new(["sh", "-c", script])
}

#[test]
fn a_command_runs_in_the_guests_root_with_what_it_expects() {
    let dir = scratch();
    let disk = guest(dir.path());
    let mut s = start(vec![writable(&disk)]);
    s.mount("/dev/vda", b"/", "", "").unwrap();
    let mut run = |command: &Command| s.run(command).unwrap_or_else(|e| panic!("{e}"));

    let out = run(&sh("echo out; echo err >&2; exit 3"));
    assert_eq!((out.status, out.stdout.as_slice(), out.stderr.as_slice()), (3, &b"out\n"[..], &b"err\n"[..]));
    assert_eq!(run(&sh("kill -9 $$")).status, 128 + 9);
    assert_eq!(run(&Command::new(["no-such-program"])).status, 127);
    let mut command = Command::new(["cat"]);
    command.stdin = vec![b'x'; 300_000];
    assert_eq!(run(&command).stdout, command.stdin);
    let mut command = sh("echo $HOME $LANG $MORE; id -u");
    command.env.push((b"MORE".to_vec(), b"and more".to_vec()));
    assert_eq!(run(&command).stdout, b"/root C and more\n0\n");

    let seen =
        String::from_utf8(run(&sh("ls -d /proc/1 /sys/block/vda /dev/null /dev/vda /dev/pts/ptmx /dev/shm /run/lock /dev/fd")).stdout)
            .unwrap();
    assert_eq!(seen.lines().count(), 8, "{seen}");
    assert_eq!(run(&sh("echo x > /dev/null && echo y > /run/here && echo z > /dev/shm/here && cat /run/here")).stdout, b"y\n");
    assert_eq!(run(&sh("modprobe no-such-module")).status, 0, "modules are not there, and no script fails of it");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let date: u64 = String::from_utf8(run(&Command::new(["date", "+%s"])).stdout).unwrap().trim().parse().unwrap();
    assert!(now.abs_diff(date) < 30, "{now} {date}");

    // Only the last MiB is kept.
    let out = run(&sh("head -c 3000000 /dev/zero; echo end"));
    assert_eq!((out.stdout.len(), &out.stdout[out.stdout.len() - 4..]), (1 << 20, &b"end\n"[..]));

    // What a command leaves behind is killed, and holds nothing up.
    let began = Instant::now();
    run(&sh("sleep 1000 & sleep 1000 >/dev/null 2>&1 & echo started"));
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(run(&sh("for p in /proc/[0-9]*; do cat $p/comm; done")).stdout.split(|b| *b == b'\n').filter(|l| *l == b"sleep").count(), 0);

    // Nothing stays mounted in the guest, and nothing was written through.
    assert!(s.read_dir(b"/proc").unwrap().is_empty() && s.read_dir(b"/run").unwrap().is_empty());
    assert!(s.read_dir(b"/dev").unwrap().is_empty());
    s.shutdown().unwrap();
    checked(&disk);
}

#[test]
fn a_command_that_does_not_end_is_ended() {
    let dir = scratch();
    let disk = guest(dir.path());
    let limits = Limits { command: Duration::from_secs(2), ..Limits::default() };
    let appliance = Appliance { limits, ..Appliance::new() };
    let mut s = Engine::start(&appliance, vec![writable(&disk)], false).unwrap();
    s.mount("/dev/vda", b"/", "", "").unwrap();
    let error = s.run(&sh("sleep 1000; echo never")).unwrap_err();
    assert!(matches!(&error, Error::Guest { action: "run", what, .. } if what.contains("2 s")), "{error}");
    assert_eq!(s.run(&sh("echo still here")).unwrap().stdout, b"still here\n");
    s.shutdown().unwrap();
    checked(&disk);
}

/// A partition table with partitions of 16 MiB and of the rest, as bytes.
fn partition_table(dir: &Path, mib: u64) -> Vec<u8> {
    let table = empty(dir, "table", mib);
    let script = dir.join("script");
    std::fs::write(&script, "label: dos\nstart=2048, size=32768, type=83\ntype=83\n").unwrap();
    tool(&["sh", "-c", &format!("sfdisk -q {} < {}", table.display(), script.display())]);
    std::fs::read(table).unwrap()[..512].to_vec()
}

#[test]
fn tools_of_the_host_work_on_partitions_that_were_just_written() {
    let dir = scratch();
    let disk = empty(dir.path(), "disk", 64);
    let mut s = start(vec![writable(&disk)]);
    s.write_device("/dev/vda", 0, &partition_table(dir.path(), 64)).unwrap();
    s.reread_partitions("/dev/vda").unwrap();
    let devices = s.devices().unwrap();
    let expected = [("/dev/vda", 64 << 20), ("/dev/vda1", 16 << 20), ("/dev/vda2", 47 << 20)];
    assert_eq!(devices, expected.map(|(name, size)| (name.to_string(), size)));

    let mut tool = |argv: &[&str]| {
        let out = s.run_tool(&Command::new(argv)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(out.status, 0, "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    tool(&["mke2fs", "-q", "-t", "ext4", "-L", "made-inside", "/dev/vda1", "8M"]);
    tool(&["e2fsck", "-fy", "/dev/vda1"]);
    tool(&["resize2fs", "/dev/vda1"]);
    tool(&["mkswap", "-U", "11111111-2222-3333-4444-555555555555", "/dev/vda2"]);
    assert!(tool(&["blkid", "-o", "value", "-s", "LABEL", "/dev/vda1"]).contains("made-inside"));
    s.mount("/dev/vda1", b"/", "", "").unwrap();
    assert!(s.statfs(b"/").unwrap().blocks > 13000, "grown to the partition: {:?}", s.statfs(b"/"));
    s.write(b"/file", &mut &b"content"[..], None).unwrap();
    assert_eq!(s.read(b"/file", 10).unwrap(), b"content");
    let missing = s.run_tool(&Command::new(["xfs_no_such_program"])).unwrap_err().to_string();
    assert!(missing.contains("xfsprogs"), "{missing}");
    s.shutdown().unwrap();

    let image = std::fs::read(&disk).unwrap();
    let partition = dir.path().join("partition");
    std::fs::write(&partition, &image[1 << 20..17 << 20]).unwrap();
    checked(&partition);
    assert_eq!(&image[(17 << 20) + 4086..][..10], b"SWAPSPACE2");
}

#[test]
fn devices_are_read_and_written_at_any_offset() {
    let dir = scratch();
    let disk = empty(dir.path(), "disk", 16);
    let mut s = start(vec![writable(&disk)]);
    let data: Vec<u8> = (0..1_234_567u32).map(|i| (i % 251) as u8).collect();
    s.write_device("/dev/vda", 77_777, &data).unwrap();
    let mut back = vec![0; data.len() + 2];
    s.read_device("/dev/vda", 77_776, &mut back).unwrap();
    assert!(back[0] == 0 && back[1..=data.len()] == data && back[data.len() + 1] == 0);
    let error = s.read_device("/dev/vda", (16 << 20) - 5, &mut [0; 6]).unwrap_err().to_string();
    assert!(error.contains("ends at 16777216"), "{error}");
    let error = s.write_device("/dev/vda", (16 << 20) - 5, &[1; 6]).unwrap_err().to_string();
    assert!(error.contains("No space left"), "{error}");
    assert!(s.read_device("/dev/vdz", 0, &mut [0; 1]).is_err() && s.read_device("/init", 0, &mut [0; 1]).is_err());
    s.shutdown().unwrap();
    assert!(std::fs::read(&disk).unwrap()[77_777..77_777 + data.len()] == data);
}

#[test]
fn more_disks_than_a_microvm_has_places_for() {
    let dir = scratch();
    let disks: Vec<_> = (1..=12).map(|i| empty(dir.path(), &format!("disk{i}"), i)).collect();
    let mut s = start(disks.iter().map(|d| writable(d)).collect());
    let devices = s.devices().unwrap();
    let expected: Vec<(String, u64)> = (1..=12u8).map(|i| (format!("/dev/vd{}", char::from(b'a' - 1 + i)), u64::from(i) << 20)).collect();
    assert_eq!(devices, expected);
    s.write_device("/dev/vdl", 4096, b"the twelfth").unwrap();
    s.shutdown().unwrap();
    assert_eq!(&std::fs::read(&disks[11]).unwrap()[4096..4107], b"the twelfth");
}
