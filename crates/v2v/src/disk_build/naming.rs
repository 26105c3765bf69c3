//! Which device each disk of the source was for the guest: by its name, or matched to fstab where it has none.

use guestfs::probe::Usage;

use super::examine::{DiskContents, Found};
use crate::guest::devices::{Devices, parse};
use crate::source::Source;
use crate::{Error, Result};

/// A device of the guest: disk letter from 0, and the partition number of those that were partitions of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub letter: u32,
    pub number: Option<u32>,
    /// Without `/dev/`: `xvda2`.
    pub name: String,
}

/// The devices of all disks, in the source's order.
pub(super) fn devices(source: &Source, contents: &[DiskContents]) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for (index, disk) in source.disks.iter().enumerate() {
        let (letter, number) = parse(&disk.target).ok_or_else(|| {
            Error::Invalid(format!("disk '{}' ({}): not a name as xvda or xvda2: say what it was with --disk", disk.target, disk.origin))
        })?;
        let is_position = disk.target.bytes().all(|b| b.is_ascii_digit());
        let has_table = contents.get(index).is_some_and(|c| c.table.is_some());
        devices.push((is_position && !has_table, letter, number));
    }
    // Several disks without a table and without names: only fstab knows what they were called. Beside a disk that has a table, and with no
    // root among them, they are data disks, and go by their position.
    let unnamed: Vec<usize> = (0..devices.len()).filter(|i| devices[*i].0).collect();
    let holds_root = |index: &usize| contents.get(*index).and_then(|c| c.volumes.first()).is_some_and(|v| v.root_fstab.is_some());
    let are_data = contents.iter().any(|c| c.table.is_some()) && !unnamed.iter().any(holds_root);
    let matched = if unnamed.len() > 1 && !are_data { match_to_fstab(source, contents, &unnamed)? } else { Vec::new() };
    let device = |(index, (is_position, letter, number)): (usize, (bool, u32, Option<u32>))| {
        let target = &source.disks[index].target;
        if let Some((_, device)) = matched.iter().find(|(i, _)| *i == index) {
            return device.clone();
        }
        let is_number = is_position || target.bytes().all(|b| b.is_ascii_digit());
        let name = if is_number { format!("xvd{}", letters(letter)) } else { target.clone() };
        Device { letter, number, name }
    };
    Ok(devices.into_iter().enumerate().map(device).collect())
}

/// `a`, `b`, … `z`, `aa`, … for 0, 1, …
pub(crate) fn letters(mut index: u32) -> String {
    let mut reversed = Vec::new();
    loop {
        // Below 26.
        reversed.push(b'a' + (index % 26) as u8);
        match (index / 26).checked_sub(1) {
            Some(rest) => index = rest,
            None => break,
        }
    }
    reversed.into_iter().rev().map(char::from).collect()
}

/// One line of fstab that names a device of Xen's or a disk driver's.
struct Line {
    device: Device,
    is_root: bool,
    is_swap: bool,
}

fn match_to_fstab(source: &Source, contents: &[DiskContents], unnamed: &[usize]) -> Result<Vec<(usize, Device)>> {
    let volume = |index: usize| contents.get(index).and_then(|c| c.volumes.first());
    let ask = |why: String| {
        let list: Vec<String> = unnamed
            .iter()
            .map(|i| format!("{}: {}, {}", source.disks[*i].origin, kind_of(volume(*i)), imgcore::size::human(source.disks[*i].size)))
            .collect();
        Error::Invalid(format!(
            "{}: {why}. Say what the guest called them with --disk, for instance --disk xvda2={} (found {})",
            source.name,
            source.disks[unnamed[0]].origin,
            list.join("; ")
        ))
    };
    let roots: Vec<usize> = unnamed.iter().copied().filter(|i| volume(*i).is_some_and(|v| v.root_fstab.is_some())).collect();
    let [root] = roots[..] else {
        return Err(ask(format!(
            "{} of its disks without a partition table hold a Linux system's root, so their names can't be found",
            roots.len()
        )));
    };
    let fstab = volume(root).and_then(|v| v.root_fstab.as_deref()).unwrap_or_default();
    let mut lines: Vec<Line> = fstab.lines().filter_map(device_line).collect();
    let mut matched = Vec::new();
    let mut rest: Vec<usize> = unnamed.to_vec();
    let mut take = |lines: &mut Vec<Line>, rest: &mut Vec<usize>, disk: usize, line: usize| {
        matched.push((disk, lines.remove(line).device));
        rest.retain(|i| *i != disk);
    };
    if let Some(line) = lines.iter().position(|l| l.is_root) {
        take(&mut lines, &mut rest, root, line);
    }
    let is_swap = |index: &usize| volume(*index).and_then(|v| v.content.as_ref()).is_some_and(|c| c.usage == Usage::Swap);
    let swaps: Vec<usize> = rest.iter().copied().filter(is_swap).collect();
    let swap_lines: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].is_swap).collect();
    if let ([disk], [line]) = (&swaps[..], &swap_lines[..]) {
        take(&mut lines, &mut rest, *disk, *line);
    }
    lines.retain(|l| !l.is_swap);
    let data: Vec<usize> = rest.iter().copied().filter(|i| *i != root && !is_swap(i)).collect();
    if let ([disk], [_]) = (&data[..], &lines[..]) {
        take(&mut lines, &mut rest, *disk, 0);
    }
    // What is left goes by its position, unless fstab wants devices that then are nobody's.
    lines.retain(|l| !rest.iter().any(|i| parse(&source.disks[*i].target) == Some((l.device.letter, l.device.number))));
    if let (Some(line), false) = (lines.first(), rest.is_empty()) {
        return Err(ask(format!("/etc/fstab mounts /dev/{}, and more than one of its disks could be that", line.device.name)));
    }
    let taken: Vec<_> = matched.iter().map(|(_, d)| (d.letter, d.number.is_some())).collect();
    if let Some(index) = rest.iter().find(|i| parse(&source.disks[**i].target).is_some_and(|(letter, _)| taken.contains(&(letter, true)))) {
        let target = &source.disks[*index].target;
        return Err(ask(format!("fstab names partitions of one disk, and nothing tells which of them disk {target} is")));
    }
    Ok(matched)
}

fn kind_of(volume: Option<&Found>) -> &str {
    match volume {
        Some(Found { root_fstab: Some(_), .. }) => "a Linux root",
        Some(Found { content: Some(content), .. }) => content.kind,
        _ => "unknown content",
    }
}

fn device_line(line: &str) -> Option<Line> {
    let mut words = line.split_whitespace();
    let name = words.next().filter(|w| !w.starts_with('#') && Devices::is_disk_name(w))?;
    let (mount, kind, options) = (words.next()?, words.next().unwrap_or("auto"), words.next().unwrap_or(""));
    if options.split(',').any(|o| o == "noauto") {
        return None;
    }
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let (letter, number) = parse(name)?;
    Some(Line { device: Device { letter, number, name: name.into() }, is_root: mount == "/", is_swap: kind == "swap" })
}
