//! btrfs on one device, read only, with its subvolumes and snapshots.
//!
//! A filesystem on several devices, and one whose log is to be replayed, are left to the appliance. Metadata
//! and files' content are held against their checksums (CRC-32C; other kinds are not computed), and the second copy is taken where the
//! first is damaged.

mod checksum;
mod chunks;
mod file;
mod inode;
mod subvolume;
mod superblock;
mod tree;

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};

use imgcore::Image;

use self::chunks::Chunks;
use self::inode::Inode;
use self::superblock::Superblock;
use self::tree::{BLOCK_GROUP_ITEM, CHUNK_ITEM, DIR_INDEX, INODE_ITEM, Key, Nodes, ROOT_ITEM, Root, XATTR_ITEM};
use crate::bytes::le64;
use crate::directory::{Directories, Directory, is_name};
use crate::reader::{FsReader, fill, first_data};
use crate::window::Cache;
use crate::{DirEntry, Error, FileType, Result, Stat, StatFs, Time, Window};

/// The object whose items are the chunks.
const CHUNKS_OBJECT: u64 = 256;
const EXTENT_TREE: u64 = 2;
const BLOCK_GROUP_TREE: u64 = 11;
/// The kernel's number for the directory that stands in a snapshot where the original has a subvolume.
const EMPTY: u64 = 2;
const SYMLINK_LIMIT: u64 = 4096;
/// What was decompressed and is kept, in bytes.
const UNPACKED: usize = 4 << 20;
/// Bits of an inode's number in the numbers that this reader hands out; above them stands the subvolume.
const INODE_BITS: u32 = 40;

const BLOCK_GROUP_DATA: u64 = 0x1;
/// RAID 1, DUP, RAID 10: everything is there twice.
const TWICE: u64 = 0x10 | 0x20 | 0x40;

/// A file: its subvolume, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub subvolume: u64,
    pub inode: u64,
}

/// An open filesystem.
pub(crate) struct Btrfs {
    nodes: Nodes,
    /// The directory that is mounted.
    top: Node,
    directories: Directories,
    trees: Mutex<HashMap<u64, Root>>,
    unpacked: Cache<u64>,
}

/// Opens the filesystem in `len` bytes of an image from byte `start`, with the subvolume that mount options name.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64, options: &str) -> Result<Arc<dyn FsReader>> {
    Ok(Arc::new(mounted(image, start, len, options)?))
}

/// Where the subvolume that mount options name stands, seen from the top: `@/.snapshots/1/snapshot`; empty for the top itself.
pub(crate) fn subvolume_path(image: Arc<dyn Image>, start: u64, len: u64, options: &str) -> Result<Vec<u8>> {
    subvolume::path(&mounted(image, start, len, options)?)
}

fn mounted(image: Arc<dyn Image>, start: u64, len: u64, options: &str) -> Result<Btrfs> {
    let window = Window::new(image, start, len, "btrfs");
    let superblock = Superblock::parse(&window.bytes(superblock::OFFSET, superblock::SIZE)?, &window)?;
    let chunks = Chunks::of_system(&superblock, &window)?;
    let mut nodes = Nodes { window, superblock, chunks };
    let mut chunks = nodes.chunks.clone();
    let root = Root { address: nodes.superblock.chunk_root, level: nodes.superblock.chunk_root_level };
    nodes.walk(root, Key::new(CHUNKS_OBJECT, CHUNK_ITEM, 0)..Key::new(CHUNKS_OBJECT, CHUNK_ITEM + 1, 0), |key, item| {
        chunks.add(key.offset, item, &nodes.superblock, &nodes.window)?;
        Ok(ControlFlow::Continue(()))
    })?;
    nodes.chunks = chunks;
    let top = Node { subvolume: subvolume::TOP, inode: subvolume::FIRST };
    let mut fs = Btrfs { nodes, top, directories: Directories::default(), trees: Mutex::default(), unpacked: Cache::new(UNPACKED) };
    fs.top.subvolume = subvolume::wanted(&fs, options)?;
    Ok(fs)
}

impl Btrfs {
    fn root_tree(&self) -> Root {
        Root { address: self.nodes.superblock.root, level: self.nodes.superblock.root_level }
    }

    /// A subvolume's tree, or another one's.
    fn tree(&self, number: u64) -> Result<Root> {
        if let Some(known) = self.trees.lock().unwrap_or_else(PoisonError::into_inner).get(&number) {
            return Ok(*known);
        }
        let missing = || self.nodes.window.corrupt(format!("there is no tree {number}"));
        let root = subvolume::tree(self, number)?.ok_or_else(missing)?;
        self.trees.lock().unwrap_or_else(PoisonError::into_inner).insert(number, root);
        Ok(root)
    }

    /// The number that stands for a file outside of this reader.
    fn number(&self, node: Node) -> Result<u64> {
        if node.inode >> INODE_BITS != 0 || node.subvolume >> (64 - INODE_BITS) != 0 {
            let what = format!("inode {} of subvolume {}", node.inode, node.subvolume);
            return Err(Error::Unsupported { filesystem: "btrfs", what });
        }
        Ok(node.subvolume << INODE_BITS | node.inode)
    }

    fn node(number: u64) -> Node {
        Node { subvolume: number >> INODE_BITS, inode: number & ((1 << INODE_BITS) - 1) }
    }

    fn inode(&self, node: Node) -> Result<Inode> {
        let item = self.nodes.get(self.tree(node.subvolume)?, Key::new(node.inode, INODE_ITEM, 0))?;
        let missing = || self.nodes.window.corrupt(format!("inode {} of subvolume {} is missing", node.inode, node.subvolume));
        Inode::parse(node.inode, item.ok_or_else(missing)?, &self.nodes.window)
    }

    fn directory(&self, node: Node) -> Result<Arc<Directory>> {
        self.directories.get(self.number(node)?, || self.read_directory(node))
    }

    fn read_directory(&self, node: Node) -> Result<Directory> {
        let mut directory = Directory::default();
        if node.inode == EMPTY {
            return Ok(directory);
        }
        let keys = Key::new(node.inode, DIR_INDEX, 0)..Key::new(node.inode, DIR_INDEX + 1, 0);
        self.nodes.walk(self.tree(node.subvolume)?, keys, |_, item| {
            for named in inode::names(item, &self.nodes.window)? {
                if !is_name(named.name) {
                    let shown = crate::error::show(named.name);
                    return Err(self.nodes.window.corrupt(format!("inode {}: a file cannot be called '{shown}'", node.inode)));
                }
                let child = match named.location.kind {
                    ROOT_ITEM if subvolume::stands_at(self, named.location.object, node, named.name)? => {
                        Node { subvolume: named.location.object, inode: subvolume::FIRST }
                    }
                    ROOT_ITEM => Node { subvolume: node.subvolume, inode: EMPTY },
                    _ => Node { subvolume: node.subvolume, inode: named.location.object },
                };
                let kind = FileType::of_entry(named.kind).unwrap_or(FileType::Regular);
                // What readdir(3) tells is the number in the entry, whatever is mounted there.
                directory.add(named.name, kind, named.location.object, self.number(child)?);
            }
            if directory.is_full() {
                return Err(Error::Unsupported { filesystem: "btrfs", what: format!("a directory of {} names", directory.entries.len()) });
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(directory)
    }

    fn child(&self, node: Node, name: &[u8]) -> Result<Option<Node>> {
        Ok(self.directory(node)?.lookup(name).map(Btrfs::node))
    }

    /// Fills `buf` from a file, or as much of it as the file has.
    fn read(&self, node: Node, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let tree = self.tree(node.subvolume)?;
        fill(offset, &mut buf[..left], |at, rest| file::piece(self, tree, inode, at, rest))
    }
}

impl FsReader for Btrfs {
    fn root(&self) -> u64 {
        self.top.subvolume << INODE_BITS | self.top.inode
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        let node = Btrfs::node(ino);
        if node.inode == EMPTY {
            return Ok(empty_directory());
        }
        let mut stat = self.inode(node)?.stat(self.nodes.superblock.sector_size);
        // Numbers are unique in one subvolume only.
        stat.dev = node.subvolume;
        Ok(stat)
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.directory(Btrfs::node(dir))?.lookup(name))
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(Btrfs::node(dir))?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let node = Btrfs::node(ino);
        let inode = self.inode(node)?;
        if inode.kind != FileType::Symlink || inode.size > SYMLINK_LIMIT {
            return Err(self.nodes.window.corrupt(format!("inode {} is no symbolic link of {} bytes", inode.number, inode.size)));
        }
        let mut target = vec![0; inode.size as usize];
        self.read(node, &inode, 0, &mut target)?;
        Ok(target)
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = Btrfs::node(ino);
        self.read(node, &self.inode(node)?, offset, buf)
    }

    fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>> {
        let node = Btrfs::node(ino);
        let (inode, tree) = (self.inode(node)?, self.tree(node.subvolume)?);
        first_data(offset, inode.size, |at| file::run_of(self, tree, &inode, at))
    }

    fn xattrs(&self, ino: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let node = Btrfs::node(ino);
        let mut found = Vec::new();
        if node.inode == EMPTY {
            return Ok(found);
        }
        let keys = Key::new(node.inode, XATTR_ITEM, 0)..Key::new(node.inode, XATTR_ITEM + 1, 0);
        self.nodes.walk(self.tree(node.subvolume)?, keys, |_, item| {
            found.extend(inode::names(item, &self.nodes.window)?.into_iter().map(|n| (n.name.to_vec(), n.value.to_vec())));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn statfs(&self) -> Result<StatFs> {
        let superblock = &self.nodes.superblock;
        let tree = self.tree(if superblock.block_group_tree { BLOCK_GROUP_TREE } else { EXTENT_TREE })?;
        let (mut used_raw, mut allocated, mut free_data, mut factor) = (0u64, 0u64, 0u64, 1);
        for (start, chunk) in self.nodes.chunks.iter() {
            let group = self.nodes.get(tree, Key::new(start, BLOCK_GROUP_ITEM, chunk.len))?;
            let used = group.map_or(0, |item| le64(&item, 0));
            let copies = if chunk.kind & TWICE != 0 { 2 } else { 1 };
            used_raw = used_raw.saturating_add(used.saturating_mul(copies));
            allocated = allocated.saturating_add(chunk.len.saturating_mul(copies));
            if chunk.kind & BLOCK_GROUP_DATA != 0 {
                free_data += chunk.len.saturating_sub(used);
                factor = copies;
            }
        }
        let blocks_of = |bytes: u64| bytes / u64::from(superblock.sector_size);
        let unallocated = superblock.total_bytes.saturating_sub(allocated) / factor;
        Ok(StatFs {
            block_size: superblock.sector_size.into(),
            blocks: blocks_of(superblock.total_bytes / factor),
            blocks_free: blocks_of(superblock.total_bytes.saturating_sub(used_raw) / factor),
            blocks_available: blocks_of(free_data.saturating_add(unallocated)),
            files: 0,
            files_free: 0,
        })
    }
}

fn empty_directory() -> Stat {
    let never = Time::default();
    Stat {
        kind: FileType::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        nlink: 1,
        ino: EMPTY,
        dev: 0,
        rdev: (0, 0),
        blocks: 0,
        atime: never,
        mtime: never,
        ctime: never,
    }
}
