//! Disk images: formats, partitions and the copy engine.
//!
//! Everything here is positional and works on `&self`, so that one open image serves many threads:
//!
//! * [`Storage`] is where bytes lie: a file, memory, a fault-injecting wrapper. Formats see nothing else.
//! * [`Image`] is what a guest sees of them; [`ImageMut`] can also be written.
//! * [`Gate`] decides which other files an image may name (backing files, parents, extents).
//!
//! Images are hostile input: all that is read from them is checked before use, allocations are bounded, and a
//! file that an image names is opened only if the caller's gate lets it. This crate never starts a process and
//! never prints.

#![forbid(unsafe_code)]

mod be;
pub mod commit;
pub mod compare;
pub mod copy;
mod cursor;
mod derived;
pub mod difference;
pub mod edit;
mod error;
pub mod formats;
mod gate;
mod image;
mod joined;
mod layers;
mod le;
pub mod nbd;
pub mod overlay;
pub mod partition;
mod progress;
pub mod qcow2;
mod ranges;
pub mod raw;
pub mod rebase;
pub mod size;
pub mod slice;
pub mod storage;
mod stream;
mod tables;
#[cfg(test)]
mod testing;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
pub mod xml;

pub use edit::{Bitmaps, ImageEdit, Preallocation, Snapshots};
pub use error::{Error, Result};
pub use formats::{Caches, Formats, OpenOptions};
pub use gate::{Gate, LocalGate, NoGate, Reference, TreeGate};
pub use image::{
    BitmapInfo, Compression, Compressor, Extent, ExtentKind, Image, ImageInfo, ImageMut, PartInfo, Place, Placing, SnapshotInfo,
};
pub use joined::Joined;
pub use overlay::Overlay;
pub use progress::{NoProgress, Progress};
pub use slice::Slice;
pub use storage::Storage;
