//! The guest's files. Every path is resolved by the kernel inside the guest's root (`openat2` with
//! `RESOLVE_IN_ROOT`), so that no link of the guest leads out of it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{self, AtFlags, Dir, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::failure::{Result, other};
use super::link::Exchange;
use crate::protocol::{CHUNK, Failure, WireAttributes, WireEntry, WireStat, WireStatFs, WireTime, WireType, Wrong};

/// Links that are followed before a path is given up, as in the kernel.
const MAX_LINKS: usize = 40;
/// Bytes of one extended attribute, and of the list of names: the kernel's own limits.
const XATTR_LIMIT: usize = 65536;

/// A tree of files below one directory.
pub struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// The tree below `path` of the appliance.
    pub fn open(path: &str) -> Result<Self> {
        Ok(Tree { root: fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// Opens a path inside the tree.
    pub fn at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        if path.first() != Some(&b'/') {
            return Err(other("not an absolute path"));
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // The kernel's answer when a rename elsewhere raced with "..".
                Err(Errno::AGAIN | Errno::INTR) => continue,
                result => return Ok(result?),
            }
        }
    }

    /// The directory that holds the path's last component, and that component.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
        let (dir, name) = split(path)?;
        Ok((self.at(dir, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// The file itself, a symbolic link included.
    fn itself(&self, path: &[u8]) -> Result<OwnedFd> {
        self.at(path, OFlags::PATH | OFlags::NOFOLLOW)
    }

    pub fn lstat(&self, path: &[u8]) -> Result<WireStat> {
        Ok(wire_stat(&fs::fstat(self.itself(path)?)?))
    }

    pub fn stat(&self, path: &[u8]) -> Result<WireStat> {
        Ok(wire_stat(&fs::fstat(self.at(path, OFlags::PATH)?)?))
    }

    pub fn statfs(&self, path: &[u8]) -> Result<WireStatFs> {
        let s = fs::fstatvfs(self.itself(path)?)?;
        Ok(WireStatFs {
            block_size: s.f_frsize,
            blocks: s.f_blocks,
            blocks_free: s.f_bfree,
            blocks_available: s.f_bavail,
            files: s.f_files,
            files_free: s.f_ffree,
        })
    }

    pub fn read_dir(&self, path: &[u8], exchange: &mut Exchange<'_>) -> Result<()> {
        let fd = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut dir = Dir::read_from(&fd)?;
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let mut kind = wire_type(entry.file_type());
            if kind.is_none() {
                kind = wire_type(file_type(fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode));
            }
            let kind = kind.ok_or_else(|| other("a file of a kind that is not known"))?;
            bytes += name.len() + 16;
            batch.push(WireEntry { name: name.to_vec(), kind, ino: entry.ino() });
            if bytes > CHUNK {
                exchange.send_batch(&batch)?;
                batch.clear();
                bytes = 0;
            }
        }
        exchange.send_batch(&batch)
    }

    pub fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        let fd = self.itself(path)?;
        if file_type(fs::fstat(&fd)?.st_mode) != fs::FileType::Symlink {
            return Err(Failure::WrongType(Wrong::NotSymlink));
        }
        Ok(fs::readlinkat(&fd, "", Vec::new())?.into_bytes())
    }

    pub fn read(&self, path: &[u8], offset: u64, len: u64, exchange: &mut Exchange<'_>) -> Result<()> {
        // Looked at before it is opened: opening a device or a fifo has effects.
        check_regular(&fs::fstat(self.at(path, OFlags::PATH)?)?)?;
        let fd = self.at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        exchange.send_range(&File::from(fd), offset, len)
    }

    pub fn next_data(&self, path: &[u8], offset: u64) -> Result<Option<(u64, u64)>> {
        check_regular(&fs::fstat(self.at(path, OFlags::PATH)?)?)?;
        let fd = self.at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let start = match fs::seek(&fd, SeekFrom::Data(offset)) {
            // Behind the last data, or behind the end.
            Err(Errno::NXIO) => return Ok(None),
            start => start?,
        };
        Ok(Some((start, fs::seek(&fd, SeekFrom::Hole(start))?)))
    }

    pub fn xattrs(&self, path: &[u8], exchange: &mut Exchange<'_>) -> Result<()> {
        let fd = self.itself(path)?;
        let file = by_fd(&fd);
        for name in xattr_names(&file)? {
            match xattr_value(&file, &name) {
                Ok(value) => exchange.send_batch(&(name, value))?,
                Err(Errno::NODATA) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Follows links to where a file is to be written: its directory and its name there, which is no link.
    fn final_place(&self, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            let (dir, name) = self.parent(&path)?;
            let target = match fs::readlinkat(&dir, name, Vec::new()) {
                // EINVAL: there, but no link.
                Err(Errno::NOENT | Errno::INVAL) => return Ok((dir, name.to_vec())),
                result => result?.into_bytes(),
            };
            path = if target.first() == Some(&b'/') { target } else { [split(&path)?.0, b"/", &target].concat() };
        }
        Err(Errno::LOOP.into())
    }

    pub fn write(&self, path: &[u8], attributes: Option<WireAttributes>, exchange: &mut Exchange<'_>) -> Result<()> {
        let (dir, name) = self.final_place(path)?;
        let old = match fs::openat(&dir, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(old) => {
                check_regular(&fs::fstat(&old)?)?;
                Some(old)
            }
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e.into()),
        };
        let temporary = temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&dir, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let written =
            fill(File::from(fd), old.as_ref(), attributes, exchange).and_then(|()| Ok(fs::renameat(&dir, &temporary, &dir, &name)?));
        if written.is_err() {
            let _ = fs::unlinkat(&dir, &temporary, AtFlags::empty());
        }
        written
    }

    pub fn mkdir(&self, path: &[u8], attributes: WireAttributes) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        fs::mkdirat(&dir, name, Mode::RWXU)?;
        set_attributes(&fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?, attributes)
    }

    pub fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(fs::symlinkat(target, &dir, name)?)
    }

    pub fn link(&self, existing: &[u8], path: &[u8]) -> Result<()> {
        let (old_dir, old_name) = self.parent(existing)?;
        let (dir, name) = self.parent(path)?;
        Ok(fs::linkat(&old_dir, old_name, &dir, name, AtFlags::empty())?)
    }

    pub fn mknod(&self, path: &[u8], kind: WireType, rdev: (u32, u32), attributes: WireAttributes) -> Result<()> {
        let kind = match kind {
            WireType::Fifo => fs::FileType::Fifo,
            WireType::Socket => fs::FileType::Socket,
            WireType::CharDevice => fs::FileType::CharacterDevice,
            WireType::BlockDevice => fs::FileType::BlockDevice,
            _ => return Err(other("not a fifo, socket or device")),
        };
        let (dir, name) = self.parent(path)?;
        fs::mknodat(&dir, name, kind, Mode::RUSR | Mode::WUSR, fs::makedev(rdev.0, rdev.1))?;
        set_attributes(&fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?, attributes)
    }

    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        Ok(fs::renameat(&from_dir, from_name, &to_dir, to_name)?)
    }

    pub fn remove(&self, path: &[u8]) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        match fs::unlinkat(&dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => Ok(fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?),
            result => Ok(result?),
        }
    }

    pub fn set_attributes(&self, path: &[u8], attributes: WireAttributes) -> Result<()> {
        set_attributes(&self.itself(path)?, attributes)
    }

    pub fn set_times(&self, path: &[u8], atime: WireTime, mtime: WireTime) -> Result<()> {
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        Ok(fs::utimensat(self.itself(path)?, "", &times, AtFlags::EMPTY_PATH)?)
    }

    pub fn set_xattr(&self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
        Ok(fs::setxattr(by_fd(&self.itself(path)?), name, value, XattrFlags::empty())?)
    }
}

/// Fills the new file and gives it what the old one had.
fn fill(mut file: File, old: Option<&OwnedFd>, attributes: Option<WireAttributes>, exchange: &mut Exchange<'_>) -> Result<()> {
    while let Some(data) = exchange.next_data()? {
        file.write_all(data)?;
    }
    let mut wanted = WireAttributes { mode: 0o644, uid: 0, gid: 0 };
    if let Some(old) = old {
        let stat = fs::fstat(old)?;
        wanted = WireAttributes { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
    }
    let wanted = attributes.unwrap_or(wanted);
    fs::fchown(&file, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
    if let Some(old) = old {
        // After chown(2), which drops capabilities, and before chmod(2), which the ACL's mask follows.
        copy_xattrs(&by_fd(old), &file)?;
    }
    Ok(fs::fchmod(&file, Mode::from_raw_mode(wanted.mode))?)
}

/// Makes the new file's extended attributes those of the old.
fn copy_xattrs(old: &str, file: &File) -> Result<()> {
    let old_names = match xattr_names(old) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        names => names?,
    };
    let mut list = vec![0; XATTR_LIMIT];
    let len = fs::flistxattr(file, &mut list[..])?;
    for inherited in names_of(&list[..len]).filter(|n| !old_names.iter().any(|o| o == n)) {
        let _ = fs::fremovexattr(file, inherited);
    }
    for name in &old_names {
        fs::fsetxattr(file, name, &xattr_value(old, name)?, XattrFlags::empty())?;
    }
    Ok(())
}

pub(super) fn xattr_names(file: &str) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let mut list = vec![0; XATTR_LIMIT];
    let len = fs::listxattr(file, &mut list[..])?;
    Ok(names_of(&list[..len]).map(<[u8]>::to_vec).collect())
}

fn names_of(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == 0).filter(|n| !n.is_empty())
}

fn xattr_value(file: &str, name: &[u8]) -> std::result::Result<Vec<u8>, Errno> {
    let mut value = vec![0; XATTR_LIMIT];
    let len = fs::getxattr(file, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

pub(super) fn set_attributes(file: &OwnedFd, attributes: WireAttributes) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
    fs::chownat(file, "", uid, gid, AtFlags::EMPTY_PATH)?;
    if file_type(fs::fstat(file)?.st_mode) == fs::FileType::Symlink {
        return Ok(()); // a link has no mode
    }
    Ok(fs::chmod(by_fd(file), Mode::from_raw_mode(attributes.mode & 0o7777))?)
}

/// A name for the very file that a descriptor without access rights (`O_PATH`) stands for, even if it is a link.
pub(super) fn by_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn temporary_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(".guestlift-new-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Splits off the last component.
fn split(path: &[u8]) -> Result<(&[u8], &[u8])> {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
    let trimmed = &path[..end];
    let slash = trimmed.iter().rposition(|b| *b == b'/').ok_or_else(|| other("not an absolute path, or no name in it"))?;
    let name = &trimmed[slash + 1..];
    if name == b"." || name == b".." {
        return Err(other("the path must end with a name"));
    }
    Ok((&path[..slash.max(1)], name))
}

pub(super) fn timespec(time: WireTime) -> Timespec {
    Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() }
}

pub(super) fn file_type(mode: u32) -> fs::FileType {
    fs::FileType::from_raw_mode(mode)
}

fn wire_type(kind: fs::FileType) -> Option<WireType> {
    Some(match kind {
        fs::FileType::RegularFile => WireType::Regular,
        fs::FileType::Directory => WireType::Directory,
        fs::FileType::Symlink => WireType::Symlink,
        fs::FileType::CharacterDevice => WireType::CharDevice,
        fs::FileType::BlockDevice => WireType::BlockDevice,
        fs::FileType::Fifo => WireType::Fifo,
        fs::FileType::Socket => WireType::Socket,
        _ => return None,
    })
}

fn check_regular(stat: &fs::Stat) -> Result<()> {
    match file_type(stat.st_mode) {
        fs::FileType::RegularFile => Ok(()),
        fs::FileType::Directory => Err(Failure::WrongType(Wrong::IsDirectory)),
        _ => Err(Failure::WrongType(Wrong::NotRegular)),
    }
}

fn wire_stat(s: &fs::Stat) -> WireStat {
    WireStat {
        kind: wire_type(file_type(s.st_mode)).unwrap_or(WireType::Regular),
        attributes: WireAttributes { mode: s.st_mode & 0o7777, uid: s.st_uid, gid: s.st_gid },
        size: s.st_size as u64,
        nlink: s.st_nlink,
        ino: s.st_ino,
        dev: s.st_dev,
        rdev: (fs::major(s.st_rdev), fs::minor(s.st_rdev)),
        blocks: s.st_blocks as u64,
        atime: WireTime { sec: s.st_atime, nsec: s.st_atime_nsec as u32 },
        mtime: WireTime { sec: s.st_mtime, nsec: s.st_mtime_nsec as u32 },
        ctime: WireTime { sec: s.st_ctime, nsec: s.st_ctime_nsec as u32 },
    }
}
