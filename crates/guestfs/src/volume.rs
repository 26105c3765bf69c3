//! A guest's volumes: partitions, whole disks and logical volumes, and what each of them holds.

use std::sync::Arc;

use imgcore::partition::{self, Partition, Table};
use imgcore::{Image, ImageMut, Slice};

use crate::engine::Session;
use crate::lvm::{self, Group};
use crate::probe::{Content, Usage, probe};
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
    /// Where LVM says.
    Logical {
        /// Which group, by its position in [`Volumes::groups`].
        group: usize,
        /// Which of its volumes.
        volume: usize,
    },
}

/// A partition, a whole disk that has no partitions, or a logical volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// As the guest calls it: `/dev/xvda2`, `/dev/GROUP/VOLUME`.
    pub device: String,
    /// Where its bytes are.
    pub place: Place,
    /// The partition; `None` for others.
    pub partition: Option<Partition>,
    /// Length in bytes.
    pub len: u64,
    /// What it holds, if that is known.
    pub content: Option<Content>,
}

impl Volume {
    /// blkid's name of what it holds, empty when that is not known.
    pub fn kind(&self) -> &'static str {
        self.content.as_ref().map_or("", |c| c.kind)
    }

    /// Whether it holds files.
    pub fn is_filesystem(&self) -> bool {
        self.content.as_ref().is_some_and(|c| c.usage == Usage::Filesystem)
    }

    /// Whether it is swap space.
    pub fn is_swap(&self) -> bool {
        self.content.as_ref().is_some_and(|c| c.usage == Usage::Swap)
    }

    /// Its disk, by its position, if it is a part of one.
    pub fn disk(&self) -> Option<usize> {
        match self.place {
            Place::Disk { disk, .. } => Some(disk),
            Place::Logical { .. } => None,
        }
    }

    /// Whether files may be in it, so far as can be told: a logical volume that only the appliance can read may hold anything.
    pub fn may_hold_files(&self) -> bool {
        self.is_filesystem() || self.content.is_none() && self.disk().is_none()
    }

    /// What an appliance that was given the guest's disks in order calls it: `/dev/vda2`.
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
    /// The volumes, disk by disk; the logical ones behind them.
    pub volumes: Vec<Volume>,
    /// LVM's groups on them.
    pub groups: Vec<Group>,
    /// What of LVM is damaged, in sentences.
    pub complaints: Vec<String>,
}

impl Volumes {
    /// Reads partition tables and superblocks.
    pub fn open(disks: Vec<GuestDisk>) -> Result<Self> {
        let mut tables = Vec::new();
        let mut volumes = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let image = disk.image.as_ref();
            let whole = probe(image, 0, image.size());
            // The first sectors of these two end like an MBR, with code where its table would be.
            let boot_sector = whole.as_ref().is_some_and(|c| matches!(c.kind, "vfat" | "ntfs"));
            let table = if boot_sector { None } else { partition::read(image)? };
            let table = table.filter(|t| !t.partitions.is_empty() || whole.is_none());
            match &table {
                None => volumes.push(Volume {
                    device: format!("/dev/{}", disk.name),
                    place: Place::Disk { disk: index, start: 0 },
                    partition: None,
                    len: image.size(),
                    content: whole,
                }),
                Some(table) => volumes.extend(table.partitions.iter().filter(|p| !p.kind.is_extended()).map(|p| Volume {
                    device: format!("/dev/{}", partition_name(&disk.name, p.number)),
                    place: Place::Disk { disk: index, start: p.start },
                    len: p.len,
                    content: probe(image, p.start, p.len),
                    partition: Some(p.clone()),
                })),
            }
            tables.push(table);
        }
        let mut all = Volumes { disks, tables, volumes, groups: Vec::new(), complaints: Vec::new() };
        all.add_logical()?;
        Ok(all)
    }

    fn add_logical(&mut self) -> Result<()> {
        let members = self.volumes.iter().enumerate().filter(|(_, v)| v.kind() == "LVM2_member");
        let members = members.map(|(position, volume)| Ok((position, self.image(volume)?))).collect::<Result<Vec<_>>>()?;
        (self.groups, self.complaints) = lvm::groups(&members);
        for (group, found) in self.groups.iter().enumerate() {
            self.volumes.extend(found.volumes.iter().enumerate().map(|(volume, logical)| Volume {
                device: format!("/dev/{}/{}", found.name, logical.name),
                place: Place::Logical { group, volume },
                partition: None,
                len: logical.len,
                content: logical.image.as_ref().ok().and_then(|image| probe(image.as_ref(), 0, image.size())),
            }));
        }
        Ok(())
    }

    /// A volume's bytes as an image.
    pub fn image(&self, volume: &Volume) -> Result<Arc<dyn Image>> {
        let nowhere = || Error::Invalid(format!("{} is on no disk", volume.device));
        match volume.place {
            Place::Disk { disk, start } => {
                let disk = self.disks.get(disk).ok_or_else(nowhere)?;
                Ok(Arc::new(Slice::new(disk.image.clone(), start, volume.len)?))
            }
            Place::Logical { group, volume: number } => {
                let logical = self.groups.get(group).and_then(|g| g.volumes.get(number)).ok_or_else(nowhere)?;
                let unsupported = |what: &String| Error::Unsupported { filesystem: "LVM", what: format!("{}: {what}", volume.device) };
                logical.image.clone().map_err(|what| unsupported(&what))
            }
        }
    }

    /// Makes the volumes that are no part of one disk appear in an appliance that has these disks.
    pub fn activate(&self, session: &mut dyn Session) -> Result<()> {
        if self.groups.is_empty() { Ok(()) } else { lvm::activate(session) }
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
