//! `virt shell` beside guestfish: the same commands, and what guestfish 1.48 printed.
//!
//! shell/look.expected, shell/change.expected and shell/rare.expected were recorded on a disk of shell/make-disk:
//! `guestfish --ro -a disk.img -f look.fish > look.expected` (and so with more.fish), `guestfish --rw -a disk.img -f change.fish > change.expected`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shell");

struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Disk(tempfile::tempdir().unwrap());
        let made = Command::new("sh").arg(format!("{SCRIPTS}/make-disk")).current_dir(disk.0.path()).output().unwrap();
        assert!(made.status.success(), "make-disk: {}", text(&made.stderr));
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path("disk.img")).unwrap()
    }

    fn run(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt"));
        command.arg("shell").args(args).current_dir(self.0.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A shell that has ended before its script is no failure of this.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn ok(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(args, stdin);
        assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn recorded(name: &str) -> String {
    std::fs::read_to_string(Path::new(SCRIPTS).join(name)).unwrap()
}

/// Without what is another in every appliance or with every disk: numbers of devices and inodes, owners of what a user made,
/// times of changes; and what this program does not tell of a filesystem.
fn comparable(output: &str) -> Vec<&str> {
    let differs = ["dev", "ino", "uid", "gid", "ctime", "ctime_sec", "ctime_nsec", "fsid", "flag"];
    let name = |line: &str| line.split_once(": ").map_or(String::new(), |(name, _)| name.trim_start_matches("st_").to_string());
    output.lines().filter(|line| !differs.contains(&name(line).as_str())).collect()
}

fn assert_same(ours: &str, theirs: &str) {
    let (ours, theirs) = (comparable(ours), comparable(theirs));
    for (number, (our, their)) in ours.iter().zip(&theirs).enumerate() {
        let before = &theirs[number.saturating_sub(5)..number];
        assert_eq!(our, their, "line {} behind {before:#?}", number + 1);
    }
    assert_eq!(ours.len(), theirs.len(), "ours goes on with {:?}, guestfish's with {:?}", ours.get(theirs.len()), theirs.get(ours.len()));
}

#[test]
fn what_is_looked_at_looks_as_in_guestfish_and_needs_no_appliance() {
    let disk = Disk::new();
    let before = disk.bytes();
    let output = disk.run(&["--ro", "-v", "-a", "disk.img", "-f", &format!("{SCRIPTS}/look.fish")], "");
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_same(&text(&output.stdout), &recorded("look.expected"));
    assert!(!errors.contains("appliance"), "{errors}");
    assert!(errors.contains("virt-shell: cat: nothing is mounted"), "{errors}");
    assert!(disk.bytes() == before);
}

#[test]
fn what_is_changed_looks_as_in_guestfish_and_is_on_the_disk_at_the_end() {
    let disk = Disk::new();
    let out = disk.ok(&["-a", "disk.img", "-f", &format!("{SCRIPTS}/change.fish")], "");
    assert_same(&out, &recorded("change.expected"));
    // Another look, by this process alone.
    assert_eq!(disk.ok(&["--ro", "--engine", "direct", "-a", "disk.img", "-m", "/dev/VG/LV2", "cat", "/file"], ""), "x\n");
    let table = Command::new("sfdisk").arg("-d").arg(disk.path("disk.img")).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output().unwrap();
    let table = text(&table.stdout);
    assert!(table.contains("start=       40960") && table.contains("bootable") && !table.contains("start=          64"), "{table}");
}

#[test]
fn what_is_rarer_looks_as_in_guestfish_too() {
    let disk = Disk::new();
    let out = disk.ok(&["-a", "disk.img", "-f", &format!("{SCRIPTS}/rare.fish")], "");
    assert_same(&out, &recorded("rare.expected"));
}

#[test]
fn a_script_that_fails_leaves_the_disk_as_it_was() {
    let disk = Disk::new();
    let before = disk.bytes();
    let failed = disk.run(&["-a", "disk.img", "-i"], "write /etc/motd changed\ncat /etc/motd\nrm /none\nwrite /never x\n");
    assert_eq!((failed.status.code(), text(&failed.stdout)), (Some(1), "changed\n".into()));
    assert!(text(&failed.stderr).contains("rm: /none: no such file"), "{}", text(&failed.stderr));
    assert!(disk.bytes() == before, "nothing of it was kept");
    // A failure that is let be ends nothing; --ro keeps nothing either.
    let script = "write /etc/motd changed\n-rm /none\n# end\ncat /etc/motd | tr a-z A-Z\n! echo local\n<! echo echo generated\n";
    let read_only = disk.run(&["--ro", "-a", "disk.img", "-i"], "write /etc/motd changed\n");
    assert_eq!(read_only.status.code(), Some(1), "mounted for reading");
    assert!(disk.bytes() == before);
    assert_eq!(disk.ok(&["-a", "disk.img", "-i"], script), "CHANGED\nlocal\ngenerated\n");
    assert_eq!(disk.ok(&["--ro", "-a", "disk.img", "-m", "/dev/sda1", "cat", "/etc/motd"], ""), "changed\n");
}

#[test]
fn commands_of_the_command_line_and_files_of_this_machine() {
    let disk = Disk::new();
    let look = |args: &[&str]| disk.ok(&[&["--ro"], args].concat(), "");
    assert_eq!(look(&["-a", "disk.img", "run", ":", "list-filesystems"]), "/dev/sda1: ext4\n/dev/sda2: swap\n");
    assert_eq!(look(&["add-ro", "disk.img", ":", "run", ":", "mount-ro", "/dev/vda1", "/", ":", "read-file", "/etc/hostname"]), "web\n");
    assert_eq!(look(&["-a", "disk.img", "-i", "download", "/srv/numbers", "out", ":", "exit", ":", "nonsense"]), "");
    assert_eq!(std::fs::read_to_string(disk.path("out")).unwrap().lines().count(), 30);
    std::fs::write(disk.path("in"), "uploaded").unwrap();
    disk.ok(&["-a", "disk.img", "-i", "--", "upload", "in", "/srv/in", ":", "-rm", "/none", ":", "upload", "-", "/srv/stdin"], "typed");
    assert_eq!(look(&["-a", "disk.img", "-i", "read-file", "/srv/in", ":", "read-file", "/srv/stdin"]), "uploadedtyped");

    let help = look(&["-h"]);
    assert!(help.lines().count() > 120 && help.contains("list-filesystems"), "{help}");
    assert!(look(&["--cmd-help", "unmount"]).contains("Also: unmount"));
    for (args, error) in [
        (&["nonsense"][..], "unknown command"),
        (&["cat", "/x"], "not launched"),
        (&["-a", "disk.img", "run", ":", "cat", "/x"], "nothing is mounted"),
        (&["-a", "disk.img", "-i", "cat"], "usage: cat PATH"),
        (&["-a", "disk.img", "-i", "cat", "x"], "begins with /"),
        (&["-a", "disk.img", "-i", "cat", "/none"], "no such file"),
        (&["-a", "none.img", "run"], "none.img"),
    ] {
        let output = disk.run(&[&["--ro"], args].concat(), "");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains(error), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn what_is_asked_less_often_is_answered_as_by_guestfish() {
    if let Err(e) = guestfs_appliance::locate::files() {
        assert!(std::env::var_os("CI").is_none(), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let disk = Disk::new();
    let out = disk.ok(&["--ro", "-a", "disk.img", "-f", &format!("{SCRIPTS}/more.fish")], "");
    assert_eq!(out, recorded("more.expected"));
}

/// What scripts for guestfish say besides: patterns, here-documents, settings; and an appliance only where it must be.
#[test]
fn patterns_documents_and_places_in_files() {
    let disk = Disk::new();
    let look = |script: &str| disk.ok(&["--ro", "--engine", "direct", "-a", "disk.img", "-i"], script);
    assert_eq!(look("glob-expand /srv/*\n"), "/srv/absolute\n/srv/deep/\n/srv/empty\n/srv/numbers\n/srv/open\n");
    assert_eq!(look("glob-expand /e?c/host* directoryslash:false\n"), "/etc/hostname\n");
    assert_eq!(look("glob checksum crc /etc/[fh]*\n").lines().count(), 2);
    assert_eq!(look("glob vfs-type /dev/sda?\n"), "ext4\nswap\n");
    assert_eq!(look("-glob cat /none/*\necho end\n"), "end\n");
    assert_eq!(look("pread /srv/numbers 5 2\n"), "2\n3\n4");
    assert_eq!(look("is-zero /srv/empty\nis-zero /srv/open\n"), "true\nfalse\n");
    assert_eq!(look("nr-devices\ndevice-index /dev/sda\nfindfs-label swap\nis-lv /dev/sda1\n"), "1\n0\n/dev/sda2\nfalse\n");
    assert_eq!(look("set-memsize 1024\nset-smp 4\nset-program virt-testing\navailable lvm2\n"), "");
    assert_eq!(look("file /srv\nfile /srv/absolute\n"), "directory\nsymbolic link\n");
    assert_eq!(look("base64-out /etc/hostname out\n! base64 -d out\n"), "web\n");
    assert_eq!(look("pread-device /dev/sda 2 510 | od -An -tx1\n").trim(), "55 aa");
    let listed = look("inspect-list-applications /dev/sda1\n");
    assert!(listed.starts_with("[0] = {\n  app2_name: libc6\n") && listed.contains("  app2_epoch: 1\n"), "{listed}");
    let script = "upload -<<END /srv/document\none\n  two\nEND\nfill-pattern ab 5 /srv/ab\nfill 120 3 /srv/xxx\nfile /etc/motd\n\
                  setxattr user.a b 1 /srv/ab\nremovexattr user.a /srv/ab\nls0 /srv/deep list\nbase64-in out /srv/web\n";
    assert_eq!(disk.ok(&["-a", "disk.img", "-i"], script), "ASCII text\n");
    assert_eq!(look("read-file /srv/document\nread-file /srv/ab\nread-file /srv/xxx\nread-file /srv/web\n"), "one\n  two\nababaxxxweb\n");
    assert_eq!(look("getxattrs /srv/ab\n"), "");
    assert_eq!(std::fs::read(disk.path("list")).unwrap(), b"er\0hard\0two words\0");
    assert_eq!(disk.ok(&["sparse", "new.img", "64M", ":", "run", ":", "blockdev-getsize64", "/dev/sda"], ""), "67108864\n");
    let failed = disk.run(&["-a", "disk.img", "-i"], "upload -<<END /srv/document\nnever ended\n");
    assert!(text(&failed.stderr).contains("no line 'END'"), "{}", text(&failed.stderr));
}

#[test]
fn by_the_name_guestfish_it_is_the_same() {
    let disk = Disk::new();
    let name = disk.path("guestfish");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_virt"), &name).unwrap();
    let output =
        Command::new(&name).args(["--ro", "-a", "disk.img", "-i", "cat", "/etc/hostname"]).current_dir(disk.0.path()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "web\n\n".into()));
}
