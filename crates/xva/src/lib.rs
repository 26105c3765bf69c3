//! XenServer / XCP-ng virtual appliances (XVA), modern and legacy, as random-access disks and as a stream.
//!
//! A modern XVA is a tar of `ova.xml` and of every disk's chunks, each chunk followed by its checksum; the whole may be
//! wrapped in gzip or zstd. A legacy one (`<appliance version="0.1">`) is a folder, or a tar of it, of `ova.xml` and
//! gzipped chunks. Both have a [model](Appliance) in common, and two ways to be read:
//!
//! * [`Xva::open`] indexes an archive or folder once, without reading disk data, and gives every disk as an
//!   [`imgcore::Image`]. A chunk's checksum is verified when the chunk is first read.
//! * a [`Stream`] is an archive that is read once from front to end, without a temporary copy: every chunk goes to a
//!   [`StreamSink`] in order, verified by parallel workers.
//!
//! Disks become an appliance through [`XvaContainer`]'s [writer](imgcore::formats::ContainerWriter).
//!
//! An archive is hostile input. Nothing in it can make this crate allocate by a number it claims, open a file that is
//! not below the given folder, or run without end.

#![forbid(unsafe_code)]

mod archive;
mod bytes;
mod chunks;
mod container;
mod disk;
mod gunzip;
mod gzip;
mod legacy;
mod members;
mod model;
mod modern;
mod stream;
mod sums;
mod tar;
mod wrap;
mod write;
mod xmlrpc;

pub use archive::{Options, Xva};
pub use container::{XvaContainer, is_packed, probe};
pub use gzip::GzipImage;
pub use members::{Member, members};
pub use model::{Appliance, Boot, Disk, Drive, Form, HostPolicy, Nic, Role, Vm};
pub use stream::{Stream, StreamSink};

/// The format's name in messages.
const XVA: &str = "XVA";

pub use imgcore::{Error, Result};
