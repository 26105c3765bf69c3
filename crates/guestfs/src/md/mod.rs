//! Linux software RAID: arrays put together from their members' superblocks. Mirrors, linear and striped arrays are read in this process; of others
//! it is known that they are there, and the appliance has to read them.

mod array;
mod mirror;
mod superblock;

use imgcore::Image;

pub use self::array::Array;
pub(crate) use self::array::Member;
pub(crate) use self::superblock::Superblock;

/// The superblock of an array's member.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn superblock(image: &dyn Image) -> Result<Superblock, String> {
    superblock::read(image)
}
