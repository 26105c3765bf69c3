//! Writing one disk of the target.

use imgcore::copy::{self, copy_range};
use imgcore::partition::{self, Guid, NewPartition, Purpose, write_gpt, write_mbr};
use imgcore::{ImageMut, Progress};

use super::{ALIGNMENT, swap};
use crate::layout::{Table, TargetDisk, Volume};
use crate::resize::boot::{self, Moved};
use crate::resize::plan::Plan;
use crate::source::Source;
use crate::{Error, Result};

/// Bytes of a source's disk that belong elsewhere on the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The source's disk.
    pub disk: usize,
    /// First byte there.
    pub source_offset: u64,
    /// First byte on the target's disk.
    pub target_offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What must be copied for one target disk, in the order of the target. Swaps that are made anew are not in it.
pub fn moves(disk: &TargetDisk) -> Vec<Move> {
    if let (Table::Keep { disk: index }, Some(plan)) = (disk.table, &disk.moved) {
        return moved(index, disk, plan);
    }
    if let Table::Keep { disk: index } = disk.table {
        let grown = disk.volumes.iter().map(|v| v.grow).fold(disk.grown, u64::saturating_add);
        let whole = Move { disk: index, source_offset: 0, target_offset: 0, len: disk.size.saturating_sub(grown) };
        return if disk.volumes.iter().any(|v| v.recreate) { Vec::new() } else { vec![whole] };
    }
    let copied = disk.volumes.iter().filter(|v| !v.recreate);
    copied.map(|v| Move { disk: v.disk, source_offset: v.source_offset, target_offset: v.target_offset, len: v.len }).collect()
}

/// Of a disk whose partitions moved: what is before the first one, the code of extended ones' boot records, and what is in the others.
fn moved(source: usize, disk: &TargetDisk, plan: &Plan) -> Vec<Move> {
    const RECORD: u64 = 512;
    let head = plan.pieces.iter().flat_map(|p| [p.old.start, p.new.start]).min().unwrap_or(0);
    let part = |source_offset, target_offset, len| Move { disk: source, source_offset, target_offset, len };
    let extended = plan.pieces.iter().filter(|p| p.is_extended).map(|p| part(p.old.start, p.new.start, RECORD));
    let volumes = disk.volumes.iter().map(|v| part(v.source_offset, v.target_offset, v.len));
    std::iter::once(part(0, 0, head)).chain(extended).chain(volumes).filter(|m| m.len > 0).collect()
}

/// Writes a target disk: its table, its volumes, its swaps. `target` has the disk's size and reads as zeroes.
///
/// A boot loader is not part of it, and flushing is left to the caller. Gives sentences on what may not start any more.
pub fn build(
    source: &Source,
    disk: &TargetDisk,
    target: &dyn ImageMut,
    options: &copy::Options,
    progress: &dyn Progress,
) -> Result<Vec<String>> {
    let moves = moves(disk);
    progress.total(moves.iter().map(|m| m.len).sum());
    for m in moves {
        let from = source.disks.get(m.disk).and_then(|d| d.image.as_ref());
        let from = from.ok_or_else(|| Error::Invalid(format!("{}: its disk {} has not been read yet", source.name, m.disk)))?;
        let range = m.source_offset..m.source_offset.saturating_add(m.len);
        copy_range(from.as_ref(), range, target, m.target_offset, options, &copy::Part(progress))?;
    }
    write_table(disk, target)?;
    write_swaps(disk, target)?;
    mend(disk, target)
}

/// Makes what points at sectors by their numbers point at where they are now.
fn mend(disk: &TargetDisk, target: &dyn ImageMut) -> Result<Vec<String>> {
    let Some(plan) = &disk.moved else { return Ok(Vec::new()) };
    let kind = |number: u32| disk.volumes.iter().find(|v| v.partition == Some(number)).map_or("", |v| &v.filesystem);
    let moved: Vec<Moved<'_>> = plan.pieces.iter().map(|piece| Moved { piece, kind: kind(piece.number) }).collect();
    boot::mend(target, &moved)
}

/// Writes the partition table, where the disk gets a new one.
///
/// Its ids follow from the volumes, so that converting a guest twice gives the same bytes.
pub fn write_table(disk: &TargetDisk, target: &dyn ImageMut) -> Result<()> {
    // The first volume that is no swap is marked active, for a BIOS that insists on one.
    let active = disk.volumes.iter().position(|v| !v.recreate);
    let mut partitions: Vec<NewPartition> = disk
        .volumes
        .iter()
        .enumerate()
        .map(|(index, v)| NewPartition {
            number: v.partition.unwrap_or(1),
            start: v.target_offset,
            len: v.target_len().next_multiple_of(512),
            purpose: purpose(v),
            bootable: Some(index) == active,
            guid: guid(disk, &v.target_device),
        })
        .collect();
    match disk.table {
        Table::Keep { .. } => {
            if let Some(table) = disk.moved.as_ref().and_then(|plan| plan.table.as_ref()) {
                partition::write(target, table)?;
            }
        }
        Table::NewMbr => {
            let bytes = guid(disk, "").0;
            let id = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            write_mbr(target, id, &partitions)?;
        }
        Table::NewGpt => {
            let number = partitions.iter().map(|p| p.number).max().unwrap_or(0) + 1;
            let guid_of_grub = guid(disk, "bios_grub");
            let (start, len, purpose) = (ALIGNMENT, ALIGNMENT, Purpose::BiosGrub);
            partitions.push(NewPartition { number, start, len, purpose, bootable: false, guid: guid_of_grub });
            write_gpt(target, guid(disk, ""), &partitions)?;
        }
    }
    Ok(())
}

/// Makes the swaps anew, with the ids that they had.
pub fn write_swaps(disk: &TargetDisk, target: &dyn ImageMut) -> Result<()> {
    for volume in disk.volumes.iter().filter(|v| v.recreate) {
        let header = swap::header(volume.len, volume.uuid.as_deref(), volume.label.as_deref())?;
        target.write_at(&header, volume.target_offset)?;
    }
    Ok(())
}

fn purpose(volume: &Volume) -> Purpose {
    match volume.filesystem.as_str() {
        "swap" | "swsuspend" => Purpose::Swap,
        "LVM2_member" => Purpose::Lvm,
        "linux_raid_member" => Purpose::Raid,
        _ => Purpose::Linux,
    }
}

/// An id made of the disk's volumes and `what` it is for: FNV-1a, twice, with different beginnings.
fn guid(disk: &TargetDisk, what: &str) -> Guid {
    let mut text = format!("{what}\n{}\n{}\n", disk.device, disk.size);
    for v in &disk.volumes {
        text += &format!("{} {} {} {} {}\n", v.source_device, v.target_offset, v.len, v.filesystem, v.uuid.as_deref().unwrap_or_default());
    }
    let hash = |start: u64| text.bytes().fold(start, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325).to_be_bytes());
    bytes[8..].copy_from_slice(&hash(0x8422_2325_cbf2_9ce4).to_be_bytes());
    Guid::from_random(bytes)
}
