//! Guests' filesystems: volumes, readers in this process, inspection.
//!
//! [`GuestFs`] is what tools need of a guest's tree. It is implemented in this process, read only and in
//! milliseconds, by `Tree` over filesystem readers, and by the appliance for everything else
//! ([`engine`]). Paths are bytes, absolute, and never lead outside the guest: symbolic links are resolved
//! against the guest's own root.

#![forbid(unsafe_code)]

mod btrfs;
mod bytes;
mod cached;
mod compression;
mod directory;
pub mod engine;
mod error;
mod ext4;
mod fat;
pub mod free;
mod fs;
mod guest;
pub mod inspect;
mod iso9660;
pub mod journal;
pub mod keys;
mod luks;
pub mod lvm;
pub mod machine;
pub mod md;
mod ntfs;
pub mod probe;
pub mod reader;
mod registry;
mod roots;
pub mod space;
mod squashfs;
mod stripes;
mod tree;
mod ufs;
mod unpack;
pub mod volume;
mod window;
mod xfs;

pub use error::{Error, Result, show};
pub use fs::{Attributes, DirEntry, Ext, FileType, GuestFs, GuestFsMut, Stat, StatFs, Time, Xattrs};
pub use guest::{Access, EngineChoice, Guest, MountRequest, OpenOptions};
pub use inspect::Inspection;
pub use keys::{KeyRing, Keys};
pub use reader::FsReader;
pub use roots::Roots;
pub use tree::{Node as TreeNode, Tree};
pub use unpack::{Node, Unpack, What};
pub use volume::{GuestDisk, GuestDiskMut, Volume, Volumes};
use window::Window;
