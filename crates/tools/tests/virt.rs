//! The virt programs on small guests that mke2fs makes, run as a user runs them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    /// A root filesystem that fills its disk.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for folder in ["etc", "usr/bin", "var/lib/dpkg", "srv/deep/er"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/etc/motd", root.join("srv/absolute")).unwrap();
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 62;
        std::fs::write(root.join("usr/bin/ls"), elf).unwrap();
        let files = [
            ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n"),
            ("etc/debian_version", "12.7\n"),
            ("etc/hostname", "web\n"),
            ("etc/motd", "hello\n"),
            ("etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n/dev/xvda1 none swap sw 0 0\n"),
            (
                "var/lib/dpkg/status",
                "Package: libc6\nStatus: install ok installed\nVersion: 1:2.36-9\nArchitecture: amd64\nDescription: GNU <C>\n lib & more\n",
            ),
        ];
        for (path, content) in files {
            std::fs::write(root.join(path), content).unwrap();
        }
        let guest = Guest { dir };
        let image = guest.path("disk.img");
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let uuid = "0fa13c9e-3e2b-4c55-9d7e-0123456789ab";
        e2fs("mke2fs", &["-q", "-F", "-t", "ext4", "-L", "root", "-U", uuid, "-d", root.to_str().unwrap(), image.to_str().unwrap()]);
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn virt(&self, command: &str, args: &[&str]) -> Output {
        let mut run = Command::new(env!("CARGO_BIN_EXE_virt"));
        run.arg(command).args(["-a", "disk.img"]).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    fn text(&self, command: &str, args: &[&str]) -> String {
        let output = self.virt(command, args);
        assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn failure(&self, command: &str, args: &[&str]) -> String {
        let output = self.virt(command, args);
        assert_eq!(output.status.code(), Some(1), "{command} {args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn debugfs(&self, commands: &str) {
        std::fs::write(self.path("script"), commands).unwrap();
        e2fs("debugfs", &["-w", "-f", self.path("script").to_str().unwrap(), self.path("disk.img").to_str().unwrap()]);
    }
}

fn e2fs(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; install e2fsprogs"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn files_are_printed_and_listed() {
    let guest = Guest::new();
    assert_eq!(guest.text("cat", &["/etc/motd", "/srv/absolute", "/srv/../../etc/hostname"]), "hello\nhello\nweb\n");
    assert_eq!(guest.text("ls", &["/srv"]), "absolute\ndeep\n");
    assert_eq!(guest.text("ls", &["-R", "/srv"]), "/absolute\n/deep\n/deep/er\n");
    let rows = guest.text("ls", &["-lR", "--checksum=sha256", "/etc/motd"]);
    assert!(rows.ends_with("          6 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 /etc/motd\n"), "{rows}");
    let long = guest.text("ls", &["-l", "/srv"]);
    assert!(long.starts_with("total ") && long.contains(" absolute -> /etc/motd\n"), "{long}");
    assert_eq!(guest.text("cat", &["-m", "/dev/sda", "/etc/motd"]), "hello\n");
    assert!(guest.failure("cat", &["/none"]).contains("virt-cat: /none: no such file"));
    assert!(guest.failure("cat", &["-m", "/dev/sdb", "/etc/motd"]).contains("there is no volume /dev/sdb; there are /dev/sda"));
}

#[test]
fn the_name_of_the_program_chooses_the_command() {
    let guest = Guest::new();
    let by_name = guest.path("virt-cat");
    symlink(env!("CARGO_BIN_EXE_virt"), &by_name).unwrap();
    let output = Command::new(&by_name).arg("-a").arg(guest.path("disk.img")).arg("/etc/hostname").output().unwrap();
    assert_eq!(output.stdout, b"web\n");
}

#[test]
fn filesystems_have_libguestfs_s_columns() {
    let guest = Guest::new();
    assert_eq!(guest.text("filesystems", &[]), "/dev/sda\n");
    let long = guest.text("filesystems", &["--all", "--long", "--uuid", "-h"]);
    let lines: Vec<Vec<&str>> = long.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["Name", "Type", "VFS", "Label", "MBR", "Size", "Parent", "UUID"]);
    assert_eq!(
        (&lines[1][..5], lines[1][7]),
        (&["/dev/sda", "filesystem", "ext4", "root", "-"][..], "0fa13c9e-3e2b-4c55-9d7e-0123456789ab")
    );
    assert_eq!(lines[2], ["/dev/sda", "device", "-", "-", "-", "64M", "-", "-"]);
    let csv = guest.text("filesystems", &["--blkdevs", "--long", "--csv"]);
    assert_eq!(csv, "Name,Type,Size,Parent\n/dev/sda,device,67108864,\n");
}

#[test]
fn the_inspector_writes_libguestfs_s_xml() {
    let guest = Guest::new();
    let expected = r#"<?xml version="1.0"?>
<operatingsystems>
  <operatingsystem>
    <root>/dev/sda</root>
    <name>linux</name>
    <arch>x86_64</arch>
    <distro>debian</distro>
    <product_name>12.7</product_name>
    <major_version>12</major_version>
    <minor_version>7</minor_version>
    <package_format>deb</package_format>
    <package_management>apt</package_management>
    <hostname>web</hostname>
    <osinfo>debian12</osinfo>
    <mountpoints>
      <mountpoint dev="/dev/sda">/</mountpoint>
    </mountpoints>
    <filesystems>
      <filesystem dev="/dev/sda">
        <type>ext4</type>
        <label>root</label>
        <uuid>0fa13c9e-3e2b-4c55-9d7e-0123456789ab</uuid>
      </filesystem>
      <filesystem dev="/dev/xvda1"/>
    </filesystems>
    <applications>
      <application>
        <name>libc6</name>
        <epoch>1</epoch>
        <version>2.36</version>
        <release>9</release>
        <arch>amd64</arch>
        <summary>GNU &lt;C&gt;</summary>
        <description>lib &amp; more</description>
      </application>
    </applications>
  </operatingsystem>
</operatingsystems>
"#;
    assert_eq!(guest.text("inspector", &[]), expected);
    let json: serde_json::Value = serde_json::from_str(&guest.text("inspector", &["--json"])).unwrap();
    assert_eq!(json["operatingsystems"][0]["product_name"], "Debian GNU/Linux 12 (bookworm)");
}

#[test]
fn of_several_systems_one_is_chosen() {
    let guest = Guest::new();
    std::fs::copy(guest.path("disk.img"), guest.path("second.img")).unwrap();
    let message = guest.failure("cat", &["-a", "second.img", "/etc/motd"]);
    assert!(message.contains("--root") && message.contains("/dev/sda: Debian") && message.contains("/dev/sdb: Debian"), "{message}");
    assert_eq!(guest.text("cat", &["-a", "second.img", "--root", "/dev/sdb", "/etc/motd"]), "hello\n");
    std::fs::write(guest.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let message = guest.failure("cat", &["/etc/motd"]);
    assert!(message.contains("no operating system was found") && message.contains("/dev/sda (unknown content)"), "{message}");
}

#[test]
fn copying_out_stays_in_the_target() {
    let guest = Guest::new();
    let outside = guest.path("outside");
    std::fs::create_dir(&outside).unwrap();
    guest.debugfs(&format!(
        "mkdir trap\nsymlink trap/way-out {1}\nmkdir trap/way-in-\nwrite {0} trap/way-in-/file\nmknod pipe p\n",
        file(&guest),
        outside.display()
    ));
    // Two entries of one name: a link that leads outside, and a folder.
    let mut bytes = std::fs::read(guest.path("disk.img")).unwrap();
    let at = bytes.windows(7).position(|w| w == b"way-in-").unwrap();
    bytes[at..at + 7].copy_from_slice(b"way-out");
    std::fs::write(guest.path("disk.img"), bytes).unwrap();
    std::fs::create_dir(guest.path("out")).unwrap();
    guest.virt("copy-out", &["/trap", "out"]);
    assert!(guest.path("out/trap").is_dir());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    // A link that lies in the target already is replaced, not followed.
    symlink(outside.join("motd"), guest.path("out/motd")).unwrap();
    guest.text("copy-out", &["/etc/motd", "/srv", "out"]);
    assert_eq!(std::fs::read(guest.path("out/motd")).unwrap(), b"hello\n");
    assert_eq!(std::fs::read_link(guest.path("out/srv/absolute")).unwrap(), Path::new("/etc/motd"));
    assert!(guest.path("out/srv/deep/er").is_dir() && !outside.join("motd").exists());
    let output = guest.virt("copy-out", &["/pipe", "out"]);
    assert!(output.status.success() && !guest.path("out/pipe").exists());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--special"));
}

fn file(guest: &Guest) -> String {
    let path = guest.path("payload");
    std::fs::write(&path, "payload").unwrap();
    path.display().to_string()
}

#[test]
fn edits_that_change_nothing_start_nothing() {
    let guest = Guest::new();
    let before = std::fs::read(guest.path("disk.img")).unwrap();
    guest.text("edit", &["-e", "s/nowhere/x/", "/etc/motd"]);
    assert!(guest.failure("edit", &["-e", "print", "/etc/motd"]).contains("is not understood"));
    assert!(guest.failure("edit", &["-e", "s/a/b/", "/srv"]).contains("not a regular file"));
    assert!(before == std::fs::read(guest.path("disk.img")).unwrap());
}

#[test]
fn edits_and_copies_go_through_the_appliance() {
    if let Err(e) = guestfs_appliance::locate::files() {
        assert!(std::env::var_os("CI").is_none(), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let guest = Guest::new();
    guest.text("edit", &["-b", ".old", "-e", "s/hello/good day/", "/srv/absolute"]);
    assert_eq!(guest.text("cat", &["/etc/motd", "/etc/motd.old"]), "good day\nhello\n");
    std::fs::create_dir_all(guest.path("in/sub")).unwrap();
    std::fs::write(guest.path("in/sub/file"), "copied").unwrap();
    symlink("sub/file", guest.path("in/link")).unwrap();
    guest.text("copy-in", &["in", "/srv"]);
    assert_eq!(guest.text("cat", &["/srv/in/link"]), "copied");
    assert_eq!(guest.text("cat", &["--engine", "appliance", "/srv/in/sub/file"]), "copied");
    e2fs("e2fsck", &["-fn", guest.path("disk.img").to_str().unwrap()]);
}

#[test]
fn libguestfs_s_flags_are_taken_or_refused_with_a_reason() {
    let guest = Guest::new();
    assert_eq!(guest.text("ls", &["--time-t", "--uid", "-lR", "--checksums=md5", "/etc/motd"]).lines().count(), 1);
    assert!(guest.text("df", &["-P", "4", "--csv"]).starts_with("VirtualMachine,"));
    std::fs::create_dir(guest.path("out")).unwrap();
    guest.text("copy-out", &["--no-progress-bars", "-n", "/etc/motd", "out"]);
    for (command, args, why) in [
        ("customize", &["--attach", "x.iso", "--touch", "/x"][..], "--copy-in"),
        ("customize", &["--sm-register"], "subscription-manager"),
        ("sysprep", &["--script", "x.sh"], "--run"),
        ("shell", &["--listen"], "written at its end"),
        ("shell", &["-N", "fs"], "virt-format"),
        ("rescue", &["--network"], "no network"),
        ("mount", &["-w", "out"], "virt-copy-in"),
    ] {
        let message = guest.failure(command, args);
        assert!(message.contains("is not there: ") && message.contains(why), "{command}: {message}");
    }
    for (command, what) in
        [("aug-init", "virt-edit"), ("hivex-open", "hivexsh"), ("mount-local", "virt-mount"), ("nonsense", "unknown command")]
    {
        let message = guest.failure("shell", &[command]);
        assert!(message.contains(what), "{message}");
    }
}
