//! Filesystems made by mke2fs from a folder of this process, and opened by the reader.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use guestfs::{DirEntry, Error, FileType, GuestFs, Result, Stat, StatFs, Time, Tree};
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;
use imgcore::{Image, Storage};

/// Runs a program of e2fsprogs.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; install e2fsprogs"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

/// Runs commands of debugfs that write.
pub fn debugfs(image: &Path, commands: &[String]) {
    let script = image.with_extension("debugfs");
    std::fs::write(&script, commands.join("\n") + "\n").unwrap();
    let text = run("debugfs", &["-w", "-f", script.to_str().unwrap(), image.to_str().unwrap()]);
    // debugfs ends with 0 whatever happens.
    let expected = ["debugfs", "Allocated inode", "Setting csum"];
    let complaint = text.lines().find(|l| !expected.iter().any(|e| l.starts_with(e)) && !l.trim().is_empty());
    assert!(complaint.is_none(), "debugfs: {complaint:?} in {text}");
}

/// Makes a filesystem of `size` bytes that holds `folder`.
pub fn mke2fs(image: &Path, size: u64, folder: Option<&Path>, options: &[&str]) {
    std::fs::File::create(image).unwrap().set_len(size).unwrap();
    let mut args = vec!["-q", "-F", "-U", "0fa13c9e-3e2b-4c55-9d7e-0123456789ab"];
    args.extend(options);
    if let Some(folder) = folder {
        args.extend(["-d", folder.to_str().unwrap()]);
    }
    args.push(image.to_str().unwrap());
    run("mke2fs", &args);
}

pub fn open_image(image: Arc<dyn Image>) -> Result<Tree> {
    let len = image.size();
    Ok(Tree::new(guestfs::reader::open("ext4", image, 0, len)?))
}

pub fn open_storage(storage: Arc<dyn Storage>) -> Result<Tree> {
    open_image(Arc::new(Raw::open(storage)?))
}

pub fn open(image: &Path) -> Result<Tree> {
    open_storage(Arc::new(FileStorage::open(image)?))
}

/// A folder with all kinds of files, small enough to be made twenty times over.
pub fn folder(root: &Path, small: bool) -> PathBuf {
    let folder = root.join("content");
    let path = |name: &str| folder.join(name);
    for dir in ["empty", "big", "etc"] {
        std::fs::create_dir_all(path(dir)).unwrap();
    }
    let files = if small { 60 } else { 1500 };
    for i in 0..files {
        let pad = if i % 7 == 0 { 240 } else { i % 40 };
        std::fs::write(path("big").join(format!("{i:04}-{}", "n".repeat(pad))), format!("file {i}")).unwrap();
    }
    let depth = if small { 8 } else { 60 };
    let deep = (0..depth).fold(path("deep"), |p, i| p.join(format!("level-{i}")));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "here").unwrap();
    for size in [0usize, 1, 59, 60, 61, 100, 150, 1023, 1024, 4097, 70_000] {
        let content: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
        std::fs::write(path(&format!("size-{size}")), content).unwrap();
    }
    for len in [1usize, 58, 59, 60, 61, 100, 155, 900] {
        symlink("t".repeat(len), path(&format!("link-{len}"))).unwrap();
    }
    symlink("/etc/../etc/conf", path("absolute")).unwrap();
    std::fs::write(path("etc/conf"), "conf").unwrap();
    std::fs::hard_link(path("etc/conf"), path("etc/same")).unwrap();
    std::fs::set_permissions(path("etc/conf"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    // One extent in two blocks: more than an inode's four extents, more than one node of a tree.
    let holes = std::fs::File::create(path("holes")).unwrap();
    for i in 0..if small { 40 } else { 900u64 } {
        holes.write_all_at(&[(i % 255) as u8 + 1; 4096], i * 8192).unwrap();
    }
    // Behind the triply indirect block's beginning where blocks have 1 KiB; whole indirect blocks are absent.
    let mut sparse = std::fs::File::create(path("sparse")).unwrap();
    sparse.write_all(b"head").unwrap();
    let far = if small { 1 << 20 } else { 66 << 20 };
    sparse.write_all_at(b"middle", far / 2 + 5).unwrap();
    sparse.write_all_at(b"far", far).unwrap();
    Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    folder
}

/// A folder of this machine as a guest's tree.
pub struct Host(pub PathBuf);

impl Host {
    fn path(&self, path: &[u8]) -> PathBuf {
        self.0.join(String::from_utf8(path.to_vec()).unwrap().trim_start_matches('/'))
    }
}

impl GuestFs for Host {
    fn lstat(&self, path: &[u8]) -> Result<Stat> {
        let m = std::fs::symlink_metadata(self.path(path)).map_err(|_| Error::NotFound(path.to_vec()))?;
        let kind = kind(m.file_type());
        let mtime = Time { sec: m.mtime(), nsec: 0 };
        Ok(Stat {
            kind,
            mode: m.mode() & 0o7777,
            uid: m.uid(),
            gid: m.gid(),
            size: m.size(),
            nlink: m.nlink(),
            ino: m.ino(),
            dev: 1,
            rdev: (0, 0),
            blocks: m.blocks(),
            atime: mtime,
            mtime,
            ctime: mtime,
        })
    }
    fn stat(&self, path: &[u8]) -> Result<Stat> {
        self.lstat(path)
    }
    fn read_dir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        use std::os::unix::ffi::OsStringExt;
        let entries = std::fs::read_dir(self.path(path)).unwrap().map(|e| e.unwrap());
        Ok(entries.map(|e| DirEntry { kind: kind(e.file_type().unwrap()), ino: 0, name: e.file_name().into_vec() }).collect())
    }
    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        Ok(std::fs::read_link(self.path(path)).unwrap().to_str().unwrap().into())
    }
    fn read_at(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(std::fs::File::open(self.path(path)).unwrap().read_at(buf, offset).unwrap())
    }
    fn xattrs(&self, _: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }
    fn statfs(&self, _: &[u8]) -> Result<StatFs> {
        Ok(StatFs::default())
    }
}

fn kind(t: std::fs::FileType) -> FileType {
    use std::os::unix::fs::FileTypeExt;
    match t {
        t if t.is_dir() => FileType::Directory,
        t if t.is_symlink() => FileType::Symlink,
        t if t.is_fifo() => FileType::Fifo,
        _ => FileType::Regular,
    }
}
