//! Writing boot sector and core image to a disk, as grub-bios-setup does.

use std::ops::Range;

use imgcore::partition::{self, PartitionType, Table};
use imgcore::{Image, ImageMut};

use super::{BootPlace, Grub};
use crate::{Error, Result};

const SECTOR: u64 = 512;
/// The boot sector's code ends where the disk signature begins.
const CODE: usize = 440;
/// In boot.img: LBA of the core image's first sector, the drive to read it from, and the check of that drive.
const KERNEL_SECTOR: usize = 0x5c;
const BOOT_DRIVE: usize = 0x64;
const BOOT_DRIVE_CHECK: usize = 0x66;
/// In the core image's first sector (diskboot.img), its last block list: LBA, sectors, segment.
const LIST_START: usize = 0x1f4;
const LIST_LEN: usize = 0x1fc;
const LIST_SEGMENT: usize = 0x1fe;
const SEGMENT: u16 = 0x820;

impl Grub {
    /// Makes the disk start from `place` by GRUB. Flushing is left to the caller.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no room for the core image: it needs about 30 KiB before the first partition, or a bios_grub
    /// partition.
    pub fn embed(&self, target: &dyn ImageMut, place: &BootPlace) -> Result<()> {
        let table = table_of(target)?;
        let core = self.fitting(&table, target.size(), place)?;
        let boot = self.read("boot.img")?;
        write(target, &table, &boot, core)
    }

    /// Whether [`embed`](Self::embed) will find room on a disk of this size that gets this table, or else keeps the one it has.
    pub fn check_room(&self, disk: &dyn Image, table: Option<&Table>, size: u64, place: &BootPlace) -> Result<()> {
        let table = table.map_or_else(|| table_of(disk), |table| Ok(table.clone()))?;
        self.fitting(&table, size, place).map(drop)
    }

    /// The core image, if there is room for it.
    fn fitting(&self, table: &Table, size: u64, place: &BootPlace) -> Result<Vec<u8>> {
        let core = self.core_image(place, table.kind)?;
        let room = room(table, size)?;
        let available = room.end.saturating_sub(room.start);
        if available < core.len() as u64 {
            return Err(Error::Invalid(format!(
                "no room for GRUB: it needs {} bytes before the first partition or in a bios_grub partition, and there are {available}; on a disk \
                 with an MBR, --alignment 1M moves the partitions",
                core.len()
            )));
        }
        Ok(core)
    }
}

fn table_of(disk: &dyn Image) -> Result<Table> {
    partition::read(disk)?.ok_or_else(|| Error::Invalid("a disk without a partition table has no room for GRUB".into()))
}

fn write(target: &dyn ImageMut, table: &Table, boot: &[u8], mut core: Vec<u8>) -> Result<()> {
    if boot.len() < CODE || core.len() < 2 * SECTOR as usize || !core.len().is_multiple_of(SECTOR as usize) {
        return Err(Error::Invalid("boot.img or the core image that grub-mkimage made is too short: is GRUB's package damaged?".into()));
    }
    let start = room(table, target.size())?.start;
    let first = start / SECTOR;
    let rest = u16::try_from(core.len() as u64 / SECTOR - 1).map_err(|_| Error::Invalid("GRUB's core image is too large".into()))?;
    core[LIST_START..LIST_START + 8].copy_from_slice(&(first + 1).to_le_bytes());
    core[LIST_LEN..LIST_LEN + 2].copy_from_slice(&rest.to_le_bytes());
    core[LIST_SEGMENT..LIST_SEGMENT + 2].copy_from_slice(&SEGMENT.to_le_bytes());

    let mut sector = [0; SECTOR as usize];
    target.read_at(&mut sector, 0)?;
    sector[..CODE].copy_from_slice(&boot[..CODE]);
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&first.to_le_bytes());
    // The drive that the BIOS says, and no doubts about it: they are meant for floppies.
    sector[BOOT_DRIVE] = 0xff;
    sector[BOOT_DRIVE_CHECK..BOOT_DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    // The core first: a disk never points at what is not there.
    target.write_at(&core, start)?;
    target.write_at(&sector, 0)?;
    Ok(())
}

/// Where a core image may lie.
fn room(table: &Table, size: u64) -> Result<Range<u64>> {
    if table.sector_size != SECTOR {
        return Err(Error::Invalid(format!("a BIOS can't start GRUB from a disk with sectors of {} bytes", table.sector_size)));
    }
    let first_partition = table.partitions.iter().map(|p| p.start).min().unwrap_or(size);
    let bios_grub = table.partitions.iter().find(|p| p.kind == PartitionType::Gpt(partition::BIOS_GRUB));
    Ok(match bios_grub {
        Some(p) => p.start..p.start.saturating_add(p.len),
        // Nobody's sectors between the table and the first partition.
        None => table.first_usable..first_partition,
    })
}
