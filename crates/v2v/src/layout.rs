//! How the source's disks and volumes lie on the target's disks, and what each device is called on both.

use crate::disk_build::letters;
use crate::resize::plan::Plan;

/// The whole target, disk by disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Target disks in order: `vda`, `vdb`, …
    pub disks: Vec<TargetDisk>,
}

/// One target disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetDisk {
    /// `vda`
    pub device: String,
    /// Size in bytes.
    pub size: u64,
    /// What becomes of the partition table.
    pub table: Table,
    /// Bytes at its end that the source's disk does not have, where it is kept.
    pub grown: u64,
    /// The filesystems, swaps and others on it.
    pub volumes: Vec<Volume>,
    /// Where the partitions of a table that is kept go, if not where they were.
    pub moved: Option<Plan>,
}

/// What becomes of a disk's partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The disk is the source's disk of this index: its table (or none) stays, and byte for byte all else that does not move or grow.
    Keep {
        /// Index in [`Source::disks`](crate::source::Source::disks).
        disk: usize,
    },
    /// A new MBR.
    NewMbr,
    /// A new GPT, with a bios_grub partition.
    NewGpt,
}

/// One volume: a partition, or a whole disk's filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The source's disk, an index in [`Source::disks`](crate::source::Source::disks).
    pub disk: usize,
    /// What the guest called it on Xen, without `/dev/`: `xvda2`.
    pub source_device: String,
    /// What it is called on the target: `vda2`.
    pub target_device: String,
    /// Partition number on the target; `None` for a whole disk.
    pub partition: Option<u32>,
    /// First byte on the source's disk.
    pub source_offset: u64,
    /// First byte on the target's disk.
    pub target_offset: u64,
    /// Length in bytes on the source.
    pub len: u64,
    /// Bytes by which it is larger on the target.
    pub grow: u64,
    /// `ext4`, `swap`, `LVM2_member`, as blkid says; empty when nothing was recognised.
    pub filesystem: String,
    /// The filesystem's UUID.
    pub uuid: Option<String>,
    /// The filesystem's label.
    pub label: Option<String>,
    /// Swap: made anew with the same UUID and label instead of copied.
    pub recreate: bool,
}

impl Volume {
    /// Bytes that it takes on the target.
    pub fn target_len(&self) -> u64 {
        self.len.saturating_add(self.grow)
    }
}

impl Layout {
    /// What the appliance, which sees all disks in order, calls a volume: `/dev/vda2`.
    pub fn in_appliance(&self, volume: &Volume) -> Option<String> {
        let disk = self.disks.iter().position(|d| d.volumes.contains(volume))?;
        let number = volume.partition.map(|n| n.to_string()).unwrap_or_default();
        Some(format!("/dev/vd{}{number}", letters(u32::try_from(disk).ok()?)))
    }

    /// All volumes of all disks.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.disks.iter().flat_map(|d| &d.volumes)
    }
}
