//! `virt mount` used by the tools that people use: diff, tar, find, sha256sum on a guest's tree and on what it was made of.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod common;
use common::ok;

/// Whether this machine has FUSE at all. A machine that has it must let us use it.
fn fuse() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        eprintln!("skipped: this machine has no /dev/fuse; the unit tests of virt/mount go through the same answers without it");
    }
    there
}

struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    /// A filesystem of an awkward tree, kept beside it.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/motd"), "hello\n").unwrap();
        fs::write(tree.join("etc/shadow"), "secret\n").unwrap();
        fs::set_permissions(tree.join("etc/shadow"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(tree.join("etc/motd"), tree.join("etc/motd.link")).unwrap();
        symlink("/etc/motd", tree.join("absolute")).unwrap();
        symlink("etc/motd", tree.join("relative")).unwrap();
        fs::write(tree.join("line\nfeed \u{1b}[31m"), "odd\n").unwrap();
        let pattern: Vec<u8> = (0..300_001u32).flat_map(|n| n.to_le_bytes()).collect();
        fs::write(tree.join("pattern"), pattern).unwrap();
        let sparse = fs::File::create(tree.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (64 << 20) - 3).unwrap();
        for folder in 0..20 {
            let folder = tree.join(format!("many/{folder}"));
            fs::create_dir_all(&folder).unwrap();
            (0..50).for_each(|file| fs::write(folder.join(format!("file with a long name {file}")), file.to_string()).unwrap());
        }
        let mut deep = tree.join("deep");
        (0..300).for_each(|_| deep.push("d"));
        fs::create_dir_all(&deep).unwrap();
        let guest = Guest { dir };
        fs::File::create(guest.path("disk.img")).unwrap().set_len(64 << 20).unwrap();
        guest.sh("mke2fs -q -F -t ext4 -d tree disk.img");
        let special = "mknod null c 1 3\nmknod disk b 8 0\nmknod pipe p\nset_inode_field etc/motd mode 0104755\nea_set etc/motd user.note text\nset_inode_field null mode 020666\nset_inode_field disk mode 060666\n";
        fs::write(guest.path("script"), special).unwrap();
        guest.sh("debugfs -w -f script disk.img");
        fs::create_dir(guest.path("mnt")).unwrap();
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sh(&self, line: &str) -> String {
        ok("sh", &["-c", &format!("PATH=$PATH:/usr/sbin:/sbin; {line}")], self.dir.path())
    }

    fn virt(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt"));
        command.args(["mount", "-a", "disk.img", "-m", "/dev/sda"]).args(args).arg("mnt").current_dir(self.dir.path());
        command
    }

    /// Mounted by a process of ours.
    fn mounted(&self, args: &[&str]) -> Mount {
        let process = self.virt(args).arg("--no-fork").stdin(Stdio::null()).spawn().unwrap();
        let mut mount = Mount { process, at: self.path("mnt") };
        let device = fs::metadata(self.dir.path()).unwrap().dev();
        let until = Instant::now() + Duration::from_secs(60);
        while fs::metadata(&mount.at).unwrap().dev() == device {
            assert!(mount.process.try_wait().unwrap().is_none(), "virt mount ended");
            assert!(Instant::now() < until, "virt mount does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        mount
    }
}

struct Mount {
    process: Child,
    at: PathBuf,
}

impl Mount {
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
    }

    /// It ends well, and the folder is empty again.
    fn ended(mut self) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                break;
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(fs::read_dir(&self.at).unwrap().count(), 0);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

#[test]
fn diff_tar_find_and_sha256sum_see_what_the_filesystem_was_made_of() {
    if !fuse() {
        return;
    }
    let guest = Guest::new();
    let mount = guest.mounted(&[]);
    guest.sh("rm mnt/x 2>/dev/null; diff -r --no-dereference --exclude=lost+found --exclude=null --exclude=disk --exclude=pipe tree mnt");
    let hashes = "find . -xdev -type f ! -name sparse -print0 | sort -z | xargs -0 sha256sum";
    assert_eq!(guest.sh(&format!("cd tree && {hashes}")), guest.sh(&format!("cd mnt && {hashes}")));
    // Owners, modes, times, hard links and link targets, bit by bit.
    let archive = "tar --sort=name --format=posix --pax-option=delete=atime,delete=ctime --exclude=./lost+found --exclude=./null \
                   --exclude=./disk --exclude=./pipe --exclude=./etc/motd* --exclude=./sparse --mtime=@0 -c .";
    guest.sh(&format!("(cd tree && {archive}) > 1.tar; (cd mnt && {archive}) > 2.tar; cmp 1.tar 2.tar"));
    assert_eq!(guest.sh("find mnt/many -type f | wc -l"), "1000\n");
    assert_eq!(guest.sh("find mnt/deep | wc -l"), "301\n");
    assert_eq!(
        guest.sh("cmp -n 4096 mnt/sparse tree/sparse; tail -c 3 mnt/sparse; du --apparent-size -b mnt/sparse"),
        "end67108864\tmnt/sparse\n"
    );
    let (a, b) = (fs::metadata(guest.path("mnt/etc/motd")).unwrap(), fs::metadata(guest.path("mnt/etc/motd.link")).unwrap());
    assert_eq!((a.ino(), a.nlink(), a.mode() & 0o7777), (b.ino(), 2, 0o4755));
    assert_eq!(
        guest.sh("stat -c %i mnt/etc/motd").trim(),
        guest.sh("debugfs -R 'stat etc/motd' disk.img 2>/dev/null | sed -n 's/^Inode: \\([0-9]*\\).*/\\1/p'").trim()
    );
    mount.signal("-TERM");
    mount.ended();
}

/// The same through an appliance's kernel.
#[test]
fn a_mount_of_the_appliances_is_the_same_tree() {
    if !fuse() {
        return;
    }
    if let Err(e) = guestfs_appliance::locate::files() {
        assert!(std::env::var_os("CI").is_none(), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let guest = Guest::new();
    let mount = guest.mounted(&["--engine", "appliance"]);
    guest.sh("diff -r --no-dereference tree/etc mnt/etc");
    assert_eq!(guest.sh("sha256sum < tree/pattern"), guest.sh("sha256sum < mnt/pattern"));
    assert_eq!(guest.sh("tail -c 3 mnt/sparse"), "end");
    let error = fs::write(guest.path("mnt/new"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    mount.signal("-TERM");
    mount.ended();
}

#[test]
fn nothing_in_the_mount_does_anything_to_this_machine() {
    if !fuse() {
        return;
    }
    let guest = Guest::new();
    let mount = guest.mounted(&["-o", "fsname=web,uid=12,gid=34"]);
    let options = guest.sh("findmnt -n -o SOURCE,FSTYPE,OPTIONS mnt");
    for word in ["web", "fuse", "ro", "nosuid", "nodev"] {
        assert!(options.split([' ', ',', '\n']).any(|w| w == word), "{word} in {options}");
    }
    assert!(!options.contains("allow_other"), "{options}");
    for change in [
        "touch mnt/new",
        "echo x >> mnt/etc/motd",
        "rm mnt/etc/motd",
        "mkdir mnt/d",
        "chmod 777 mnt/etc",
        "setfattr -n user.a -v b mnt/etc",
    ] {
        let failed = Command::new("sh").args(["-c", &format!("{change} 2>&1")]).current_dir(guest.dir.path()).output().unwrap();
        assert!(!failed.status.success(), "{change}");
    }
    for device in ["null", "disk"] {
        let error = fs::File::open(guest.path("mnt").join(device)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{device}");
    }
    assert_eq!(fs::read_link(guest.path("mnt/absolute")).unwrap(), Path::new("/etc/motd"));
    assert_eq!(guest.sh("cat mnt/relative; stat -c '%u %g' mnt/relative"), "hello\n12 34\n");
    let mut note = [0; 16];
    let len = rustix::fs::getxattr(guest.path("mnt/etc/motd"), "user.note", &mut note[..]).unwrap();
    assert_eq!(&note[..len], b"text");
    assert!(rustix::fs::getxattr(guest.path("mnt/etc/motd"), "user.other", &mut note[..]).is_err());
    let (inside, outside) = (rustix::fs::statvfs(guest.path("mnt")).unwrap(), guest.sh("dumpe2fs -h disk.img 2>/dev/null"));
    let field = |name: &str| outside.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap();
    assert_eq!((inside.f_bfree, inside.f_ffree), (field("Free blocks:"), field("Free inodes:")));
    guest.sh("fusermount3 -u mnt");
    mount.ended();
}

#[test]
fn it_goes_into_the_background_and_leaves_when_it_is_unmounted_or_told_to() {
    if !fuse() {
        return;
    }
    let guest = Guest::new();
    let mount = |folder: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_virt"))
            .args(["mount", "-a", "disk.img", "-m", "/dev/sda", "--ro", "--pid-file", "pid", folder])
            .current_dir(guest.dir.path())
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let pid = || fs::read_to_string(guest.path("pid")).unwrap().trim().to_string();
    let wait = |pid: &str| {
        let until = Instant::now() + Duration::from_secs(30);
        while Path::new("/proc").join(pid).exists() {
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    assert_eq!(mount("mnt"), (Some(0), String::new()));
    assert_eq!(guest.sh("cat mnt/etc/motd"), "hello\n");
    guest.sh("fusermount3 -u mnt");
    wait(&pid());

    assert_eq!(mount("mnt"), (Some(0), String::new()));
    // In use: it goes nevertheless.
    let held = fs::File::open(guest.path("mnt/pattern")).unwrap();
    guest.sh("kill -INT $(cat pid)");
    wait(&pid());
    drop(held);
    assert_eq!(fs::read_dir(guest.path("mnt")).unwrap().count(), 0);

    let (code, error) = mount("nowhere");
    assert!(code == Some(1) && error.contains("nowhere"), "{code:?} {error}");
    let bad =
        Command::new(env!("CARGO_BIN_EXE_virt")).args(["mount", "-a", "script", "mnt"]).current_dir(guest.dir.path()).output().unwrap();
    assert_eq!(bad.status.code(), Some(1), "the waiting process ends as the other did");
    assert!(String::from_utf8_lossy(&bad.stderr).contains("virt-mount: "));
}
