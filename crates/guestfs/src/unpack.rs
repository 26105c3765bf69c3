//! Whole trees of files on their way into a guest.

use crate::{Attributes, FileType, Result, Time};

/// A file that is to be made below a directory of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its path below the directory, without a slash in front; empty is the directory itself.
    pub path: Vec<u8>,
    /// What it is.
    pub what: What,
    /// Owner, group and mode. Hard links have none of their own, nor have links a mode.
    pub attributes: Attributes,
    /// Times of access and change.
    pub times: (Time, Time),
    /// Extended attributes with their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a [`Node`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory. One that is there is kept with all that is in it.
    Directory,
    /// A regular file, whose content follows.
    File,
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// Another name for the file with this path below the directory.
    Link(Vec<u8>),
    /// A fifo, a socket or a device with its numbers.
    Special(FileType, (u32, u32)),
}

/// Takes files one after the other.
pub trait Unpack {
    /// The next file.
    fn node(&mut self, node: &Node) -> Result<()>;
    /// More content of the regular file that came last.
    fn data(&mut self, data: &[u8]) -> Result<()>;
    /// So many zeroes in it, for which no room is taken.
    fn hole(&mut self, len: u64) -> Result<()>;
}
