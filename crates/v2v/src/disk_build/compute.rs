//! Deciding where everything goes on the target.

use std::collections::BTreeMap;

use guestfs::probe::Usage;
use imgcore::partition::{self, GPT_TAIL};

use super::examine::{DiskContents, Found};
use super::naming::{Device, devices, letters};
use super::{ALIGNMENT, Options, Places};
use crate::grow::Growth;
use crate::guest::devices::parse;
use crate::guest::mounts::spec_of;
use crate::layout::{Layout, Table, TargetDisk, Volume};
use crate::resize::plan::Wishes;
use crate::source::{Boot, Source};
use crate::{Error, Result, resize};

/// From here on an MBR can't address all of a disk.
const MBR_LIMIT: u64 = 2 << 40;

/// Decides what the target's disks are.
///
/// * A disk with a partition table stays as it is.
/// * Volumes that were partitions for the guest (`xvda1`, `xvda2`) become partitions of those numbers on one new disk.
/// * A root filesystem on a whole disk becomes partition 1 of a new disk, for a BIOS can't start it where it is. So does a whole disk
///   with /boot, or the first of those that it lies on; with root and /boot on a whole disk each, both become partitions of one.
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
    let boot = if matches!(source.boot, Boot::Direct { .. }) { boot_disk(contents, &devices, options.places.as_ref()) } else { None };
    let boot_letter = boot.and_then(|b| devices.get(b)).map(|d| d.letter);
    let mut letters_of: BTreeMap<(bool, u32), Vec<Piece<'_>>> = BTreeMap::new();
    let root = root_disk(source, contents, options.places.as_ref());
    // Volumes that are a disk each, and have to be partitions: a BIOS starts none without a table.
    let is_bare = |index: usize, device: &Device| device.number.is_none() && contents.get(index).is_some_and(|c| c.table.is_none());
    let is_needed = |index: usize, device: &Device| is_bare(index, device) && (root == Some(index) || boot == Some(index));
    let merged = (0..devices.len()).filter(|i| is_needed(*i, &devices[*i])).count() > 1;
    for (index, (device, contents)) in devices.into_iter().zip(contents).enumerate() {
        let needed = is_needed(index, &device);
        let letter = boot_letter.filter(|_| merged && needed && !options.keep).unwrap_or(device.letter);
        letters_of.entry((boot_letter.is_some_and(|b| b != letter), letter)).or_default().push(Piece { index, device, contents, needed });
    }
    let mut disks = Vec::new();
    for mut pieces in letters_of.into_values() {
        if !pieces.iter().all(|p| p.needed) {
            check_names(source, &pieces)?;
        }
        pieces.sort_by_key(|p| (p.device.number, p.device.letter));
        let name = |disks: &Vec<TargetDisk>| format!("{}{}", options.target.disk_prefix(), letters(disks.len() as u32));
        let is_new = |p: &Piece<'_>| p.device.number.is_some() || p.needed;
        if pieces.iter().any(is_new) && !options.keep {
            disks.push(partitioned(source, &pieces, name(&disks), options)?);
            continue;
        }
        for piece in pieces {
            disks.push(kept(source, &piece, name(&disks), options)?);
        }
    }
    Ok(Layout { disks })
}

/// A disk of the source with what is known of it.
struct Piece<'a> {
    index: usize,
    device: Device,
    contents: &'a DiskContents,
    /// It is a disk without a table that the guest is to start from.
    needed: bool,
}

/// The disk whose whole-disk filesystem is the guest's root.
fn root_disk(source: &Source, contents: &[DiskContents], places: Option<&Places>) -> Option<usize> {
    if let Some(places) = places {
        // A root that is put together of several needs none of them to be a partition.
        let is_filesystem = |c: &DiskContents| c.volumes.iter().any(|v| v.content.as_ref().is_some_and(|c| c.usage == Usage::Filesystem));
        return places.root.first().copied().filter(|disk| contents.get(*disk).is_some_and(is_filesystem));
    }
    let first = |want: &dyn Fn(&Found) -> bool| contents.iter().position(|c| c.volumes.iter().any(want));
    let is_filesystem = |f: &Found| f.content.as_ref().is_some_and(|c| c.usage == Usage::Filesystem);
    // Where no root can be read in this process, the disk marked for booting or else the first filesystem is taken for it.
    let marked = |index: &usize| source.disks.get(*index).is_some_and(|d| d.bootable) && contents[*index].volumes.iter().any(is_filesystem);
    first(&|f| f.root_fstab.is_some()).or_else(|| (0..contents.len()).find(marked)).or_else(|| first(&is_filesystem))
}

/// The disk to start from: one that holds /boot, as inspection found it or the fstab of the one root says.
fn boot_disk(contents: &[DiskContents], devices: &[Device], places: Option<&Places>) -> Option<usize> {
    if let Some(places) = places {
        // One with a table has room for a boot loader.
        let has_table = |disk: &&usize| {
            contents.get(**disk).is_some_and(|c| c.table.is_some()) || devices.get(**disk).is_some_and(|d| d.number.is_some())
        };
        return places.boot.iter().find(has_table).or(places.boot.first()).copied();
    }
    let volumes = || contents.iter().enumerate().flat_map(|(index, c)| c.volumes.iter().map(move |v| (v, index)));
    let mut roots = volumes().filter_map(|(v, index)| Some((v.root_fstab.as_deref()?, index)));
    let (fstab, root) = roots.next().filter(|_| roots.next().is_none())?;
    let by_content = |spec: &str| {
        let is_it = |f: &Found| {
            let (uuid, label) = f.content.as_ref().map_or((None, None), |c| (c.uuid.as_deref(), c.label.as_deref()));
            let value = |tag| spec.strip_prefix(tag).map(|v: &str| v.trim_matches('"'));
            value("UUID=").is_some_and(|v| uuid.is_some_and(|u| u.eq_ignore_ascii_case(v)))
                || value("LABEL=").is_some_and(|v| label == Some(v))
        };
        volumes().find(|(f, _)| is_it(f)).map(|(_, index)| index)
    };
    let by_name = |spec: &str| {
        let (letter, number) = parse(spec.strip_prefix("/dev/")?)?;
        let exact = devices.iter().position(|d| (d.letter, d.number) == (letter, number));
        exact.or_else(|| devices.iter().position(|d| d.letter == letter))
    };
    let boot = spec_of(fstab, "/boot").and_then(|spec| by_content(spec).or_else(|| by_name(spec)));
    Some(boot.unwrap_or(root))
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

/// A disk that stays as it is, but for what moves or grows.
fn kept(source: &Source, piece: &Piece<'_>, device: String, options: &Options) -> Result<TargetDisk> {
    let volumes = piece.contents.volumes.iter().map(|found| {
        let suffix = found.number.map(|n| n.to_string()).unwrap_or_default();
        let mut volume = volume(piece.index, found, format!("{}{suffix}", piece.device.name), format!("{device}{suffix}"));
        volume.recreate &= found.number.is_none();
        volume
    });
    let mut disk = TargetDisk {
        size: piece.contents.size,
        table: Table::Keep { disk: piece.index },
        grown: 0,
        volumes: volumes.collect(),
        device,
        moved: None,
    };
    let grow = options.grow.as_ref().filter(|g| g.disk == piece.index);
    match (&piece.contents.table, grow) {
        (Some(table), _) => moved(source, table, &mut disk, grow, options)?,
        (None, Some(grow)) => {
            disk.size = disk.size.saturating_add(grow.by);
            disk.volumes.iter_mut().for_each(|v| v.grow = grow.by);
        }
        (None, None) => {}
    }
    Ok(disk)
}

/// Gives the partitions of a table that is kept other places, where one grows or they are to be aligned.
fn moved(source: &Source, table: &partition::Table, disk: &mut TargetDisk, grow: Option<&Growth>, options: &Options) -> Result<()> {
    let crooked = options.realign && table.partitions.iter().any(|p| !p.is_logical() && !p.start.is_multiple_of(options.alignment));
    if grow.is_none() && !crooked {
        return Ok(());
    }
    let grown = |g: &&Growth| table.partitions.iter().find(|p| p.start == g.start && !p.kind.is_extended());
    let sizes: Vec<(u32, u64)> = grow.iter().filter_map(|g| grown(g).and_then(|p| Some((p.number, p.len.checked_add(g.by)?)))).collect();
    let gaps = (table.partitions.len() as u64 + 2).saturating_mul(options.alignment.max(ALIGNMENT));
    let size = disk.size.saturating_add(grow.map_or(0, |g| g.by)).saturating_add(gaps).next_multiple_of(ALIGNMENT);
    let wishes = Wishes { sizes, alignment: options.alignment, align_first: crooked, ..Wishes::default() };
    let plan = resize::plan::compute(table, size, &wishes, [0; 16])
        .map_err(|e| Error::Invalid(format!("{}: the partitions of {} cannot move: {e}", source.name, disk.device)))?;
    for volume in &mut disk.volumes {
        let piece = plan.pieces.iter().find(|p| Some(p.number) == volume.partition);
        let Some(piece) = piece else { continue };
        (volume.target_offset, volume.grow) = (piece.new.start, piece.new_len().saturating_sub(volume.len));
    }
    disk.size = size;
    disk.moved = Some(plan);
    Ok(())
}

/// A new disk with a partition for each piece.
fn partitioned(source: &Source, pieces: &[Piece<'_>], device: String, options: &Options) -> Result<TargetDisk> {
    let alignment = options.alignment;
    let too_large = || Error::Invalid(format!("{}: the disks are too large to be put on one", source.name));
    let found: Vec<(&Piece<'_>, &Found)> = pieces.iter().filter_map(|p| Some((p, p.contents.volumes.first()?))).collect();
    let grow = |piece: &Piece<'_>| options.grow.as_ref().filter(|g| g.disk == piece.index).map_or(0, |g| g.by);
    let end_from = |first: u64| {
        let mut end = Some(first);
        for (piece, found) in &found {
            end = end.and_then(|e| e.checked_add(found.len)?.checked_add(grow(piece))?.checked_next_multiple_of(alignment));
        }
        end.filter(|e| *e < 1 << 62).ok_or_else(too_large)
    };
    let first = ALIGNMENT.next_multiple_of(alignment);
    let fits_mbr = end_from(first)? <= MBR_LIMIT && pieces.iter().all(|p| p.device.number.is_none_or(|n| n <= 4));
    // A GPT's bios_grub partition takes the first MiB behind the room before partitions.
    let (table, first) = if fits_mbr { (Table::NewMbr, first) } else { (Table::NewGpt, (2 * ALIGNMENT).next_multiple_of(alignment)) };
    let mut at = first;
    let mut volumes = Vec::new();
    for (number, (piece, found)) in (1..).zip(found) {
        let number = piece.device.number.unwrap_or(number);
        let mut volume = volume(piece.index, found, piece.device.name.clone(), format!("{device}{number}"));
        (volume.partition, volume.target_offset, volume.grow) = (Some(number), at, grow(piece));
        // Can't overflow: the sum was made above.
        at = (at + volume.target_len()).next_multiple_of(alignment);
        volumes.push(volume);
    }
    let size = if table == Table::NewGpt { at + GPT_TAIL } else { at }.next_multiple_of(ALIGNMENT);
    Ok(TargetDisk { device, size, table, grown: 0, volumes, moved: None })
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
        grow: 0,
        filesystem: content.map(|c| c.kind.to_owned()).unwrap_or_default(),
        uuid: content.and_then(|c| c.uuid.clone()),
        label: content.and_then(|c| c.label.clone()),
        // A hibernated system can't wake on other hardware, and so its image is not kept either.
        recreate: content.is_some_and(|c| c.usage == Usage::Swap),
    }
}
