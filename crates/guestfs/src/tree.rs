//! A guest's tree: filesystems mounted on one another, and paths resolved inside it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::reader::FsReader;
use crate::{DirEntry, Error, FileType, GuestFs, Result, Stat, StatFs};

/// Symbolic links that one path may lead through, as in the kernel.
const LINKS: usize = 40;
/// No path is longer, with the targets of links put in.
const PATH_LIMIT: usize = 64 << 10;

/// A file of a [`Tree`]: which mounted filesystem, and its inode there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    mount: usize,
    ino: u64,
}

/// Mounted filesystems, read in this process.
///
/// Paths never lead outside: `..` stops at the root, and symbolic links start again from it.
pub struct Tree {
    mounts: Vec<Arc<dyn FsReader>>,
    /// Which filesystem covers a directory.
    covered: HashMap<Node, usize>,
    /// The directory that was looked into last and its path: whoever walks a tree asks for its files next.
    last: Mutex<Option<(Vec<u8>, Node)>>,
}

impl Tree {
    /// A tree of one filesystem.
    pub fn new(root: Arc<dyn FsReader>) -> Self {
        Tree { mounts: vec![root], covered: HashMap::new(), last: Mutex::default() }
    }

    /// Mounts a filesystem on a directory of the tree.
    pub fn mount(&mut self, path: &[u8], reader: Arc<dyn FsReader>) -> Result<()> {
        let node = self.resolve(path, true)?;
        if self.node_stat(node)?.kind != FileType::Directory {
            return Err(not_a_directory(path));
        }
        self.mounts.push(reader);
        self.covered.insert(node, self.mounts.len() - 1);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn reader(&self, node: Node) -> &dyn FsReader {
        // Nodes are made by this tree only, and mounts are never taken away.
        self.mounts[node.mount].as_ref()
    }

    /// The root directory, for those who walk by themselves, without the cost of whole paths.
    pub fn root(&self) -> Node {
        self.top(Node { mount: 0, ino: self.mounts[0].root() })
    }

    /// The file of a name in a directory, with what is mounted there; links are not followed.
    pub fn child(&self, dir: Node, name: &[u8]) -> Result<Option<Node>> {
        let ino = self.reader(dir).lookup(dir.ino, name)?;
        Ok(ino.map(|ino| self.top(Node { mount: dir.mount, ino })))
    }

    /// A file's filesystem and its inode there.
    pub fn inode(&self, node: Node) -> (&dyn FsReader, u64) {
        (self.reader(node), node.ino)
    }

    /// A file's attributes.
    pub fn node_stat(&self, node: Node) -> Result<Stat> {
        let mut stat = self.reader(node).stat(node.ino)?;
        stat.dev = stat.dev << 16 | (node.mount as u64 + 1);
        Ok(stat)
    }

    /// The root of what is mounted there last.
    fn top(&self, mut node: Node) -> Node {
        while let Some(mount) = self.covered.get(&node) {
            node = Node { mount: *mount, ino: self.mounts[*mount].root() };
        }
        node
    }

    fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Node> {
        if let Some(node) = self.near_last(path)?
            && (!follow_last || self.node_stat(node)?.kind != FileType::Symlink)
        {
            return Ok(node);
        }
        self.resolve_all(path, follow_last)
    }

    /// A file of the directory that was looked into last, or of one in that: without walking down to it again.
    fn near_last(&self, path: &[u8]) -> Result<Option<Node>> {
        let Some((dir, name)) = plain_split(path) else { return Ok(None) };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((known, node)) = last.as_mut() else { return Ok(None) };
        if known != dir {
            let Some((above, between)) = plain_split(dir).filter(|(above, _)| known == above) else { return Ok(None) };
            let Some(ino) = self.reader(*node).lookup(node.ino, between)? else { return Ok(None) };
            let found = self.top(Node { mount: node.mount, ino });
            if self.node_stat(found)?.kind != FileType::Directory {
                return Ok(None);
            }
            known.truncate(above.len());
            known.extend_from_slice(&dir[above.len()..]);
            *node = found;
        }
        let ino = self.reader(*node).lookup(node.ino, name)?;
        Ok(ino.map(|ino| self.top(Node { mount: node.mount, ino })))
    }

    fn resolve_all(&self, path: &[u8], follow_last: bool) -> Result<Node> {
        let not_found = || Error::NotFound(path.to_vec());
        let mut pending: Vec<Vec<u8>> = words(path);
        let root = self.root();
        let mut stack = vec![root];
        let mut links = 0;
        let trailing_slash = path.ends_with(b"/");
        while let Some(word) = pending.pop() {
            let here = stack.last().copied().unwrap_or(root);
            if word == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            if self.node_stat(here)?.kind != FileType::Directory {
                return Err(not_a_directory(path));
            }
            let node = self.child(here, &word)?.ok_or_else(not_found)?;
            let last = pending.is_empty();
            if (last && !follow_last && !trailing_slash) || self.node_stat(node)?.kind != FileType::Symlink {
                stack.push(node);
                if last
                    && links == 0
                    && let Some((dir, _)) = plain_split(path)
                {
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((dir.to_vec(), here));
                }
                continue;
            }
            links += 1;
            if links > LINKS {
                return Err(Error::WrongType { path: path.to_vec(), what: "too many symbolic links" });
            }
            let target = self.reader(node).readlink(node.ino)?;
            if target.starts_with(b"/") {
                stack.truncate(1);
            }
            pending.extend(words(&target));
            if pending.iter().map(Vec::len).sum::<usize>() > PATH_LIMIT {
                return Err(Error::WrongType { path: path.to_vec(), what: "path too long" });
            }
        }
        Ok(stack.last().copied().unwrap_or(root))
    }
}

/// A path's directory and its last component, if that is a name and the path has no detours.
fn plain_split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|b| *b == b'/')?;
    let (dir, name) = (&path[..slash], &path[slash + 1..]);
    let detour = dir.windows(2).any(|w| w == b"/.") || dir.ends_with(b"/");
    (!detour && !name.is_empty() && name != b"." && name != b"..").then_some((dir, name))
}

/// A path's components in reverse, as a stack. `.` and empty ones mean nothing.
fn words(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|w| !w.is_empty() && *w != b".").rev().map(<[u8]>::to_vec).collect()
}

fn not_a_directory(path: &[u8]) -> Error {
    Error::WrongType { path: path.to_vec(), what: "not a directory" }
}

impl GuestFs for Tree {
    fn lstat(&self, path: &[u8]) -> Result<Stat> {
        self.node_stat(self.resolve(path, false)?)
    }

    fn stat(&self, path: &[u8]) -> Result<Stat> {
        self.node_stat(self.resolve(path, true)?)
    }

    fn read_dir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        let node = self.resolve(path, true)?;
        if self.node_stat(node)?.kind != FileType::Directory {
            return Err(not_a_directory(path));
        }
        self.reader(node).read_dir(node.ino)
    }

    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        let node = self.resolve(path, false)?;
        if self.node_stat(node)?.kind != FileType::Symlink {
            return Err(Error::WrongType { path: path.to_vec(), what: "not a symbolic link" });
        }
        self.reader(node).readlink(node.ino)
    }

    fn read_at(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = self.resolve(path, true)?;
        match self.node_stat(node)?.kind {
            FileType::Regular => self.reader(node).read_at(node.ino, offset, buf),
            FileType::Directory => Err(Error::WrongType { path: path.to_vec(), what: "is a directory" }),
            _ => Err(Error::WrongType { path: path.to_vec(), what: "not a regular file" }),
        }
    }

    fn next_data(&self, path: &[u8], offset: u64) -> Result<Option<Range<u64>>> {
        let node = self.resolve(path, true)?;
        self.reader(node).next_data(node.ino, offset)
    }

    fn xattrs(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let node = self.resolve(path, false)?;
        self.reader(node).xattrs(node.ino)
    }

    fn statfs(&self, path: &[u8]) -> Result<StatFs> {
        let node = self.resolve(path, true)?;
        self.reader(node).statfs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ext;

    /// A filesystem in memory: by inode, a directory's names, a link's target or a file's content.
    enum Made {
        Dir(Vec<(&'static str, u64)>),
        Link(&'static str),
        File(&'static str),
    }

    struct Memory(Vec<Made>);

    impl FsReader for Memory {
        fn root(&self) -> u64 {
            0
        }
        fn stat(&self, ino: u64) -> Result<Stat> {
            let (kind, size) = match &self.0[ino as usize] {
                Made::Dir(_) => (FileType::Directory, 0),
                Made::Link(t) => (FileType::Symlink, t.len()),
                Made::File(t) => (FileType::Regular, t.len()),
            };
            let (atime, mtime, ctime) = Default::default();
            Ok(Stat {
                kind,
                mode: 0o755,
                uid: 0,
                gid: 0,
                size: size as u64,
                nlink: 1,
                ino,
                dev: 0,
                rdev: (0, 0),
                blocks: 0,
                atime,
                mtime,
                ctime,
            })
        }
        fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
            let Made::Dir(entries) = &self.0[dir as usize] else { panic!("{dir} is no directory") };
            Ok(entries.iter().find(|(n, _)| n.as_bytes() == name).map(|(_, i)| *i))
        }
        fn read_dir(&self, _: u64) -> Result<Vec<DirEntry>> {
            Ok(Vec::new())
        }
        fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
            let Made::Link(target) = &self.0[ino as usize] else { panic!("{ino} is no link") };
            Ok(target.as_bytes().to_vec())
        }
        fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
            let Made::File(content) = &self.0[ino as usize] else { panic!("{ino} is no file") };
            let rest = &content.as_bytes()[(offset as usize).min(content.len())..];
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
        fn xattrs(&self, _: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
            Ok(Vec::new())
        }
        fn statfs(&self) -> Result<StatFs> {
            Ok(StatFs::default())
        }
    }

    fn tree() -> Tree {
        use Made::{Dir, File, Link};
        let root = Memory(vec![
            Dir(vec![("etc", 1), ("up", 4), ("abs", 5), ("loop", 6), ("boot", 7), ("bootlink", 8), ("long", 9)]),
            Dir(vec![("passwd", 2), ("rel", 3)]),
            File("root"),
            Link("../etc/./passwd"),
            Link("../../../../etc/passwd"),
            Link("/etc"),
            Link("loop"),
            Dir(vec![]),
            Link("/boot"),
            Link("etc/passwd/x"),
        ]);
        let boot = Memory(vec![Dir(vec![("grub", 1), ("out", 2)]), File("cfg"), Link("../etc/passwd")]);
        let mut tree = Tree::new(Arc::new(root));
        tree.mount(b"/bootlink", Arc::new(boot)).unwrap();
        tree
    }

    #[test]
    fn links_stay_inside() {
        let tree = tree();
        for path in
            ["/etc/passwd", "/etc/rel", "/up", "/abs/passwd", "/../../etc/passwd", "//abs//rel", "/boot/out", "/bootlink/../etc/rel"]
        {
            assert_eq!(tree.read(path.as_bytes(), 100).unwrap(), b"root", "{path}");
        }
        assert_eq!(tree.read(b"/bootlink/grub", 100).unwrap(), b"cfg");
        assert_eq!(tree.readlink(b"/abs").unwrap(), b"/etc");
        assert_eq!(tree.lstat(b"/abs").unwrap().kind, FileType::Symlink);
        assert_eq!(tree.lstat(b"/abs/").unwrap().kind, FileType::Directory);
        assert_ne!(tree.stat(b"/boot").unwrap().dev, tree.stat(b"/etc").unwrap().dev);
    }

    #[test]
    fn failures_have_their_kinds() {
        let tree = tree();
        assert!(matches!(tree.stat(b"/none/x"), Err(Error::NotFound(p)) if p == b"/none/x"));
        for path in ["/etc/passwd/x", "/long", "/loop"] {
            assert!(matches!(tree.stat(path.as_bytes()), Err(Error::WrongType { .. })), "{path}");
        }
        assert!(matches!(tree.read(b"/etc", 9), Err(Error::WrongType { what: "is a directory", .. })));
        assert!(matches!(tree.readlink(b"/etc"), Err(Error::WrongType { .. })));
    }
}
