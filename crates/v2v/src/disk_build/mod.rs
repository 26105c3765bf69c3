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

use crate::target::Target;

pub use compute::compute;
pub use examine::{DiskContents, Found, examine};
pub(crate) use naming::letters;
pub use write::{Move, build, moves, write_swaps, write_table};

/// What the user asks of a layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `--layout keep`: every disk of the source stays a disk of its own, as it is. The result may not be able to start by itself.
    pub keep: bool,
    /// Where the guest goes, which says how disks are called.
    pub target: Target,
}
