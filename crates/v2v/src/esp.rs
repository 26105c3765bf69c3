//! The EFI system partition of a guest that did not start by UEFI before, and the loader on it.
//!
//! [`Esp::place`] finds a partition for it or makes room for one, [`Esp::write_table`] puts it into the disk's table, and
//! [`Esp::install`] gives it a FAT and, at the path where every firmware looks, a GRUB that hands over to the guest's own configuration.

use guestfs::engine::{Command, Session};
use guestfs::reader;
use guestfs::{Attributes, Ext, Tree};
use imgcore::ImageMut;
use imgcore::partition::{self, Guid, NewPartition, Partition, PartitionType, Purpose, TableKind};

use crate::bootloader::Loader;
use crate::disk_build::{self, DiskContents};
use crate::layout::{Layout, Table, TargetDisk};
use crate::source::Source;
use crate::{Error, Result};

/// Large enough for a FAT32, which is what the specification wants, and for more loaders than one.
const SIZE: u64 = 64 << 20;
const ALIGNMENT: u64 = 1 << 20;
/// The type of such a partition in a GPT.
const ESP: Guid = Guid::from_printed(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
/// What a loader at the removable path is called on a 64-bit PC.
const LOADER: &str = "/EFI/BOOT/BOOTX64.EFI";

/// Where the partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Esp {
    /// The target's disk, an index in [`Layout::disks`].
    pub disk: usize,
    /// `vda3`
    pub device: String,
    /// Its number.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// The guest has none: it is made at the end of its disk.
    pub is_new: bool,
    /// The guest's own has a loader at the removable path already, which is left alone.
    pub has_loader: bool,
}

impl Esp {
    /// Takes the ESP that a disk of the source has, or makes room for one at the end of the first disk that has or gets a partition table.
    pub fn place(layout: &mut Layout, source: &Source, contents: &[DiskContents]) -> Result<Self> {
        if let Some(own) = layout.disks.iter().enumerate().find_map(|(index, disk)| existing(index, disk, source, contents)) {
            return Ok(own);
        }
        let has_table = |disk: &TargetDisk| match disk.table {
            Table::Keep { disk } => contents.get(disk).is_some_and(|c| c.table.is_some()),
            Table::NewMbr | Table::NewGpt => true,
        };
        let Some(index) = layout.disks.iter().position(has_table) else {
            return Err(Error::Invalid(format!(
                "{}: UEFI needs a partition to start from, and no disk has a partition table: convert without '--layout keep'",
                source.name
            )));
        };
        let too_large = || Error::Invalid(format!("{}: its disk is too large for one more partition", source.name));
        let disk = &mut layout.disks[index];
        let numbers = match disk.table {
            Table::Keep { disk } => contents.get(disk).and_then(|c| c.table.as_ref()).map(|t| t.partitions.iter().map(|p| p.number).max()),
            // One more is GRUB's for a BIOS.
            Table::NewMbr | Table::NewGpt => Some(disk.volumes.iter().filter_map(|v| v.partition).max().map(|n| n + 1)),
        };
        let number = numbers.flatten().unwrap_or(0) + 1;
        if disk.table == Table::NewMbr {
            become_gpt(disk);
        }
        let end = match disk.table {
            Table::Keep { .. } => disk.size,
            Table::NewMbr | Table::NewGpt => {
                disk.volumes.iter().map(|v| v.target_offset.saturating_add(v.target_len())).max().unwrap_or(2 * ALIGNMENT)
            }
        };
        let offset = end.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_large)?;
        // The last MiB is for the table's copy.
        let size = offset.checked_add(SIZE + ALIGNMENT).filter(|size| *size < 1 << 62).ok_or_else(too_large)?;
        if matches!(disk.table, Table::Keep { .. }) {
            disk.grown += size - disk.size;
        }
        disk.size = size;
        Ok(Esp { disk: index, device: format!("{}{number}", disk.device), number, offset, is_new: true, has_loader: false })
    }

    /// Puts a new one into the table of its disk, which has been written, and which becomes a GPT where it was none.
    pub fn write_table(&self, target: &dyn ImageMut) -> Result<()> {
        if !self.is_new {
            return Ok(());
        }
        let no_table = || Error::Invalid(format!("{}: the partition table is not there", target.info().file));
        let mut table = partition::read(target)?.ok_or_else(no_table)?;
        if table.kind == TableKind::Mbr {
            table = to_gpt(&table)?;
        }
        let guid = Guid::from_random(seed(&table.id, self.number));
        table.partitions.push(Partition {
            number: self.number,
            start: self.offset,
            len: SIZE,
            kind: PartitionType::Gpt(ESP),
            uuid: guid.to_string(),
            name: "EFI System Partition".into(),
            bootable: false,
            attributes: 0,
        });
        Ok(partition::write(target, &table)?)
    }

    /// Writes the loader, in an appliance that has mounted nothing yet.
    pub fn install(&self, session: &mut dyn Session, loader: &Loader) -> Result<()> {
        if self.has_loader {
            return Ok(());
        }
        // The appliance has a name of its own for each disk.
        let letters = u32::try_from(self.disk).map(disk_build::letters).unwrap_or_default();
        let device = format!("/dev/vd{letters}{}", self.number);
        if self.is_new {
            let inside = session.name_inside(&device);
            let output = session.run_tool(&Command::new(["mkfs.vfat", "-F", "32", "-n", "ESP", &inside]))?;
            if output.status != 0 {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(Error::Invalid(format!("{device}: the FAT of the ESP cannot be made: {said}")));
            }
        }
        session.mount(&device, b"/", "vfat", "rw")?;
        for folder in ["/EFI", "/EFI/BOOT"] {
            match session.mkdir(folder.as_bytes(), Attributes::root(0o755)) {
                Err(_) if session.is_dir(folder.as_bytes()) => {}
                outcome => outcome?,
            }
        }
        session.write(LOADER.as_bytes(), &mut &loader.image[..], None)?;
        session.write(b"/EFI/BOOT/grub.cfg", &mut loader.config.as_bytes(), None)?;
        Ok(session.unmount_all()?)
    }
}

/// The ESP that a kept disk has.
fn existing(index: usize, disk: &TargetDisk, source: &Source, contents: &[DiskContents]) -> Option<Esp> {
    let Table::Keep { disk: of } = disk.table else { return None };
    let image = source.disks.get(of)?.image.clone()?;
    let table = contents.get(of)?.table.as_ref()?;
    let is_esp = |p: &&Partition| matches!(p.kind, PartitionType::Gpt(ESP) | PartitionType::Mbr(0xef));
    let found = table.partitions.iter().find(is_esp)?;
    // One that holds no FAT is nobody's ESP.
    let tree = Tree::new(reader::open("vfat", image, found.start, found.len).ok()?);
    let device = format!("{}{}", disk.device, found.number);
    let has_loader = tree.is_file(LOADER.as_bytes());
    Some(Esp { disk: index, device, number: found.number, offset: found.start, is_new: false, has_loader })
}

/// A GPT has GRUB's partition in the MiB before the first of the others.
fn become_gpt(disk: &mut TargetDisk) {
    disk.table = Table::NewGpt;
    let first = disk.volumes.iter().map(|v| v.target_offset).min().unwrap_or(2 * ALIGNMENT);
    let shift = if first < 2 * ALIGNMENT { ALIGNMENT } else { 0 };
    for volume in &mut disk.volumes {
        volume.target_offset += shift;
    }
}

/// The same partitions in a GPT, as far as they are not containers of others.
fn to_gpt(old: &partition::Table) -> Result<partition::Table> {
    let mut table = partition::Table::new(TableKind::Gpt, Guid::from_random(seed(&old.id, 0)).to_string(), Vec::new());
    for p in old.partitions.iter().filter(|p| !p.kind.is_extended()) {
        if p.start < table.first_usable {
            return Err(Error::Invalid(format!(
                "UEFI needs a GPT, for which there is no room before partition {} at byte {}: convert without --firmware uefi",
                p.number, p.start
            )));
        }
        let purpose = match p.kind {
            PartitionType::Mbr(0x82) => Purpose::Swap,
            PartitionType::Mbr(0x8e) => Purpose::Lvm,
            PartitionType::Mbr(0xfd) => Purpose::Raid,
            _ => Purpose::Linux,
        };
        let guid = Guid::from_random(seed(&old.id, p.number));
        let new = NewPartition { number: p.number, start: p.start, len: p.len, purpose, bootable: false, guid };
        table.partitions.push(new.partition(TableKind::Gpt)?);
    }
    Ok(table)
}

/// Bytes that follow from a table and a partition, so that converting a guest twice gives the same: FNV-1a, twice.
fn seed(id: &str, number: u32) -> [u8; 16] {
    let text = format!("{id} {number}");
    let hash = |start: u64| text.bytes().fold(start, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325).to_be_bytes());
    bytes[8..].copy_from_slice(&hash(0x8422_2325_cbf2_9ce4).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use imgcore::Image;
    use imgcore::raw::Raw;
    use imgcore::storage::MemStorage;

    use crate::source::Boot;
    use crate::testing::xen_tools_guest;

    fn disk(size: u64) -> Arc<Raw> {
        Arc::new(Raw::open(Arc::new(MemStorage::new("disk", size))).unwrap())
    }

    /// A guest with one disk that has an MBR: primary and logical partitions, the first at this byte.
    fn with_mbr(first: u64) -> (Source, Vec<DiskContents>, Layout) {
        let image = disk(64 << 20);
        let new = |number, start, len, purpose| NewPartition { number, start, len, purpose, bootable: number == 1, guid: Guid::default() };
        let partitions = [new(1, first, 8 << 20, Purpose::Linux), new(2, 32 << 20, 8 << 20, Purpose::Swap)];
        partition::write_mbr(image.as_ref(), 0x1a2b_3c4d, &partitions).unwrap();
        let (mut source, _) = xen_tools_guest();
        source.disks.truncate(1);
        (source.disks[0].target, source.disks[0].size, source.boot) = ("xvda".into(), image.size(), Boot::Bios);
        source.disks[0].image = Some(image);
        let contents = disk_build::examine(&source).unwrap();
        let layout = disk_build::compute(&source, &contents, &disk_build::Options::default()).unwrap();
        (source, contents, layout)
    }

    #[test]
    fn a_kept_mbr_becomes_a_gpt_with_the_same_partitions() {
        let (source, contents, mut layout) = with_mbr(63 * 512);
        let esp = Esp::place(&mut layout, &source, &contents).unwrap();
        assert_eq!((esp.device.as_str(), esp.number, esp.offset, esp.is_new), ("vda3", 3, 64 << 20, true));
        assert_eq!((layout.disks[0].size, layout.disks[0].grown), (129 << 20, 65 << 20));
        assert_eq!(disk_build::moves(&layout.disks[0])[0].len, 64 << 20, "no more is copied than there is");
        let target = disk(layout.disks[0].size);
        disk_build::build(&source, &layout.disks[0], target.as_ref(), &Default::default(), &imgcore::NoProgress).unwrap();
        esp.write_table(target.as_ref()).unwrap();
        let table = partition::read(target.as_ref()).unwrap().unwrap();
        assert_eq!(table.kind, TableKind::Gpt);
        let places: Vec<_> = table.partitions.iter().map(|p| (p.number, p.start, p.len)).collect();
        assert_eq!(places, [(1, 63 * 512, 8 << 20), (2, 32 << 20, 8 << 20), (3, 64 << 20, SIZE)]);
        assert_eq!(table.partitions[2].kind, PartitionType::Gpt(ESP));
    }

    #[test]
    fn no_room_for_a_gpt_is_an_error() {
        let (source, contents, mut layout) = with_mbr(2 * 512);
        let esp = Esp::place(&mut layout, &source, &contents).unwrap();
        let target = disk(layout.disks[0].size);
        disk_build::build(&source, &layout.disks[0], target.as_ref(), &Default::default(), &imgcore::NoProgress).unwrap();
        assert!(esp.write_table(target.as_ref()).unwrap_err().to_string().contains("no room before partition 1"));
    }

    #[test]
    fn a_new_disk_gets_one_behind_its_volumes() {
        let (source, mut layout) = xen_tools_guest();
        layout.disks[0].volumes[1].target_offset = (1 << 20) + (1 << 30);
        let contents = vec![DiskContents::default(); source.disks.len()];
        let esp = Esp::place(&mut layout, &source, &contents).unwrap();
        let disk = &layout.disks[0];
        assert_eq!((disk.table, disk.grown), (Table::NewGpt, 0));
        assert_eq!(disk.volumes.iter().map(|v| v.target_offset).collect::<Vec<_>>(), [2 << 20, (2 << 20) + (1 << 30)]);
        // GRUB's partition for a BIOS takes number 3.
        assert_eq!((esp.number, esp.offset), (4, (2 << 20) + (2 << 30)));
        assert_eq!(disk.size, esp.offset + SIZE + ALIGNMENT);
    }

    #[test]
    fn a_volume_that_grows_keeps_its_room() {
        let (source, mut layout) = xen_tools_guest();
        let contents = vec![DiskContents::default(); source.disks.len()];
        let place = |layout: &mut Layout| Esp::place(layout, &source, &contents).unwrap().offset;
        let plain = place(&mut layout.clone());
        let last = layout.disks[0].volumes.iter_mut().max_by_key(|v| v.target_offset.saturating_add(v.len)).unwrap();
        last.grow = 256 << 20;
        assert_eq!(place(&mut layout), plain + (256 << 20));
    }

    #[test]
    fn without_any_table_it_is_an_error() {
        let (source, mut layout) = xen_tools_guest();
        layout.disks.remove(0);
        let contents = vec![DiskContents::default(); source.disks.len()];
        assert!(Esp::place(&mut layout, &source, &contents).unwrap_err().to_string().contains("--layout keep"));
    }
}
