//! Guests' filesystems: volumes, readers in this process, inspection.
//!
//! [`GuestFs`] is what tools need of a guest's tree. It is implemented in this process, read only and in
//! milliseconds, by `Tree` over filesystem readers, and by the appliance for everything else
//! ([`engine`]). Paths are bytes, absolute, and never lead outside the guest: symbolic links are resolved
//! against the guest's own root.

#![forbid(unsafe_code)]

mod bytes;
pub mod engine;
mod error;
mod ext4;
pub mod free;
mod fs;
mod guest;
pub mod inspect;
pub mod keys;
mod luks;
pub mod lvm;
pub mod machine;
pub mod md;
pub mod probe;
pub mod reader;
pub mod space;
mod stripes;
mod tree;
mod unpack;
pub mod volume;

pub use error::{Error, Result, show};
pub use fs::{Attributes, DirEntry, Ext, FileType, GuestFs, GuestFsMut, Stat, StatFs, Time};
pub use guest::{EngineChoice, Guest, MountRequest, OpenOptions, Roots};
pub use inspect::Inspection;
pub use keys::{KeyRing, Keys};
pub use reader::FsReader;
pub use tree::Tree;
pub use unpack::{Node, Unpack, What};
pub use volume::{GuestDisk, GuestDiskMut, Volume, Volumes};
