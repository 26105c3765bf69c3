//! A guest's files one by one, as the kernel asks for them: a place is where a file is, and leads to it again.

use guestfs::engine::Session;
use guestfs::{DirEntry, Error, Result, Stat, StatFs, Tree, TreeNode, Xattrs};

use crate::virt::show::join;

/// Paths that the appliance's kernel takes are no longer.
const PATH_MAX: usize = 4096;

/// What is mounted. No method follows a symbolic link: that is for the kernel to do.
pub(super) trait Files: Send + 'static {
    /// Leads to a file.
    type Place: Clone + Send;
    fn root(&self) -> Self::Place;
    /// The file of a name in a directory.
    fn child(&self, dir: &Self::Place, name: &[u8]) -> Result<Option<Self::Place>>;
    fn stat(&self, file: &Self::Place) -> Result<Stat>;
    fn read_dir(&self, dir: &Self::Place) -> Result<Vec<DirEntry>>;
    fn readlink(&self, link: &Self::Place) -> Result<Vec<u8>>;
    /// Reads bytes of a regular file; 0 at its end, possibly fewer than asked before.
    fn read_at(&self, file: &Self::Place, offset: u64, buf: &mut [u8]) -> Result<usize>;
    fn xattrs(&self, file: &Self::Place) -> Result<Xattrs>;
    fn statfs(&self, file: &Self::Place) -> Result<StatFs>;
}

impl Files for Tree {
    type Place = TreeNode;

    fn root(&self) -> TreeNode {
        Tree::root(self)
    }

    fn child(&self, dir: &TreeNode, name: &[u8]) -> Result<Option<TreeNode>> {
        Tree::child(self, *dir, name)
    }

    fn stat(&self, file: &TreeNode) -> Result<Stat> {
        self.node_stat(*file)
    }

    fn read_dir(&self, dir: &TreeNode) -> Result<Vec<DirEntry>> {
        let (reader, ino) = self.inode(*dir);
        reader.read_dir(ino)
    }

    fn readlink(&self, link: &TreeNode) -> Result<Vec<u8>> {
        let (reader, ino) = self.inode(*link);
        reader.readlink(ino)
    }

    fn read_at(&self, file: &TreeNode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (reader, ino) = self.inode(*file);
        reader.read_at(ino, offset, buf)
    }

    fn xattrs(&self, file: &TreeNode) -> Result<Xattrs> {
        let (reader, ino) = self.inode(*file);
        reader.xattrs(ino)
    }

    fn statfs(&self, file: &TreeNode) -> Result<StatFs> {
        self.inode(*file).0.statfs()
    }
}

/// The appliance knows files by their paths. None of them leads through a link, as each step was looked up.
impl Files for Box<dyn Session> {
    type Place = Vec<u8>;

    fn root(&self) -> Vec<u8> {
        b"/".to_vec()
    }

    fn child(&self, dir: &Vec<u8>, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let path = join(dir, name);
        if path.len() >= PATH_MAX {
            return Err(Error::Guest { path, action: "look up", what: "the path is longer than the appliance's kernel takes".into() });
        }
        match self.as_fs().lstat(&path) {
            Ok(_) => Ok(Some(path)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn stat(&self, file: &Vec<u8>) -> Result<Stat> {
        self.as_fs().lstat(file)
    }

    fn read_dir(&self, dir: &Vec<u8>) -> Result<Vec<DirEntry>> {
        self.as_fs().read_dir(dir)
    }

    fn readlink(&self, link: &Vec<u8>) -> Result<Vec<u8>> {
        self.as_fs().readlink(link)
    }

    fn read_at(&self, file: &Vec<u8>, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.as_fs().read_at(file, offset, buf)
    }

    fn xattrs(&self, file: &Vec<u8>) -> Result<Xattrs> {
        self.as_fs().xattrs(file)
    }

    fn statfs(&self, file: &Vec<u8>) -> Result<StatFs> {
        self.as_fs().statfs(file)
    }
}
