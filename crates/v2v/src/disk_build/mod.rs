//! From a source's disks to the target's: what lies where, and writing it.
//!
//! [`examine`] looks at the source's disks, [`compute`] decides on a [`Layout`], [`build`] writes one target disk. Where the
//! bytes are on a target file already (a stream that was written volume by volume), [`moves`] says where they belong, and
//! [`write_table`] and [`write_swaps`] do the rest of [`build`].

mod compute;
mod examine;
mod naming;
pub mod swap;
mod write;

#[cfg(test)]
mod tests;

use crate::grow::Growth;
use crate::target::Target;

pub use compute::compute;
pub use examine::{DiskContents, Found, examine};
pub(crate) use naming::letters;
pub use write::{Move, build, moves, write_swaps, write_table};

/// What the user asks of a layout, and what is known of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `--layout keep`: every disk of the source stays a disk of its own, as it is. The result may not be able to start by itself.
    pub keep: bool,
    /// Where the guest goes, which says how disks are called.
    pub target: Target,
    /// New partitions start at multiples of so many bytes.
    pub alignment: u64,
    /// Partitions that are kept do so, too.
    pub realign: bool,
    /// What becomes larger.
    pub grow: Option<Growth>,
    /// What inspection found of the guest's mounts; where it is not given, fstab and superblocks have to tell.
    pub places: Option<Places>,
}

impl Default for Options {
    fn default() -> Self {
        Options { keep: false, target: Target::default(), alignment: ALIGNMENT, realign: false, grow: None, places: None }
    }
}

/// The source's disks, by position, that hold what a guest starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Those that the filesystem with `/boot` lies on.
    pub boot: Vec<usize>,
    /// Those that the root lies on.
    pub root: Vec<usize>,
}

/// Partitions start at multiples of it if nothing else is asked for, and there is at least as much room for a boot loader.
pub const ALIGNMENT: u64 = 1 << 20;
