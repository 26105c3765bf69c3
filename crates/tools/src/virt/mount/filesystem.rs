//! A guest's tree as a FUSE filesystem: what the kernel asks, answered by [`Files`].

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use guestfs::{DirEntry, Error, FileType, Result, Stat};

use super::files::Files;
use super::nodes::{Nodes, ROOT};
use crate::virt::time;

/// How long the kernel may keep what it was told: nothing here ever changes.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);
/// Names are no longer, in Linux.
const NAME_MAX: usize = 255;

/// Owners that the files are shown with, instead of the guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owners {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// The mounted guest.
pub(super) struct Mounted<F: Files> {
    state: Mutex<State<F>>,
    owners: Owners,
    /// Hears of every failure.
    log: Box<dyn Fn(&str) + Send + Sync>,
}

struct State<F: Files> {
    files: F,
    nodes: Nodes<F::Place>,
    /// Open directories with their names, so that offsets stay what they are.
    directories: HashMap<u64, Arc<Listing>>,
    next_handle: u64,
}

struct Listing {
    device: u64,
    entries: Vec<DirEntry>,
}

impl<F: Files> Mounted<F> {
    pub(super) fn new(files: F, owners: Owners, log: Box<dyn Fn(&str) + Send + Sync>) -> Result<Self> {
        let root = files.root();
        let stat = files.stat(&root)?;
        let nodes = Nodes::new(root, &stat);
        let state = State { files, nodes, directories: HashMap::new(), next_handle: 0 };
        Ok(Mounted { state: Mutex::new(state), owners, log })
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the guest's files; what fails is logged, and is an error number for the kernel.
    fn ask<T>(&self, question: impl FnOnce(&mut State<F>) -> Result<T, Refusal>) -> Result<T, Errno> {
        question(&mut self.lock()).map_err(|refusal| match refusal {
            Refusal::Plain(errno) => errno,
            Refusal::Failed(Error::NotFound(_)) => Errno::ENOENT,
            Refusal::Failed(e) => {
                (self.log)(&e.to_string());
                match e {
                    Error::WrongType { what: "not a directory", .. } => Errno::ENOTDIR,
                    Error::Unsupported { .. } => Errno::EOPNOTSUPP,
                    _ => Errno::EIO,
                }
            }
        })
    }

    fn attributes(&self, number: u64, stat: &Stat) -> FileAttr {
        FileAttr {
            ino: INodeNo(number),
            size: stat.size,
            blocks: stat.blocks,
            atime: time::system(stat.atime),
            mtime: time::system(stat.mtime),
            ctime: time::system(stat.ctime),
            crtime: time::system(stat.ctime),
            kind: kind(stat.kind),
            perm: (stat.mode & 0o7777) as u16,
            nlink: u32::try_from(stat.nlink).unwrap_or(u32::MAX),
            uid: self.owners.uid.unwrap_or(stat.uid),
            gid: self.owners.gid.unwrap_or(stat.gid),
            rdev: device_number(stat.rdev),
            blksize: 4096,
            flags: 0,
        }
    }
}

/// Why the kernel gets no answer.
enum Refusal {
    Plain(Errno),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Failed(error)
    }
}

impl<F: Files> State<F> {
    fn place(&self, number: INodeNo) -> Result<F::Place, Refusal> {
        self.nodes.place(number.0).ok_or(Refusal::Plain(Errno::ESTALE))
    }

    fn lookup(&mut self, parent: INodeNo, name: &[u8]) -> Result<(u64, Stat), Refusal> {
        let dir = self.place(parent)?;
        let place = self.files.child(&dir, name)?.ok_or(Refusal::Plain(Errno::ENOENT))?;
        let stat = self.files.stat(&place)?;
        Ok((self.nodes.remember(place, &stat), stat))
    }

    fn open_directory(&mut self, number: INodeNo) -> Result<u64, Refusal> {
        let dir = self.place(number)?;
        let device = self.files.stat(&dir)?.dev;
        let mut entries = self.files.read_dir(&dir)?;
        // The kernel would refuse the whole directory for one of them.
        entries.retain(|e| is_name(&e.name));
        self.next_handle += 1;
        self.directories.insert(self.next_handle, Arc::new(Listing { device, entries }));
        Ok(self.next_handle)
    }

    fn read(&self, number: INodeNo, offset: u64, size: usize) -> Result<Vec<u8>, Refusal> {
        let place = self.place(number)?;
        // What comes short reads as zeroes: a file is read as far as its inode says.
        let rest = self.files.stat(&place)?.size.saturating_sub(offset);
        let mut buf = vec![0; size.min(usize::try_from(rest).unwrap_or(usize::MAX))];
        let mut filled = 0;
        while let Some(room) = buf.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.files.read_at(&place, offset + filled as u64, room)? {
                0 => break,
                n => filled += n,
            }
        }
        buf.truncate(filled);
        Ok(buf)
    }
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, b'/' | 0))
}

fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// As FUSE has it: 12 bits of major, 20 of minor number.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Answers with a text of any length, to a caller that has room for `size` bytes, or asks how many there are.
fn answer(text: &[u8], size: u32, reply: ReplyXattr) {
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(len),
        size if size < len => reply.error(Errno::ERANGE),
        _ => reply.data(text),
    }
}

impl<F: Files> fuser::Filesystem for Mounted<F> {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.ask(|state| state.lookup(parent, name.as_bytes())) {
            Ok((number, stat)) => reply.entry(&FOR_EVER, &self.attributes(number, &stat), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, times: u64) {
        self.lock().nodes.forget(number.0, times);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.ask(|state| Ok(state.files.stat(&state.place(number)?)?)) {
            Ok(stat) => reply.attr(&FOR_EVER, &self.attributes(number.0, &stat)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.ask(|state| Ok(state.files.readlink(&state.place(number)?)?)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match flags.acc_mode() {
            OpenAccMode::O_RDONLY => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            _ => reply.error(Errno::EROFS),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.ask(|state| state.read(number, offset, size as usize)) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.ask(|state| state.open_directory(number)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.lock();
        let Some(listing) = state.directories.get(&handle.0) else { return reply.error(Errno::EBADF) };
        // What `..` leads to, the kernel knows better.
        let dots = [(number.0, "."), (ROOT, "..")];
        let dots = dots.into_iter().map(|(ino, name)| (ino, fuser::FileType::Directory, name.as_bytes()));
        let entries = listing.entries.iter().map(|e| (state.nodes.listed(listing.device, e.ino), kind(e.kind), e.name.as_slice()));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (position, (ino, kind, name)) in dots.chain(entries).enumerate().skip(from) {
            // The offset is where the next call goes on.
            if reply.add(INodeNo(ino), position as u64 + 1, kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.lock().directories.remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, number: INodeNo, reply: ReplyStatfs) {
        match self.ask(|state| Ok(state.files.statfs(&state.place(number)?)?)) {
            Ok(s) => {
                let block = u32::try_from(s.block_size).unwrap_or(4096);
                reply.statfs(s.blocks, s.blocks_free, s.blocks_available, s.files, s.files_free, block, NAME_MAX as u32, block);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let found = self.ask(|state| {
            let all = state.files.xattrs(&state.place(number)?)?;
            let found = all.into_iter().find(|(n, _)| n == name.as_bytes());
            found.map(|(_, value)| value).ok_or(Refusal::Plain(Errno::ENODATA))
        });
        match found {
            Ok(value) => answer(&value, size, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        match self.ask(|state| Ok(state.files.xattrs(&state.place(number)?)?)) {
            Ok(all) => answer(&all.into_iter().flat_map(|(name, _)| [name, vec![0]].concat()).collect::<Vec<u8>>(), size, reply),
            Err(errno) => reply.error(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest's tree that mke2fs made of a folder.
    fn tree(dir: &std::path::Path) -> guestfs::Tree {
        std::fs::create_dir_all(dir.join("tree/etc/deep/er")).unwrap();
        std::fs::write(dir.join("tree/etc/deep/motd"), "hello\n").unwrap();
        let image = dir.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let mut mke2fs = std::process::Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(dir.join("tree")).arg(&image).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        assert!(mke2fs.status().expect("mke2fs, of the package e2fsprogs").success());
        let image = imgcore::Formats::new().open(&image, &imgcore::OpenOptions::new(&imgcore::TreeGate::new(&image, []))).unwrap();
        let len = image.size();
        guestfs::Tree::new(guestfs::reader::open("ext4", image, 0, len).unwrap())
    }

    #[test]
    fn a_walk_that_forgets_all_it_saw_leaves_only_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Mounted::new(tree(dir.path()), Owners::default(), Box::new(|_| {})).unwrap();
        let mut state = mounted.lock();
        let mut lookup = |parent, name: &str| state.lookup(INodeNo(parent), name.as_bytes()).unwrap_or_else(|_| panic!("{name}")).0;
        let etc = lookup(ROOT, "etc");
        let deep = lookup(etc, "deep");
        let motd = lookup(deep, "motd");
        let again = lookup(deep, "motd");
        assert_eq!(motd, again);
        assert!(matches!(state.lookup(INodeNo(etc), b"none"), Err(Refusal::Plain(e)) if e.code() == Errno::ENOENT.code()));
        assert_eq!(state.read(INodeNo(motd), 1, 100).unwrap_or_default(), b"ello\n");
        let handle = state.open_directory(INodeNo(deep)).unwrap_or_default();
        let mut names: Vec<&[u8]> = state.directories[&handle].entries.iter().map(|e| e.name.as_slice()).collect();
        names.sort();
        assert_eq!(names, [&b"er"[..], b"motd"]);
        // The kernel may forget a folder before what is in it.
        for (number, times) in [(etc, 1), (deep, 1), (motd, 1)] {
            state.nodes.forget(number, times);
        }
        assert_eq!(state.read(INodeNo(motd), 0, 1).unwrap_or_default(), b"h");
        state.nodes.forget(motd, 1);
        assert_eq!(state.nodes.len(), 1);
        assert!(matches!(state.read(INodeNo(motd), 0, 1), Err(Refusal::Plain(_))));
    }

    #[test]
    fn names_that_the_kernel_takes() {
        assert!(is_name(b"a b\n\xff") && is_name(&[b'x'; 255]));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_name(bad));
        }
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device_number((8, 1)), 0x801);
        assert_eq!(device_number((259, 0x1_2345)), 0x1231_0345);
    }
}
