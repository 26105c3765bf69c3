//! Makes whole trees of files below a directory of the guest.
//!
//! Every path is resolved by the kernel beneath that directory: neither a name with `..` nor a link that lies there leads
//! out of it. Below the guest's root, absolute links lead where the guest would go.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::failure::{Result, because, other};
use super::link::Exchange;
use super::tree::{Tree, by_fd, file_type, set_attributes, timespec};
use crate::protocol::{self, Failure, MAX_PAYLOAD, WireNode, WirePiece, WireType, WireWhat, Wrong};

/// Bytes of a path that the kernel takes at once.
const AT_ONCE: usize = 4000;

/// Carries out what the host sends.
pub fn unpack(tree: &Tree, path: &[u8], exchange: &mut Exchange<'_>) -> Result<()> {
    let root = path.iter().all(|b| *b == b'/');
    let base = Base {
        dir: tree.at(path, OFlags::PATH | OFlags::DIRECTORY)?,
        resolve: ResolveFlags::NO_MAGICLINKS | if root { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH },
    };
    let mut pieces = Pieces { exchange, left: Vec::new(), at: 0 };
    let mut filling: Option<Filling> = None;
    while let Some(piece) = pieces.next()? {
        match (piece, &mut filling) {
            (WirePiece::Node(node), _) => {
                finish(filling.take())?;
                filling = base.make(&node).map_err(|e| about(&node.path, e))?.map(|file| Filling { file, node, len: 0 });
            }
            (WirePiece::Data(len), Some(filling)) => pieces.bytes(len, &mut |data| {
                let written = filling.file.write_all_at(data, filling.len);
                filling.len = filling.len.saturating_add(data.len() as u64);
                written.map_err(|e| about(&filling.node.path, e.into()))
            })?,
            (WirePiece::Hole(len), Some(filling)) => filling.len = filling.len.saturating_add(len),
            _ => return Err(other("content without a file")),
        }
    }
    finish(filling)
}

/// Says which file a failure is about.
fn about(path: &[u8], failure: Failure) -> Failure {
    let what = match failure {
        Failure::NotFound => "no such file or directory".to_string(),
        Failure::WrongType(wrong) => wrong.words().to_string(),
        Failure::Other(what) => what,
    };
    other(format!("{}: {what}", String::from_utf8_lossy(path)))
}

/// A regular file whose content is coming.
struct Filling {
    file: File,
    node: WireNode,
    len: u64,
}

fn finish(filling: Option<Filling>) -> Result<()> {
    let Some(Filling { mut file, node, len }) = filling else { return Ok(()) };
    let mut whole = || -> Result<()> {
        file.flush()?;
        fs::ftruncate(&file, len)?;
        let (uid, gid) = (Some(Uid::from_raw(node.attributes.uid)), Some(Gid::from_raw(node.attributes.gid)));
        fs::fchown(&file, uid, gid)?;
        // After chown(2), which drops capabilities, and before chmod(2), which the ACL's mask follows.
        for (name, value) in &node.xattrs {
            fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()).map_err(|e| xattr(name, e))?;
        }
        fs::fchmod(&file, Mode::from_raw_mode(node.attributes.mode & 0o7777))?;
        Ok(fs::futimens(&file, &times(&node))?)
    };
    whole().map_err(|e| about(&node.path, e))
}

fn xattr(name: &[u8], error: Errno) -> Failure {
    because(&format!("the attribute {}", String::from_utf8_lossy(name)), error)
}

fn times(node: &WireNode) -> Timestamps {
    Timestamps { last_access: timespec(node.times.0), last_modification: timespec(node.times.1) }
}

/// The directory that everything is made below.
struct Base {
    dir: OwnedFd,
    resolve: ResolveFlags,
}

impl Base {
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let (mut rest, mut above) = (path, None);
        while let Some(start) = rest.get(..AT_ONCE) {
            let cut = start.iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
            above = Some(self.open_short(above.as_ref(), &rest[..cut], OFlags::PATH | OFlags::DIRECTORY)?);
            rest = &rest[cut + 1..];
        }
        self.open_short(above.as_ref(), rest, flags)
    }

    fn open_short(&self, above: Option<&OwnedFd>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        // Where the path was cut, absolute links lead nowhere.
        let (dir, resolve) = above.map_or((&self.dir, self.resolve), |dir| (dir, ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH));
        loop {
            match fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => continue,
                // The kernel's words would be of a device.
                Err(Errno::XDEV) => return Err(Errno::PERM),
                outcome => return outcome,
            }
        }
    }

    /// The directory of a path's last component, made with those above it where it is missing; and that component.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
        let (dir, name) = path.iter().rposition(|b| *b == b'/').map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        if name.is_empty() || name == b"." || name == b".." {
            return Err(other("not a path that ends with a name"));
        }
        match self.open(dir, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            found => return Ok((found?, name)),
        }
        let ends = dir.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([dir.len()]);
        let mut above = self.open(b"", OFlags::PATH | OFlags::DIRECTORY)?;
        let mut start = 0;
        for end in ends {
            match self.open(&dir[..end], OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    fs::mkdirat(&above, &dir[start..end], Mode::from_raw_mode(0o755))?;
                    above = self.open(&dir[..end], OFlags::PATH | OFlags::DIRECTORY)?;
                }
                found => above = found?,
            }
            start = end + 1;
        }
        Ok((above, name))
    }

    /// Makes a file; gives it if it is one that is to be filled.
    fn make(&self, node: &WireNode) -> Result<Option<File>> {
        if node.path.is_empty() {
            return if node.what == WireWhat::Directory { dress(&self.dir, node).map(|()| None) } else { Err(other("no name")) };
        }
        let (dir, name) = self.parent(&node.path)?;
        if node.what == WireWhat::Directory {
            return self.make_directory(&dir, name, node).map(|()| None);
        }
        if let WireWhat::Link(existing) = &node.what {
            return self.link(&dir, name, existing).map(|()| None);
        }
        clear(&dir, name)?;
        match &node.what {
            WireWhat::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return Ok(Some(File::from(fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?)));
            }
            WireWhat::Symlink(target) => fs::symlinkat(target.as_slice(), &dir, name)?,
            WireWhat::Special(kind, rdev) => {
                let kind = match kind {
                    WireType::Fifo => fs::FileType::Fifo,
                    WireType::Socket => fs::FileType::Socket,
                    WireType::CharDevice => fs::FileType::CharacterDevice,
                    WireType::BlockDevice => fs::FileType::BlockDevice,
                    _ => return Err(other("not a fifo, socket or device")),
                };
                fs::mknodat(&dir, name, kind, Mode::RUSR | Mode::WUSR, fs::makedev(rdev.0, rdev.1))?;
            }
            WireWhat::Directory | WireWhat::Link(_) => {}
        }
        dress(&itself(&dir, name)?, node).map(|()| None)
    }

    fn make_directory(&self, dir: &OwnedFd, name: &[u8], node: &WireNode) -> Result<()> {
        match fs::mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            made => made?,
        }
        let there = itself(dir, name)?;
        match file_type(fs::fstat(&there)?.st_mode) {
            fs::FileType::Directory => dress(&there, node),
            // A link to a directory, as /bin often is one, is as good; what it leads to keeps its attributes.
            fs::FileType::Symlink => Ok(self.open(&node.path, OFlags::PATH | OFlags::DIRECTORY).map(drop)?),
            _ => Err(Failure::WrongType(Wrong::NotDirectory)),
        }
    }

    fn link(&self, dir: &OwnedFd, name: &[u8], existing: &[u8]) -> Result<()> {
        let (old_dir, old_name) = self.parent(existing)?;
        let old = fs::statat(&old_dir, old_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| because("the file that it links to", e))?;
        match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (old.st_dev, old.st_ino) => return Ok(()),
            _ => clear(dir, name)?,
        }
        Ok(fs::linkat(&old_dir, old_name, dir, name, AtFlags::empty())?)
    }
}

/// Takes away what has the name, unless it is a directory.
fn clear(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn itself(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    Ok(fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Gives a file that is there its attributes.
fn dress(file: &OwnedFd, node: &WireNode) -> Result<()> {
    let path = by_fd(file);
    let mut attributes = node.attributes;
    attributes.mode &= 0o7777;
    set_attributes(file, attributes)?;
    for (name, value) in &node.xattrs {
        fs::setxattr(path.as_str(), name.as_slice(), value, XattrFlags::empty()).map_err(|e| xattr(name, e))?;
    }
    Ok(fs::utimensat(file, "", &times(node), AtFlags::EMPTY_PATH)?)
}

/// The host's stream, taken apart.
struct Pieces<'e, 'l> {
    exchange: &'e mut Exchange<'l>,
    /// The frame that came last, of which the bytes up to `at` are used.
    left: Vec<u8>,
    at: usize,
}

impl Pieces<'_, '_> {
    /// Makes sure that there are bytes; `false` at the end of the stream.
    fn more(&mut self) -> Result<bool> {
        while self.at == self.left.len() {
            match self.exchange.next_data()? {
                None => return Ok(false),
                Some(data) => {
                    self.left.clear();
                    self.left.extend_from_slice(data);
                    self.at = 0;
                }
            }
        }
        Ok(true)
    }

    fn bytes(&mut self, len: u32, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut missing = len as usize;
        while missing > 0 {
            if !self.more()? {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let end = self.left.len().min(self.at + missing);
            take(&self.left[self.at..end])?;
            missing -= end - self.at;
            self.at = end;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<WirePiece>> {
        if !self.more()? {
            return Ok(None);
        }
        let mut len = Vec::with_capacity(4);
        self.bytes(4, &mut |data| {
            len.extend_from_slice(data);
            Ok(())
        })?;
        let len = u32::from_le_bytes(len.try_into().unwrap_or_default());
        if len as usize > MAX_PAYLOAD {
            return Err(other("a piece that is too long"));
        }
        let mut message = Vec::with_capacity(len as usize);
        self.bytes(len, &mut |data| {
            message.extend_from_slice(data);
            Ok(())
        })?;
        Ok(Some(protocol::decode(&message)?))
    }
}
