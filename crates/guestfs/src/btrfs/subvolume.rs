//! Subvolumes: which one is mounted, and the trees that they are. (btrfs documentation, ROOT_ITEM, ROOT_REF)

use std::ops::ControlFlow;

use super::tree::{DIR_ITEM, INODE_REF, Key, ROOT_BACKREF, ROOT_ITEM, Root};
use super::{Btrfs, Node};
use crate::bytes::{cut, le16, le64};
use crate::directory::is_name;
use crate::{Error, Result};

/// The subvolume that holds all the others.
pub(crate) const TOP: u64 = 5;
/// The first number of an inode, which every subvolume's root directory has.
pub(crate) const FIRST: u64 = 256;
/// Directories above a subvolume.
const DEPTH: usize = 256;

/// A subvolume's tree.
pub(crate) fn tree(fs: &Btrfs, subvolume: u64) -> Result<Option<Root>> {
    let mut root = None;
    let keys = Key::new(subvolume, ROOT_ITEM, 0)..Key::new(subvolume, ROOT_ITEM + 1, 0);
    fs.nodes.walk(fs.root_tree(), keys, |_, item| {
        let level = cut(item, 238, 1).first().copied().unwrap_or_default();
        root = Some(Root { address: le64(item, 176), level });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(root)
}

/// The subvolume that is mounted when none is named.
pub(crate) fn default(fs: &Btrfs) -> Result<u64> {
    let mut chosen = TOP;
    let directory = fs.nodes.superblock.root_dir;
    fs.nodes.walk(fs.root_tree(), Key::new(directory, DIR_ITEM, 0)..Key::new(directory, DIR_ITEM + 1, 0), |_, item| {
        let names = super::inode::names(item, &fs.nodes.window)?;
        if let Some(found) = names.iter().find(|n| n.name == b"default") {
            chosen = found.location.object;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(chosen)
}

/// Whether a subvolume really stands at this name: in a snapshot, the ones inside the original do not.
pub(crate) fn stands_at(fs: &Btrfs, subvolume: u64, parent: Node, name: &[u8]) -> Result<bool> {
    let back = fs.nodes.get(fs.root_tree(), Key::new(subvolume, ROOT_BACKREF, parent.subvolume))?;
    Ok(back.is_some_and(|b| le64(&b, 0) == parent.inode && cut(&b, 18, usize::from(le16(&b, 16))) == name))
}

/// The names that lead from the top to the mounted subvolume, with slashes between them.
pub(crate) fn path(fs: &Btrfs) -> Result<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut at = fs.top;
    while at != (Node { subvolume: TOP, inode: FIRST }) {
        let is_subvolume = at.inode == FIRST;
        // Both kinds of items name the directory above: a subvolume's in another tree, where its number is in the item.
        let (tree, object, kind) =
            if is_subvolume { (fs.root_tree(), at.subvolume, ROOT_BACKREF) } else { (fs.tree(at.subvolume)?, at.inode, INODE_REF) };
        let mut above = None;
        fs.nodes.walk(tree, Key::new(object, kind, 0)..Key::new(object, kind + 1, 0), |key, item| {
            above = Some(if is_subvolume {
                let name = cut(item, 18, usize::from(le16(item, 16))).to_vec();
                (Node { subvolume: key.offset, inode: le64(item, 0) }, name)
            } else {
                (Node { subvolume: at.subvolume, inode: key.offset }, cut(item, 10, usize::from(le16(item, 8))).to_vec())
            });
            Ok(ControlFlow::Break(()))
        })?;
        match above {
            Some((directory, name)) if is_name(&name) && names.len() < DEPTH => {
                names.push(name);
                at = directory;
            }
            _ => return Err(fs.nodes.window.corrupt(format!("subvolume {} stands nowhere", fs.top.subvolume))),
        }
    }
    names.reverse();
    Ok(names.join(&b"/"[..]))
}

/// The subvolume that mount options mean: `subvol=PATH`, `subvolid=NUMBER`, or none of them.
pub(crate) fn wanted(fs: &Btrfs, options: &str) -> Result<u64> {
    let missing = |what: &str| Error::Invalid(format!("the filesystem has no subvolume {what}"));
    let mut chosen = None;
    for option in options.split(',') {
        if let Some(number) = option.strip_prefix("subvolid=") {
            let (digits, radix) = number.strip_prefix("0x").map_or((number, 10), |hex| (hex, 16));
            let id = u64::from_str_radix(digits, radix).map_err(|_| missing(number))?;
            // 0 means the top, as in the kernel.
            let id = if id == 0 { TOP } else { id };
            tree(fs, id)?.ok_or_else(|| missing(number))?;
            chosen = Some(id);
        } else if let Some(path) = option.strip_prefix("subvol=") {
            let mut node = Node { subvolume: TOP, inode: FIRST };
            for name in path.split('/').filter(|n| !n.is_empty()) {
                node = fs.child(node, name.as_bytes())?.ok_or_else(|| missing(path))?;
            }
            if node.inode != FIRST {
                return Err(missing(path));
            }
            chosen = Some(node.subvolume);
        }
    }
    chosen.map_or_else(|| default(fs), Ok)
}
