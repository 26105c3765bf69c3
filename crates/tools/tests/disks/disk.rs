//! A disk image made of partitions by sfdisk and mkfs, and what those tools say of it afterwards.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub const MIB: u64 = 1 << 20;
pub const UUID: &str = "0fa13c9e-3e2b-4c55-9d7e-0123456789ab";

/// Runs a program of the host.
pub fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(args).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}; scripts/setup installs it"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

/// Whether there is an appliance; where everything must be installed, there is.
pub fn has_appliance() -> bool {
    guestfs_appliance::locate::files()
        .map_err(|e| {
            assert!(std::env::var_os("CI").is_none(), "{e}");
            eprintln!("skipped: {e}");
        })
        .is_ok()
}

/// A folder for the images of one test.
pub struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    pub fn new() -> Self {
        Desk { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// An empty disk with the partitions of an sfdisk script.
    pub fn disk(&self, name: &str, mib: u64, script: &str) {
        File::create(self.path(name)).unwrap().set_len(mib * MIB).unwrap();
        if !script.is_empty() {
            run("sfdisk", &["-q", &self.name(name)], script);
        }
    }

    /// Files of many sizes, some of them holes; the same ones every time.
    pub fn files(&self) -> PathBuf {
        let folder = self.path("files");
        if !folder.exists() {
            std::fs::create_dir_all(folder.join("a/b")).unwrap();
            for i in 0..60u64 {
                let content: Vec<u8> = (0..i * i * 90).map(|n| (n * 31 + i + n / 251) as u8).collect();
                std::fs::write(folder.join(format!("a/file-{i}")), content).unwrap();
            }
            File::create(folder.join("a/b/sparse")).unwrap().write_all_at(b"far", 3 * MIB).unwrap();
        }
        folder
    }

    /// A filesystem in its own file, put at `offset` of a disk.
    pub fn put(&self, disk: &str, offset: u64, len: u64, program: &str, args: &[&str]) {
        self.put_on(0, disk, offset, len, program, args);
    }

    /// The same, made where every byte was `fill`, as after a life of files that are there no more.
    pub fn put_on(&self, fill: u8, disk: &str, offset: u64, len: u64, program: &str, args: &[&str]) {
        let part = self.path("part");
        let file = File::create(&part).unwrap();
        file.set_len(len).unwrap();
        if fill != 0 {
            (0..len).step_by(1 << 20).for_each(|at| file.write_all_at(&vec![fill; (len - at).min(MIB) as usize], at).unwrap());
        }
        run(program, &[args, &[&self.name("part")]].concat(), "");
        let bytes = std::fs::read(&part).unwrap();
        let disk = File::options().write(true).open(self.path(disk)).unwrap();
        // As sparse as it was.
        for (at, chunk) in (offset..).step_by(4096).zip(bytes.chunks(4096)).filter(|(_, c)| fill != 0 || c.iter().any(|b| *b != 0)) {
            disk.write_all_at(chunk, at).unwrap();
        }
    }

    pub fn ext4(&self, disk: &str, offset: u64, len: u64) {
        let files = self.files().display().to_string();
        self.put(disk, offset, len, "mke2fs", &["-q", "-F", "-t", "ext4", "-U", UUID, "-L", "root", "-d", &files]);
    }

    /// Copies a part of a disk to a file of its own.
    pub fn part(&self, disk: &str, offset: u64, len: u64) -> String {
        let disk = File::open(self.path(disk)).unwrap();
        let mut bytes = vec![0; len as usize];
        disk.read_exact_at(&mut bytes, offset).unwrap();
        std::fs::write(self.path("part"), bytes).unwrap();
        self.name("part")
    }

    /// The ext4 in a part of a disk is clean and has all files. Gives its size.
    pub fn check_ext4(&self, disk: &str, offset: u64, len: u64) -> u64 {
        let part = self.part(disk, offset, len);
        run("e2fsck", &["-fn", &part], "");
        let out = self.path("out");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).unwrap();
        run("debugfs", &["-R", &format!("rdump /a {}", out.display()), &part], "");
        run("diff", &["-r", &self.files().join("a").display().to_string(), &out.join("a").display().to_string()], "");
        let text = run("dumpe2fs", &["-h", &part], "");
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_string();
        assert_eq!((field("Filesystem UUID:").as_str(), field("Filesystem volume name:").as_str()), (UUID, "root"));
        let number = |name: &str| field(name).parse::<u64>().unwrap();
        number("Block count:") * number("Block size:")
    }

    pub fn virt(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_virt")).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.virt(args);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {text}");
        text
    }

    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.virt(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// sfdisk's rows without the names of the devices: number, start and size in MiB, and the rest.
    pub fn rows(&self, disk: &str) -> Vec<(u32, u64, u64, String)> {
        let name = self.name(disk);
        let text = run("sfdisk", &["-d", &name], "");
        let row = |line: &str| {
            let (number, rest) = line.strip_prefix(&name)?.split_once(" : ")?;
            let mut fields = rest.splitn(3, ',').map(str::trim);
            let mut sectors = || fields.next().unwrap().split_once('=').unwrap().1.trim().parse::<u64>().unwrap();
            let (start, size) = (sectors(), sectors());
            Some((number.trim().parse().unwrap(), start / 2048, size / 2048, fields.next().unwrap_or_default().to_string()))
        };
        text.lines().filter_map(row).collect()
    }

    pub fn allocated(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name)).unwrap().blocks() * 512
    }
}

pub fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
