//! Deciding where everything goes on the target.

use std::collections::BTreeMap;

use guestfs::probe::Usage;
use imgcore::partition::GPT_TAIL;

use super::Options;
use super::examine::{DiskContents, Found};
use super::naming::{Device, devices, letters};
use crate::guest::devices::parse;
use crate::guest::mounts::spec_of;
use crate::layout::{Layout, Table, TargetDisk, Volume};
use crate::source::{Boot, Source};
use crate::{Error, Result};

/// Partitions start at multiples of it, the first one behind as much room for a boot loader; disks end at one.
pub(super) const ALIGNMENT: u64 = 1 << 20;
/// From here on an MBR can't address all of a disk.
const MBR_LIMIT: u64 = 2 << 40;

/// Decides what the target's disks are.
///
/// * A disk with a partition table stays as it is.
/// * Volumes that were partitions for the guest (`xvda1`, `xvda2`) become partitions of those numbers on one new disk.
/// * A root filesystem on a whole disk becomes partition 1 of a new disk, for a BIOS can't start it where it is.
/// * Other whole-disk volumes stay disks.
///
/// # Errors
/// [`Error::Invalid`] when the source's names contradict each other, or don't tell enough.
pub fn compute(source: &Source, contents: &[DiskContents], options: &Options) -> Result<Layout> {
    if contents.len() != source.disks.len() {
        return Err(Error::Invalid(format!("{}: {} of {} disks were examined", source.name, contents.len(), source.disks.len())));
    }
    let devices = devices(source, contents)?;
    // A BIOS looks at its first disk only, where Xen took the kernel from any.
    let boot = if matches!(source.boot, Boot::Direct { .. }) { boot_disk(contents, &devices) } else { None };
    let mut letters_of: BTreeMap<(bool, u32), Vec<Piece<'_>>> = BTreeMap::new();
    for (index, (device, contents)) in devices.into_iter().zip(contents).enumerate() {
        letters_of.entry((boot.is_some_and(|b| b != device.letter), device.letter)).or_default().push(Piece { index, device, contents });
    }
    let root = root_disk(source, contents);
    let mut disks = Vec::new();
    for mut pieces in letters_of.into_values() {
        check_names(source, &pieces)?;
        pieces.sort_by_key(|p| p.device.number);
        let name = |disks: &Vec<TargetDisk>| format!("{}{}", options.target.disk_prefix(), letters(disks.len() as u32));
        let is_new = |p: &Piece<'_>| p.device.number.is_some() || (root == Some(p.index) && p.contents.table.is_none());
        if pieces.iter().any(is_new) && !options.keep {
            disks.push(partitioned(source, &pieces, name(&disks))?);
            continue;
        }
        for piece in pieces {
            disks.push(kept(&piece, name(&disks)));
        }
    }
    Ok(Layout { disks })
}

/// A disk of the source with what is known of it.
struct Piece<'a> {
    index: usize,
    device: Device,
    contents: &'a DiskContents,
}

/// The disk whose whole-disk filesystem the guest is to start from.
fn root_disk(source: &Source, contents: &[DiskContents]) -> Option<usize> {
    let first = |want: &dyn Fn(&Found) -> bool| contents.iter().position(|c| c.volumes.iter().any(want));
    let is_filesystem = |f: &Found| f.content.as_ref().is_some_and(|c| c.usage == Usage::Filesystem);
    // Where no root can be read in this process, the disk marked for booting or else the first filesystem is taken for it.
    let marked = |index: &usize| source.disks.get(*index).is_some_and(|d| d.bootable) && contents[*index].volumes.iter().any(is_filesystem);
    first(&|f| f.root_fstab.is_some()).or_else(|| (0..contents.len()).find(marked)).or_else(|| first(&is_filesystem))
}

/// The letter of the disk that holds /boot, as the fstab of the one root says.
fn boot_disk(contents: &[DiskContents], devices: &[Device]) -> Option<u32> {
    let volumes = || contents.iter().zip(devices).flat_map(|(c, d)| c.volumes.iter().map(move |v| (v, d)));
    let mut roots = volumes().filter_map(|(v, d)| Some((v.root_fstab.as_deref()?, d)));
    let (fstab, root) = roots.next().filter(|_| roots.next().is_none())?;
    let by_content = |spec: &str| {
        let is_it = |f: &Found| {
            let (uuid, label) = f.content.as_ref().map_or((None, None), |c| (c.uuid.as_deref(), c.label.as_deref()));
            let value = |tag| spec.strip_prefix(tag).map(|v: &str| v.trim_matches('"'));
            value("UUID=").is_some_and(|v| uuid.is_some_and(|u| u.eq_ignore_ascii_case(v)))
                || value("LABEL=").is_some_and(|v| label == Some(v))
        };
        volumes().find(|(f, _)| is_it(f)).map(|(_, d)| d.letter)
    };
    let by_name = |spec: &str| {
        let (letter, _) = parse(spec.strip_prefix("/dev/")?)?;
        devices.iter().any(|d| d.letter == letter).then_some(letter)
    };
    let boot = spec_of(fstab, "/boot").and_then(|spec| by_content(spec).or_else(|| by_name(spec)));
    Some(boot.unwrap_or(root.letter))
}

fn check_names(source: &Source, pieces: &[Piece<'_>]) -> Result<()> {
    for (at, piece) in pieces.iter().enumerate() {
        for other in &pieces[..at] {
            let (a, b) = (&piece.device, &other.device);
            if a.number == b.number || a.number.is_none() || b.number.is_none() {
                return Err(Error::Invalid(format!(
                    "{}: disks {} ({}) and {} ({}) can't both be there: give one of them another name with --disk",
                    source.name, b.name, source.disks[other.index].origin, a.name, source.disks[piece.index].origin
                )));
            }
        }
        if piece.device.number.is_some_and(|n| !(1..=127).contains(&n)) {
            return Err(Error::Invalid(format!("{}: {}: a partition number is from 1 to 127", source.name, piece.device.name)));
        }
    }
    Ok(())
}

/// A disk that stays as it is.
fn kept(piece: &Piece<'_>, device: String) -> TargetDisk {
    let volumes = piece.contents.volumes.iter().map(|found| {
        let suffix = found.number.map(|n| n.to_string()).unwrap_or_default();
        let mut volume = volume(piece.index, found, format!("{}{suffix}", piece.device.name), format!("{device}{suffix}"));
        volume.recreate &= found.number.is_none();
        volume
    });
    TargetDisk { size: piece.contents.size, table: Table::Keep { disk: piece.index }, volumes: volumes.collect(), device }
}

/// A new disk with a partition for each piece.
fn partitioned(source: &Source, pieces: &[Piece<'_>], device: String) -> Result<TargetDisk> {
    let too_large = || Error::Invalid(format!("{}: the disks are too large to be put on one", source.name));
    let found: Vec<(&Piece<'_>, &Found)> = pieces.iter().filter_map(|p| Some((p, p.contents.volumes.first()?))).collect();
    let end_from = |first: u64| {
        let mut end = Some(first);
        for (_, found) in &found {
            end = end.and_then(|e| e.checked_add(found.len)?.checked_next_multiple_of(ALIGNMENT));
        }
        end.filter(|e| *e < 1 << 62).ok_or_else(too_large)
    };
    let fits_mbr = end_from(ALIGNMENT)? <= MBR_LIMIT && pieces.iter().all(|p| p.device.number.is_none_or(|n| n <= 4));
    // A GPT's bios_grub partition takes the first MiB behind the room before partitions.
    let (table, first) = if fits_mbr { (Table::NewMbr, ALIGNMENT) } else { (Table::NewGpt, 2 * ALIGNMENT) };
    let mut at = first;
    let mut volumes = Vec::new();
    for (piece, found) in found {
        let number = piece.device.number.unwrap_or(1);
        let mut volume = volume(piece.index, found, piece.device.name.clone(), format!("{device}{number}"));
        (volume.partition, volume.target_offset) = (Some(number), at);
        // Can't overflow: the sum was made above.
        at = (at + found.len).next_multiple_of(ALIGNMENT);
        volumes.push(volume);
    }
    let size = if table == Table::NewGpt { at + GPT_TAIL.next_multiple_of(ALIGNMENT) } else { at };
    Ok(TargetDisk { device, size, table, volumes })
}

fn volume(disk: usize, found: &Found, source_device: String, target_device: String) -> Volume {
    let content = found.content.as_ref();
    Volume {
        disk,
        source_device,
        target_device,
        partition: found.number,
        source_offset: found.start,
        target_offset: found.start,
        len: found.len,
        filesystem: content.map(|c| c.kind.to_owned()).unwrap_or_default(),
        uuid: content.and_then(|c| c.uuid.clone()),
        label: content.and_then(|c| c.label.clone()),
        // A hibernated system can't wake on other hardware, and so its image is not kept either.
        recreate: content.is_some_and(|c| c.usage == Usage::Swap),
    }
}
