//! Small guests, just enough of each system to be known: made by sfdisk, mke2fs and cp, and shown to libguestfs once.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with disk images in it.
pub struct Guest {
    pub dir: tempfile::TempDir,
}

/// A filesystem of a guest.
pub struct Filesystem<'a> {
    pub label: &'a str,
    /// Paths without the leading slash: `NAME -> TARGET` for links, a trailing slash for folders.
    pub files: &'a [(&'a str, &'a [u8])],
    /// Part of its UUID.
    pub number: usize,
    pub size: u64,
}

const FIRST: u64 = 1 << 20;

impl Guest {
    pub fn empty() -> Self {
        Guest { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// Makes `name`, a disk of `mib` MiB that is one filesystem, and runs debugfs's commands on it.
    pub fn ext2(&self, name: &str, mib: u64, commands: &str) {
        std::fs::File::create(self.path(name)).unwrap().set_len(mib << 20).unwrap();
        let uuid = "01234567-0123-0123-0123-000000000001";
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext2", "-U", uuid, name]).current_dir(self.dir.path()));
        self.debugfs(name, commands);
    }

    /// Makes `name`, a disk with a GPT and these filesystems in partitions.
    pub fn disk(&self, name: &str, filesystems: &[Filesystem<'_>]) {
        let mut table = String::from("label: gpt\nlabel-id: 01234567-0123-0123-0123-0123456789AB\n");
        let mut start = FIRST;
        for (index, filesystem) in filesystems.iter().enumerate() {
            table += &format!(
                "start={}, size={}, uuid=01234567-0123-0123-0000-{index:012}, name=\"{}\"\n",
                start / 512,
                filesystem.size / 512,
                filesystem.label
            );
            start += filesystem.size;
        }
        let disk = self.path(name);
        std::fs::File::create(&disk).unwrap().set_len(start + FIRST).unwrap();
        std::fs::write(self.path("table"), table).unwrap();
        run(Command::new("sfdisk").arg("-q").arg(&disk).stdin(std::fs::File::open(self.path("table")).unwrap()));
        let mut start = FIRST;
        for filesystem in filesystems {
            let image = self.filesystem(filesystem);
            let seek = format!("seek={}", start >> 20);
            run(Command::new("dd")
                .args(["bs=1M", "conv=notrunc,sparse", "status=none", &seek])
                .args([format!("if={}", image.display()), format!("of={}", disk.display())]));
            start += filesystem.size;
        }
    }

    fn filesystem(&self, filesystem: &Filesystem<'_>) -> PathBuf {
        let (tree, image) = (self.path("tree"), self.path("filesystem"));
        let _ = std::fs::remove_dir_all(&tree);
        let _ = std::fs::remove_file(&image);
        std::fs::create_dir(&tree).unwrap();
        for (path, content) in filesystem.files {
            let (path, target) = path.split_once(" -> ").map_or((*path, None), |(path, target)| (path, Some(target)));
            let place = tree.join(path);
            std::fs::create_dir_all(if path.ends_with('/') { &place } else { place.parent().unwrap() }).unwrap();
            match target {
                Some(target) => symlink(target, place).unwrap(),
                None if path.ends_with('/') => {}
                None => std::fs::write(place, content).unwrap(),
            }
        }
        std::fs::File::create(&image).unwrap().set_len(filesystem.size).unwrap();
        let uuid = format!("01234567-0123-0123-0123-{:012}", filesystem.number);
        let mut mkfs = Command::new("mke2fs");
        mkfs.args(["-q", "-F", "-t", "ext2", "-L", filesystem.label, "-U", &uuid, "-d"]).arg(&tree).arg(&image);
        run(&mut mkfs);
        image
    }

    pub fn virt(&self, command: &str, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_virt")).arg(command).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    pub fn text(&self, command: &str, args: &[&str]) -> String {
        let output = self.virt(command, args);
        assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn failure(&self, command: &str, args: &[&str]) -> String {
        let output = self.virt(command, args);
        assert_eq!(output.status.code(), Some(1), "{command} {args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What libguestfs 1.48.2 printed for the same command on the same guest. GUESTLIFT_RECORD=1 asks it again.
    pub fn recorded(&self, name: &str, command: &str, args: &[&str]) -> String {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/virt_read/libguestfs").join(name);
        if std::env::var_os("GUESTLIFT_RECORD").is_some() {
            let mut real = Command::new(format!("virt-{command}"));
            real.env("LIBGUESTFS_BACKEND", "direct").env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
            std::fs::write(&fixture, run(real.args(args).current_dir(self.dir.path()))).unwrap();
        }
        std::fs::read_to_string(&fixture).unwrap_or_else(|e| panic!("{}: {e}", fixture.display()))
    }

    /// Ours is libguestfs's answer.
    pub fn agrees(&self, name: &str, command: &str, args: &[&str]) {
        self.agrees_but_for(name, command, args, &[]);
    }

    /// Ours is libguestfs's answer, with each of `others` (its words, ours) in the place of its words.
    pub fn agrees_but_for(&self, name: &str, command: &str, args: &[&str], others: &[(&str, &str)]) {
        let mut theirs = self.recorded(name, command, args);
        for (their, our) in others {
            assert!(theirs.contains(their), "{name}: {their}");
            theirs = theirs.replace(their, our);
        }
        similar(name, &self.text(command, args), &theirs);
    }

    /// Runs debugfs's commands on an image that is one filesystem.
    pub fn debugfs(&self, image: &str, commands: &str) {
        std::fs::write(self.path("script"), commands).unwrap();
        run(Command::new("debugfs").args(["-w", "-f", "script", image]).current_dir(self.dir.path()));
    }
}

/// Fails with the first line that differs.
pub fn similar(name: &str, ours: &str, theirs: &str) {
    for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "{name}, line {}", number + 1);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{name}: lines");
    assert_eq!(ours, theirs, "{name}");
}

pub fn run(command: &mut Command) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = command.env("PATH", path).output();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}; scripts/setup installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The head of a program for x86-64, or for i386.
pub fn program(machine: u8) -> Vec<u8> {
    let wide = machine == 62;
    let mut elf = b"\x7fELF".to_vec();
    elf.extend([if wide { 2 } else { 1 }, 1, 1, 0]);
    elf.resize(16, 0);
    elf.extend([2, 0, machine, 0, 1, 0, 0, 0]);
    elf.resize(if wide { 64 } else { 52 }, 0);
    elf[if wide { 52 } else { 40 }] = if wide { 64 } else { 52 };
    elf
}
