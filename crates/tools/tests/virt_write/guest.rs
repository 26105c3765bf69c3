//! Small guests with a shell, and how the programs are run on them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Programs of this machine that the guest gets, with their libraries.
const PROGRAMS: [&str; 6] = ["sh", "cp", "cat", "sleep", "shred", "id"];

pub struct Guest {
    pub dir: tempfile::TempDir,
    image: &'static str,
}

impl Guest {
    /// A root filesystem that fills its disk; `fill` adds files to what it is made of.
    pub fn new(fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for folder in ["etc", "usr/bin", "proc", "sys", "dev", "run", "tmp", "srv", "root", "etc/init.d", "usr/share/zoneinfo/Europe"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink("usr/bin", root.join("bin")).unwrap();
        for program in PROGRAMS {
            let path = format!("/usr/bin/{program}");
            for library in run(&["ldd", &path]).split_whitespace().filter(|w| w.starts_with('/')) {
                let to = root.join(library.trim_start_matches('/'));
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(library, to).unwrap();
            }
            std::fs::copy(&path, root.join("usr/bin").join(program)).unwrap();
        }
        let files = [
            ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n"),
            ("etc/debian_version", "12.7\n"),
            ("etc/hostname", "web\n"),
            ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 web.example.org web\n10.0.0.9 other web2\n"),
            ("etc/motd", "hello\n"),
            ("etc/fstab", "/dev/sda / ext4 defaults 0 1\n"),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/srv:/bin/sh\n"),
            ("etc/group", "root:x:0:\nusers:x:1001:\n"),
            ("etc/shadow", "root:*:19000:0:99999:7:::\nuser:!:19000:0:99999:7:::\n"),
            ("usr/share/zoneinfo/Europe/Berlin", "TZif"),
        ];
        for (path, content) in files {
            std::fs::write(root.join(path), content).unwrap();
        }
        fill(&root);
        let guest = Guest { dir, image: "disk.img" };
        let image = guest.path("disk.img");
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(&["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", root.to_str().unwrap(), image.to_str().unwrap()]);
        run(&["rm", "-rf", root.to_str().unwrap()]);
        guest
    }

    /// The same guest in a qcow2 image.
    pub fn qcow2(mut self) -> Self {
        run(&["qemu-img", "convert", "-O", "qcow2", self.at("disk.img").as_str(), self.at("disk.qcow2").as_str()]);
        self.image = "disk.qcow2";
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    pub fn image(&self) -> PathBuf {
        self.path(self.image)
    }

    pub fn command(&self, command: &str, args: &[&str]) -> Command {
        let mut run = Command::new(env!("CARGO_BIN_EXE_virt"));
        run.arg(command).args(["-a", self.image]).args(args).current_dir(self.dir.path());
        run
    }

    pub fn output(&self, command: &str, args: &[&str]) -> Output {
        self.command(command, args).output().unwrap()
    }

    /// What it writes to the standard output, in success.
    pub fn bytes(&self, command: &str, args: &[&str]) -> Vec<u8> {
        let output = self.output(command, args);
        assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub fn text(&self, command: &str, args: &[&str]) -> String {
        String::from_utf8(self.bytes(command, args)).unwrap()
    }

    /// What it says when it fails.
    pub fn failure(&self, command: &str, args: &[&str]) -> String {
        let output = self.output(command, args);
        assert_eq!(output.status.code(), Some(1), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn sum(&self) -> String {
        run(&["sha256sum", self.image().to_str().unwrap()])[..64].to_string()
    }

    /// The filesystem's own checker, and for qcow2 the format's.
    pub fn is_clean(&self) {
        if self.image.ends_with("qcow2") {
            run(&["qemu-img", "check", self.image().to_str().unwrap()]);
            run(&["qemu-img", "convert", "-O", "raw", self.image().to_str().unwrap(), &self.at("disk.img")]);
        }
        run(&["e2fsck", "-fn", &self.at("disk.img")]);
    }
}

/// Runs a reference tool that must succeed, and gives what it wrote.
pub fn run(argv: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(argv[0]).args(&argv[1..]).env("PATH", path).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}: scripts/setup installs it", argv[0]));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{argv:?}: {}\n{text}", output.status);
    text
}

/// Whether there is an appliance; said aloud where not, and a failure in CI.
pub fn appliance() -> bool {
    let Err(e) = guestfs_appliance::locate::files() else { return true };
    assert!(std::env::var_os("CI").is_none(), "{e}");
    eprintln!("skipped: {e}");
    false
}
