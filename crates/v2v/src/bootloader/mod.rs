//! GRUB 2 on a BIOS disk, installed without running anything in the guest.
//!
//! In the order in which they are used:
//!
//! * [`starts_by_itself`] tells whether a disk of the source has a boot loader that a BIOS can start. PV guests mostly have none: Xen
//!   started their kernel, or pygrub read their `menu.lst`.
//! * [`check_readable`] finds features of the filesystem that GRUB does not know.
//! * [`install_files`] puts GRUB's modules and, where the guest has no `grub.cfg`, one of these into the guest's tree.
//! * [`Grub::loader`] makes what an ESP needs instead, where the guest is to start by UEFI.
//! * [`Grub::embed`] writes the boot sector and the core image between partition table and first partition.
//!
//! The files come from the host's `grub-pc-bin`; the core image is made by its `grub-mkimage` (package `grub-common`), the one program
//! that this module runs. No file of the guest reaches it.

mod config;
mod detect;
mod efi;
mod embed;
mod files;
mod grub;
mod order;
mod readable;

#[cfg(test)]
mod tests;

pub(crate) use config::is_found;
pub use detect::starts_by_itself;
pub use efi::Loader;
pub use files::{Configured, Menu, install_files};
pub use grub::Grub;
pub use readable::check_readable;

use crate::layout::{Layout, TargetDisk, Volume};
use crate::stack::Layer;
use crate::{Error, Result};

/// The filesystem from which the guest is to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlace {
    /// The target's disk that the firmware starts, an index in [`Layout::disks`].
    pub disk: usize,
    /// The filesystem's partition on it; `None` where it lies on [`layers`](Self::layers), and is found by its UUID.
    pub partition: Option<u32>,
    /// What is between the filesystem and the disks.
    pub layers: Vec<Layer>,
    /// The kind of filesystem, as blkid says.
    pub filesystem: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Where `/boot` lies on it: `/boot`, nothing when this filesystem is mounted there, `/@/boot` in a subvolume of btrfs.
    pub boot_dir: String,
}

impl BootPlace {
    /// The place of a layout's volume with `/boot` at `boot_dir` of its filesystem.
    pub fn new(layout: &Layout, volume: &Volume, boot_dir: String) -> Result<Self> {
        let holds = |d: &TargetDisk| d.volumes.iter().any(|v| v.target_device == volume.target_device);
        let index = layout.disks.iter().position(holds);
        let (Some(disk), Some(partition)) = (index, volume.partition) else {
            return Err(Error::Invalid(format!(
                "{} has no partition table, so no boot loader fits on its disk: convert without '--layout keep'",
                volume.target_device
            )));
        };
        Ok(BootPlace {
            disk,
            partition: Some(partition),
            layers: Vec::new(),
            filesystem: volume.filesystem.clone(),
            uuid: volume.uuid.clone(),
            boot_dir,
        })
    }
}
