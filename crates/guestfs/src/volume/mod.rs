//! A guest's volumes: partitions and whole disks, what arrays, LVM and LUKS make of them, and what each of them holds.

mod activate;
mod stack;

use std::sync::Arc;

use imgcore::partition::{Partition, PartitionType, Table};
use imgcore::{Image, ImageMut, Slice};

use crate::keys::KeyRing;
use crate::luks::Unlocked;
use crate::lvm::Group;
use crate::md::Array;
use crate::probe::{Content, Usage};
use crate::{Error, Result};

/// A disk of a guest.
#[derive(Clone)]
pub struct GuestDisk {
    /// What the guest calls it, without `/dev/`: `xvda`, `xvda2` for a disk that is a single partition; or a bare position
    /// `0`, `1`, … where no more is known.
    pub name: String,
    /// Its content.
    pub image: Arc<dyn Image>,
}

/// A disk of a guest that can be written.
#[derive(Clone)]
pub struct GuestDiskMut {
    /// As in [`GuestDisk`].
    pub name: String,
    /// Its content.
    pub image: Arc<dyn ImageMut>,
}

/// Where a volume's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Together on a disk.
    Disk {
        /// Which disk, by its position.
        disk: usize,
        /// First byte on it.
        start: u64,
    },
    /// Together in an array of Linux's, all of it or a partition.
    Array {
        /// Which array, by its position in [`Volumes::arrays`].
        array: usize,
        /// First byte in it.
        start: u64,
    },
    /// Encrypted, in another volume that was unlocked.
    Unlocked {
        /// Which volume, by its position in [`Volumes::volumes`].
        volume: usize,
    },
    /// Where LVM says.
    Logical {
        /// Which group, by its position in [`Volumes::groups`].
        group: usize,
        /// Which of its volumes.
        volume: usize,
    },
}

/// A partition, a whole disk that has no partitions, an array, an unlocked volume, or a logical volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// As the guest calls it: `/dev/xvda2`, `/dev/md127`, `/dev/mapper/luks-UUID`, `/dev/GROUP/VOLUME`.
    pub device: String,
    /// What the guest may call it besides: `/dev/mapper/GROUP-VOLUME`, `/dev/md/NAME`.
    pub aliases: Vec<String>,
    /// Where its bytes are.
    pub place: Place,
    /// The partition; `None` for others.
    pub partition: Option<Partition>,
    /// Length in bytes.
    pub len: u64,
    /// What it holds, if that is known.
    pub content: Option<Content>,
    /// Whether only the appliance can read it: it may hold anything.
    pub only_in_appliance: bool,
}

impl Volume {
    /// blkid's name of what it holds, empty when that is not known.
    pub fn kind(&self) -> &'static str {
        self.content.as_ref().map_or("", |c| c.kind)
    }

    /// Whether nothing is known on it, so that nobody could mount it, the appliance neither.
    pub fn is_blank(&self) -> bool {
        self.content.is_none() && !self.only_in_appliance
    }

    /// Whether it holds files.
    pub fn is_filesystem(&self) -> bool {
        self.content.as_ref().is_some_and(|c| c.usage == Usage::Filesystem)
    }

    /// Whether it is swap space.
    pub fn is_swap(&self) -> bool {
        self.content.as_ref().is_some_and(|c| c.usage == Usage::Swap)
    }

    /// Whether it is a part of something else, or that in another form: a member of an array or a group, or something encrypted.
    pub fn is_part(&self) -> bool {
        self.content.as_ref().is_some_and(|c| matches!(c.usage, Usage::Member | Usage::Crypto))
    }

    /// Its disk, by its position, if it is a part of one.
    pub fn disk(&self) -> Option<usize> {
        match self.place {
            Place::Disk { disk, .. } => Some(disk),
            _ => None,
        }
    }

    /// Whether files may be in it, so far as can be told.
    pub fn may_hold_files(&self) -> bool {
        self.is_filesystem() || self.only_in_appliance
    }

    /// What an appliance that was given the guest's disks in order, and where they are [active](Volumes::activate), calls it: `/dev/vda2`.
    pub fn appliance_device(&self) -> String {
        let Place::Disk { disk, .. } = self.place else { return self.device.clone() };
        let disk = format!("vd{}", letters(disk));
        format!("/dev/{}", self.partition.as_ref().map_or(disk.clone(), |p| partition_name(&disk, p.number)))
    }
}

/// All disks of a guest with their volumes.
#[derive(Clone)]
pub struct Volumes {
    /// The disks in order.
    pub disks: Vec<GuestDisk>,
    /// Each disk's partition table.
    pub tables: Vec<Option<Table>>,
    /// The volumes, disk by disk; those that lie on others behind them.
    pub volumes: Vec<Volume>,
    /// Arrays of Linux's on them.
    pub arrays: Vec<Array>,
    /// LVM's groups on them.
    pub groups: Vec<Group>,
    /// Encrypted volumes for which there was no key, by position in [`Volumes::volumes`].
    pub locked: Vec<usize>,
    /// What is damaged or missing, in sentences.
    pub complaints: Vec<String>,
    /// Encrypted volumes that were unlocked, by position.
    unlocked: Vec<(usize, Unlocked)>,
    /// How volumes were found on others, in this order.
    steps: Vec<Step>,
}

/// Something that was put together of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A position in [`Volumes::arrays`].
    Array(usize),
    /// A position in [`Volumes::volumes`]: the one that was encrypted.
    Unlocked(usize),
    /// A position in [`Volumes::groups`].
    Group(usize),
}

impl Volumes {
    /// Reads partition tables and superblocks, and what lies on other volumes; what is encrypted stays locked.
    pub fn open(disks: Vec<GuestDisk>) -> Result<Self> {
        Self::open_with(disks, None)
    }

    /// The same, with keys for what is encrypted.
    pub fn open_with(disks: Vec<GuestDisk>, keys: Option<&dyn KeyRing>) -> Result<Self> {
        let mut all = Volumes {
            disks,
            tables: Vec::new(),
            volumes: Vec::new(),
            arrays: Vec::new(),
            groups: Vec::new(),
            locked: Vec::new(),
            complaints: Vec::new(),
            unlocked: Vec::new(),
            steps: Vec::new(),
        };
        all.add_disks()?;
        all.stack(keys);
        Ok(all)
    }

    /// The partitions of a disk: its table's, and those that labels in them tell of.
    pub fn partitions(&self, disk: usize) -> impl Iterator<Item = &Partition> {
        let own = self.tables.get(disk).into_iter().flatten().flat_map(|table| &table.partitions);
        let of_disk = self.volumes.iter().filter(move |volume| volume.disk() == Some(disk));
        let nested = of_disk.filter_map(|volume| volume.partition.as_ref()).filter(|p| matches!(p.kind, PartitionType::Nested(_)));
        own.chain(nested)
    }

    /// A volume's bytes as an image.
    pub fn image(&self, volume: &Volume) -> Result<Arc<dyn Image>> {
        let nowhere = || Error::Invalid(format!("{} is on no disk", volume.device));
        let only = |filesystem| {
            let device = volume.device.clone();
            move |what: String| Error::Unsupported { filesystem, what: format!("{device}: {what}") }
        };
        let slice = |image: Arc<dyn Image>, start| -> Result<Arc<dyn Image>> { Ok(Arc::new(Slice::new(image, start, volume.len)?)) };
        let array = |array: usize| self.arrays.get(array).ok_or_else(nowhere)?.image.clone().map_err(only("md"));
        match volume.place {
            Place::Disk { disk, start } => slice(self.disks.get(disk).ok_or_else(nowhere)?.image.clone(), start),
            Place::Array { array: number, start } => slice(array(number)?, start),
            Place::Unlocked { volume: encrypted } => {
                let (_, unlocked) = self.unlocked.iter().find(|(of, _)| *of == encrypted).ok_or_else(nowhere)?;
                unlocked.image.clone().map_err(only("LUKS"))
            }
            Place::Logical { group, volume: number } => {
                let logical = self.groups.get(group).and_then(|g| g.volumes.get(number)).ok_or_else(nowhere)?;
                logical.image.clone().map_err(only("LVM"))
            }
        }
    }

    /// The volumes that a volume lies on, by position; none for one on a disk.
    pub fn below(&self, volume: &Volume) -> Vec<usize> {
        match volume.place {
            Place::Disk { .. } => Vec::new(),
            Place::Array { array, .. } => self.arrays.get(array).map_or(Vec::new(), |a| a.members.clone()),
            Place::Unlocked { volume } => vec![volume],
            Place::Logical { group, .. } => {
                self.groups.get(group).map_or(Vec::new(), |g| g.physical.iter().map(|pv| pv.position).collect())
            }
        }
    }

    /// The volumes as libguestfs lists them, by position: whole disks, partitions, arrays, what was unlocked, logical volumes.
    pub fn listed(&self) -> Vec<usize> {
        let rank = |volume: &Volume| match volume.place {
            Place::Disk { .. } if volume.partition.is_none() => 0,
            Place::Disk { .. } => 1,
            Place::Array { .. } => 2,
            Place::Unlocked { .. } => 3,
            Place::Logical { .. } => 4,
        };
        let mut listed: Vec<usize> = (0..self.volumes.len()).collect();
        listed.sort_by_key(|index| self.volumes.get(*index).map(rank));
        listed
    }

    /// The volume that a device name, `UUID=…` and the like mean to this guest.
    pub fn find(&self, spec: &[u8]) -> Option<usize> {
        crate::inspect::fstab::resolve(self, spec)
    }
}

/// A partition's device name: `xvda` and 2 make `xvda2`, `nvme0n1` and 2 make `nvme0n1p2`.
pub fn partition_name(disk: &str, number: u32) -> String {
    let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{separator}{number}")
}

/// The letters of the disk at a position: `a` to `z`, `aa`, `ab`, …
pub fn letters(position: usize) -> String {
    let mut out = Vec::new();
    let mut rest = position;
    loop {
        out.push(b'a' + (rest % 26) as u8);
        if rest < 26 {
            break;
        }
        rest = rest / 26 - 1;
    }
    out.reverse();
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let of: Vec<String> = [0, 25, 26, 27, 51, 52, 701, 702].into_iter().map(letters).collect();
        assert_eq!(of, ["a", "z", "aa", "ab", "az", "ba", "zz", "aaa"]);
        assert_eq!(partition_name("xvda", 2), "xvda2");
        assert_eq!(partition_name("nvme0n1", 2), "nvme0n1p2");
    }
}
