//! The appliance's block devices.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use super::failure::{Result, because, other};
use super::link::Exchange;
use super::sys;

/// A device is named as the appliance's kernel names it, below /dev.
pub fn check_name(device: &str) -> Result<()> {
    match device.strip_prefix("/dev/") {
        Some(name) if !name.is_empty() && name.split('/').all(|part| !["", ".", ".."].contains(&part)) => Ok(()),
        _ => Err(other(format!("{device} is not the name of a device"))),
    }
}

/// Where a device is given to the kernel's driver of the machine's places.
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

/// Makes the kernel look again into the places from the second on, which were empty when it started: an appliance that
/// continues a template gets its disks there. They are named in this order.
pub fn find_disks(count: u8) -> Result<()> {
    (1..=count)
        .try_for_each(|place| fs::write(BIND, format!("virtio-mmio.{place}")).map_err(|e| other(format!("the disk in place {place}: {e}"))))
}

/// All disks, partitions and mapped devices, with their sizes in bytes.
pub fn list() -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let sectors = fs::read_to_string(format!("/sys/class/block/{name}/size"))?;
        let sectors: u64 = sectors.trim().parse().map_err(|_| other(format!("{name} tells no size")))?;
        if sectors > 0 && !name.starts_with("ram") {
            found.push((format!("/dev/{name}"), sectors.saturating_mul(512)));
        }
    }
    found.sort_by_key(|(name, _)| order(name));
    Ok(found)
}

/// vda, vda1, vda2, vda10, vdb, …, vdz, vdaa: the disk's letters by length, then the number.
fn order(name: &str) -> (usize, String, u64) {
    let letters = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (letters.len(), letters.to_string(), name[letters.len()..].parse().unwrap_or(0))
}

fn open(device: &str, write: bool) -> Result<File> {
    check_name(device)?;
    OpenOptions::new().read(true).write(write).open(device).map_err(|e| because(device, e))
}

/// Sends a range of a device.
pub fn read(device: &str, offset: u64, len: u64, exchange: &mut Exchange<'_>) -> Result<()> {
    exchange.send_range(&open(device, false)?, offset, len)
}

/// Writes what the host sends to a device, and out to its disk.
pub fn write(device: &str, offset: u64, exchange: &mut Exchange<'_>) -> Result<()> {
    let file = open(device, true)?;
    let mut position = offset;
    while let Some(data) = exchange.next_data()? {
        file.write_all_at(data, position)?;
        position = position.checked_add(data.len() as u64).ok_or_else(|| other("an offset beyond what disks can have"))?;
    }
    Ok(file.sync_data()?)
}

/// Reads a partition table again.
pub fn reread_partitions(device: &str) -> Result<()> {
    sys::reread_partitions(open(device, false)?).map_err(|e| because(&format!("reading {device}'s partition table"), e))
}

#[cfg(test)]
mod tests {
    #[test]
    fn devices_come_in_the_order_of_their_disks() {
        let mut names = ["vdb", "vda10", "vdaa", "vda2", "vda"];
        names.sort_by_key(|n| super::order(n));
        assert_eq!(names, ["vda", "vda2", "vda10", "vdb", "vdaa"]);
    }

    #[test]
    fn only_names_below_dev_are_devices() {
        assert!(super::check_name("/dev/vda1").is_ok() && super::check_name("/dev/mapper/vg-root").is_ok());
        for bad in ["vda", "/dev/", "/dev/../init", "/etc/passwd", "/dev//vda"] {
            assert!(super::check_name(bad).is_err(), "{bad}");
        }
    }
}
