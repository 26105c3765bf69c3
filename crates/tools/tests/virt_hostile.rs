//! A guest that means harm: links to files of this machine, directories 10 000 deep, names that write on terminals, a file of 8 TiB,
//! pipes and devices. Every program does its work on it in bounded time and touches nothing but what it is to touch.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags};

const DEPTH: usize = 10_000;
/// For one program, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const ESCAPE: &str = "\x1b]0;owned\x07\x1b[2J";

struct Hostile {
    dir: tempfile::TempDir,
}

impl Hostile {
    fn new() -> Self {
        let guest = Hostile { dir: tempfile::tempdir().unwrap() };
        // What a host has and a guest must not get at.
        std::fs::create_dir(guest.path("host")).unwrap();
        std::fs::write(guest.path("host/secret"), "S3CRET\n").unwrap();
        let (root, secret) = (guest.path("root"), guest.path("host/secret"));
        for folder in ["etc", "bin", "boot", "var/log", "home", "tmp", "proc", "sys", "dev", "run", "usr"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("etc/os-release"), "ID=debian\nPRETTY_NAME=\"D\"\n").unwrap();
        std::fs::write(root.join("etc/fstab"), "/dev/sda / ext4 defaults 0 1\n").unwrap();
        std::fs::write(root.join("etc/debian_version"), "12.7\n").unwrap();
        symlink("/etc/passwd", root.join("etc/shadow-link")).unwrap();
        symlink(&secret, root.join("etc/passwd")).unwrap();
        symlink(&secret, root.join("etc/hostname")).unwrap();
        symlink(&secret, root.join("boot/vmlinuz-1.0")).unwrap();
        symlink(guest.path("host"), root.join("var/log/journal")).unwrap();
        symlink(&secret, root.join("var/log/syslog")).unwrap();
        symlink(format!("../../../../../../../../..{}", secret.display()), root.join("up")).unwrap();
        symlink(guest.path("host"), root.join("home/user")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        std::fs::write(root.join(format!("tmp/{ESCAPE}\n\tname")), "x").unwrap();
        std::fs::write(root.join("tmp/plain"), "x").unwrap();
        std::fs::set_permissions(root.join("tmp/plain"), std::fs::Permissions::from_mode(0o6755)).unwrap();
        for (name, kind, device) in [("tmp/pipe", FileType::Fifo, 0), ("tmp/disk", FileType::BlockDevice, rustix::fs::makedev(7, 0))] {
            rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o666), device).unwrap();
        }
        std::fs::File::create(root.join("tmp/huge")).unwrap().set_len(8 << 40).unwrap();
        // mke2fs itself does not survive so deep a tree.
        std::fs::write(guest.path("deep"), format!("cd usr\n{}", "mkdir d\ncd d\n".repeat(DEPTH))).unwrap();
        guest.run("truncate -s 200M disk.img && mke2fs -q -F -t ext4 -b 4096 -N 16000 -d root disk.img && rm -rf root");
        guest.run("debugfs -w -f deep disk.img");
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, line: &str) -> String {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let out = Command::new("sh").args(["-ec", line]).current_dir(self.dir.path()).env("PATH", path).output().unwrap();
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs a program in bounded time; none of it is the host's, whether it succeeds or not.
    fn virt(&self, command: &str, args: &[&str]) -> Output {
        let mut run = Command::new(env!("CARGO_BIN_EXE_virt"));
        run.arg(command).args(["-a", "disk.img"]).args(args).current_dir(self.dir.path());
        let mut child = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |from: &mut dyn std::io::Read| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let began = Instant::now();
        let (stdout, stderr) = std::thread::scope(|scope| {
            let (out, err) = (scope.spawn(move || read(&mut out)), scope.spawn(move || read(&mut err)));
            while child.try_wait().unwrap().is_none() {
                if began.elapsed() > PATIENCE {
                    child.kill().unwrap();
                    panic!("{command} {args:?} does not end");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            (out.join().unwrap(), err.join().unwrap())
        });
        let output = Output { status: child.wait().unwrap(), stdout, stderr };
        println!("{command} {args:?}: {:?}, {}", began.elapsed(), output.status);
        let said = [&output.stdout[..], &output.stderr].concat();
        assert!(!said.windows(6).any(|w| w == b"S3CRET"), "{command} {args:?} read a file of the host's");
        assert!(output.status.code().is_some(), "{command} {args:?} died: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stderr.contains(&0x1b), "{command} {args:?} passes escapes on");
        output
    }

    fn good(&self, command: &str, args: &[&str]) -> Vec<u8> {
        let output = self.virt(command, args);
        assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn host_is_as_it_was(&self) {
        assert_eq!(std::fs::read_to_string(self.path("host/secret")).unwrap(), "S3CRET\n");
        assert_eq!(std::fs::read_dir(self.path("host")).unwrap().count(), 1);
    }
}

#[test]
fn programs_that_read_see_the_guest_alone() {
    let guest = Hostile::new();
    let below = guest.good("ls", &["-R", "/usr"]);
    assert_eq!(below.iter().filter(|b| **b == b'\n').count(), DEPTH);
    let long = guest.good("ls", &["-lR", "/"]);
    assert!(long.windows(13).any(|w| w == b"8796093022208"));
    for path in ["/etc/passwd", "/etc/shadow-link", "/up", "/magic/etc/hostname", "/circle", "/var/log/journal/secret"] {
        assert_eq!(guest.virt("cat", &[path]).status.code(), Some(1), "{path}");
    }
    assert_eq!(guest.virt("cat", &["/tmp/pipe"]).status.code(), Some(1), "nobody waits for a pipe's writer");
    let xml = String::from_utf8(guest.good("inspector", &[])).unwrap();
    assert!(xml.contains("<distro>debian</distro>") && !xml.contains("secret"), "{xml}");
    for (command, args) in [("df", &[][..]), ("filesystems", &["--all", "--long"]), ("alignment-scan", &[])] {
        guest.virt(command, args);
    }
    for (command, args) in [("log", &[][..]), ("get-kernel", &["-o", "."])] {
        guest.virt(command, args);
    }
    guest.run("cp --sparse=always disk.img second.img");
    assert!(guest.good("diff", &["--all", "-A", "second.img"]).is_empty());
    let found = guest.good("shell", &["--ro", "-i", "find", "/usr", ":", "ll", "/tmp", ":", "-", "cat", "/etc/passwd"]);
    assert!(found.iter().filter(|b| **b == b'\n').count() > DEPTH);
    guest.host_is_as_it_was();
}

/// A terminal shows names, and does not do what they say.
#[test]
fn names_are_shown_to_terminals_without_their_escapes() {
    let guest = Hostile::new();
    let virt = env!("CARGO_BIN_EXE_virt");
    for words in ["ls /tmp", "ls -lR /tmp", "ls -l /tmp", "shell --ro -i ls /tmp", "shell --ro -i ll /tmp", "diff -A second.img"] {
        guest.run("cp --sparse=always disk.img second.img; debugfs -w -R 'rm tmp/plain' second.img 2>/dev/null");
        let (command, rest) = words.split_once(' ').unwrap();
        // script(1) gives it a terminal.
        let shown = guest.run(&format!("script -qec \"{virt} {command} -a disk.img {rest}\" /dev/null < /dev/null"));
        assert!(!shown.contains(ESCAPE) && !shown.contains('\x07'), "{words}: {shown:?}");
        assert!(shown.contains("plain"), "{words}: {shown:?}");
    }
}

#[test]
#[ignore = "half a minute: part of make test-guests"]
fn what_is_taken_out_stays_in_its_folder() {
    let guest = Hostile::new();
    std::fs::create_dir(guest.path("out")).unwrap();
    let said = guest.virt("copy-out", &["/", "out"]);
    let tmp = guest.path("out/tmp");
    assert!(tmp.is_dir(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(!tmp.join("disk").exists() && !tmp.join("pipe").exists(), "devices and pipes are not made");
    assert_eq!(tmp.join("plain").metadata().unwrap().mode() & 0o7777, 0o755);
    let huge = tmp.join("huge").metadata().unwrap();
    assert!(huge.len() == 8 << 40 && huge.blocks() < 100, "{}", huge.blocks());
    assert!(guest.path("out/etc/passwd").symlink_metadata().unwrap().file_type().is_symlink());
    let mut dir = rustix::fs::open(guest.path("out/usr"), OFlags::RDONLY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        dir = rustix::fs::openat(&dir, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    guest.run("rm -rf out");
    guest.good("tar-out", &["/", "all.tar"]);
    assert!(guest.path("all.tar").metadata().unwrap().len() < 1 << 30);
    guest.run("tar -tf all.tar > list");
    assert!(std::fs::read_to_string(guest.path("list")).unwrap().lines().count() > DEPTH);
    guest.host_is_as_it_was();
}

#[test]
#[ignore = "half a minute: part of make test-guests"]
fn what_changes_a_guest_changes_it_alone() {
    if let Err(e) = guestfs_appliance::locate::files() {
        assert!(std::env::var_os("CI").is_none(), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let guest = Hostile::new();
    // The link leads nowhere in the guest: it is an error, or a file of the guest's.
    let secret = guest.path("host/secret");
    guest.virt("edit", &["-e", "s/host/guest/", "/etc/passwd"]);
    guest.virt("customize", &["-q", "--append-line", "/etc/passwd:evil", "--root-password", "password:x"]);
    guest.virt("customize", &["-q", "--write", "/home/user/secret:evil"]);
    guest.virt("customize", &["-q", "--hostname", "evil"]);
    guest.virt("customize", &["-q", "--delete", "/home/user/*", "--delete", "/magic/*"]);
    std::fs::write(guest.path("file"), "evil").unwrap();
    guest.virt("copy-in", &["file", "/home/user"]);
    guest.virt("copy-in", &["file", "/magic"]);
    guest.run("mkdir -p evil/x && echo evil > evil/x/secret && tar -cf up.tar --transform 's,^evil/x,../../host,' -P evil/x/secret");
    assert_eq!(guest.virt("tar-in", &["up.tar", "/tmp"]).status.code(), Some(1));
    guest.good("sysprep", &["-q", "--operations", "defaults,user-account,ca-certificates,firewall-rules"]);
    guest.host_is_as_it_was();
    let left = guest.good("ls", &["-R", "/usr"]);
    assert_eq!(left.iter().filter(|b| **b == b'\n').count(), DEPTH, "{}", secret.display());
    guest.run("e2fsck -fn disk.img");
    // So deep, the appliance cannot follow: an error, which leaves the tree.
    let before = guest.run("sha256sum disk.img");
    guest.virt("customize", &["-q", "--delete", "/usr/d"]);
    assert_eq!(guest.run("sha256sum disk.img"), before);
}

#[test]
fn a_mount_leads_deep_and_nowhere_else() {
    if !Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("CI").is_none(), "there is no /dev/fuse");
        eprintln!("skipped: there is no /dev/fuse");
        return;
    }
    let guest = Hostile::new();
    std::fs::create_dir(guest.path("mnt")).unwrap();
    guest.good("mount", &["mnt"]);
    let depth = guest.run("find mnt/usr -type d | wc -l");
    let huge = guest.path("mnt/tmp/huge").metadata().unwrap().len();
    let pipe = guest.path("mnt/tmp/pipe").symlink_metadata().unwrap().file_type().is_fifo();
    let link = std::fs::read_link(guest.path("mnt/etc/passwd")).unwrap();
    guest.run("fusermount3 -u mnt");
    assert_eq!((depth.trim(), huge, pipe, link), ((DEPTH + 1).to_string().as_str(), 8 << 40, true, guest.path("host/secret")));
}
